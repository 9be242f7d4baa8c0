//! A listener in a guest whose connections come to the server: what `ssh -R` needs. The wire is in
//! [`belljar_api::tunnel`]; the route, the wake and the connection to the node are those of any request.
//!
//! ```text
//! bind --101--> listening --CONNECT--> accept -> Offer -> take: a byte stream, each direction ends for itself
//!                                                   \---> dropped: the guest's program sees a reset
//!      the sandbox sleeps or ends --> accept answers None        dropped --> closed in the guest
//! ```

use belljar_api::{
    limits::AGENT_PORT,
    tunnel::{PORT_HEADER, REVERSE_CONNECTIONS_MAX, REVERSE_FRAME, REVERSE_PATH, REVERSE_UPGRADE, REVERSE_WINDOW},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1,
    server::conn::http2,
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::{exchange::failed, proxy, target::Target};
use crate::{
    app::App,
    error::ApiError,
    limits::{GUEST_CONNECT_TIMEOUT, KEEP_ALIVE_AFTER, NODE_PING_TIMEOUT},
};

/// Bytes of a refusal of the guest's that are read.
const REFUSAL_MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct GuestListener {
    port: u16,
    offers: mpsc::Receiver<Offer>,
    _connection: AbortOnDropHandle<()>,
}

/// A connection that somebody in the guest has made.
#[derive(Debug)]
pub(crate) struct Offer {
    /// Its address there.
    pub(crate) peer: String,
    upgrade: OnUpgrade,
    taken: oneshot::Sender<()>,
}

impl GuestListener {
    /// Listens on `port` (0: any free one) on 127.0.0.1 of a sandbox, which is woken for it. The caller has seen to it
    /// that the user may. 409 when something listens there already.
    pub(crate) async fn bind(app: &App, sandbox: &str, port: u16) -> Result<Self, ApiError> {
        let target = Target { sandbox: sandbox.to_owned(), port: AGENT_PORT };
        let (row, link) = proxy::reach(app, &target).await?;
        let stream = link.connect(&row.id, AGENT_PORT).await?;
        let open = upgrade(stream, port);
        let late = |_| ApiError::unreachable(link.id());
        let (port, upgraded) = tokio::time::timeout(GUEST_CONNECT_TIMEOUT, open).await.map_err(late)??;
        let (sender, offers) = mpsc::channel(1);
        let connection = AbortOnDropHandle::new(tokio::spawn(serve(upgraded, sender)));
        Ok(Self { port, offers, _connection: connection })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The next connection; `None` when the sandbox sleeps, has ended, or cannot be reached any more.
    pub(crate) async fn accept(&mut self) -> Option<Offer> {
        self.offers.recv().await
    }
}

impl Offer {
    /// Takes it.
    pub(crate) async fn take(self) -> hyper::Result<TokioIo<Upgraded>> {
        // Nobody waits when it is gone meanwhile; then there is no stream either.
        let _ = self.taken.send(());
        self.upgrade.await.map(TokioIo::new)
    }
}

async fn upgrade(stream: Upgraded, port: u16) -> Result<(u16, Upgraded), ApiError> {
    let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| failed(&error))?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!("{REVERSE_PATH}?port={port}"))
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, REVERSE_UPGRADE)
        .body(Empty::<Bytes>::new())
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let bound = answer.headers().get(PORT_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    match (answer.status(), bound) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(bound)) => {
            Ok((bound, hyper::upgrade::on(answer).await.map_err(|error| failed(&error))?))
        }
        (status, _) => {
            let body = Limited::new(answer.into_body(), REFUSAL_MAX).collect().await;
            let said = body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
            let words = || belljar_api::error::ErrorBody::new(belljar_api::error::code::PROXY_ERROR, "no listener");
            let said: belljar_api::error::ErrorBody = said.unwrap_or_else(words);
            let status = if status.is_client_error() { status } else { StatusCode::BAD_GATEWAY };
            Err(ApiError::new(status, &said.code, said.error))
        }
    }
}

/// Offers every connection, until the guest is gone.
async fn serve(upgraded: Upgraded, offers: mpsc::Sender<Offer>) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        let offers = offers.clone();
        async move {
            let (taken, answer) = oneshot::channel();
            let peer = request.uri().to_string();
            let offer = Offer { peer, upgrade: hyper::upgrade::on(&mut request), taken };
            let is_taken = offers.send(offer).await.is_ok() && answer.await.is_ok();
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = if is_taken { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let ended = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(REVERSE_WINDOW)
        .initial_connection_window_size(REVERSE_WINDOW * REVERSE_CONNECTIONS_MAX)
        .max_frame_size(REVERSE_FRAME)
        .max_concurrent_streams(REVERSE_CONNECTIONS_MAX)
        .max_send_buf_size(REVERSE_WINDOW as usize)
        .keep_alive_interval(KEEP_ALIVE_AFTER)
        .keep_alive_timeout(NODE_PING_TIMEOUT)
        .serve_connection(upgraded, service)
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a listener in a guest has ended");
    }
}
