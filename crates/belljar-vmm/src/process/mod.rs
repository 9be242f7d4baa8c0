//! The guest agent as a plain child process: **no isolation at all**. For simulation and fast tests; compiled only with the
//! feature `process-driver`.
//!
//! The same life as with a real VM: own session, adopted by a later process, ended with everything it started. The agent
//! is run in the run directory as
//!
//! ```text
//! belljar-guest --hosted --listen link.sock --root <run_dir>/root
//! ```
//!
//! and prints `ready` and a newline once it listens; it must print nothing else, as nobody reads on. Kernel, disk,
//! memory, CPUs and network of the specification mean nothing here. To be found when it is ended, a process must
//! descend from the agent, so the agent must be a subreaper.

mod tree;

use crate::child::Process;
use crate::driver::{Capabilities, DirtyMemory, Driver, DriverKind, Vm, VmExit, VmSpec};
use crate::error::VmmError;
use crate::guard::{Files, Started};
use crate::limits::{CONSOLE_BYTES, LAUNCH, MAX_MEMORY_MIB, MAX_VCPUS};
use crate::log::Log;
use crate::memory::MemoryUse;
use crate::run_dir::{Guest, LINK, Record, RunDir};
use crate::spawn::{Start, spawn};
use async_trait::async_trait;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// What the agent says when it listens.
const READY: &[u8] = b"ready\n";

/// Runs guest agents as children.
#[derive(Debug)]
pub struct ProcessDriver {
    agent: PathBuf,
    launch_limit: Duration,
}

impl ProcessDriver {
    /// With the agent's program file.
    #[must_use]
    pub fn new(agent: PathBuf) -> Self {
        Self { agent, launch_limit: LAUNCH }
    }

    /// The same, with another bound on the time a launch may take.
    #[must_use]
    pub fn with_launch_limit(mut self, limit: Duration) -> Self {
        self.launch_limit = limit;
        self
    }

    fn start(&self, dir: &RunDir, log: &Log) -> Result<(Process, pipe::Receiver), VmmError> {
        let failed = |source| VmmError::Spawn { program: self.agent.clone(), source };
        let (ours, theirs) = io::pipe().map_err(failed)?;
        let root = dir.path().join(ROOT);
        // The socket is named relative to the run directory: its address could not hold a long path.
        let args = ["--hosted", "--listen", LINK, "--root", &root.to_string_lossy()].map(str::to_owned);
        let pid = spawn(&Start {
            program: &self.agent,
            args: &args,
            cwd: dir.path(),
            stdout: theirs.as_fd(),
            stderr: log.as_fd(),
            fds: &[],
        })
        .map_err(failed)?;
        let process = Process::watch(pid).map_err(failed)?;
        let ours = pipe::Receiver::from_owned_fd(ours.into()).map_err(failed)?;
        Ok((process, ours))
    }

    /// Waits until the agent listens, or has ended, or took too long.
    async fn ready(&self, process: &Process, mut output: pipe::Receiver, log: &Log) -> Result<(), VmmError> {
        let program = || self.agent.clone();
        let mut said = [0; READY.len()];
        match tokio::time::timeout(self.launch_limit, output.read_exact(&mut said)).await {
            Ok(Ok(_)) if said == *READY => Ok(()),
            Ok(_) => {
                let ended = VmExit::from(process.kill().await?).to_string();
                Err(VmmError::EndedEarly { program: program(), ended, log: log.message() })
            }
            Err(_) => Err(VmmError::NotReady { program: program(), limit: self.launch_limit, log: log.message() }),
        }
    }
}

/// The agent's root directory in the run directory.
const ROOT: &str = "root";

/// Removes everything, the sandbox's own files included: they live in the run directory here.
fn clear(dir: &RunDir) -> Result<(), VmmError> {
    let path = dir.file(ROOT);
    match std::fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(VmmError::RunDir { operation: "remove", path, source })
        }
        _ => dir.clear(),
    }
}

#[async_trait]
impl Driver for ProcessDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Process
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolates: false,
            hardware: true,
            user_network: true,
            tap_network: false,
            named_tap: false,
            snapshots: false,
            saving_ends_link: false,
            restricts_network: false,
            hides_features: false,
            passes_through: false,
            prepares: false,
            takes_changes: false,
            takes_back_memory: false,
            limits_resources: false,
            max_vcpus: MAX_VCPUS,
            max_memory_mib: MAX_MEMORY_MIB,
        }
    }

    fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    async fn launch(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        let dir = Arc::new(RunDir::open(&spec.run_dir)?);
        if let Some(record) = dir.read_record().filter(Record::is_alive) {
            return Err(VmmError::Occupied { path: dir.path().to_owned(), pid: record.pid });
        }
        clear(&dir)?;
        let failed = |source| VmmError::RunDir { operation: "create", path: dir.file(ROOT), source };
        let log = Log::create().map_err(failed)?;
        std::fs::create_dir(dir.file(ROOT)).map_err(failed)?;
        let root = Root(Some(dir.file(ROOT)));
        let files = Files::of(&dir);
        let (process, output) = self.start(&dir, &log)?;
        let started = Started::of(process);
        let attempt = async {
            let pid = started.process.pid();
            let guest = Guest { memory_mib: spec.memory_mib, ..Guest::default() };
            if let Some(record) = Record::of(&spec.id, pid, self.kind(), self.version(), guest) {
                dir.write_record(&record)?;
            }
            self.ready(&started.process, output, &log).await
        };
        if let Err(error) = attempt.await {
            started.process.kill().await?;
            return Err(error);
        }
        files.keep();
        root.keep();
        Ok(Box::new(HostedVm { dir, process: started.keep(), log }))
    }

    async fn adopt(&self, run_dir: &Path) -> Result<Option<Box<dyn Vm>>, VmmError> {
        let dir = RunDir::open(run_dir)?;
        // Without a record: an agent whose launcher died before writing it ends when it cannot say `ready`.
        let Some(record) = dir.read_record() else {
            return clear(&dir).map(|()| None);
        };
        if record.driver != DriverKind::Process {
            let (found, expected) = (record.driver.to_string(), self.kind().to_string());
            return Err(VmmError::OtherDriver { path: dir.path().to_owned(), found, expected });
        }
        let failed = |operation| move |source| VmmError::Process { operation, pid: record.pid, source };
        let Some(process) = Process::find(&record).map_err(failed("watch"))? else {
            return clear(&dir).map(|()| None);
        };
        let log = Log::of_process(record.pid).map_err(failed("read the log of"))?;
        Ok(Some(Box::new(HostedVm { dir: Arc::new(dir), process, log })))
    }
}

/// Removes the root directory unless the launch succeeds.
struct Root(Option<PathBuf>);

impl Root {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = std::fs::remove_dir_all(&path)
        {
            tracing::warn!(%error, path = %path.display(), "directory of a failed launch stays behind");
        }
    }
}

/// One agent and what it started.
struct HostedVm {
    dir: Arc<RunDir>,
    process: Process,
    log: Log,
}

#[async_trait]
impl Vm for HostedVm {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    async fn connect_link(&self) -> Result<UnixStream, VmmError> {
        self.dir.connect(LINK).await.map_err(|source| VmmError::Link { path: self.dir.file(LINK), source })
    }

    async fn wait(&self) -> VmExit {
        self.process.ended().await.into()
    }

    async fn kill(&self) -> Result<(), VmmError> {
        let descendants = tree::stop(self.pid())?;
        self.process.kill().await?;
        drop(descendants);
        clear(&self.dir)
    }

    async fn console(&self) -> Result<Vec<u8>, VmmError> {
        let pid = self.pid();
        let failed = |source| VmmError::Process { operation: "read the log of", pid, source };
        self.log.tail(CONSOLE_BYTES as u64).map_err(failed)
    }

    /// It uses the host's network as any process does.
    async fn set_network(&self, connected: bool) -> Result<(), VmmError> {
        if connected { Ok(()) } else { Err(VmmError::NoNetworkControl { driver: DriverKind::Process }) }
    }

    async fn pause(&self) -> Result<(), VmmError> {
        Err(VmmError::NoSnapshots)
    }

    async fn resume(&self) -> Result<(), VmmError> {
        Err(VmmError::NoSnapshots)
    }

    async fn is_paused(&self) -> Result<bool, VmmError> {
        Ok(false)
    }

    async fn save_devices(&self, _to: &Path) -> Result<(), VmmError> {
        Err(VmmError::NoSnapshots)
    }

    fn room_for_dirty(&self) -> Result<Vec<u8>, VmmError> {
        Err(VmmError::NoSnapshots)
    }

    fn copy_dirty(&self, _room: Vec<u8>) -> Result<DirtyMemory, VmmError> {
        Err(VmmError::NoSnapshots)
    }

    fn each_dirty(&self, _each: &mut (dyn FnMut(u64, &[u8]) -> bool + Send)) -> Result<Vec<(u64, u64)>, VmmError> {
        Err(VmmError::NoSnapshots)
    }

    async fn grow_disk(&self, _bytes: u64) -> Result<(), VmmError> {
        Err(VmmError::NoSnapshots)
    }

    fn memory(&self) -> Result<MemoryUse, VmmError> {
        MemoryUse::of(self.pid(), 0)
    }
}

#[cfg(test)]
#[path = "process_test.rs"]
mod tests;
