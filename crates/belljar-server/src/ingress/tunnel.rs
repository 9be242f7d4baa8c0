//! `GET /api/v1/tunnels/tcp?port=N`: a byte stream to a port on the loopback of a sandbox, for a client that speaks
//! WebSocket.
//!
//! The WebSocket ends here. The guest gets the plain bytes: to take frames apart is the greater part of what a tunnel
//! costs where its processor is emulated.
//!
//! The end of either direction becomes a Close frame or the end of the stream; the other direction goes on for as long as
//! the WebSocket allows: after a client's Close nothing more can be sent to it. A client that wants more says
//! `half_close=true`; see [`belljar_api::tunnel`].
//!
//! ```text
//! port, handshake --refused--> 4xx
//!    \--connect--> 101 --> both ways --client: Close, end--> guest's side ends --> done
//!          \--> 502: nothing listens   \--guest: end--> told; until the client answers it may still send
//! ```

use axum::body::Body;
use belljar_api::limits::{AGENT_PORT, WS_MESSAGE_MAX};
use bytes::{Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::{Request, Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::server::create_response_with_body,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    proxy::{Hold, connect},
    websocket,
};
use crate::{
    error::ApiError,
    limits::SPLICE_BUFFER,
    node_link::{BodyStream, NodeLink},
    stall::Impatient,
};

/// Connects first: 101 means that somebody listens.
pub(super) async fn answer<B>(
    link: &NodeLink,
    sandbox_id: &str,
    hold: Hold,
    mut request: Request<B>,
) -> Result<Response<Body>, ApiError> {
    let (port, half_close) = wanted(request.uri().query().unwrap_or_default())?;
    let is_extended = websocket::is_extended(&request);
    if is_extended {
        websocket::to_http1(&mut request);
    }
    let client = hyper::upgrade::on(&mut request);
    let mut answer = create_response_with_body(&request, Body::empty)
        .map_err(|error| ApiError::invalid(format!("a tunnel is a WebSocket, and this asks for none: {error}")))?;
    let guest = connect(link, sandbox_id, port).await?;
    if is_extended {
        websocket::to_http2(answer.headers_mut());
        *answer.status_mut() = StatusCode::OK;
    }
    tokio::spawn(async move {
        let _hold = hold;
        match client.await {
            Ok(client) => carry(socket(client).await, guest, half_close).await,
            Err(error) => tracing::debug!(%error, "an upgrade did not happen"),
        }
    });
    Ok(answer)
}

/// The port, and whether directions end for themselves.
fn wanted(query: &str) -> Result<(u16, bool), ApiError> {
    let (mut port, mut half_close) = (String::new(), false);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "port" => port = value.into_owned(),
            "half_close" => {
                let words = |_| ApiError::invalid(format!("half_close: {value:?} is neither true nor false"));
                half_close = value.parse().map_err(words)?;
            }
            _ => {}
        }
    }
    let refused = |why| Err(ApiError::invalid(format!("port: {port:?} {why}")));
    match port.parse() {
        Ok(0) | Err(_) => refused("is not between 1 and 65535"),
        Ok(AGENT_PORT) => refused("is the sandbox's agent; call its API"),
        Ok(port) => Ok((port, half_close)),
    }
}

type Socket = WebSocketStream<Impatient<TokioIo<Upgraded>>>;

async fn socket(client: Upgraded) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(WS_MESSAGE_MAX))
        .max_frame_size(Some(WS_MESSAGE_MAX))
        .read_buffer_size(SPLICE_BUFFER)
        // A message goes out at once: it is as long as what there was.
        .write_buffer_size(0);
    WebSocketStream::from_raw_socket(Impatient::new(TokioIo::new(client)), Role::Server, Some(config)).await
}

/// Why nothing more comes from the client.
enum Ended {
    /// It said so.
    Closed,
    /// It sent what is not part of the protocol.
    Wrong(CloseCode, &'static str),
    /// One of the two connections broke off.
    Gone,
}

async fn carry(socket: Socket, guest: BodyStream, half_close: bool) {
    let (mut sink, mut stream) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(guest);
    let ended = {
        let mut inward = std::pin::pin!(to_guest(&mut stream, &mut writer, half_close));
        tokio::select! {
            ended = &mut inward => ended,
            // The guest has ended and the client was told: until it answers it may still send.
            sent = from_guest(&mut sink, &mut reader, half_close) => match sent {
                Ok(()) => inward.await,
                Err(_) => Ended::Gone,
            },
        }
    };
    match ended {
        Ended::Closed => {
            let _ = writer.shutdown().await;
            // Its Close is answered.
            let _ = sink.flush().await;
        }
        Ended::Wrong(code, words) => drop(sink.send(close(code, words)).await),
        Ended::Gone => {}
    }
}

fn close(code: CloseCode, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

async fn from_guest(
    sink: &mut SplitSink<Socket, Message>,
    reader: &mut ReadHalf<BodyStream>,
    half_close: bool,
) -> tungstenite::Result<()> {
    let mut chunk = BytesMut::new();
    loop {
        // What was sent is let go by then, so that this is the same memory again.
        chunk.reserve(SPLICE_BUFFER);
        match reader.read_buf(&mut chunk).await {
            Ok(0) if half_close => return sink.send(Message::Binary(Bytes::new())).await,
            Err(_) if half_close => return sink.send(close(CloseCode::Error, "the connection broke off")).await,
            Ok(0) | Err(_) => return sink.send(close(CloseCode::Normal, "")).await,
            Ok(_) => sink.send(Message::Binary(chunk.split().freeze())).await?,
        }
    }
}

async fn to_guest(stream: &mut SplitStream<Socket>, writer: &mut WriteHalf<BodyStream>, half_close: bool) -> Ended {
    loop {
        let written = match stream.next().await {
            Some(Ok(Message::Binary(bytes))) if bytes.is_empty() && half_close => writer.shutdown().await,
            Some(Ok(Message::Binary(bytes))) => writer.write_all(&bytes).await,
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(()),
            Some(Ok(Message::Close(_))) => return Ended::Closed,
            Some(Ok(Message::Text(_))) => return Ended::Wrong(CloseCode::Protocol, "a tunnel carries binary messages"),
            Some(Err(tungstenite::Error::Capacity(_))) => {
                return Ended::Wrong(CloseCode::Size, "the message is too long");
            }
            Some(Err(_)) | None => return Ended::Gone,
        };
        if written.is_err() {
            return Ended::Gone;
        }
    }
}
