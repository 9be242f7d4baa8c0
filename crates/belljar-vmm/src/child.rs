//! One process, seen through a pidfd: works for children and for processes adopted from an earlier life of ours, and never
//! mistakes a reused process id for the process.

use crate::VmmError;
use crate::driver::VmExit;
use crate::run_dir::Record;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// How a process ended. Unknown (both `None`) for one that is not our child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl From<Ended> for VmExit {
    fn from(ended: Ended) -> Self {
        Self::Process { code: ended.code, signal: ended.signal }
    }
}

/// Waits for a value that is set once. Never resolves when it never will be set, which is so only while the runtime that
/// would set it is shutting down.
pub(crate) async fn known<T: Clone>(value: &watch::Receiver<Option<T>>) -> T {
    let mut value = value.clone();
    loop {
        let current = value.borrow_and_update().clone();
        match current {
            Some(known) => return known,
            None if value.changed().await.is_err() => return std::future::pending().await,
            None => {}
        }
    }
}

/// A running or ended process. A task of its own waits for the end and reaps it, whether or not this value still
/// exists: no zombie stays behind.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pid: i32,
    fd: Arc<AsyncFd<OwnedFd>>,
    ended: watch::Receiver<Option<Ended>>,
}

impl Process {
    /// Watches a child that was not reaped yet. Must be called inside a tokio runtime.
    pub(crate) fn watch(pid: i32) -> io::Result<Self> {
        Self::watch_fd(pid, open(pid)?)
    }

    /// Finds a recorded process; `None` when it is gone. Must be called inside a tokio runtime.
    pub(crate) fn find(record: &Record) -> io::Result<Option<Self>> {
        let pid = record.pid.cast_signed();
        let fd = match open(pid) {
            Ok(fd) => fd,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Looked at only after the descriptor pins the process, so that it cannot become another one in between.
        if record.is_alive() { Self::watch_fd(pid, fd).map(Some) } else { Ok(None) }
    }

    fn watch_fd(pid: i32, fd: OwnedFd) -> io::Result<Self> {
        let fd = Arc::new(register(fd)?);
        let (tell, ended) = watch::channel(None);
        let watched = Arc::clone(&fd);
        tokio::spawn(async move {
            // A pidfd becomes readable once, when the process has ended. An error means that the runtime is shutting
            // down; nobody is there to be told then.
            if watched.readable().await.is_ok() {
                tell.send_replace(Some(reap(&watched)));
            }
        });
        Ok(Self { pid, fd, ended })
    }

    /// Process id, for messages and `/proc`.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// A pidfd.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }

    /// Resolves when the process has ended.
    pub(crate) async fn ended(&self) -> Ended {
        known(&self.ended).await
    }

    /// Sends SIGKILL without waiting for the end.
    pub(crate) fn send_kill(&self) -> Result<(), VmmError> {
        match pidfd_send_signal(self.fd.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(VmmError::Process { operation: "kill", pid: self.pid(), source: error.into() }),
        }
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn kill(&self) -> Result<Ended, VmmError> {
        self.send_kill()?;
        Ok(self.ended().await)
    }
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

#[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor of another kind than its own")]
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always names the same open descriptor, and closes it only when dropped.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

fn reap(fd: &AsyncFd<OwnedFd>) -> Ended {
    match waitid(WaitId::PidFd(fd.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => Ended { code: status.exit_status(), signal: status.terminating_signal() },
        // Not our child: its parent learns the status, we learn that it is over.
        Ok(None) | Err(_) => Ended { code: None, signal: None },
    }
}

/// When process `pid` started, in clock ticks since boot; `None` when there is no such process or only its zombie. With
/// the boot id it identifies a process for good.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of `/proc/PID/stat`. The name in field 2 may hold blanks and parentheses, hence from the last one.
pub(crate) fn parse_start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Whether the process of that number, start and boot still runs.
pub(crate) fn is_alive(pid: u32, start: u64, boot: &str) -> bool {
    boot_id().is_some_and(|id| id == boot) && start_time(pid) == Some(start)
}

/// Identifies this boot of the machine: start times of an earlier one mean nothing.
pub(crate) fn boot_id() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn start_time_is_field_22_whatever_the_name() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["qemu", "a b", "x) S 1 2", "(((", ""] {
            assert_eq!(parse_start_time(&format!("12 ({name}) S {rest}")), Some(4711), "{name}");
        }
        assert_eq!(parse_start_time(&format!("12 (qemu) Z {rest}")), None);
        assert_eq!(parse_start_time("12 (qemu) S 1 2"), None);
        assert_eq!(parse_start_time(""), None);
    }

    /// Not waited for: that `Process` reaps it is what the tests are about.
    fn start(script: &str) -> u32 {
        Command::new("sh").args(["-c", script]).spawn().unwrap().id()
    }

    #[tokio::test]
    async fn exit_status_is_told_to_all_and_no_zombie_stays() {
        let pid = start("exit 7");
        let process = Process::watch(pid.cast_signed()).unwrap();
        let expected = Ended { code: Some(7), signal: None };
        assert_eq!(process.ended().await, expected);
        assert_eq!(process.clone().ended().await, expected);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(process.kill().await.unwrap(), expected);
    }

    #[tokio::test]
    async fn killing_is_seen_as_a_signal() {
        let pid = start("exec sleep 1000");
        let process = Process::watch(pid.cast_signed()).unwrap();
        assert!(start_time(pid).is_some());
        assert_eq!(process.kill().await.unwrap(), Ended { code: None, signal: Some(9) });
        assert_eq!(start_time(pid), None);
    }
}
