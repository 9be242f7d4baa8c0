//! The agent: everything its two APIs share.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Instant,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use belljar_api::guest::{AgentInfo, Configure, Configured, Health};
use tokio::sync::Semaphore;

use crate::{
    archive,
    cgroup::Cgroups,
    error::{ApiError, unknown_route, wrong_method},
    exec, files,
    freeze::Frozen,
    launch::{LaunchError, Place, Settings},
    limits::ARCHIVES_MAX,
    logs::Logs,
    process::Table,
    process_api, pty, pty_api,
    reaper::Reaper,
    reverse,
    sync::lock,
};

/// Version that health, info and configure tell.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Shared by every request.
pub(crate) struct Agent {
    pub(crate) place: Place,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) cgroups: Arc<Cgroups>,
    pub(crate) table: Arc<Table>,
    pub(crate) terminals: Arc<pty::Sessions>,
    pub(crate) logs: Arc<Logs>,
    /// Connections for whoever listens through us.
    pub(crate) reverse: reverse::Waiting,
    /// Permits for archive threads.
    pub(crate) archives: Arc<Semaphore>,
    /// What stands still; held while that, or the configuration, changes.
    pub(crate) frozen: tokio::sync::Mutex<Option<Frozen>>,
    configured: Mutex<Option<Configuration>>,
    /// What a rehearsal has applied; see [`Configure::rehearsal`].
    rehearsed: Mutex<Option<Configure>>,
    started: Instant,
}

/// What `configure` left behind.
#[derive(Clone)]
pub(crate) struct Configuration {
    pub(crate) wanted: Configure,
    pub(crate) settings: Arc<Settings>,
    pub(crate) answer: Configured,
}

impl Agent {
    /// An agent that waits to be configured. Must be called within the runtime.
    pub(crate) fn new(place: Place, cgroups: Cgroups) -> io::Result<Arc<Self>> {
        let reaper = Reaper::start()?;
        let cgroups = Arc::new(cgroups);
        let logs = Arc::new(Logs::default());
        tokio::spawn(sweep(Arc::clone(&reaper), Arc::clone(&cgroups)));
        let table = Arc::new(Table::new(Arc::clone(&reaper), Arc::clone(&cgroups), Arc::clone(&logs)));
        Ok(Arc::new(Self {
            place,
            table,
            terminals: Arc::new(pty::Sessions::new(Arc::clone(&reaper), Arc::clone(&cgroups))),
            reaper,
            cgroups,
            logs,
            reverse: reverse::Waiting::default(),
            archives: Arc::new(Semaphore::new(ARCHIVES_MAX)),
            frozen: tokio::sync::Mutex::default(),
            configured: Mutex::default(),
            rehearsed: Mutex::default(),
            started: Instant::now(),
        }))
    }

    /// What every process starts from.
    pub(crate) fn settings(&self) -> Result<Arc<Settings>, ApiError> {
        if self.reaper.is_held() {
            return Err(LaunchError::Held.into());
        }
        let configuration = self.configuration();
        let not_yet = || ApiError::not_ready("the sandbox is still being set up; try again");
        configuration.map(|configuration| configuration.settings).ok_or_else(not_yet)
    }

    pub(crate) fn configuration(&self) -> Option<Configuration> {
        lock(&self.configured).clone()
    }

    pub(crate) fn rehearsed(&self) -> Option<Configure> {
        lock(&self.rehearsed).clone()
    }

    pub(crate) fn set_rehearsed(&self, wanted: Configure) {
        *lock(&self.rehearsed) = Some(wanted);
    }

    pub(crate) fn set_configuration(&self, configuration: Configuration) {
        *lock(&self.configured) = Some(configuration);
    }
}

/// Removes cgroups that outlived their process: all that is ever in them becomes our child in the end.
async fn sweep(reaper: Arc<Reaper>, cgroups: Arc<Cgroups>) {
    let mut collections = reaper.collections();
    while collections.changed().await.is_ok() {
        cgroups.sweep();
    }
}

/// The public guest API.
pub(crate) fn router(agent: &Arc<Agent>) -> Router {
    Router::new()
        .route("/api/v1/health", get(health))
        .route("/api/v1/info", get(info))
        .merge(process_api::routes())
        .merge(files::routes())
        .merge(archive::routes())
        .merge(pty_api::routes())
        .merge(exec::routes())
        .merge(reverse::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(agent), require_configured))
        .with_state(Arc::clone(agent))
}

/// Before `configure` nothing may run: not even with the right answer would it be this sandbox's. Nor while everything
/// stands still: what is read now may be another sandbox's in a moment.
async fn require_configured(State(agent): State<Arc<Agent>>, request: Request, next: Next) -> Response {
    match agent.settings() {
        Ok(_) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn health() -> Json<Health> {
    Json(Health { healthy: true })
}

async fn info(State(agent): State<Arc<Agent>>) -> Json<AgentInfo> {
    let (running_processes, total_processes) = agent.table.counts();
    Json(AgentInfo {
        version: VERSION.to_owned(),
        uptime_secs: agent.started.elapsed().as_secs(),
        running_processes,
        total_processes,
    })
}
