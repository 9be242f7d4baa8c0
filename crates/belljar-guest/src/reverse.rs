//! `GET /api/v1/tunnels/reverse?port=N`: a listener on the guest's loopback whose connections are the client's to serve.
//!
//! ```text
//! request --> listener bound --101 (x-belljar-port)--> HTTP/2 with the roles turned round: the guest is the client
//!   guest program --connects--> listener --CONNECT--> 200: bytes both ways, each direction ends for itself
//!                                             \-----> anything else: the connection is reset
//! client gone, or a new link (sleep, restore) --> the listener and all connections are closed
//! ```
//! HTTP/2 gives every connection its own flow control, and pings show that the other side is there.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
    routing::get,
};
use belljar_api::{
    error::code,
    tunnel::{PORT_HEADER, REVERSE_CONNECTIONS_MAX, REVERSE_FRAME, REVERSE_PATH, REVERSE_UPGRADE, REVERSE_WINDOW},
};
use hyper::{client::conn::http2, upgrade::OnUpgrade};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    agent::Agent,
    connect::splice,
    error::{ApiError, Params},
    limits::{ACCEPT_PAUSE, REVERSE_ANSWER, REVERSE_PING, REVERSE_PING_TIMEOUT},
};

type Sender = http2::SendRequest<Body>;

/// The route.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route(REVERSE_PATH, get(reverse))
}

#[derive(Deserialize)]
struct ReverseQuery {
    #[serde(default)]
    port: String,
}

/// Binds first: 101 means that the guest's programs can connect.
async fn reverse(
    State(_): State<Arc<Agent>>,
    Params(query): Params<ReverseQuery>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let port = query.port.parse::<u16>();
    let port = port.map_err(|_| ApiError::invalid(format!("port: `{}` is not between 0 and 65535", query.port)))?;
    if !asks(request.headers()) {
        return Err(ApiError::invalid(format!("this wants `Connection: upgrade` and `Upgrade: {REVERSE_UPGRADE}`")));
    }
    let listener = bind(port).await.map_err(|error| refused(port, &error))?;
    let port = listener.local_addr().map_err(|error| refused(port, &error))?.port();
    tokio::spawn(serve(hyper::upgrade::on(&mut request), listener));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(REVERSE_UPGRADE));
    headers.insert(PORT_HEADER, HeaderValue::from(port));
    Ok(response)
}

fn asks(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(REVERSE_UPGRADE.as_bytes()))
}

async fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

fn refused(port: u16, error: &io::Error) -> ApiError {
    let message =
        format!("cannot listen on 127.0.0.1:{port} of the sandbox: {error}; choose another port, or 0 for any");
    match error.kind() {
        io::ErrorKind::AddrInUse => ApiError::new(StatusCode::CONFLICT, code::CONFLICT, message),
        _ => ApiError::internal(message),
    }
}

/// Carries connections until the client is gone.
async fn serve(upgrade: OnUpgrade, listener: TcpListener) {
    let Ok(upgraded) = upgrade.await else { return };
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(REVERSE_WINDOW)
        .initial_connection_window_size(REVERSE_WINDOW * REVERSE_CONNECTIONS_MAX)
        .max_frame_size(REVERSE_FRAME)
        .max_send_buf_size(REVERSE_WINDOW as usize)
        .keep_alive_interval(REVERSE_PING)
        .keep_alive_timeout(REVERSE_PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(upgraded)
        .await;
    let Ok((sender, connection)) = connection else { return };
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!("a reverse tunnel broke off: {error}");
        },
        () = accept(listener, sender) => {}
    }
}

/// Offers every connection to the client, for as long as it is polled.
async fn accept(listener: TcpListener, sender: Sender) {
    let places = Arc::new(Semaphore::new(REVERSE_CONNECTIONS_MAX as usize));
    // Dropped with us, and every connection with it.
    let mut carried = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while carried.try_join_next().is_some() {}
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors; they come back when something closes.
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let sender = sender.clone();
        carried.spawn(async move {
            carry(stream, peer, sender).await;
            drop(place);
        });
    }
}

async fn carry(stream: TcpStream, peer: SocketAddr, mut sender: Sender) {
    let _ = stream.set_nodelay(true);
    let offered = async {
        let request =
            hyper::Request::builder().method(Method::CONNECT).uri(peer.to_string()).body(Body::empty()).ok()?;
        sender.ready().await.ok()?;
        let answer = sender.send_request(request).await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        hyper::upgrade::on(answer).await.ok()
    };
    match timeout(REVERSE_ANSWER, offered).await.ok().flatten() {
        Some(upgraded) => splice(TokioIo::new(upgraded), stream).await,
        // An orderly end would look like a service that had nothing to say.
        None => drop(stream.set_zero_linger()),
    }
}
