//! Listeners on the guest's loopback whose connections the server takes: what reverse tunnels and `ssh -R` need. The wire is
//! in [`belljar_api::tunnel`].
//!
//! ```text
//! GET reverse?port=N --> bound --101 (x-belljar-port)--> a line for each connection that waits, without end
//!   guest program --connects--> waits --GET reverse/{id}--> 101: its bytes both ways, each direction ends for itself
//!                                 \--nobody comes--> reset
//! server gone, or a new link (sleep, restore) --> the listener and all connections are closed
//! ```

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
    routing::get,
};
use belljar_api::{
    error::code,
    tunnel::{Offer, PORT_HEADER, REVERSE_CONNECTIONS_MAX, REVERSE_PATH, REVERSE_UPGRADE},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    agent::Agent,
    connect::splice,
    error::{ApiError, Params},
    limits::{ACCEPT_PAUSE, REVERSE_ANSWER},
    serve::Polite,
    sync::lock,
};

/// The routes.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route(REVERSE_PATH, get(listen)).route(&format!("{REVERSE_PATH}/{{id}}"), get(take))
}

/// Connections that nobody has taken yet, of all listeners.
#[derive(Default)]
pub(crate) struct Waiting {
    last_id: AtomicU64,
    by_id: Mutex<HashMap<u64, (Accepted, Expiry)>>,
}

/// Ends the wait of a connection, unless it was taken.
type Expiry = AbortOnDropHandle<()>;

/// A connection that was made to a listener.
struct Accepted {
    stream: TcpStream,
    /// Cancelled with its listener.
    over: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Waiting {
    fn add(agent: &Arc<Agent>, accepted: Accepted) -> u64 {
        let this = &agent.reverse;
        let id = this.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        // Held until it is in, so that it does not expire before.
        let mut by_id = lock(&this.by_id);
        let expiry = tokio::spawn(expire(Arc::clone(agent), id, accepted.over.clone()));
        by_id.insert(id, (accepted, AbortOnDropHandle::new(expiry)));
        id
    }

    fn take(&self, id: u64) -> Option<Accepted> {
        lock(&self.by_id).remove(&id).map(|(accepted, _)| accepted)
    }

    /// Resets one that is still there: an orderly end would look like a service that had nothing to say.
    fn reset(&self, id: u64) {
        if let Some(accepted) = self.take(id) {
            let _ = accepted.stream.set_zero_linger();
        }
    }
}

#[derive(Deserialize)]
struct ReverseQuery {
    #[serde(default)]
    port: String,
}

/// Binds first: 101 means that the guest's programs can connect.
async fn listen(
    State(agent): State<Arc<Agent>>,
    Params(query): Params<ReverseQuery>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let port = query.port.parse::<u16>();
    let port = port.map_err(|_| ApiError::invalid(format!("port: `{}` is not between 0 and 65535", query.port)))?;
    let mut response = switch(&request)?;
    let listener = bind(port).await.map_err(|error| refused(port, &error))?;
    let port = listener.local_addr().map_err(|error| refused(port, &error))?.port();
    tokio::spawn(serve(agent, listener, hyper::upgrade::on(&mut request)));
    response.headers_mut().insert(PORT_HEADER, HeaderValue::from(port));
    Ok(response)
}

/// The answer to a request that asks for the change of protocol.
fn switch(request: &Request) -> Result<Response, ApiError> {
    let wanted = request.headers().get(header::UPGRADE);
    if !wanted.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(REVERSE_UPGRADE.as_bytes())) {
        return Err(ApiError::invalid(format!("this wants `Connection: upgrade` and `Upgrade: {REVERSE_UPGRADE}`")));
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(REVERSE_UPGRADE));
    Ok(response)
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

/// Offers every connection, until the server is gone.
async fn serve(agent: Arc<Agent>, listener: TcpListener, upgrade: OnUpgrade) {
    let Ok(upgraded) = upgrade.await else { return };
    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
    // Whatever still waits or is carried ends with us.
    let over = CancellationToken::new();
    let _guard = over.clone().drop_guard();
    let offers = async {
        let places = Arc::new(Semaphore::new(REVERSE_CONNECTIONS_MAX as usize));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((stream, peer)) = listener.accept().await else {
                // Out of descriptors; they come back when something closes.
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let id = Waiting::add(&agent, Accepted { stream, over: over.clone(), _place: place });
            let Ok(mut line) = serde_json::to_vec(&Offer { id, peer: peer.to_string() }) else { return };
            line.push(b'\n');
            if writer.write_all(&line).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = offers => {}
        // It says nothing; this is its end.
        _ = reader.read_u8() => {}
    }
}

/// Resets a connection that nobody comes for.
async fn expire(agent: Arc<Agent>, id: u64, over: CancellationToken) {
    let _ = timeout(REVERSE_ANSWER, over.cancelled()).await;
    agent.reverse.reset(id);
}

async fn take(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<u64>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let response = switch(&request)?;
    let gone = || ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, format!("connection {id} does not wait here"));
    let accepted = agent.reverse.take(id).ok_or_else(gone)?;
    tokio::spawn(carry(hyper::upgrade::on(&mut request), accepted));
    Ok(response)
}

async fn carry(upgrade: OnUpgrade, accepted: Accepted) {
    let Accepted { stream, over, _place } = accepted;
    let Some(mut link) = upgrade.await.ok().and_then(Polite::of) else { return drop(stream.set_zero_linger()) };
    match over.run_until_cancelled(splice(&mut link, stream)).await {
        Some(Ok(())) => {}
        Some(Err(_)) | None => link.cut(),
    }
}
