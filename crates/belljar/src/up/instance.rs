//! The process behind a data directory, named so that it cannot be mistaken: pid and start time.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::data_dir::{DataDir, DataDirError};

/// In the data directory.
const PID_FILE: &str = "belljar.pid";
/// Field of `/proc/<pid>/stat` that holds the start time, counted after the command's closing parenthesis.
const START_TIME_FIELD: usize = 19;

/// A process, as the pid file has it: `<pid> <start time in clock ticks since boot>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance {
    /// Its pid.
    pub pid: i32,
    start_time: u64,
}

/// Why a process could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The system refused.
    #[error("cannot signal process {pid}")]
    Signal {
        /// Which.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not end.
    #[error("process {pid} has not ended within {} s", .within.as_secs())]
    Timeout {
        /// Which.
        pid: i32,
        /// How long was waited.
        within: Duration,
    },
}

/// The pid file of this process; removed when it is dropped.
#[derive(Debug)]
pub struct Claim(PathBuf);

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, "cannot remove the pid file");
        }
    }
}

impl Instance {
    /// Writes this process into the directory that it has locked.
    pub fn claim(dir: &DataDir) -> Result<Claim, DataDirError> {
        let pid = std::process::id();
        let start_time = start_time(pid).unwrap_or(0);
        dir.write(PID_FILE, 0o644, format!("{pid} {start_time}\n").as_bytes())?;
        Ok(Claim(dir.path().join(PID_FILE)))
    }

    /// The process that a directory's pid file names; it may have ended.
    pub fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(PID_FILE)).ok()?;
        let mut words = text.split_whitespace();
        Some(Self { pid: words.next()?.parse().ok()?, start_time: words.next()?.parse().ok()? })
    }

    /// Whether the process runs, as far as can be told.
    pub(super) fn runs(self) -> bool {
        !matches!(self.handle(), Ok(None))
    }

    /// A handle on the process, if it is the one that was meant and still runs.
    fn handle(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after the handle was opened: what it says is about the process that the handle is for.
        let same = u32::try_from(self.pid).ok().and_then(start_time) == Some(self.start_time);
        // One that has ended is there until its parent asks for it.
        let ended = poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)?;
        Ok((same && ended == 0).then_some(handle))
    }

    /// Sends SIGTERM, or SIGINT, and waits for the end; blocks. `false` when it did not run any more.
    pub fn stop(self, interrupt: bool, within: Duration) -> Result<bool, StopError> {
        let refused = |source: io::Error| StopError::Signal { pid: self.pid, source };
        let Some(handle) = self.handle().map_err(refused)? else { return Ok(false) };
        let signal = if interrupt { Signal::INT } else { Signal::TERM };
        pidfd_send_signal(&handle, signal).map_err(|error| refused(error.into()))?;
        // A pidfd becomes readable when its process ends.
        let mut ended = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
        match poll(&mut ended, timeout).map_err(|errno| refused(errno.into()))? {
            0 => Err(StopError::Timeout { pid: self.pid, within }),
            _ => Ok(true),
        }
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may hold anything, also parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(START_TIME_FIELD)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    #[test]
    fn only_the_process_that_was_meant_is_stopped() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let start_time = start_time(child.id()).expect("start time");
        let pid = i32::try_from(child.id()).expect("pid");
        let within = Duration::from_secs(10);
        let stranger = Instance { pid, start_time: start_time + 1 };
        assert!(!stranger.stop(false, within).expect("stop"));
        let instance = Instance { pid, start_time };
        assert!(instance.runs() && instance.stop(true, within).expect("stop"));
        assert!(!instance.runs(), "its parent has not asked for it yet");
        assert_eq!(child.wait().expect("status").signal(), Some(2));
        assert!(!instance.stop(true, within).expect("stop"));
    }
}
