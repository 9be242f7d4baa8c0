//! Stops every process of the sandbox, and lets them go on: the kernel's freezer of control groups.
//!
//! ```text
//! going on ─(freeze)─► starts held ─► cgroups stopping ─► disk in step ─► frozen ─(configure)─► going on
//!                          └──────(not all stopped in time)──────┘► going on
//! ```
//!
//! The agent itself never stops: whatever is not in its own cgroup or around that does. As process 1 it is in the root cgroup, so
//! that is all that stands directly below, not only its own: a container engine in the sandbox makes cgroups beside it. As a
//! service of systemd it is two levels below, and systemd itself stops like its services. What the sandbox's root has frozen itself
//! is left alone both ways.
//!
//! A child that joins a frozen cgroup stops before it executes, and with it the thread of ours that waits for that (see
//! [`crate::spawn`]). So [`crate::reaper::Reaper::hold`] comes first: from then on nothing is started, and requests are
//! answered `SANDBOX_NOT_READY`, which clients repeat because it means that nothing has run. They do not wait instead:
//! a request that waits in a sandbox that is put to sleep would be neither done nor refused.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::syncfs,
};

use crate::{
    cgroup::{self, MOUNT},
    limits::STUCK_NAMED_MAX,
};

/// Why the processes go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezeError {
    #[error("freeze: {}: {source}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("freeze: not every process stopped within {patience:?}: {stuck}; all go on")]
    TooSlow { patience: Duration, stuck: String },
    #[error("freeze: the disk cannot be brought in step: {0}; all processes go on")]
    Sync(io::Error),
}

/// Cgroups that were stopped, until they are let go on.
#[derive(Debug, Default)]
pub(crate) struct Frozen(Vec<PathBuf>);

/// Stops all processes below the root cgroup within `patience`, or none. Blocking.
pub(crate) fn stop_all(patience: Duration) -> Result<Frozen, FreezeError> {
    let mut frozen = Frozen::default();
    match stop(&mut frozen, patience) {
        Ok(()) => Ok(frozen),
        Err(error) => {
            if let Err(error) = frozen.go_on() {
                tracing::error!("after a failed freeze: {error}");
            }
            Err(error)
        }
    }
}

fn stop(frozen: &mut Frozen, patience: Duration) -> Result<(), FreezeError> {
    let deadline = Instant::now() + patience;
    let mount = Path::new(MOUNT);
    let own = cgroup::own().map_err(failed(mount))?;
    for path in beside(mount, &own).map_err(failed(mount))? {
        if fs::read(path.join("cgroup.freeze")).is_ok_and(|state| state.starts_with(b"1")) {
            continue;
        }
        fs::write(path.join("cgroup.freeze"), "1").map_err(failed(&path))?;
        frozen.0.push(path);
    }
    for path in &frozen.0 {
        if !wait_until_frozen(path, deadline).map_err(failed(path))? {
            return Err(FreezeError::TooSlow { patience, stuck: stuck(path) });
        }
    }
    Ok(())
}

impl Frozen {
    /// Lets them go on; each that can, and then the first error.
    pub(crate) fn go_on(&self) -> Result<(), FreezeError> {
        let release = |path: &PathBuf| match fs::write(path.join("cgroup.freeze"), "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path)(error)),
            _ => Ok(()),
        };
        let results: Vec<_> = self.0.iter().map(release).collect();
        results.into_iter().collect()
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> FreezeError {
    let path = path.to_owned();
    move |source| FreezeError::Cgroup { path: path.clone(), source }
}

/// The cgroups below `root` that are neither `own` nor around it nor below another one of these.
fn beside(root: &Path, own: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut at = root.to_owned();
    loop {
        let (around, others): (Vec<_>, Vec<_>) = below(&at)?.into_iter().partition(|path| own.starts_with(path));
        found.extend(others);
        match around.into_iter().next() {
            Some(next) => at = next,
            None => return Ok(found),
        }
    }
}

fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path)?.flatten();
    Ok(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect())
}

/// False when the deadline came first. The kernel says when the file changes.
fn wait_until_frozen(cgroup: &Path, deadline: Instant) -> io::Result<bool> {
    let file = File::open(cgroup.join("cgroup.events"))?;
    let mut text = [0; 256];
    loop {
        let count = file.read_at(&mut text, 0)?;
        if says_frozen(&text[..count]) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn says_frozen(events: &[u8]) -> bool {
    events.split(|&byte| byte == b'\n').any(|line| line == b"frozen 1")
}

/// Names some processes that wait inside the kernel, for the message.
fn stuck(cgroup: &Path) -> String {
    let mut names = Vec::new();
    let mut pending = vec![cgroup.to_owned()];
    while let Some(cgroup) = pending.pop() {
        if fs::read(cgroup.join("cgroup.events")).is_ok_and(|events| says_frozen(&events)) {
            continue;
        }
        let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if let Some(name) = waits_in_kernel(&stat) {
                names.push(format!("{pid} ({name})"));
            }
            if names.len() == STUCK_NAMED_MAX {
                return names.join(", ");
            }
        }
        pending.extend(below(&cgroup).unwrap_or_default());
    }
    if names.is_empty() { "it is not known which".to_owned() } else { names.join(", ") }
}

/// Name of a process that cannot be stopped now, from `/proc/PID/stat`.
fn waits_in_kernel(stat: &str) -> Option<&str> {
    let (before, after) = stat.rsplit_once(") ")?;
    after.starts_with('D').then(|| before.split_once('(').map_or("", |(_, name)| name))
}

/// Brings the root file system on the disk in step with what was written. Blocking, as long as the disk takes.
pub(crate) fn sync_root() -> Result<(), FreezeError> {
    let sync = || Ok(syncfs(File::open("/")?)?);
    sync().map_err(FreezeError::Sync)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_word_counts_as_frozen() {
        assert!(says_frozen(b"populated 1\nfrozen 1\n"));
        for not_yet in [b"populated 1\nfrozen 0\n".as_slice(), b"frozen 10\n", b""] {
            assert!(!says_frozen(not_yet));
        }
    }

    #[test]
    fn all_but_the_own_cgroup_and_those_around_it_stop() {
        let root = tempfile::tempdir().expect("a directory");
        for path in ["init.scope", "system.slice/a.service", "agent.service/agent", "agent.service/p1/deeper"] {
            fs::create_dir_all(root.path().join(path)).expect("made");
        }
        let check = |own: &str, expected: &[&str]| {
            let mut found = beside(root.path(), &root.path().join(own)).expect("listed");
            found.sort();
            let expected: Vec<_> = expected.iter().map(|path| root.path().join(path)).collect();
            assert_eq!(found, expected, "{own}");
        };
        check("", &["agent.service", "init.scope", "system.slice"]);
        check("agent.service/agent", &["agent.service/p1", "init.scope", "system.slice"]);
        check("agent.service", &["agent.service/agent", "agent.service/p1", "init.scope", "system.slice"]);
    }

    #[test]
    fn a_process_in_the_kernel_is_named() {
        assert_eq!(waits_in_kernel("42 (dd) D 1 42 42 0"), Some("dd"));
        assert_eq!(waits_in_kernel("42 (a) D (b) D 1 42"), Some("a) D (b"));
        assert_eq!(waits_in_kernel("42 (dd) S 1 42 42 0"), None);
        assert_eq!(waits_in_kernel(""), None);
    }
}
