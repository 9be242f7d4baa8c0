//! Takes a request to a guest port and its answer back, streaming both ways.

use std::{net::IpAddr, sync::Arc};

use axum::body::Body;
use belljar_api::{
    error::{ErrorBody, code},
    id::is_id,
    limits::AGENT_PORT,
};
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use hyper::{
    body::Incoming,
    client::conn::http1,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    body::{ClientBody, GuestBody, Lease, Progress},
    headers::{self, Origin},
    pool::{Route, Sender},
    target::Target,
};
use crate::{
    app::App,
    error::ApiError,
    life::{Phase, Reported, SandboxRow},
    limits::{GUEST_ANSWER_TIMEOUT, HEAD_BYTES_MAX, HEADERS_MAX, NODE_WAIT, READY_WAIT, SPLICE_BUFFER},
    node_link::{NodeError, NodeLink},
};

/// Who asks, from outside.
#[derive(Debug, Clone)]
pub(crate) struct Outside {
    /// Whose connection it is.
    pub(crate) peer: IpAddr,
    /// Its place among the connections; a spliced one keeps it until it ends.
    pub(crate) place: Arc<OwnedSemaphorePermit>,
}

/// Serves one request to a sandbox.
pub(crate) async fn forward(
    app: &App,
    target: &Target,
    outside: Outside,
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
    let node_id = row.node_id().unwrap_or_default();
    let link = app.live.nodes.wait(node_id, NODE_WAIT).await.ok_or_else(|| ApiError::unreachable(node_id))?;
    let exchange = Exchange { app, link, sandbox_id: row.id.clone(), route, port: target.port };
    exchange.run(outside, !open, request).await
}

/// Opens a byte stream to a port of a sandbox, for a caller whose right to it was checked. As for a request, a sandbox
/// that sleeps is woken and one that boots is waited for; an open stream keeps it awake.
pub(crate) async fn open(app: &App, target: &Target) -> Result<Upgraded, ApiError> {
    let Some(mut route) = app.routed(&target.sandbox) else { return Err(absent(app, target).await) };
    let row = ready(&mut route, target).await?;
    let node_id = row.node_id().unwrap_or_default();
    let link = app.live.nodes.wait(node_id, NODE_WAIT).await.ok_or_else(|| ApiError::unreachable(node_id))?;
    connect(&link, &row.id, target.port).await
}

async fn connect(link: &NodeLink, sandbox_id: &str, port: u16) -> Result<Upgraded, ApiError> {
    link.connect(sandbox_id, port).await.map_err(|error| match error {
        NodeError::Transport(_) => ApiError::unreachable(link.id()),
        NodeError::Answer { status, body: ErrorBody { error, code } } => ApiError::new(status, &code, error),
    })
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

/// One request and its answer.
struct Exchange<'a> {
    app: &'a App,
    link: Arc<NodeLink>,
    sandbox_id: String,
    route: Route,
    port: u16,
}

impl Exchange<'_> {
    async fn run(
        self,
        outside: Outside,
        key_used: bool,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let client = headers::upgrade(request.headers()).map(|_| hyper::upgrade::on(&mut request));
        let progress = Progress::new();
        let outgoing = self.outgoing(outside.peer, key_used, request, progress.clone())?;
        let answer = tokio::select! {
            answer = self.send(outgoing) => answer?,
            () = progress.stalled(GUEST_ANSWER_TIMEOUT) => {
                let words = format!("no answer from the sandbox in {} s", GUEST_ANSWER_TIMEOUT.as_secs());
                return Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, code::READ_TIMEOUT, words));
            }
        };
        self.answer(client.map(|client| (client, outside.place)), answer)
    }

    /// The request as the guest gets it: path and query byte for byte, the rest by the header rules.
    fn outgoing(
        &self,
        peer: IpAddr,
        key_used: bool,
        request: Request<Incoming>,
        progress: Progress,
    ) -> Result<Request<GuestBody>, ApiError> {
        let (parts, body) = request.into_parts();
        let origin = Origin { peer, host: parts.headers.get(header::HOST), key_used };
        let headers = headers::to_guest(&parts.headers, origin, self.port);
        let path = parts.uri.path_and_query().cloned();
        let mut outgoing = Request::new(GuestBody::new(body, progress));
        *outgoing.method_mut() = parts.method;
        *outgoing.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        *outgoing.headers_mut() = headers;
        Ok(outgoing)
    }

    /// Sends it over a kept connection, or over a new one when nothing of it went out.
    async fn send(&self, request: Request<GuestBody>) -> Result<(Response<Incoming>, Sender), ApiError> {
        let request = match self.kept() {
            None => request,
            Some(mut sender) => match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut error) => match error.take_message() {
                    Some(request) => request,
                    None => return Err(failed(&error.into_error())),
                },
            },
        };
        let mut sender = self.open().await?;
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        Ok((response, sender))
    }

    fn kept(&self) -> Option<Sender> {
        (self.port == AGENT_PORT).then(|| self.app.live.guests.take(&self.sandbox_id)).flatten()
    }

    async fn open(&self) -> Result<Sender, ApiError> {
        let stream = connect(&self.link, &self.sandbox_id, self.port).await?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(stream)
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a guest connection ended");
            }
        });
        Ok(sender)
    }

    fn answer(
        self,
        client: Option<(OnUpgrade, Arc<OwnedSemaphorePermit>)>,
        (mut answer, sender): (Response<Incoming>, Sender),
    ) -> Result<Response<Body>, ApiError> {
        let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        let headers = headers::to_client(answer.headers(), switched);
        let status = answer.status();
        let body = match (switched, client) {
            (true, Some((client, place))) => {
                splice(client, hyper::upgrade::on(&mut answer), place);
                Body::empty()
            }
            (true, None) => {
                let words = "the sandbox changed the protocol without being asked";
                return Err(ApiError::new(StatusCode::BAD_GATEWAY, code::PROXY_ERROR, words));
            }
            (false, _) => {
                let home = (self.port == AGENT_PORT).then(|| (self.app.live.guests.clone(), self.route));
                Body::new(ClientBody::new(answer.into_body(), Lease { sender, home }))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// The guest ended the connection, or sent what is not HTTP. Something may have run, so the client must not replay it.
fn failed(error: &hyper::Error) -> ApiError {
    if error.is_parse() {
        let words = format!("the sandbox's answer is not HTTP/1.1: {error}");
        return ApiError::new(StatusCode::BAD_GATEWAY, code::PROXY_ERROR, words);
    }
    let words = format!("the sandbox closed the connection before it answered: {error}");
    ApiError::new(StatusCode::BAD_GATEWAY, code::CONNECTION_CLOSED, words)
}

/// Connects two upgraded connections until both ends are done.
fn splice(client: OnUpgrade, guest: OnUpgrade, place: Arc<OwnedSemaphorePermit>) {
    tokio::spawn(async move {
        let _place = place;
        let (client, guest) = match tokio::try_join!(client, guest) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade did not happen"),
        };
        let (mut client, mut guest) = (TokioIo::new(client), TokioIo::new(guest));
        let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut guest, SPLICE_BUFFER, SPLICE_BUFFER);
        if let Err(error) = copied.await {
            tracing::debug!(%error, "a spliced connection ended");
        }
    });
}

/// Lets a browser on another origin read an answer of ours; the key, not the origin, is what protects it.
pub(crate) fn allow_origin(origin: Option<&HeaderValue>, response: &mut Response<Body>) {
    if let Some(origin) = origin {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    }
}
