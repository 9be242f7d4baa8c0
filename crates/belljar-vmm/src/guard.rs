//! What undoes an unfinished launch, also when its caller stops waiting for it.

use crate::child::Process;
use crate::error::VmmError;
use crate::log::Log;
use crate::orphan;
use crate::run_dir::RunDir;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

/// What a launch begins with: its directory, which no VM has now, what empties that again, and a log.
pub(crate) async fn begin(run_dir: &Path) -> Result<(Arc<RunDir>, Files, Log), VmmError> {
    let dir = Arc::new(RunDir::open(run_dir)?);
    orphan::claim(&dir).await?;
    let files = Files::of(&dir);
    let operation = "create the log for";
    let log = Log::create().map_err(|source| VmmError::RunDir { operation, path: dir.path().to_owned(), source })?;
    Ok((dir, files, log))
}

/// Removes the run directory's files unless the launch succeeds.
pub(crate) struct Files(Option<Arc<RunDir>>);

impl Files {
    /// Of a directory that holds nothing that must stay.
    pub(crate) fn of(dir: &Arc<RunDir>) -> Self {
        Self(Some(Arc::clone(dir)))
    }

    /// The launch succeeded.
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take()
            && let Err(error) = dir.clear()
        {
            tracing::warn!(error = &error as &dyn Error, "files of a failed launch stay behind");
        }
    }
}

/// Ends the process unless the launch succeeds. Its watcher reaps it.
pub(crate) struct Started {
    pub process: Process,
    keep: bool,
}

impl Started {
    /// Of a process that was just started.
    pub(crate) fn of(process: Process) -> Self {
        Self { process, keep: false }
    }

    /// The launch succeeded.
    pub(crate) fn keep(mut self) -> Process {
        self.keep = true;
        self.process.clone()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.process.send_kill()
        {
            tracing::warn!(error = &error as &dyn Error, "process of a failed launch stays behind");
        }
    }
}
