//! A cgroup (v2) per process, so that all it started can be found again and killed, whatever session it fled to.
//!
//! Where there is no cgroup v2 (hosted mode) every call here is a no-op and the process group has to do.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Mutex,
};

use belljar_api::image::Init;

use crate::sync::lock;

pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// Of our processes, below the mount, where we have all of it.
const PARENT: &str = "belljar";
/// Of ourselves, below what systemd delegates: where there are cgroups below, no process may be beside them.
const OWN: &str = "agent";
const CONTROLLERS: [&str; 3] = ["+memory", "+pids", "+cpu"];

/// All cgroups of the agent's processes.
pub(crate) struct Cgroups {
    /// What all of them lie in; `None`: there are none.
    parent: Option<PathBuf>,
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
        Self { parent: None, lingering: Mutex::default() }
    }

    /// Makes the parent and hands it the controllers that there are.
    pub(crate) fn set_up(init: Init) -> Self {
        let mount = Path::new(MOUNT);
        let (made, to_enable) = match init {
            Init::Agent => {
                let parent = mount.join(PARENT);
                (fs::create_dir_all(&parent).map(|()| parent.clone()), vec![mount.to_owned(), parent])
            }
            Init::Systemd => {
                let made = enter_delegated();
                let to_enable = made.iter().cloned().collect();
                (made, to_enable)
            }
        };
        for directory in to_enable {
            for controller in CONTROLLERS {
                let file = directory.join("cgroup.subtree_control");
                if let Err(error) = fs::write(&file, controller) {
                    tracing::warn!("{}: cannot enable {controller}: {error}", file.display());
                }
            }
        }
        if let Err(error) = &made {
            tracing::warn!("cgroups: {error}; processes that leave their session cannot be killed with it");
        }
        Self { parent: made.ok(), lingering: Mutex::default() }
    }

    /// Makes the cgroup of process `handle`.
    pub(crate) fn create(&self, kind: char, handle: i64) -> Option<Cgroup> {
        let path = self.parent.as_ref()?.join(format!("{kind}{handle}"));
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

/// Moves ourselves into a cgroup of our own below the one that we were started in, and gives that one.
fn enter_delegated() -> io::Result<PathBuf> {
    let parent = own()?;
    let inner = parent.join(OWN);
    fs::create_dir_all(&inner)?;
    fs::write(inner.join("cgroup.procs"), "0")?;
    Ok(parent)
}

/// The cgroup that we are in.
pub(crate) fn own() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    own_in(&text).ok_or_else(|| io::Error::other(format!("/proc/self/cgroup names no cgroup of version 2: {text:?}")))
}

/// Version 2 has the number 0.
fn own_in(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(MOUNT).join(path))
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

    #[test]
    fn the_own_cgroup_is_that_of_version_2() {
        let check = |text: &str, expect: Option<&str>| assert_eq!(own_in(text), expect.map(PathBuf::from), "{text}");
        check("0::/\n", Some("/sys/fs/cgroup/"));
        check("1:cpu:/x\n0::/belljar-agent.service/agent\n", Some("/sys/fs/cgroup/belljar-agent.service/agent"));
        check("1:cpu:/x\n", None);
    }
}
