//! The node's connection to the server: dialled out, then turned round, so that the node serves HTTP/2 on it.
//!
//! ```text
//! dialling ──101──> serving ──(connection ends)──> pause (50 ms, doubling to 5 s) ──> dialling
//! ```
//! Format and routes: [`belljar_api::node`]. Sandboxes do not notice whether a server is connected.

mod api;
mod tunnel;

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use belljar_api::node::{CONNECT_PATH, UPGRADE};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::{client::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, duplex},
    net::TcpStream,
};
use tower::ServiceExt;

use crate::{
    Context, ServerSetting, chain,
    limits::{H2_CONNECTION_WINDOW, H2_STREAM_WINDOW, H2_STREAMS_MAX, PIPE, REDIAL, SERVER_PING, SERVER_PING_TIMEOUT},
};

/// Why the server could not be reached.
#[derive(Debug, thiserror::Error)]
enum UplinkError {
    #[error("cannot connect to {address}")]
    Connect { address: String, source: std::io::Error },
    #[error("the server in this process has ended")]
    Gone,
    #[error("the server broke off")]
    Http(#[from] hyper::Error),
    #[error("the server answered {0} to the node's connection; is the node token right?")]
    Refused(StatusCode),
    #[error("the request cannot be built")]
    Request(#[from] http::Error),
}

/// Keeps a connection to the server for as long as the future lives.
pub(crate) async fn run(ctx: Arc<Context>) {
    let mut pause = REDIAL.0;
    loop {
        let begun = tokio::time::Instant::now();
        match connect(&ctx).await {
            Ok(()) => tracing::info!("the server closed the connection"),
            Err(error) => tracing::warn!(error = chain(&error), "no server"),
        }
        if begun.elapsed() > REDIAL.1 {
            pause = REDIAL.0;
        }
        // Jitter keeps a fleet of nodes from coming back in step.
        let jitter = pause.mul_f64(rand::random_range(0.5..1.0));
        tokio::time::sleep(jitter).await;
        pause = (pause * 2).min(REDIAL.1);
    }
}

async fn connect(ctx: &Arc<Context>) -> Result<(), UplinkError> {
    match &ctx.server {
        ServerSetting::Address(address) => {
            let failed = |source| UplinkError::Connect { address: address.clone(), source };
            let stream = TcpStream::connect(address).await.map_err(failed)?;
            // A small frame must not wait for a large one's acknowledgement: 40 ms on every hop.
            stream.set_nodelay(true).map_err(failed)?;
            turn_round(ctx, address, Some(SERVER_PING), stream).await
        }
        ServerSetting::Here(server) => {
            let (near, far) = duplex(PIPE);
            server.send(far).await.map_err(|_| UplinkError::Gone)?;
            // The other end cannot vanish without a word: asked for one, it would only seem to when the machine is busy elsewhere.
            turn_round(ctx, "localhost", None, near).await
        }
    }
}

/// Asks for the connection to be turned round, and serves it.
async fn turn_round<Io>(ctx: &Arc<Context>, host: &str, pings: Option<Duration>, io: Io) -> Result<(), UplinkError>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let driving = tokio::spawn(connection.with_upgrades());
    let request = Request::post(CONNECT_PATH)
        .header(header::HOST, host)
        .header(header::AUTHORIZATION, format!("Bearer {}", ctx.node_token))
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, UPGRADE)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        driving.abort();
        return Err(UplinkError::Refused(response.status()));
    }
    let upgraded = hyper::upgrade::on(response).await?;
    serve(ctx, pings, TokioIo::new(upgraded)).await.map_err(UplinkError::Http)
}

/// Serves the server until the connection ends, or it leaves a ping unanswered.
pub(crate) async fn serve<Io>(ctx: &Arc<Context>, pings: Option<Duration>, io: Io) -> hyper::Result<()>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let router = api::router(ctx.clone());
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let router = router.clone();
        async move { router.oneshot(request.map(Body::new)).await }
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_frame_size(64 * 1024)
        .max_send_buf_size(512 * 1024)
        // Clients that give up early are everyday life here, not an attack: the peer is our own server.
        .max_pending_accept_reset_streams(1024)
        .max_concurrent_streams(H2_STREAMS_MAX)
        .keep_alive_interval(pings)
        .keep_alive_timeout(SERVER_PING_TIMEOUT);
    http.serve_connection(TokioIo::new(io), service).await
}
