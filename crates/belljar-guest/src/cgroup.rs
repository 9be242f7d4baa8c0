//! A cgroup (v2) per process, so that all it started can be found again and killed, whatever session it fled to.
//!
//! Where there is no cgroup v2 (hosted mode) every call here is a no-op and the process group has to do.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Mutex,
};

use crate::sync::lock;

pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
const PARENT: &str = "/sys/fs/cgroup/belljar";
const CONTROLLERS: [&str; 3] = ["+memory", "+pids", "+cpu"];

/// All cgroups of the agent's processes.
pub(crate) struct Cgroups {
    enabled: bool,
    /// Those whose process ended while something it started lived on.
    lingering: Mutex<Vec<PathBuf>>,
}

/// The cgroup of one process.
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroups {
    /// None: hosted mode.
    pub(crate) fn disabled() -> Self {
        Self { enabled: false, lingering: Mutex::default() }
    }

    /// Makes the parent and hands it the controllers that there are.
    pub(crate) fn set_up() -> Self {
        let made = fs::create_dir_all(PARENT);
        for controller in CONTROLLERS {
            for directory in [MOUNT, PARENT] {
                let file = format!("{directory}/cgroup.subtree_control");
                if let Err(error) = fs::write(&file, controller) {
                    tracing::warn!("{file}: cannot enable {controller}: {error}");
                }
            }
        }
        if let Err(error) = &made {
            tracing::warn!("{PARENT}: {error}; processes that leave their session cannot be killed with it");
        }
        Self { enabled: made.is_ok(), lingering: Mutex::default() }
    }

    /// Makes the cgroup of process `handle`.
    pub(crate) fn create(&self, kind: char, handle: i64) -> Option<Cgroup> {
        if !self.enabled {
            return None;
        }
        let path = PathBuf::from(format!("{PARENT}/{kind}{handle}"));
        match fs::create_dir(&path) {
            Ok(()) => Some(Cgroup { path }),
            Err(error) => {
                tracing::warn!("{}: {error}", path.display());
                None
            }
        }
    }

    /// Removes a cgroup now, or when [`Cgroups::sweep`] finds it empty.
    pub(crate) fn remove(&self, cgroup: &Cgroup) {
        if is_left(&cgroup.path) {
            lock(&self.lingering).push(cgroup.path.clone());
        }
    }

    /// Removes those that have become empty; to be called when an orphan was collected.
    pub(crate) fn sweep(&self) {
        lock(&self.lingering).retain(is_left);
    }
}

fn is_left(path: &PathBuf) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => false,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

impl Cgroup {
    /// Opened file to which a child writes `0` to join.
    pub(crate) fn join_file(&self) -> io::Result<OwnedFd> {
        Ok(File::options().write(true).open(self.path.join("cgroup.procs"))?.into())
    }

    /// Kills everything in it; a cgroup that is already gone has nothing left to kill.
    pub(crate) fn kill(&self) {
        let file = self.path.join("cgroup.kill");
        match File::options().write(true).open(&file).and_then(|mut file| file.write_all(b"1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::warn!("{}: {error}", file.display()),
            _ => {}
        }
    }

    /// Whether the kernel killed something in it for want of memory.
    pub(crate) fn was_oom_killed(&self) -> bool {
        fs::read_to_string(self.path.join("memory.events")).is_ok_and(|text| counts_oom_kill(&text))
    }
}

fn counts_oom_kill(events: &str) -> bool {
    events.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_counted_kill_is_one() {
        assert!(counts_oom_kill("low 0\noom 3\noom_kill 1\noom_group_kill 0\n"));
        assert!(!counts_oom_kill("low 0\noom 3\noom_kill 0\noom_group_kill 1\n"));
        assert!(!counts_oom_kill(""));
    }
}
