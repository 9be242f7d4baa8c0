//! An image imported for a build over the API: from a registry, or from the sandbox that it was built in.
//!
//! ```text
//! POST ──► waits ──its turn──► import, on a thread ──┬─► Done, Failed
//!            │                      │                │
//!            └────── stopped ───────┴──► Stopped     └─ the image is named: too late to stop it
//! ```
//! An import lives as long as the request for it: when that is dropped, because the server or the connection went, it is
//! stopped, and nothing but layers that arrived is left. So nobody's import goes on unseen, and nothing is noted on disk.
//! It is no `belljar image import`: it takes no file of this machine and none of its credentials, runs no program for
//! those that were sent, and cannot have the names that come with this product. Called by the uplink.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::AsRawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use belljar_api::{
    build::BuildPhase,
    image::ImageInfo,
    node::{ImportImage, ImportReport, ImportSource, StoppedImport},
};
use belljar_image::{
    BuiltImage, DockerAuths, ImageError, ImportProgress, ImportRequest, Named, Stop, Store, canonical, check_reference,
    is_managed, reimport,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    info,
    sandbox_file::{self, SandboxFileError},
};
use crate::{
    Context, blocking, chain,
    limits::{IMPORT_REPORTS, IMPORTS_AT_ONCE, IMPORTS_MAX},
    storage::StorageError,
};

/// An import that does not begin.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImportError {
    /// This one has.
    #[error("build {0} is under way already")]
    Twice(String),
    /// There are enough.
    #[error("{IMPORTS_MAX} imports wait on this node already; try again when some of them are done")]
    TooMany,
}

/// An image that was not imported.
#[derive(Debug, thiserror::Error)]
enum FailedImport {
    /// The importer's own words.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A test made it fail.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It does not come out of its sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxFileError),
    /// It has to be told where it lies.
    #[error("it was not imported before")]
    Absent,
}

/// Imports that are under way or wait.
#[derive(Debug)]
pub(crate) struct Imports {
    /// Whose turn it is; held until the thread has ended, however the import did.
    pub(crate) turns: Arc<Semaphore>,
    under_way: Mutex<HashMap<String, Handle>>,
    /// What tests do in its place.
    #[cfg(test)]
    pub(crate) double: Mutex<Option<Importer>>,
}

/// What [`belljar_image::import`] is.
#[cfg(test)]
pub(crate) type Importer = fn(&Store, &ImportRequest, &mut dyn FnMut(ImportProgress)) -> Result<BuiltImage, ImageError>;

/// How an import is stopped.
#[derive(Debug, Clone, Default)]
struct Handle {
    stop: Stop,
    /// Cancelled when it was stopped: nobody need wait for its thread to notice.
    stopped: CancellationToken,
}

impl Handle {
    fn stop(&self) -> bool {
        let stopped = self.stop.stop();
        if stopped {
            self.stopped.cancel();
        }
        stopped
    }
}

impl Imports {
    pub(crate) fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(IMPORTS_AT_ONCE)),
            under_way: Mutex::default(),
            #[cfg(test)]
            double: Mutex::default(),
        }
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, id: &str) -> Result<Handle, ImportError> {
        let mut under_way = self.under_way();
        if under_way.contains_key(id) {
            return Err(ImportError::Twice(id.to_owned()));
        }
        if under_way.len() >= IMPORTS_MAX {
            return Err(ImportError::TooMany);
        }
        let handle = Handle::default();
        under_way.insert(id.to_owned(), handle.clone());
        Ok(handle)
    }

    /// Stops an import; `None` when there is none with this id.
    pub(crate) fn stop(&self, id: &str) -> Option<StoppedImport> {
        let handle = self.under_way().get(id).cloned()?;
        Some(StoppedImport { stopped: handle.stop() })
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.under_way().len()
    }
}

/// Stops the import when it is dropped, which does nothing to one that is over.
struct UnderWay {
    ctx: Arc<Context>,
    id: String,
    handle: Handle,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.handle.stop();
        self.ctx.imports.under_way().remove(&self.id);
    }
}

/// Begins an import. What becomes of it comes out of the channel; who drops that stops it.
pub(crate) fn begin(ctx: &Arc<Context>, new: ImportImage) -> Result<mpsc::Receiver<ImportReport>, ImportError> {
    let handle = ctx.imports.enter(&new.build_id)?;
    let under_way = UnderWay { ctx: ctx.clone(), id: new.build_id.clone(), handle };
    let (reports, told) = mpsc::channel(IMPORT_REPORTS);
    ctx.spawn(async move {
        let last = tokio::select! {
            last = work(&under_way, new, reports.clone()) => last,
            () = under_way.handle.stopped.cancelled() => ImportReport::Stopped,
            () = reports.closed() => {
                tracing::info!(build = under_way.id, "the server does not wait for an import any more");
                return;
            }
        };
        tracing::info!(build = under_way.id, ended = ended(&last), "an import is over");
        // Nobody may listen any more.
        let _ = reports.send(last).await;
    });
    Ok(told)
}

fn ended(last: &ImportReport) -> &str {
    match last {
        ImportReport::Step { .. } | ImportReport::Done { .. } => "done",
        ImportReport::Failed { error } => error,
        ImportReport::Stopped => "stopped",
        ImportReport::Absent => "not here",
    }
}

/// Waits for its turn and imports. The thread goes on when this is dropped, until it notices that it was stopped.
async fn work(under_way: &UnderWay, new: ImportImage, reports: mpsc::Sender<ImportReport>) -> ImportReport {
    match turn_and_import(under_way, new, reports).await {
        Ok(image) => ImportReport::Done { image },
        Err(FailedImport::Image(ImageError::Stopped)) => ImportReport::Stopped,
        Err(FailedImport::Absent) => ImportReport::Absent,
        Err(error) => ImportReport::Failed { error: chain(&error) },
    }
}

async fn turn_and_import(
    under_way: &UnderWay,
    new: ImportImage,
    reports: mpsc::Sender<ImportReport>,
) -> Result<ImageInfo, FailedImport> {
    let (ctx, stop) = (under_way.ctx.clone(), under_way.handle.stop.clone());
    let archive = match &new.source {
        // Before it is its turn: a sandbox takes its time, and who waits for a registry need not wait for that.
        ImportSource::Sandbox { archive: Some(from), .. } => {
            Some(sandbox_file::fetch(&ctx, &Store::open(&ctx.images.store)?, from).await?)
        }
        ImportSource::Sandbox { archive: None, .. } | ImportSource::Registry { .. } => None,
    };
    let Ok(turn) = ctx.imports.turns.clone().acquire_owned().await else { return Err(ImageError::Stopped.into()) };
    blocking(move || import(&ctx, new, archive, stop, &reports, turn)).await
}

fn import(
    ctx: &Context,
    new: ImportImage,
    archive: Option<File>,
    stop: Stop,
    reports: &mpsc::Sender<ImportReport>,
    _turn: OwnedSemaphorePermit,
) -> Result<ImageInfo, FailedImport> {
    let mut last = None;
    let mut step = |phase| {
        if last.replace(phase) != Some(phase) {
            // There is room for every phase; who listens no more has stopped us.
            let _ = reports.try_send(ImportReport::Step { phase });
        }
    };
    step(BuildPhase::Executing);
    let name = check_name(&new.name)?;
    ctx.faults.point("import: open")?;
    let store = Store::open(&ctx.images.store)?;
    let mut request =
        ImportRequest { name: Some(name.to_owned()), private: !new.public, stop, ..ImportRequest::default() };
    match &new.source {
        ImportSource::Registry { image_ref, registry_credentials_json } => {
            check_reference(image_ref).map_err(ImageError::from)?;
            request.source.clone_from(image_ref);
            request.docker_auths =
                registry_credentials_json.as_ref().map(|text| DockerAuths::new(text.reveal().to_owned()));
        }
        ImportSource::Sandbox { config_digest, .. } => match &archive {
            Some(archive) => {
                // The file has no name but this one, and lives as long as we hold it.
                request.source = format!("docker-archive:/proc/self/fd/{}", archive.as_raw_fd());
                request.origin = Some("dockerfile".to_owned());
            }
            None => {
                let image = reimport(&store, &request, name, config_digest)?.ok_or(FailedImport::Absent)?;
                ctx.images.tidy(&ctx.storage);
                return Ok(info(&Named { name: new.name, public: new.public, image }));
            }
        },
    }
    ctx.faults.point("import: import")?;
    let built = ctx.imports.run(&store, &request, &mut |progress| step(phase(&progress)))?;
    ctx.images.tidy(&ctx.storage);
    Ok(info(&Named { name: new.name, public: new.public, image: built.image }))
}

/// The canonical form of a name that an image of a client may have.
pub(crate) fn check_name(name: &str) -> Result<&str, ImageError> {
    let name = canonical(name)?;
    if is_managed(name) {
        return Err(ImageError::Managed { name: name.to_owned() });
    }
    Ok(name)
}

impl Imports {
    fn run(
        &self,
        store: &Store,
        request: &ImportRequest,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<BuiltImage, ImageError> {
        #[cfg(test)]
        if let Some(double) = *self.double.lock().unwrap_or_else(PoisonError::into_inner) {
            return double(store, request, progress);
        }
        belljar_image::import(store, request, progress)
    }
}

/// How far an import is, as clients are told.
fn phase(progress: &ImportProgress) -> BuildPhase {
    match progress {
        ImportProgress::Resolve | ImportProgress::Fetch(_) | ImportProgress::Unpack(_) => BuildPhase::Executing,
        ImportProgress::Pack => BuildPhase::Snapshotting,
        ImportProgress::Address => BuildPhase::Publishing,
    }
}
