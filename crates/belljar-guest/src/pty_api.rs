//! `/api/v1/pty`: open, list, attach over a WebSocket, resize, close.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{
        Path, State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::{get, post},
};
use belljar_api::{
    error::code,
    limits::WS_MESSAGE_MAX,
    pty::{CreatePty, CreatedPty, PtyInfo, PtyList, ResizePty, opcode},
};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::{
    agent::Agent,
    error::{ApiError, JsonBody, Params},
    launch::{Launch, Request},
    limits::{PTY_CLIENTS_MAX, PTY_PING, PTY_SILENCE_MAX},
    pty::{NewSession, Next, PtyError, Session},
};

const TOKEN_HEADER: &str = "x-pty-token";

/// The routes.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/api/v1/pty", post(create).get(list))
        .route("/api/v1/pty/{session}", get(show).delete(delete))
        .route("/api/v1/pty/{session}/resize", post(resize))
        .route("/api/v1/pty/{session}/ws", get(attach))
}

impl From<PtyError> for ApiError {
    fn from(error: PtyError) -> Self {
        match error {
            PtyError::Launch(error) => error.into(),
            PtyError::TooMany => Self::new(StatusCode::TOO_MANY_REQUESTS, code::TOO_MANY_SESSIONS, error.to_string()),
            PtyError::Open(_) => Self::internal(error.to_string()),
        }
    }
}

fn find(agent: &Agent, id: &str) -> Result<Arc<Session>, ApiError> {
    agent.terminals.find(id).ok_or_else(|| {
        ApiError::new(StatusCode::NOT_FOUND, code::SESSION_NOT_FOUND, format!("Terminal session {id} not found"))
    })
}

async fn create(
    State(agent): State<Arc<Agent>>,
    JsonBody(body): JsonBody<CreatePty>,
) -> Result<(StatusCode, Json<CreatedPty>), ApiError> {
    let request = Request {
        command: body.command.clone(),
        args: body.args.clone(),
        env: body.env,
        working_dir: body.working_dir,
        user: body.user,
    };
    let launch = Launch::prepare(&*agent.settings()?, request)?;
    let (rows, cols) = (body.rows, body.cols);
    let new = NewSession { launch, command: body.command, args: body.args, rows, cols };
    let session = agent.terminals.create(new)?;
    let created = CreatedPty { session_id: session.id.clone(), token: session.token() };
    Ok((StatusCode::CREATED, Json(created)))
}

async fn list(State(agent): State<Arc<Agent>>) -> Json<PtyList> {
    Json(PtyList { sessions: agent.terminals.list() })
}

async fn show(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<Json<PtyInfo>, ApiError> {
    Ok(Json(find(&agent, &id)?.info()))
}

async fn delete(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    agent.terminals.terminate(&*find(&agent, &id)?);
    Ok(StatusCode::NO_CONTENT)
}

async fn resize(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    JsonBody(size): JsonBody<ResizePty>,
) -> Result<StatusCode, ApiError> {
    find(&agent, &id)?.resize(size.rows, size.cols);
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct AttachQuery {
    #[serde(default)]
    token: Option<String>,
}

async fn attach(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    Params(query): Params<AttachQuery>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let session = find(&agent, &id)?;
    let in_header = headers.get(TOKEN_HEADER).and_then(|value| value.to_str().ok());
    let is_right = |token: &str| session.has_token(token);
    if !query.token.as_deref().is_some_and(is_right) && !in_header.is_some_and(is_right) {
        let message = "the token does not fit this terminal session; use the one its creation answered";
        return Err(ApiError::new(StatusCode::FORBIDDEN, code::INVALID_TOKEN, message));
    }
    let upgrade = upgrade.map_err(|error| ApiError::invalid(error.body_text()))?;
    let Some(client) = session.attach() else {
        return Err(ApiError::too_many(format!("{PTY_CLIENTS_MAX} clients are attached already; detach one")));
    };
    let attached = Attached { session, client };
    let upgrade = upgrade.max_message_size(WS_MESSAGE_MAX).max_frame_size(WS_MESSAGE_MAX);
    Ok(upgrade.on_upgrade(move |socket| converse(socket, attached)))
}

/// A client of a session, detached when dropped: also when its upgrade never comes.
struct Attached {
    session: Arc<Session>,
    client: u64,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.session.detach(self.client);
    }
}

async fn converse(socket: WebSocket, attached: Attached) {
    let (mut sink, mut stream) = socket.split();
    let close = tokio::select! {
        close = show_output(&mut sink, &attached) => close,
        close = take_input(&mut stream, &attached) => close,
    };
    // Detached before the last message: whoever saw it must not find itself still counted.
    drop(attached);
    if let Some((code, reason)) = close {
        let _ = sink.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
    }
}

/// Code and reason of a Close frame; `None` where nobody is left to read it.
type Close = Option<(u16, String)>;

async fn show_output(sink: &mut SplitSink<WebSocket, Message>, attached: &Attached) -> Close {
    let mut changes = attached.session.changes();
    let mut ping = interval_at(Instant::now() + PTY_PING, PTY_PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        changes.mark_unchanged();
        // One byte of the message is the opcode.
        match attached.session.next(attached.client, WS_MESSAGE_MAX - 1) {
            Next::Output(output) => sink.send(message(opcode::DATA, &output)).await.ok()?,
            Next::Exited(exit_code) => {
                sink.send(message(opcode::EXIT, &exit_code.to_be_bytes())).await.ok()?;
                return Some((close_code::NORMAL, format!("exit:{exit_code}")));
            }
            Next::Terminated => return Some((close_code::AWAY, "session terminated".to_owned())),
            Next::CutOff => return Some((close_code::POLICY, "output was not read for too long".to_owned())),
            Next::Wait => {
                tokio::select! {
                    changed = changes.changed() => changed.ok()?,
                    _ = ping.tick() => sink.send(Message::Ping(Bytes::new())).await.ok()?,
                }
            }
        }
    }
}

fn message(opcode: u8, payload: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(1 + payload.len());
    message.put_u8(opcode);
    message.put_slice(payload);
    Message::Binary(message.freeze())
}

async fn take_input(stream: &mut SplitStream<WebSocket>, attached: &Attached) -> Close {
    loop {
        let bytes = match timeout(PTY_SILENCE_MAX, stream.next()).await {
            Ok(Some(Ok(Message::Binary(bytes)))) => bytes,
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
            Ok(Some(Ok(Message::Text(_)))) => {
                return Some((close_code::UNSUPPORTED, "a terminal takes binary messages".to_owned()));
            }
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return None,
        };
        match bytes.split_first() {
            Some((&opcode::DATA, typed)) => {
                // The program has gone: its exit is about to be told by the other half.
                if attached.session.write(typed).await.is_err() {
                    continue;
                }
            }
            Some((&opcode::RESIZE, &[c1, c0, r1, r0])) => {
                attached.session.resize(u16::from_be_bytes([r1, r0]), u16::from_be_bytes([c1, c0]));
            }
            Some((&opcode::READY, _)) => attached.session.ready(attached.client),
            _ => return Some((close_code::PROTOCOL, "unknown or malformed terminal message".to_owned())),
        }
    }
}
