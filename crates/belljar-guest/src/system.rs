//! The system API, which only the node reaches: `POST /v1/configure`, `/v1/freeze`, `/v1/settle`, `GET /v1/logs`.
//!
//! ```text
//! booted ─(settle, rehearsal)─► golden snapshot ─(restore)─► booted
//! booted ─(configure)─► a sandbox ─(freeze)─► standing still ─(configure)─► a sandbox: the same, or a copy
//! ```
//!
//! One of them at a time, and each to its end: a node that goes away in the middle leaves nothing half done.

use std::{convert::Infallible, sync::Arc, time::Instant};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use belljar_api::{
    guest::{Configure, Configured, Freeze, PROTOCOL, Settled},
    image::Init,
};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;

use crate::{
    agent::{Agent, Configuration, VERSION},
    error::{ApiError, JsonBody, OptionalJsonBody, Params, unknown_route, wrong_method},
    files::blocking,
    freeze::{self, FreezeError, Frozen},
    launch::{Launch, Place, Request, Settings},
    limits::{FREEZE_PATIENCE, LOG_BATCH, LOG_LINE_MAX},
    managed::{self, Rules},
    process::Plan,
    random, settle,
    setup::{Change, SetupError},
    systemd, trust,
};

/// Name of the supervisor of the sandbox's entrypoint.
const ENTRYPOINT: &str = "entrypoint";

/// The routes.
pub(crate) fn router(agent: &Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/configure", post(configure))
        .route("/v1/freeze", post(freeze))
        .route("/v1/settle", post(settle))
        .route("/v1/logs", get(logs))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::clone(agent))
}

/// When the stream was accepted that a request came on.
#[derive(Clone, Copy)]
pub(crate) struct Accepted(pub(crate) Instant);

impl From<SetupError> for ApiError {
    fn from(error: SetupError) -> Self {
        match error {
            SetupError::Address(_) | SetupError::Mac(_) | SetupError::Entropy => Self::invalid(error.to_string()),
            SetupError::Step { .. } => Self::internal(error.to_string()),
        }
    }
}

impl From<FreezeError> for ApiError {
    fn from(error: FreezeError) -> Self {
        Self::internal(error.to_string())
    }
}

/// Does it to its end, whatever becomes of the connection that asked for it.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::spawn(work).await.map_err(|error| ApiError::internal(format!("system work: {error}")))?
}

/// Makes this guest a certain sandbox. Called first before any process runs, and again whenever the node came back or
/// the VM was restored: then only what changed is applied, the clock and the entropy always, and the entrypoint, which
/// is in the memory of the restored guest, is left alone. Processes that stand still go on as the very last; where
/// something failed they do not.
async fn configure(
    State(agent): State<Arc<Agent>>,
    Extension(Accepted(arrived)): Extension<Accepted>,
    JsonBody(wanted): JsonBody<Configure>,
) -> Result<Json<Configured>, ApiError> {
    to_the_end(become_sandbox(agent, wanted, arrived)).await.map(Json)
}

async fn become_sandbox(agent: Arc<Agent>, mut wanted: Configure, arrived: Instant) -> Result<Configured, ApiError> {
    let mut frozen = agent.frozen.lock().await;
    let previous = agent.configuration();
    // A node that has just come back may not know it yet; what was trusted is still there.
    wanted.trust = wanted.trust.or_else(|| previous.as_ref().and_then(|previous| previous.wanted.trust.clone()));
    let mut runtime = wanted.runtime.clone();
    if wanted.trust.is_some() && matches!(agent.place, Place::Machine { .. }) {
        trust::name(&mut runtime.env);
    }
    let settings = Arc::new(Settings { place: agent.place.clone(), runtime });
    if let Place::Machine { .. } = agent.place {
        // What a rehearsal left is like what a parent leaves: another sandbox's.
        let before = previous.as_ref().map(|previous| previous.wanted.clone()).or_else(|| agent.rehearsed());
        let (wanted, settings, is_frozen) = (wanted.clone(), Arc::clone(&settings), frozen.is_some());
        let apply = move || {
            let (before, wanted, settings) = (before.as_ref(), &wanted, &*settings);
            Change { before, wanted, settings, is_frozen, arrived }.apply()
        };
        blocking(apply).await??;
    }
    if previous.as_ref().is_some_and(|previous| previous.wanted.sandbox_id != wanted.sandbox_id) {
        // What only the parent's clients and the parent's node may know.
        agent.terminals.renew_tokens();
        agent.logs.forget();
    }
    let answer = match &previous {
        Some(previous) => previous.answer.clone(),
        None => Configured { protocol: PROTOCOL, version: VERSION.to_owned(), boot_id: boot_id() },
    };
    if wanted.rehearsal {
        agent.set_rehearsed(wanted);
        // Where systemd's services stand still they do that in the golden snapshot already, and it is warm.
        if !agent.reaper.is_held() {
            settle::warm_up(&agent).await;
        }
        if let Place::Machine { .. } = agent.place {
            // Else every sandbox made of this would write it, before anything else.
            blocking(freeze::sync_root).await??;
        }
        return Ok(answer);
    }
    let is_first = previous.is_none();
    agent.set_configuration(Configuration {
        wanted: wanted.clone(),
        settings: Arc::clone(&settings),
        answer: answer.clone(),
    });
    go_on(&agent, &mut frozen)?;
    if let Place::Machine { init: Init::Systemd } = agent.place {
        systemd::go_ahead();
    }
    if is_first {
        start_entrypoint(&agent, &settings, &wanted);
    }
    Ok(answer)
}

fn go_on(agent: &Agent, frozen: &mut Option<Frozen>) -> Result<(), FreezeError> {
    if let Some(stopped) = frozen {
        stopped.go_on()?;
    }
    *frozen = None;
    agent.reaper.release();
    Ok(())
}

/// Stops the sandbox's processes and brings the disk in step. Asked again it only does what is missing.
async fn freeze(
    State(agent): State<Arc<Agent>>,
    OptionalJsonBody(wanted): OptionalJsonBody<Freeze>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let work = async move {
        let mut frozen = agent.frozen.lock().await;
        let result = stand_still(&agent, &mut frozen, wanted.sync).await;
        if result.is_err() {
            go_on(&agent, &mut frozen)?;
        }
        result
    };
    to_the_end(work).await.map(|()| Json(serde_json::json!({})))
}

async fn stand_still(agent: &Agent, frozen: &mut Option<Frozen>, sync: bool) -> Result<(), ApiError> {
    let is_machine = matches!(agent.place, Place::Machine { .. });
    if sync && is_machine && frozen.is_none() {
        // What takes long is written while everything still runs; what comes meanwhile is little.
        blocking(freeze::sync_root).await??;
    }
    agent.reaper.hold();
    if frozen.is_none() {
        *frozen = Some(match is_machine {
            true => blocking(|| freeze::stop_all(FREEZE_PATIENCE)).await??,
            false => Frozen::default(),
        });
    }
    if sync && is_machine {
        blocking(freeze::sync_root).await??;
    }
    Ok(())
}

async fn settle(State(agent): State<Arc<Agent>>) -> Result<Json<Settled>, ApiError> {
    let work = async move {
        let _one_at_a_time = agent.frozen.lock().await;
        match agent.place {
            _ if agent.configuration().is_some() => Err(ApiError::invalid("settle: this guest is a sandbox already")),
            Place::Machine { init } => {
                if init == Init::Systemd {
                    systemd::go_ahead();
                    systemd::up(&agent).await;
                }
                blocking(settle::settle).await
            }
            Place::Hosted { .. } => Ok(Settled::default()),
        }
    };
    to_the_end(work).await.map(Json)
}

/// A guest without the file (there is none such) still has an id of its own.
fn boot_id() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.trim().to_owned(),
        Err(_) => random::hex::<16>(),
    }
}

/// The program of the request, else the image's. An image that has only a CMD has no program that starts with it: the
/// shell that base images name there would end at once. A sandbox whose entrypoint cannot start is still a sandbox, to
/// be entered and mended, so that is logged and not an error.
fn start_entrypoint(agent: &Arc<Agent>, settings: &Settings, wanted: &Configure) {
    let of_image = match wanted.runtime.entrypoint.is_empty() {
        true => Vec::new(),
        false => [wanted.runtime.entrypoint.as_slice(), wanted.runtime.cmd.as_slice()].concat(),
    };
    let words = wanted.entrypoint.clone().filter(|words| !words.is_empty()).unwrap_or(of_image);
    let Some((command, args)) = words.split_first() else { return };
    let request = Request { command: command.clone(), args: args.to_vec(), ..Request::default() };
    let rules = Rules { name: Some(ENTRYPOINT.to_owned()), ..Rules::default() };
    let started = Launch::prepare(settings, request)
        .map_err(ApiError::from)
        .and_then(|launch| Ok(managed::start(&agent.table, Plan::new(launch), rules)?));
    if let Err(error) = started {
        tracing::warn!("the entrypoint does not run: {error}");
        agent.logs.note(ENTRYPOINT, &format!("the entrypoint does not run: {error}"));
    }
}

#[derive(Deserialize)]
struct LogsQuery {
    /// Last line that is already known; 0 is none.
    #[serde(default)]
    after: u64,
}

async fn logs(State(agent): State<Arc<Agent>>, Params(query): Params<LogsQuery>) -> Response {
    let reader = agent.logs.read(query.after);
    let chunks = stream::unfold(reader, |mut reader| async move {
        let mut out = Vec::with_capacity(LOG_LINE_MAX);
        for event in reader.next(LOG_BATCH).await {
            if serde_json::to_writer(&mut out, &event).is_ok() {
                out.push(b'\n');
            }
        }
        Some((Ok::<_, Infallible>(Bytes::from(out)), reader))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(chunks)).into_response()
}
