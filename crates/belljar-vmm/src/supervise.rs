//! Waiting for what a VM process was asked for while it starts: it may answer, refuse, end, or take too long.

use crate::child::Process;
use crate::driver::VmExit;
use crate::error::{MonitorError, VmmError};
use crate::log::Log;
use std::path::Path;
use std::time::Duration;

/// An error of a control connection.
pub(crate) trait ControlError: Into<MonitorError> {
    /// Whether there is no connection any more. That of a process that is ending breaks a moment before the process is gone.
    fn is_broken(&self) -> bool;
}

/// Waits until a process has done `work`, or has ended, or took longer than `limit`.
pub(crate) async fn supervise<T, E: ControlError>(
    program: &Path,
    limit: Duration,
    process: &Process,
    log: &Log,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, VmmError> {
    let ended = |ended: String| VmmError::EndedEarly { program: program.to_owned(), ended, log: log.message() };
    tokio::select! {
        biased;
        how = process.ended() => Err(ended(VmExit::from(how).to_string())),
        result = tokio::time::timeout(limit, work) => match result {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) if error.is_broken() => {
                process.kill().await?;
                Err(ended("it closed its control connection".to_owned()))
            }
            Ok(Err(source)) => Err(VmmError::Monitor { pid: process.pid(), source: source.into() }),
            Err(_) => Err(VmmError::NotReady { program: program.to_owned(), limit, log: log.message() }),
        },
    }
}
