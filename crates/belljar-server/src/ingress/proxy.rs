//! Whether a request may go to a sandbox, and the wait until it can. [`super::exchange`] takes it there.

use std::sync::Arc;

use axum::{body::Body, response::IntoResponse};
use belljar_api::{
    error::code,
    id::is_id,
    limits::AGENT_PORT,
    tunnel::{REVERSE_PATH, TCP_PATH},
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    exchange::Exchange,
    forwarded::Peer,
    grpc,
    guest::GrpcConnections,
    pool::Route,
    reverse::{self, GuestListener},
    target::Target,
    tunnel,
};
use crate::{
    app::App,
    error::ApiError,
    life::{Phase, Reported, SandboxRow},
    limits::{NODE_WAIT, READY_WAIT},
    node_link::{BodyStream, NodeLink},
    serve::Busy,
};

/// Who asks, from outside.
#[derive(Debug, Clone)]
pub(crate) struct Outside {
    /// Whose connection it is.
    pub(crate) peer: Peer,
    /// What the connection keeps from ending: its place among the others, and, where requests share it, that one of
    /// them is under way. A spliced one holds on to it until it ends.
    pub(crate) hold: Hold,
    /// HTTP/2 connections to guests that requests of this connection share.
    pub(crate) grpc: GrpcConnections,
}

/// See [`Outside::hold`].
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) _place: Arc<OwnedSemaphorePermit>,
    pub(crate) _busy: Option<Arc<Busy>>,
}

/// Serves one request to a sandbox; a refusal is told as its client understands it.
pub(crate) async fn forward(
    app: &App,
    target: &Target,
    host: Option<HeaderValue>,
    outside: Outside,
    request: Request<Incoming>,
) -> Response<Body> {
    let is_grpc = !target.is_agent() && grpc::is_grpc(request.version(), request.headers());
    let refused = if is_grpc { grpc::refusal } else { IntoResponse::into_response };
    pass_on(app, target, host, outside, is_grpc, request).await.unwrap_or_else(refused)
}

async fn pass_on(
    app: &App,
    target: &Target,
    host: Option<HeaderValue>,
    outside: Outside,
    is_grpc: bool,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let route = app.routed(&target.sandbox);
    let open = route.as_ref().is_some_and(|row| is_open(&row.borrow(), target));
    if !open {
        app.live.keys.check(request.headers())?;
    }
    let Some(mut route) = route else { return Err(absent(app, target).await) };
    let row = ready(&mut route, target).await?;
    if !target.is_agent() && !row.spec.exposed_ports.contains(&target.port) {
        let words = format!("port {} of sandbox {} is not exposed; add it to exposed_ports", target.port, row.id);
        return Err(ApiError::new(StatusCode::FORBIDDEN, code::PORT_NOT_EXPOSED, words));
    }
    let link = node(app, &row).await?;
    match request.uri().path() {
        TCP_PATH if target.is_agent() => return tunnel::answer(&link, &row.id, outside.hold, request).await,
        REVERSE_PATH if target.is_agent() => return reverse::answer(link, &row.id, outside.hold, request).await,
        _ => {}
    }
    let exchange = Exchange { app, link, sandbox_id: row.id.clone(), route, port: target.port, is_grpc };
    exchange.run(outside, host, !open, request).await
}

/// A sandbox that is up, or that its node wakes, and the way there; for those who have seen to it that they may.
async fn reach(app: &App, target: &Target) -> Result<(Arc<SandboxRow>, Arc<NodeLink>), ApiError> {
    let Some(mut route) = app.routed(&target.sandbox) else { return Err(absent(app, target).await) };
    let row = ready(&mut route, target).await?;
    let link = node(app, &row).await?;
    Ok((row, link))
}

async fn node(app: &App, row: &SandboxRow) -> Result<Arc<NodeLink>, ApiError> {
    let node_id = row.node_id().unwrap_or_default();
    app.live.nodes.wait(node_id, NODE_WAIT).await.ok_or_else(|| ApiError::unreachable(node_id))
}

/// Opens a byte stream to a port of a sandbox, for a caller whose right to it was checked. As for a request, a sandbox
/// that sleeps is woken and one that boots is waited for; an open stream keeps it awake.
pub(crate) async fn open(app: &App, target: &Target) -> Result<BodyStream, ApiError> {
    let (row, link) = reach(app, target).await?;
    connect(&link, &row.id, target.port).await
}

/// Listens on a port on 127.0.0.1 of a sandbox, or on any when it is 0; the same conditions hold.
pub(crate) async fn listen(app: &App, sandbox: &str, port: u16) -> Result<GuestListener, ApiError> {
    let target = Target { sandbox: sandbox.to_owned(), port: AGENT_PORT };
    let (row, link) = reach(app, &target).await?;
    GuestListener::bind(link, &row.id, port).await
}

pub(super) async fn connect(link: &NodeLink, sandbox_id: &str, port: u16) -> Result<BodyStream, ApiError> {
    Ok(link.connect(sandbox_id, port).await?)
}

/// Whether a port answers without a key.
fn is_open(row: &SandboxRow, target: &Target) -> bool {
    !target.is_agent() && row.spec.allow_unauthenticated_access && row.spec.exposed_ports.contains(&target.port)
}

/// Why a sandbox is not in the route table.
async fn absent(app: &App, target: &Target) -> ApiError {
    if !is_id(&target.sandbox) {
        return ApiError::sandbox_not_found(&target.sandbox);
    }
    match app.store.sandbox(&target.sandbox).await {
        Ok(Some(row)) if !row.is_unclaimed() => ended(&row),
        Ok(_) => ApiError::sandbox_not_found(&target.sandbox),
        Err(error) => error.into(),
    }
}

fn ended(row: &SandboxRow) -> ApiError {
    let reason = row.ending().map(|e| crate::visible::wire_word(e.reason)).unwrap_or_default();
    let words = format!("sandbox {} has ended ({reason}); create a new one", row.id);
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_NOT_RUNNING, words)
}

/// Waits a while for a sandbox that boots. One that sleeps is its node's business, which wakes it for the request.
async fn ready(route: &mut Route, target: &Target) -> Result<Arc<SandboxRow>, ApiError> {
    let settled = |row: &Arc<SandboxRow>| row.is_up() || row.ending().is_some();
    let _ = tokio::time::timeout(READY_WAIT, route.wait_for(settled)).await;
    let row = Arc::clone(&route.borrow());
    match row.phase {
        Phase::Placed { .. } if sleeps_on(&row) => {
            let words = format!("sandbox {} is suspended and does not wake by itself; resume it first", target.sandbox);
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_AUTO_RESUME_DISABLED, words))
        }
        Phase::Placed { .. } if row.is_up() => Ok(row),
        Phase::Waiting | Phase::Placed { .. } => {
            let words = format!("sandbox {} is not running yet; try again", target.sandbox);
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_NOT_READY, words))
        }
        Phase::Ended { .. } => Err(ended(&row)),
    }
}

/// Whether it sleeps, or is about to, and a request does not wake it.
fn sleeps_on(row: &SandboxRow) -> bool {
    !row.spec.auto_resume && matches!(row.stage(), Some(Reported::Suspending | Reported::Suspended))
}

/// Lets a browser on another origin read an answer of ours; the key, not the origin, is what protects it.
pub(crate) fn allow_origin(origin: Option<&HeaderValue>, response: &mut Response<Body>) {
    if let Some(origin) = origin {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
}
