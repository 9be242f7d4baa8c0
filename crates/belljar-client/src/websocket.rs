//! Opening a WebSocket to a sandbox: the same address, key, routing headers and replays as any other call.

use http::{HeaderValue, Method, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{Error, Sandbox, limits::READ_BUFFER};

pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Largest message that we take: the protocol's limit with room for the opcode.
const MESSAGE_MAX: usize = 2 * belljar_api::limits::WS_MESSAGE_MAX;

impl Sandbox {
    /// Opens a WebSocket at `path` (with its query) with extra headers.
    pub(crate) async fn websocket(&self, path: &str, headers: &[(&'static str, HeaderValue)]) -> Result<Socket, Error> {
        let key = generate_key();
        let accept = derive_accept_key(key.as_bytes());
        let mut call = self.call(Method::GET, path);
        let what = call.what();
        let key = HeaderValue::from_str(&key).map_err(|error| Error::protocol(&what, error.to_string()))?;
        call = call
            .header(header::CONNECTION, HeaderValue::from_static("Upgrade"))
            .header(header::UPGRADE, HeaderValue::from_static("websocket"))
            .header(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
            .header(header::SEC_WEBSOCKET_KEY, key);
        for (name, value) in headers {
            call = call.header(header::HeaderName::from_static(name), value.clone());
        }
        let answer = self.transport.send(&call, |status| status == StatusCode::SWITCHING_PROTOCOLS).await?;
        let accepted = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT).is_some_and(|value| *value == accept);
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS || !accepted {
            return Err(Error::protocol(what, format!("no WebSocket ({})", answer.status())));
        }
        let stream = hyper::upgrade::on(answer)
            .await
            .map_err(|source| Error::Transport { what: what.clone(), source: Box::new(source) })?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_MAX))
            .max_frame_size(Some(MESSAGE_MAX))
            .read_buffer_size(READ_BUFFER);
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Client, Some(config)).await)
    }
}
