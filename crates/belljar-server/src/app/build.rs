//! Image builds: start, show, cancel. A node does the work; see [`crate::build`] for how a build may go.
//!
//! ```text
//! start ──► task: row ──► node: import, its steps come back ──► the row's end
//! cancel ──(token)──────────► node: stop ─────────────────────────┘
//! ```
//! One task speaks for each build, from before there is a row until that is over, and it alone has the credentials.
//! Handlers wait for what it commits, so one whose client has gone leaves nothing half done. A task ends with the server;
//! the import ends with the task, since the node makes it for as long as it is asked for. A row that a crash left behind is
//! failed by the next start: nobody speaks for it any more. Called by `http/build.rs`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use belljar_api::{
    build::{BuildKind, CancelBuild, CancelOutcome, CancelledBuild, StartBuild},
    error::code,
    id::new_id,
    node::{ImportImage, ImportReport},
    secret::SecretValue,
};
use http::StatusCode;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::App;
use crate::{
    auth,
    build::{Admission, BuildRow, Event, Standing},
    clock::now_ms,
    error::ApiError,
    limits::{
        BUILD_END_RETRY_FIRST, BUILD_END_RETRY_MAX, CANCEL_WAIT, COMMAND_RETRY, IMAGE_NAME_MAX, IMAGE_REF_MAX,
        NODE_WAIT, REGISTRY_CREDENTIALS_MAX,
    },
    node_link::{NodeError, NodeLink},
    routes::BUILD_LATER,
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
    under_way: Mutex<HashMap<String, CancellationToken>>,
    /// Rings when a build was made or changed.
    pub(crate) changed: watch::Sender<()>,
}

impl Builds {
    fn under_way(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the task of a build to stop it.
    fn cancel(&self, id: &str) {
        if let Some(cancel) = self.under_way().get(id) {
            cancel.cancel();
        }
    }
}

/// A build that its task speaks for, until this is dropped.
struct Spoken {
    app: Arc<App>,
    id: String,
    cancel: CancellationToken,
}

impl Spoken {
    fn begin(app: &Arc<App>, id: &str) -> Self {
        let cancel = CancellationToken::new();
        app.live.builds.under_way().insert(id.to_owned(), cancel.clone());
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
        let (mut row, wanted) = new_build(start, request_id)?;
        let link = self.live.nodes.wait_any(NODE_WAIT).await.ok_or_else(|| {
            let words = "no node is connected that could build an image; try again";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, words)
        })?;
        link.id().clone_into(&mut row.node_id);
        let (tell, told) = oneshot::channel();
        let spoken = Spoken::begin(self, &row.id);
        self.sessions.spawn(async move {
            let admission = spoken.app.store.create_build(row.clone()).await;
            let is_new = matches!(admission, Ok(Admission::New));
            // Whoever asked may have gone; the build goes on, and the same request finds it again.
            let _ = tell.send(admission.map(|admission| (admission, row)));
            if is_new {
                build(&spoken, &link, wanted).await;
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

/// What is kept of a request, and what the node is told.
fn new_build(start: StartBuild, request_id: Option<String>) -> Result<(BuildRow, ImportImage), ApiError> {
    if start.kind == BuildKind::Dockerfile {
        // No 501: the published clients take that for a fault of the moment, and try for minutes.
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code::NOT_IMPLEMENTED, BUILD_LATER));
    }
    let bounded = |what: &str, text: &str, max: usize| match text.len() {
        0 => Err(ApiError::invalid(format!("{what}: it is missing or empty"))),
        len if len > max => Err(ApiError::invalid(format!("{what}: it has {len} bytes; {max} are the most"))),
        _ => Ok(()),
    };
    let name = start.name.to_lowercase();
    bounded("name", &name, IMAGE_NAME_MAX)?;
    let image_ref = start.image_ref.clone().unwrap_or_default();
    bounded("image_ref", &image_ref, IMAGE_REF_MAX)?;
    let public = match start.image_scope.as_deref() {
        None | Some("project") => false,
        Some("global") => true,
        Some(_) => return Err(ApiError::invalid("image_scope: use \"global\" or leave it out")),
    };
    let secret = start.registry_credentials_json.clone().filter(|text| !text.reveal().is_empty());
    if let Some(text) = &secret {
        bounded("registry_credentials_json", text.reveal(), REGISTRY_CREDENTIALS_MAX)?;
    }
    let row = BuildRow {
        id: format!("build_{}", new_id()),
        request_id,
        fingerprint: fingerprint(start)?,
        name: name.clone(),
        image_ref: image_ref.clone(),
        node_id: String::new(),
        standing: Standing::Pending,
        created_at: now_ms(),
        updated_at: now_ms(),
    };
    let wanted = ImportImage { build_id: row.id.clone(), name, image_ref, public, registry_credentials_json: secret };
    Ok((row, wanted))
}

/// What makes two requests the same. Not the credentials: what is kept of them could be tried out.
fn fingerprint(start: StartBuild) -> Result<[u8; 32], ApiError> {
    let start = StartBuild { registry_credentials_json: None::<SecretValue>, name: start.name.to_lowercase(), ..start };
    let text = serde_json::to_string(&start).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(auth::hash(&text))
}

/// Speaks for a build until it is over, and notes how it ended.
async fn build(spoken: &Spoken, link: &NodeLink, wanted: ImportImage) {
    let (app, id) = (&spoken.app, &spoken.id);
    tracing::info!(build = id, node = link.id(), image = wanted.name, from = wanted.image_ref, "an image build begins");
    let end = tokio::select! {
        end = follow(spoken, link, wanted) => end,
        () = app.stopping.cancelled() => Event::Failed(STOPPED.to_owned()),
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

/// Has the node do it, and gives the end of it.
async fn follow(spoken: &Spoken, link: &NodeLink, wanted: ImportImage) -> Event {
    let (app, id) = (&spoken.app, &spoken.id);
    let mut reports = match link.import_image(&wanted).await {
        Ok(reports) => reports,
        Err(NodeError::Answer { body, .. }) => return Event::Failed(body.error),
        Err(error @ NodeError::Transport(_)) => {
            return Event::Failed(format!("{error}; start the build again"));
        }
    };
    let mut asked = false;
    loop {
        let report = tokio::select! {
            // First: what is over need not be stopped.
            biased;
            report = reports.next() => report,
            () = spoken.cancel.cancelled(), if !asked => match stop(link, id).await {
                Stopping::Done => return Event::Stopped,
                Stopping::TooLate => {
                    asked = true;
                    continue;
                }
                // If it cannot be reached any more, its reports end, too.
                Stopping::Unknown => continue,
            },
        };
        match report {
            Ok(ImportReport::Step { phase }) => {
                // Only told on the way: the next one says more, and the end is what counts.
                if let Err(error) = app.store.change_build(id, Event::Step(phase), now_ms()).await {
                    tracing::warn!(build = id, %error, "cannot note how far an image build is");
                }
            }
            Ok(ImportReport::Done { image }) => return Event::Done(Box::new(image)),
            Ok(ImportReport::Failed { error }) => return Event::Failed(error),
            Ok(ImportReport::Stopped) => return Event::Stopped,
            Err(error) => {
                return Event::Failed(format!(
                    "node {} went, or was lost, while it built this ({error}); start the build again, unless GET \
                     /images/v4/images shows that the image was made in the last moment",
                    link.id()
                ));
            }
        }
    }
}

/// What a node says to a cancellation.
enum Stopping {
    /// There will be no image.
    Done,
    /// It is being named, or over: its last report says what came of it.
    TooLate,
    /// Nothing that helps; it has to be asked again.
    Unknown,
}

async fn stop(link: &NodeLink, id: &str) -> Stopping {
    match link.stop_import(id).await {
        Ok(answer) if answer.stopped => Stopping::Done,
        Ok(_) | Err(NodeError::Answer { status: StatusCode::NOT_FOUND, .. }) => Stopping::TooLate,
        Err(error) => {
            tracing::warn!(build = id, node = link.id(), %error, "cannot cancel an image build yet");
            tokio::time::sleep(COMMAND_RETRY).await;
            Stopping::Unknown
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
