//! The life of one node connection; see the parent module for its phases.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use belljar_api::{
    node::{Command, NodeHello, Op, Report, UPGRADE},
    sandbox::TerminationReason,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::{
    LineError, Lines, NodeError, NodeLink,
    link::{Caller, request},
};
use crate::{
    app::App,
    clock::now_ms,
    error::ApiError,
    life::Ending,
    limits::{
        COMMAND_RETRY, NODE_CALL_TIMEOUT, NODE_CONNECTION_WINDOW, NODE_PING, NODE_PING_TIMEOUT, NODE_REPORTS_MAX,
        NODE_STREAM_WINDOW, OUTBOX_BATCH,
    },
    store::{Account, StoreError},
};

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{0}")]
    Node(#[from] NodeError),
    #[error("store: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("a report cannot be read: {0}")]
    Report(String),
    #[error("{0}")]
    Lines(#[from] LineError),
    #[error("it cannot be told the secrets: {0}")]
    Secrets(String),
    #[error("it was not told of a change of the secrets, and must come anew")]
    Behind,
    #[error("a newer connection of the same node came")]
    Replaced,
}

/// Answers `POST /node/v1/connect` and goes on with the connection in a task of its own. A node that `is_here`, in this process, cannot vanish
/// without a word: asked for one, it would only seem to when the machine is busy elsewhere.
pub(crate) fn accept<B>(app: &Arc<App>, is_here: bool, mut request: Request<B>) -> Result<Response<Body>, ApiError> {
    app.node_token.check(request.headers())?;
    let asked = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if request.method() != Method::POST || asked != Some(UPGRADE) {
        return Err(ApiError::invalid(format!(
            "a node connects with POST and `Upgrade: {UPGRADE}`; use a node and a server of the same release"
        )));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let session = {
        let app = Arc::clone(app);
        async move {
            let pings = (!is_here).then_some(NODE_PING);
            let ended = async { run(&app, pings, upgrade.await?).await };
            tokio::select! {
                result = ended => if let Err(error) = result {
                    tracing::info!(%error, "a node connection ended");
                },
                () = app.stopping.cancelled() => {}
            }
        }
    };
    app.sessions.spawn(session);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(UPGRADE));
    Ok(response)
}

async fn run(app: &Arc<App>, pings: Option<Duration>, io: Upgraded) -> Result<(), SessionError> {
    let (send, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(NODE_STREAM_WINDOW)
        .initial_connection_window_size(NODE_CONNECTION_WINDOW)
        .max_frame_size(Some(64 * 1024))
        .max_send_buf_size(1024 * 1024)
        .keep_alive_interval(pings)
        .keep_alive_timeout(NODE_PING_TIMEOUT)
        .handshake::<_, Body>(io)
        .await?;
    // When this ends no request is sent any more; guest streams that are open go on until they end themselves.
    tokio::select! {
        result = connection => Ok(result?),
        result = speak(app, Caller::new(send)) => result,
    }
}

async fn speak(app: &Arc<App>, caller: Caller) -> Result<(), SessionError> {
    let hello: NodeHello = caller.get("/v1/hello").await?;
    let node_id = hello.node_id.clone();
    let seat = app.live.nodes.take_seat(&node_id).await;
    let work = async {
        let mut reports = Reports::open(&caller).await?;
        let told = tokio::time::timeout(NODE_CALL_TIMEOUT, reports.all())
            .await
            .map_err(|_| SessionError::Report(format!("no full account in {} s", NODE_CALL_TIMEOUT.as_secs())))??;
        let (sandboxes, snapshots) = (told.sandboxes.len(), told.snapshots.len());
        app.store.sync_node(hello.clone(), told, now_ms()).await?;
        let link = Arc::new(NodeLink::new(hello, caller));
        // Registered first: a change that comes meanwhile then waits for its turn, and tells this node too.
        let _connected = app.live.nodes.connect(&link);
        app.introduce_secrets(&link)
            .await
            .map_err(|error| SessionError::Secrets(error.internal.unwrap_or(error.message)))?;
        app.live.retry.notify_one();
        tracing::info!(node = node_id, sandboxes, snapshots, "a node is connected");
        tokio::select! {
            result = deliver(app, &link) => result,
            result = listen(app, &node_id, &mut reports) => result,
            () = link.hung_up().cancelled() => Err(SessionError::Behind),
        }
    };
    tokio::select! {
        result = work => result,
        () = seat.replaced.cancelled() => Err(SessionError::Replaced),
    }
}

/// Delivers the outbox in order, for as long as the session lives.
async fn deliver(app: &App, link: &NodeLink) -> Result<(), SessionError> {
    loop {
        let commands = app.store.outbox(link.id(), OUTBOX_BATCH).await?;
        if commands.is_empty() {
            link.wake().notified().await;
        }
        for command in commands {
            deliver_one(app, link, command).await?;
        }
    }
}

/// Delivers one command until the node has it on disk or has refused it for good.
async fn deliver_one(app: &App, link: &NodeLink, command: Command) -> Result<(), SessionError> {
    loop {
        match link.command(&command).await {
            Ok(_) => return Ok(app.store.acknowledge(link.id(), command.seq).await?),
            Err(NodeError::Answer { status, body }) if status.is_client_error() => {
                tracing::warn!(node = link.id(), sandbox = command.sandbox_id, %status, error = body.error,
                    "a node refused a command");
                let reason = match &command.op {
                    Op::Create { .. } | Op::Copy { .. } => TerminationReason::ConfigurationError,
                    Op::Update { .. }
                    | Op::Terminate { .. }
                    | Op::Suspend
                    | Op::Resume
                    | Op::Snapshot { .. }
                    | Op::Rollback { .. }
                    | Op::DeleteSnapshot => TerminationReason::NodeLost,
                };
                let ending = Ending { reason, detail: body.error, at: now_ms() };
                return Ok(app.store.refuse(link.id(), command, ending).await?);
            }
            Err(error @ NodeError::Answer { .. }) => {
                tracing::warn!(node = link.id(), sandbox = command.sandbox_id, %error, "a node cannot take a command now");
                tokio::time::sleep(COMMAND_RETRY).await;
            }
            Err(error @ NodeError::Transport(_)) => return Err(error.into()),
        }
    }
}

/// Takes over reports as they come.
async fn listen(app: &App, node_id: &str, reports: &mut Reports) -> Result<(), SessionError> {
    loop {
        match reports.next().await? {
            Report::Sandbox(report) => app.store.report(node_id, report, now_ms()).await?,
            Report::Snapshot(report) => app.store.report_snapshot(node_id, report).await?,
            Report::Synced => {}
        }
    }
}

/// The endless answer of `GET /v1/reports`.
struct Reports(Lines);

impl Reports {
    async fn open(caller: &Caller) -> Result<Self, SessionError> {
        let lines = Lines::open(caller, request(Method::GET, "/v1/reports", Body::empty())?).await;
        Ok(Self(lines.map_err(|error| SessionError::Report(error.to_string()))?))
    }

    /// Everything up to `Synced`.
    async fn all(&mut self) -> Result<Account, SessionError> {
        let mut told = Account::default();
        loop {
            if told.sandboxes.len() + told.snapshots.len() > NODE_REPORTS_MAX {
                return Err(SessionError::Report(format!("more than {NODE_REPORTS_MAX} sandboxes and snapshots")));
            }
            match self.next().await? {
                Report::Sandbox(report) => told.sandboxes.push(report),
                Report::Snapshot(report) => told.snapshots.push(report),
                Report::Synced => return Ok(told),
            }
        }
    }

    async fn next(&mut self) -> Result<Report, SessionError> {
        Ok(self.0.next().await?)
    }
}
