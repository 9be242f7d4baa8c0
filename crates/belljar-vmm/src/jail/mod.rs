//! The jail of a VM process: what a guest that has taken over its VM process still cannot do.
//!
//! ```text
//! we --spawn--> launcher (root, `belljar jail`)                       VM process (its parent is we)
//!                 namespaces; a root of its own: /vm, /dev, its files
//!                 fork ------------------------------------------------> waits
//!                 note of it in the run directory; its user's: /vm, disk, devices, tap; its cgroups
//!                 "go, as user N" ---------------------------------------> proc; limits; user N; no capabilities; exec
//! we <--pid----  ends                                                    runs
//! ```
//! Its user and group are its own, by its process id ([`FIRST_USER`]), so no other process of the host has them while it lives.
//! It has mount, pid, ipc, uts and cgroup namespaces of its own, and a network namespace of its own or the sandbox's; a root directory
//! in memory, read-only, with its program (and the system's libraries if it needs some), its files and the few devices it uses;
//! and one directory to write to, [`ROOM`], in memory and of limited size, where the host finds its sockets.
//!
//! System calls that no VM program needs are refused ([`filter`]); most refuse far more to themselves.
//!
//! It is not: what a guest may reach through its devices.
//!
//! Everything in the room may be made by a hostile process: the host follows no link there ([`crate::run_dir`]).

mod admit;
pub(crate) mod cgroup;
mod filter;
mod inmate;
mod launcher;
pub(crate) mod plan;
mod root;

pub(crate) use admit::admit;
pub use cgroup::Controllers;
pub use launcher::{NOBODYS, enter};
use plan::Plan;

use crate::child;
use crate::child::{Ended, Process};
use crate::driver::VmExit;
use crate::error::VmmError;
use crate::limits::{
    JAIL, JAIL_FILES, JAIL_LOCKED_BYTES, JAIL_MEMORY_MIB, JAIL_REPORT_BYTES, JAIL_ROOM_BYTES, JAIL_ROOM_FILES,
    JAIL_THREADS,
};
use crate::log::Log;
use crate::run_dir::RunDir;
use crate::spawn::{Start, spawn};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A VM process is user and group `FIRST_USER` + its process id. Above what systemd gives to anything.
pub const FIRST_USER: u32 = 0x7000_0000;

/// Where it works, in its own root.
pub(crate) const ROOM: &str = "/vm";

/// How VM processes are jailed.
#[derive(Debug, Clone)]
pub struct Jail {
    /// A program that calls [`enter`], and its arguments.
    pub launcher: Arc<[OsString]>,
    /// What limits they can be given.
    pub controllers: Arc<Controllers>,
}

/// A process that is ended unless it is kept.
struct Guard {
    process: Option<Process>,
    dir: Arc<RunDir>,
}

impl Guard {
    fn keep(mut self) -> Option<Process> {
        self.process.take()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        if let Err(error) = process.send_kill().and_then(|()| self.dir.clear()) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a jail that nobody waited for stays behind");
        }
    }
}

/// Starts the launcher itself in a jail, as a VM process is started, in the directory `dir`, which is private and empty.
pub async fn try_out(jail: &Jail, dir: &Path) -> Result<(), VmmError> {
    let program = jail.launcher.first().map(PathBuf::from).unwrap_or_default();
    let dir = Arc::new(RunDir::open(dir)?);
    let shares = cgroup::Shares { processors: 1, memory: JAIL_MEMORY_MIB << 20, threads: JAIL_THREADS, writes: None };
    let plan = Plan {
        args: vec!["--version".to_owned()],
        files: Vec::new(),
        kvm: false,
        passed_through: Vec::new(),
        network: plan::Network::Empty,
        limits: plan::Limits {
            files: JAIL_FILES,
            file_bytes: JAIL_ROOM_BYTES,
            threads: JAIL_THREADS,
            locked_bytes: JAIL_LOCKED_BYTES,
            room_bytes: JAIL_ROOM_BYTES,
            room_files: JAIL_ROOM_FILES,
        },
        groups: jail.controllers.groups(shares),
        fds: 0,
        program: program.clone(),
    };
    let failed = |source| VmmError::Spawn { program: program.clone(), source };
    let log = Log::create().map_err(failed)?;
    let ended = start(jail, &plan, &dir, &log, &[], None).await?.ended().await;
    dir.clear()?;
    if ended.code == Some(0) {
        return Ok(());
    }
    Err(VmmError::EndedEarly { program, ended: VmExit::from(ended).to_string(), log: log.message() })
}

/// Starts a VM process in a jail; the run directory then knows the way to its room. Its descriptors are `fds`, as with
/// [`spawn`].
pub(crate) async fn start(
    jail: &Jail,
    plan: &Plan,
    dir: &Arc<RunDir>,
    log: &Log,
    fds: &[BorrowedFd<'_>],
    namespace: Option<&Path>,
) -> Result<Process, VmmError> {
    let program = plan.program.clone();
    let failed = move |source| VmmError::Spawn { program: program.clone(), source };
    let prepare = || {
        let mut file = File::from(memfd_create("belljar-jail-plan", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(plan)?)?;
        file.rewind()?;
        let mut all: Vec<OwnedFd> = vec![file.into(), log.as_fd().try_clone_to_owned()?];
        for fd in fds {
            all.push(fd.try_clone_to_owned()?);
        }
        Ok(all)
    };
    let passed = prepare().map_err(&failed)?;
    let (launcher, dir, namespace) = (Arc::clone(&jail.launcher), Arc::clone(dir), namespace.map(Path::to_owned));
    // Not given up in the middle: whoever stops waiting finds it ended.
    let started = tokio::task::spawn_blocking(move || run_launcher(&launcher, &passed, namespace.as_deref(), dir));
    let guard = started.await.map_err(io::Error::other).and_then(|started| started).map_err(&failed)?;
    guard.keep().ok_or_else(|| failed(io::Error::other("it is gone")))
}

/// `passed`: plan, log, and the VM process's own descriptors. Blocking.
fn run_launcher(
    launcher: &[OsString],
    passed: &[OwnedFd],
    namespace: Option<&Path>,
    dir: Arc<RunDir>,
) -> io::Result<Guard> {
    let [plan, log, rest @ ..] = passed else { return Err(io::ErrorKind::InvalidInput.into()) };
    let [program, args @ ..] = launcher else { return Err(io::ErrorKind::InvalidInput.into()) };
    let text = |word: &OsString| word.clone().into_string().map_err(|_| io::ErrorKind::InvalidInput);
    let args = args.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let (report, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut fds = vec![theirs.as_fd(), plan.as_fd()];
    fds.extend(rest.iter().map(AsFd::as_fd));
    let program = PathBuf::from(program);
    let start =
        Start { program: &program, args: &args, cwd: dir.path(), stdout: log.as_fd(), stderr: log.as_fd(), fds: &fds };
    let pid = crate::namespace::enter(namespace, || spawn(&start))?;
    drop(fds);
    drop(theirs);
    let told = read_report(report, pid);
    // It is our child, and over.
    reap(pid);
    let (pid, problem) = told?;
    let process = pid.map(Process::watch).transpose()?;
    let guard = Guard { process, dir: Arc::clone(&dir) };
    match (pid, problem) {
        (_, Some(problem)) => Err(io::Error::other(problem)),
        (Some(pid), None) => {
            match dir.enter_room(pid.unsigned_abs()) {
                Ok(()) => Ok(guard),
                // One that is ending has no root any more, and whoever waits for it is told.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(guard),
                Err(_) if child::start_time(pid.unsigned_abs()).is_none() => Ok(guard),
                Err(error) => Err(error),
            }
        }
        (None, None) => Err(io::Error::other("its launcher ended and said nothing")),
    }
}

/// What launcher and VM process say until one has ended and the other is the VM program: `pid 12`, or `error ...`.
fn read_report(report: OwnedFd, launcher: i32) -> io::Result<(Option<i32>, Option<String>)> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: JAIL.as_secs().cast_signed(), tv_nsec: 0 };
    let (mut report, mut text) = (File::from(report), Vec::new());
    loop {
        let mut ready = [PollFd::new(&report, PollFlags::IN)];
        match poll(&mut ready, Some(&limit)) {
            Ok(0) => {
                kill(launcher);
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its launcher hangs"));
            }
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [0; 512];
        match report.read(&mut buffer)? {
            0 => break,
            count => text.extend_from_slice(&buffer[..count]),
        }
        if text.len() > JAIL_REPORT_BYTES {
            return Err(io::Error::other("its launcher says too much"));
        }
    }
    let text = String::from_utf8_lossy(&text);
    let find = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
    Ok((find("pid ").and_then(|pid| pid.parse().ok()), find("error ")))
}

/// Whether the limits of a running process can be raised, as a disk that grows wants. Root has that right almost everywhere;
/// without it the size of files has no limit.
pub(crate) fn can_raise_limits() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // It may have ended just now.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn reap(pid: i32) {
    use rustix::process::{Pid, WaitOptions, waitpid};
    while matches!(waitpid(Pid::from_raw(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
}

/// Which process is in the jail of a run directory: written before it is the VM program, so that it is found whatever happens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Inmate {
    pub pid: u32,
    /// Clock ticks since boot.
    start_time: u64,
    boot_id: String,
    /// Its control groups.
    pub groups: Vec<PathBuf>,
}

impl Inmate {
    pub(crate) fn is_alive(&self) -> bool {
        child::is_alive(self.pid, self.start_time, &self.boot_id)
    }

    /// Whether the kernel ended it for want of memory.
    pub(crate) fn was_out_of_memory(&self, ended: Ended) -> bool {
        // Of an adopted one nobody is told how it ended.
        let killed = ended.signal == Some(libc::SIGKILL) || ended == Ended { code: None, signal: None };
        killed && cgroup::were_out_of_memory(&self.groups)
    }
}

#[cfg(test)]
#[path = "jail_test.rs"]
pub(crate) mod tests;
