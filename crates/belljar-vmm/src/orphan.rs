//! VM processes that are not driven: those that nobody was told of, whose launcher died between starting them and writing the
//! record, and those that are only to end.

use crate::child::{self, Process};
use crate::error::VmmError;
use crate::run_dir::RunDir;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Makes sure no VM runs with this directory, and removes what an earlier one left.
pub(crate) async fn claim(dir: &RunDir) -> Result<(), VmmError> {
    match dir.read_record() {
        Some(record) if record.is_alive() => Err(VmmError::Occupied { path: dir.path().to_owned(), pid: record.pid }),
        Some(_) => dir.clear(),
        // What a launch makes first is never gone before its process.
        None if dir.is_clear() => Ok(()),
        None => sweep(dir).await,
    }
}

/// Ends what was started for a directory, and removes what that left.
pub(crate) async fn end_all(run_dir: &Path) -> Result<(), VmmError> {
    let dir = RunDir::open(run_dir)?;
    let Some(record) = dir.read_record() else { return sweep(&dir).await };
    let failed = |source| VmmError::Process { operation: "watch", pid: record.pid, source };
    if let Some(process) = Process::find(&record).map_err(failed)? {
        process.kill().await?;
    }
    dir.clear()
}

/// Ends what was started for a directory without a record, and removes what that left.
pub(crate) async fn sweep(dir: &RunDir) -> Result<(), VmmError> {
    end(dir).await?;
    dir.clear()
}

/// Ends whatever works in the directory (a VM process does, or its launcher, and nothing else) and the process that was jailed
/// for it, and waits until they are gone.
async fn end(dir: &RunDir) -> Result<(), VmmError> {
    end_workers(dir).await?;
    // Now there is nobody who could write one.
    match dir.inmate() {
        Some(inmate) if inmate.is_alive() => {
            let failed = |source| VmmError::Process { operation: "watch", pid: inmate.pid, source };
            let process = Process::watch(inmate.pid.cast_signed()).map_err(failed)?;
            if inmate.is_alive() {
                process.kill().await?;
                tracing::warn!(run_dir = %dir.path().display(), inmate.pid, "ended a VM whose launch had been interrupted");
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn end_workers(dir: &RunDir) -> Result<(), VmmError> {
    let failed = |source| VmmError::RunDir { operation: "look for processes in", path: dir.path().to_owned(), source };
    let here = fs::metadata(dir.path()).map(|it| (it.dev(), it.ino())).map_err(failed)?;
    for entry in fs::read_dir("/proc").map_err(failed)? {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) else { continue };
        if !works_in(pid, here) || pid.unsigned_abs() == std::process::id() {
            continue;
        }
        let Some(fd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok()) else { continue };
        // Looked at again now that it cannot become another one.
        if works_in(pid, here) && pidfd_send_signal(&fd, Signal::KILL).is_ok() {
            child::register(fd).map_err(failed)?.readable().await.map_err(failed)?.clear_ready();
            tracing::warn!(run_dir = %dir.path().display(), pid, "ended a VM whose launch had been interrupted");
        }
    }
    Ok(())
}

fn works_in(pid: i32, here: (u64, u64)) -> bool {
    let cwd = fs::metadata(Path::new("/proc").join(pid.to_string()).join("cwd"));
    cwd.is_ok_and(|it| (it.dev(), it.ino()) == here) && child::start_time(pid.unsigned_abs()).is_some()
}
