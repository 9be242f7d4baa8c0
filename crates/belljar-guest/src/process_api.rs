//! `/api/v1/processes`: start, run, list, get, signal, stop, stdin, output.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use belljar_api::{
    error::code,
    process::{
        OutputLines, OutputStream, ProcessInfo, ProcessList, RunEvent, RunProcess, SendSignal, SignalSent, StartProcess,
    },
};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use crate::{
    agent::Agent,
    error::{ApiError, JsonBody, Params},
    launch::{Launch, LaunchError, Request},
    limits::RUN_TIMEOUT_MAX_SECS,
    managed::{self, ManagedError, Rules},
    process::{Plan, Process, StartError},
    sse::{self, Framing},
};

/// The routes.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/api/v1/processes", post(start).get(list))
        .route("/api/v1/processes/run", post(run))
        .route("/api/v1/processes/{process}", get(show).delete(delete))
        .route("/api/v1/processes/{process}/signal", post(signal))
        .route("/api/v1/processes/{process}/restart", post(restart))
        .route("/api/v1/processes/{process}/stdin", post(write_stdin))
        .route("/api/v1/processes/{process}/stdin/close", post(close_stdin))
        .route("/api/v1/processes/{process}/{pipe}", get(output))
        .route("/api/v1/processes/{process}/{pipe}/follow", get(follow))
}

impl From<LaunchError> for ApiError {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::CommandNotFound(_) | LaunchError::NotExecutable(_) => {
                Self::new(StatusCode::BAD_REQUEST, code::NOT_FOUND, error.to_string())
            }
            LaunchError::Spawn { ref source, .. } if source.raw_os_error() == Some(libc::EAGAIN) => {
                Self::too_many(error.to_string())
            }
            LaunchError::Held => Self::not_ready(error.to_string()),
            LaunchError::Malformed { .. } | LaunchError::User(_) | LaunchError::WorkingDir { .. } => {
                Self::invalid(error.to_string())
            }
            LaunchError::Spawn { .. } => Self::invalid(error.to_string()),
        }
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Launch(error) => error.into(),
            StartError::TooMany => Self::too_many(error.to_string()),
            StartError::Pipe(_) => Self::internal(error.to_string()),
        }
    }
}

impl From<ManagedError> for ApiError {
    fn from(error: ManagedError) -> Self {
        match error {
            ManagedError::Start(error) => error.into(),
            ManagedError::NameInUse(_) => Self::new(StatusCode::CONFLICT, code::NAME_IN_USE, error.to_string()),
            ManagedError::Name(_) | ManagedError::HealthPath(_) => Self::invalid(error.to_string()),
        }
    }
}

fn find(agent: &Agent, name: &str) -> Result<Arc<Process>, ApiError> {
    agent.table.find(name).ok_or_else(|| ApiError::not_found(format!("Process {name} not found")))
}

/// What a request is to start; a run is a start that says no more than that.
impl From<StartProcess> for Request {
    fn from(StartProcess { command, args, env, working_dir, user, .. }: StartProcess) -> Self {
        Self { command, args, env, working_dir, user }
    }
}

async fn start(
    State(agent): State<Arc<Agent>>,
    JsonBody(body): JsonBody<StartProcess>,
) -> Result<(StatusCode, Json<ProcessInfo>), ApiError> {
    let is_managed = body.name.is_some() || body.restart.is_some() || body.health_check.is_some();
    let rules = Rules {
        name: body.name.clone(),
        restart: body.restart.clone().unwrap_or_default(),
        health_check: body.health_check.clone(),
    };
    let (stdin, stdout, stderr) = (body.stdin_mode, body.stdout_mode, body.stderr_mode);
    let launch = Launch::prepare(&*agent.settings()?, body.into())?;
    let plan = Plan { stdin, stdout, stderr, ..Plan::new(launch) };
    let process = match is_managed {
        true => managed::start(&agent.table, plan, rules)?,
        false => agent.table.start(&plan, agent.table.new_output(), None)?,
    };
    Ok((StatusCode::CREATED, Json(process.info())))
}

/// The process does not die with the stream: a client that lost it comes back with the pid and an offset.
async fn run(State(agent): State<Arc<Agent>>, JsonBody(body): JsonBody<RunProcess>) -> Result<Response, ApiError> {
    let timeout = body.timeout.map(checked_timeout).transpose()?;
    let RunProcess { command, args, env, working_dir, user, .. } = body;
    let start = StartProcess { command, args, env, working_dir, user, ..StartProcess::default() };
    let plan = Plan { timeout, ..Plan::new(Launch::prepare(&*agent.settings()?, start.into())?) };
    let process = agent.table.start(&plan, agent.table.new_output(), None)?;
    let (handle, pid, started_at) = (process.handle, i64::from(process.pid), process.started_at());
    let mut first = Vec::new();
    sse::data(&mut first, &RunEvent::Started { handle, pid, started_at });
    let follower = process.output.follow(None, 0);
    Ok(sse::respond(first, Framing::Plain, follower, sse::end_of_run(process)))
}

fn checked_timeout(seconds: f64) -> Result<Duration, ApiError> {
    if seconds > 0.0 && seconds <= RUN_TIMEOUT_MAX_SECS {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(ApiError::invalid(format!("timeout: {seconds} is not between 0 and {RUN_TIMEOUT_MAX_SECS} seconds")))
}

async fn list(State(agent): State<Arc<Agent>>) -> Json<ProcessList> {
    Json(ProcessList { processes: agent.table.list().iter().map(|process| process.info()).collect() })
}

async fn show(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Result<Json<ProcessInfo>, ApiError> {
    Ok(Json(find(&agent, &name)?.info()))
}

async fn delete(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let process = find(&agent, &name)?;
    match &process.managed {
        Some(managed) => managed.delete().await,
        None => {
            // Also when it has ended: what it left in the background goes now.
            process.kill(&agent.table.reaper);
            process.ended().await;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn signal(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<SendSignal>,
) -> Result<Json<SignalSent>, ApiError> {
    let process = find(&agent, &name)?;
    if !(1..=64).contains(&body.signal) {
        return Err(ApiError::invalid(format!("signal: {} is not between 1 and 64", body.signal)));
    }
    match process.signal(&agent.table.reaper, body.signal) {
        Ok(true) => Ok(Json(SignalSent { success: true })),
        Ok(false) => Err(ApiError::invalid(format!("Process {name} is not running"))),
        Err(error) => Err(ApiError::invalid(format!("signal: {error}"))),
    }
}

async fn restart(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Result<Json<ProcessInfo>, ApiError> {
    let process = find(&agent, &name)?;
    let Some(managed) = &process.managed else {
        return Err(ApiError::invalid(format!("Process {name} is not managed; start it again instead")));
    };
    match managed.restart().await {
        Some(started) => Ok(Json(started?.info())),
        None => Err(ApiError::not_found(format!("Process {name} not found"))),
    }
}

fn not_writable(name: &str) -> ApiError {
    let message = format!("Process {name} has no open stdin; start it with stdin_mode `pipe`");
    ApiError::new(StatusCode::BAD_REQUEST, code::STDIN_NOT_WRITABLE, message)
}

async fn write_stdin(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
    mut body: Body,
) -> Result<StatusCode, ApiError> {
    let process = find(&agent, &name)?;
    let closed = process.stdin_closed();
    let write = async {
        let mut stdin = process.stdin.lock().await;
        let stdin = stdin.as_mut().ok_or_else(|| not_writable(&name))?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ApiError::invalid(format!("the body broke off: {error}")))?;
            if let Some(bytes) = frame.data_ref() {
                stdin.write_all(bytes).await.map_err(|_| not_writable(&name))?;
            }
        }
        Ok(StatusCode::NO_CONTENT)
    };
    // A process that does not read must not keep a close, or its own end, waiting.
    tokio::select! {
        biased;
        () = closed => Err(not_writable(&name)),
        result = write => result,
    }
}

async fn close_stdin(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    match find(&agent, &name)?.close_stdin().await {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(not_writable(&name)),
    }
}

/// The pipe that a path names; `None` is both.
fn pipe(name: &str) -> Result<Option<OutputStream>, ApiError> {
    match name {
        "stdout" => Ok(Some(OutputStream::Stdout)),
        "stderr" => Ok(Some(OutputStream::Stderr)),
        "output" => Ok(None),
        _ => Err(ApiError::not_found(format!("no such output: `{name}`; ask for stdout, stderr or output"))),
    }
}

async fn output(
    State(agent): State<Arc<Agent>>,
    Path((name, of)): Path<(String, String)>,
) -> Result<Json<OutputLines>, ApiError> {
    let only = pipe(&of)?;
    let process = find(&agent, &name)?;
    let (lines, dropped) = process.output.snapshot(only);
    let lines: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
    Ok(Json(OutputLines { pid: i64::from(process.pid), line_count: lines.len(), lines, dropped }))
}

#[derive(Deserialize)]
struct FollowQuery {
    /// First line to send; 0 is the oldest.
    #[serde(default)]
    offset: u64,
}

async fn follow(
    State(agent): State<Arc<Agent>>,
    Path((name, of)): Path<(String, String)>,
    Params(query): Params<FollowQuery>,
) -> Result<Response, ApiError> {
    let only = pipe(&of)?;
    let follower = find(&agent, &name)?.output.follow(only, query.offset);
    let framing = Framing::Named { with_stream: only.is_none() };
    Ok(sse::respond(Vec::new(), framing, follower, sse::end_of_file()).into_response())
}
