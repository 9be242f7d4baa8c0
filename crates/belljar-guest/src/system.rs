//! The system API, which only the node reaches: `POST /v1/configure`, `GET /v1/logs`.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use belljar_api::{
    guest::{Configure, Configured, PROTOCOL},
    process::{OutputMode, StdinMode},
};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;

use crate::{
    agent::{Agent, Configuration, VERSION},
    error::{ApiError, JsonBody, Params, unknown_route, wrong_method},
    launch::{Launch, Place, Request, Settings},
    limits::{LOG_BATCH, LOG_LINE_MAX},
    managed::{self, Rules},
    process::Plan,
    random,
    setup::{self, SetupError},
};

/// Name of the supervisor of the sandbox's entrypoint.
const ENTRYPOINT: &str = "entrypoint";

/// The routes.
pub(crate) fn router(agent: &Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/configure", post(configure))
        .route("/v1/logs", get(logs))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::clone(agent))
}

impl From<SetupError> for ApiError {
    fn from(error: SetupError) -> Self {
        match error {
            SetupError::Address(_) | SetupError::Entropy => Self::invalid(error.to_string()),
            SetupError::Network { .. } => Self::internal(error.to_string()),
        }
    }
}

/// Makes this guest a certain sandbox. Called first before any process runs, and again whenever the node came back or
/// the VM was restored: then only what changed is applied, the clock and the entropy always, and the entrypoint, which
/// is in the memory of the restored guest, is left alone.
async fn configure(
    State(agent): State<Arc<Agent>>,
    JsonBody(wanted): JsonBody<Configure>,
) -> Result<Json<Configured>, ApiError> {
    let _one_at_a_time = agent.configuring.lock().await;
    let previous = agent.configuration();
    if let Place::Machine = agent.place {
        let (before, after) = (previous.as_ref().map(|previous| previous.wanted.clone()), wanted.clone());
        tokio::task::spawn_blocking(move || setup::apply(before.as_ref(), &after))
            .await
            .map_err(|error| ApiError::internal(format!("configure: {error}")))??;
    }
    let settings = Arc::new(Settings { place: agent.place.clone(), runtime: wanted.runtime.clone() });
    if let Place::Machine = agent.place {
        setup::make_directory(&settings);
    }
    let answer = match &previous {
        Some(previous) => previous.answer.clone(),
        None => Configured { protocol: PROTOCOL, version: VERSION.to_owned(), boot_id: boot_id() },
    };
    let is_first = previous.is_none();
    agent.set_configuration(Configuration {
        wanted: wanted.clone(),
        settings: Arc::clone(&settings),
        answer: answer.clone(),
    });
    if is_first {
        start_entrypoint(&agent, &settings, &wanted);
    }
    Ok(Json(answer))
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
    let started = Launch::prepare(settings, request).map_err(ApiError::from).and_then(|launch| {
        let plan = Plan {
            launch,
            command: command.clone(),
            args: args.to_vec(),
            stdin: StdinMode::Closed,
            stdout: OutputMode::Capture,
            stderr: OutputMode::Capture,
            timeout: None,
        };
        Ok(managed::start(&agent.table, plan, rules)?)
    });
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
