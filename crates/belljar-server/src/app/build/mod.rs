//! Image builds: start, show, cancel. A node does the work; see [`crate::build`] for how a build may go.
//!
//! ```text
//! start ──► task: row ──► node: import, its steps come back ──► the row's end
//!              │              ▲
//!              └─ Dockerfile ─┘  context ─► builder sandbox ─► archive
//! cancel ──(token)──────────► node: stop ─────────────────────────┘
//! ```
//! - [`import`]: what both kinds end with. [`dockerfile`]: the way there. [`context`]: from the client. [`builder`] and
//!   [`guest`]: the sandbox. [`cache`]: what is kept of it for the next build.
//!
//! One task speaks for each build, from before there is a row until that is over, and it alone has the credentials.
//! Handlers wait for what it commits, so one whose client has gone leaves nothing half done. A task ends with the server;
//! the import ends with the task, since the node makes it for as long as it is asked for. A row that a crash left behind is
//! failed by the next start: nobody speaks for it any more. Called by `http/build.rs`.

mod builder;
mod cache;
pub(crate) mod context;
mod dockerfile;
mod guest;
mod import;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

use belljar_api::{
    build::{BuildKind, CancelBuild, CancelOutcome, CancelledBuild, ContextUpload, SealContext, StartBuild},
    error::code,
    id::new_id,
    node::{ImportImage, ImportSource},
    secret::SecretValue,
};
use http::StatusCode;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::context::Context;
use super::App;
use crate::{
    auth,
    build::{Admission, BuildRow, Event, Standing},
    clock::now_ms,
    error::ApiError,
    limits::{
        BUILD_END_RETRY_FIRST, BUILD_END_RETRY_MAX, CANCEL_WAIT, IMAGE_NAME_MAX, IMAGE_REF_MAX, NODE_WAIT,
        REGISTRY_CREDENTIALS_MAX,
    },
    node_link::NodeLink,
    store::StoreError,
};

/// What became of builds that a stop of the server ended.
const STOPPED: &str = "the server was stopped while this was being built; start the build again, unless GET \
                       /images/v4/images shows that the image was made in the last moment";

/// The same for those that were under way when it started: it had crashed.
pub(crate) const RESTARTED: &str = "the server was restarted while this was being built; start the build again, unless \
                                    GET /images/v4/images shows that the image was made in the last moment";

/// What a request for a build comes to.
#[derive(Debug)]
pub(crate) enum Started {
    /// This build, begun now or by the same request before.
    Build(BuildRow),
    /// None: this one makes an image of the same name.
    InProgress(BuildRow),
}

/// Builds that a task speaks for.
#[derive(Debug, Default)]
pub(crate) struct Builds {
    under_way: Mutex<HashMap<String, UnderWay>>,
    /// Rings when a build was made or changed.
    pub(crate) changed: watch::Sender<()>,
    /// Bytes of all contexts that are there.
    context_bytes: Arc<AtomicU64>,
}

/// How a build under way is reached.
#[derive(Debug, Clone)]
struct UnderWay {
    cancel: CancellationToken,
    context: Option<Arc<Context>>,
}

impl Builds {
    fn under_way(&self) -> MutexGuard<'_, HashMap<String, UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the task of a build to stop it.
    fn cancel(&self, id: &str) {
        if let Some(build) = self.under_way().get(id) {
            build.cancel.cancel();
        }
    }

    fn new_context(&self, directory: &Path, id: &str) -> Context {
        Context::new(directory, id, Arc::clone(&self.context_bytes))
    }

    /// The context that a build waits for, or has.
    fn context(&self, id: &str) -> Option<Arc<Context>> {
        self.under_way().get(id)?.context.clone()
    }
}

/// A build that its task speaks for, until this is dropped.
struct Spoken {
    app: Arc<App>,
    id: String,
    cancel: CancellationToken,
}

impl Spoken {
    fn begin(app: &Arc<App>, id: &str, context: Option<Arc<Context>>) -> Self {
        let cancel = CancellationToken::new();
        app.live.builds.under_way().insert(id.to_owned(), UnderWay { cancel: cancel.clone(), context });
        Self { app: Arc::clone(app), id: id.to_owned(), cancel }
    }
}

impl Drop for Spoken {
    fn drop(&mut self) {
        self.app.live.builds.under_way().remove(&self.id);
    }
}

impl App {
    /// Starts a build on the first connected node, or finds the one that the same request started.
    pub(crate) async fn start_build(
        self: &Arc<Self>,
        start: StartBuild,
        request_id: Option<String>,
    ) -> Result<Started, ApiError> {
        let (mut row, work) = self.new_build(start, request_id)?;
        let link = self.live.nodes.wait_any(NODE_WAIT).await.ok_or_else(|| {
            let words = "no node is connected that could build an image; try again";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, words)
        })?;
        link.id().clone_into(&mut row.node_id);
        if row.kind == BuildKind::Dockerfile {
            // Before anything is uploaded and built for it. An import finds out at once by itself.
            link.check_image_name(&row.name).await?;
        }
        let (tell, told) = oneshot::channel();
        let spoken = Spoken::begin(self, &row.id, work.context());
        self.sessions.spawn(async move {
            let admission = spoken.app.store.create_build(row.clone()).await;
            let is_new = matches!(admission, Ok(Admission::New));
            // Whoever asked may have gone; the build goes on, and the same request finds it again.
            let _ = tell.send(admission.map(|admission| (admission, row)));
            if is_new {
                build(&spoken, &link, work).await;
            }
        });
        match told.await.unwrap_or(Err(StoreError::Closed))? {
            (Admission::New, row) | (Admission::Same(row), _) => Ok(Started::Build(row)),
            (Admission::InProgress(active), _) => Ok(Started::InProgress(active)),
            (Admission::Mismatch, _) => {
                let words = "Idempotency-Key: a build with another body was started under it; use a new key";
                Err(ApiError::new(StatusCode::CONFLICT, code::CLIENT_REQUEST_ID_MISMATCH, words))
            }
        }
    }

    /// Where the context of a build goes that waits for one.
    pub(crate) fn context_upload(&self, id: &str) -> Option<ContextUpload> {
        self.live.builds.context(id)?.upload(&self.urls.own(), id)
    }

    /// Says that the context of a build is complete.
    pub(crate) async fn seal_context(&self, id: &str, seal: SealContext) -> Result<BuildRow, ApiError> {
        let row = self.find_build(id).await?;
        match self.live.builds.context(id) {
            Some(context) => context.seal(&seal.digest)?,
            // Who asks again may come late.
            None if row.kind == BuildKind::Dockerfile && row.builder_sandbox_id.is_some() => {}
            None => {
                let words = format!("build {id} waits for no context");
                return Err(ApiError::new(StatusCode::CONFLICT, code::CONFLICT, words));
            }
        }
        Ok(row)
    }

    /// One build.
    pub(crate) async fn find_build(&self, id: &str) -> Result<BuildRow, ApiError> {
        self.store.build(id).await?.ok_or_else(|| no_build(id))
    }

    /// Cancels a build, and waits until it is known what came of that.
    pub(crate) async fn cancel_build(&self, which: CancelBuild) -> Result<CancelledBuild, ApiError> {
        let found = match (which.build_id, which.client_request_id) {
            (Some(id), None) => self.find_build(&id).await?,
            (None, Some(request_id)) => match self.store.build_requested(&request_id).await? {
                Some(row) => row,
                None => return Ok(CancelledBuild { outcome: CancelOutcome::NotAdmitted, build: None }),
            },
            _ => return Err(ApiError::invalid("give either build_id or client_request_id")),
        };
        if let Some(outcome) = found.cancel_outcome(false) {
            return Ok(CancelledBuild { outcome, build: Some(found.info()) });
        }
        let ended = tokio::time::timeout(CANCEL_WAIT, self.cancelled(&found.id)).await;
        let (outcome, row) = ended.unwrap_or_else(|_| {
            let words =
                format!("build {} was told to stop, and its node has not said what came of it; ask again", found.id);
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, words))
        })?;
        Ok(CancelledBuild { outcome, build: Some(row.info()) })
    }

    async fn cancelled(&self, id: &str) -> Result<(CancelOutcome, BuildRow), ApiError> {
        let mut changes = self.live.builds.changed.subscribe();
        self.live.builds.cancel(id);
        loop {
            let row = self.find_build(id).await?;
            if let Some(outcome) = row.cancel_outcome(true) {
                return Ok((outcome, row));
            }
            changes.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }
}

/// What a build does.
enum Work {
    Import(ImportImage),
    Dockerfile(Box<dockerfile::Job>),
}

impl Work {
    fn context(&self) -> Option<Arc<Context>> {
        match self {
            Self::Import(_) => None,
            Self::Dockerfile(job) => Some(Arc::clone(&job.context)),
        }
    }
}

impl App {
    /// What is kept of a request, and what is to be done.
    fn new_build(&self, start: StartBuild, request_id: Option<String>) -> Result<(BuildRow, Work), ApiError> {
        let name = start.name.to_lowercase();
        bounded("name", &name, IMAGE_NAME_MAX)?;
        let public = match start.image_scope.as_deref() {
            None | Some("project") => false,
            Some("global") => true,
            Some(_) => return Err(ApiError::invalid("image_scope: use \"global\" or leave it out")),
        };
        let secret = start.registry_credentials_json.clone().filter(|text| !text.reveal().is_empty());
        if let Some(text) = &secret {
            bounded("registry_credentials_json", text.reveal(), REGISTRY_CREDENTIALS_MAX)?;
        }
        let (id, now) = (format!("build_{}", new_id()), now_ms());
        let mut row = BuildRow {
            id: id.clone(),
            kind: start.kind,
            request_id,
            fingerprint: fingerprint(start.clone())?,
            name: name.clone(),
            image_ref: String::new(),
            node_id: String::new(),
            standing: Standing::Pending,
            builder_sandbox_id: None,
            deadline: None,
            created_at: now,
            updated_at: now,
        };
        let work = match start.kind {
            BuildKind::Import => {
                row.image_ref = start.image_ref.unwrap_or_default();
                bounded("image_ref", &row.image_ref, IMAGE_REF_MAX)?;
                let source =
                    ImportSource::Registry { image_ref: row.image_ref.clone(), registry_credentials_json: secret };
                Work::Import(ImportImage { build_id: id, name, public, source })
            }
            BuildKind::Dockerfile => {
                let job = dockerfile::Job::new(start, public, self.live.builds.new_context(&self.contexts, &id))?;
                row.deadline = Some(job.deadline);
                Work::Dockerfile(Box::new(job))
            }
        };
        Ok((row, work))
    }
}

fn bounded(what: &str, text: &str, max: usize) -> Result<(), ApiError> {
    match text.len() {
        0 => Err(ApiError::invalid(format!("{what}: it is missing or empty"))),
        len if len > max => Err(ApiError::invalid(format!("{what}: it has {len} bytes; {max} are the most"))),
        _ => Ok(()),
    }
}

/// What makes two requests the same. Not the credentials and secrets: what is kept of them could be tried out.
fn fingerprint(start: StartBuild) -> Result<[u8; 32], ApiError> {
    let start = StartBuild {
        registry_credentials_json: None::<SecretValue>,
        secrets: BTreeMap::new(),
        name: start.name.to_lowercase(),
        ..start
    };
    let text = serde_json::to_string(&start).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(auth::hash(&text))
}

/// Speaks for a build until it is over, and notes how it ended.
async fn build(spoken: &Spoken, link: &NodeLink, work: Work) {
    let (app, id) = (&spoken.app, &spoken.id);
    let end = match work {
        Work::Import(wanted) => {
            tracing::info!(build = id, node = link.id(), image = wanted.name, "an image is imported");
            tokio::select! {
                end = import::follow(spoken, link, wanted) => end.unwrap_or_else(import::absent),
                () = app.stopping.cancelled() => Event::Failed(STOPPED.to_owned()),
            }
        }
        Work::Dockerfile(job) => {
            tracing::info!(build = id, image = job.start.name, "an image is built of a Dockerfile");
            dockerfile::follow(spoken, link, *job).await
        }
    };
    let mut pause = BUILD_END_RETRY_FIRST;
    loop {
        match app.store.change_build(id, end.clone(), now_ms()).await {
            Ok(row) => {
                let status = row.as_ref().map(BuildRow::status);
                let error = row.and_then(|row| row.info().error);
                return tracing::info!(build = id, ?status, error, "an image build is over");
            }
            // Its name is taken until this is noted. A server that stops leaves it to the next one.
            Err(error) => tracing::error!(build = id, %error, "cannot note the end of an image build"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(BUILD_END_RETRY_MAX),
            () = app.stopping.cancelled() => return,
        }
    }
}

fn no_build(id: &str) -> ApiError {
    let shown: String = id.chars().take(80).collect();
    let words = format!(
        "there is no build {shown:?}: it never was, or it ended too long ago to be remembered; GET /images/v4/images lists \
         the images that there are"
    );
    ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, words)
}
