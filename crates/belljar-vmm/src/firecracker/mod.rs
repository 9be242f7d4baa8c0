//! Firecracker, on working KVM.
//!
//! ```text
//! validate -> claim run dir -> files' names, pipe, bell -> process -> record -> API answers -> boot, or load -> running
//!                          \__________ Files ______________________________________________________/
//!                                                        \__ Started _____________________________/
//! ```
//! What differs from QEMU, and is hidden here:
//!
//! - Guest memory of a guest that boots is the process's own, without a file: it begins with zeroes, as a sparse file does. A
//!   restored one maps its file, copy-on-write.
//! - It saves devices and memory in one go only, devices first. Memory is read from outside, as everywhere, so it is told to
//!   write it where it cannot, and says no when the devices are there.
//! - It ends with its guest. What the guest said is in a pipe of ours.
//! - It opens its tap by name: it is started in the namespace where that is.

mod requests;
mod vm;

use crate::child::Process;
use crate::driver::{Capabilities, Driver, DriverKind, NetworkSpec, Vm, VmSpec};
use crate::error::VmmError;
use crate::fifo_console::FifoConsole;
use crate::guard::{Files, Started};
use crate::hybrid::Hybrid;
use crate::limits::{LAUNCH, MAX_FIRECRACKER_VCPUS, MAX_MEMORY_MIB};
use crate::log::Log;
use crate::namespace;
use crate::orphan;
use crate::probe::Program;
use crate::rest::{Rest, RestError};
use crate::run_dir::{API, CONSOLE_FIFO, DEVICES, DISK, Guest, INITRD, KERNEL, Record, RunDir};
use crate::saved::Saved;
use crate::shape::Shape;
use crate::spawn::{Start, spawn};
use crate::spec;
use crate::supervise::supervise;
use async_trait::async_trait;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use vm::{FirecrackerVm, Parts};

/// What saved states name it.
const PROGRAM: &str = "firecracker";

/// Every guest has its own vsock: the number says nothing.
const GUEST_CID: u32 = 3;

/// How to run Firecracker.
#[derive(Debug, Clone)]
pub struct FirecrackerConfig {
    /// The program, as [`probe::firecracker`](crate::probe::firecracker) found it.
    pub program: Program,
    /// How long a launch may take.
    pub launch_limit: Duration,
}

impl FirecrackerConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(program: Program) -> Self {
        Self { program, launch_limit: LAUNCH }
    }
}

/// Runs VMs with Firecracker.
#[derive(Debug)]
pub struct FirecrackerDriver {
    config: FirecrackerConfig,
}

impl FirecrackerDriver {
    #[must_use]
    pub fn new(config: FirecrackerConfig) -> Self {
        Self { config }
    }

    fn start(&self, spec: &VmSpec, dir: &RunDir, log: &Log, disk: Option<&File>) -> Result<Process, VmmError> {
        let program = &self.config.program.path;
        let failed = |source| VmmError::Spawn { program: program.clone(), source };
        let args = requests::arguments(&spec.id, API);
        // For as long as it lives it holds our lock on the disk.
        let fds: Vec<_> = disk.iter().map(AsFd::as_fd).collect();
        let start =
            Start { program, args: &args, cwd: dir.path(), stdout: log.as_fd(), stderr: log.as_fd(), fds: &fds };
        let pid = match &spec.network {
            NetworkSpec::NamedTap { namespace, .. } => namespace::enter(namespace, || spawn(&start)),
            _ => spawn(&start),
        };
        Process::watch(pid.map_err(failed)?).map_err(failed)
    }

    /// Waits until Firecracker has done what it was asked for, or has ended, or took too long.
    async fn supervise(
        &self,
        process: &Process,
        log: &Log,
        work: impl Future<Output = Result<(), RestError>>,
    ) -> Result<(), VmmError> {
        supervise(&self.config.program.path, self.config.launch_limit, process, log, work).await
    }

    /// Has it boot, or go on with what was saved.
    async fn begin(
        &self,
        spec: &VmSpec,
        saved: Option<&Saved>,
        rest: &Rest,
        process: &Process,
        log: &Log,
    ) -> Result<(), VmmError> {
        let ready = async {
            rest.ready().await?;
            put(rest, requests::console()).await
        };
        self.supervise(process, log, ready).await?;
        let (Some(saved), Some(memory)) = (saved, &spec.memory) else {
            let boot = async {
                for request in requests::boot(spec) {
                    put(rest, request).await?;
                }
                Ok(())
            };
            return self.supervise(process, log, boot).await;
        };
        let loaded = self.supervise(process, log, put(rest, requests::load(spec, memory))).await;
        let refused = |reason: String| {
            let reason = format!("Firecracker {} read what {} wrote: {reason}", self.version(), saved.version);
            VmmError::Restore { id: spec.id.clone(), path: spec.devices.clone().unwrap_or_default(), reason }
        };
        loaded.map_err(|error| match error {
            VmmError::EndedEarly { log, .. } => refused(log),
            VmmError::Monitor { source, .. } => refused(source.to_string()),
            other => other,
        })
    }

    async fn adopt_recorded(&self, dir: RunDir, record: Record) -> Result<Option<Box<dyn Vm>>, VmmError> {
        if record.driver != self.kind() {
            return Err(VmmError::OtherDriver {
                path: dir.path().to_owned(),
                found: record.driver.to_string(),
                expected: self.kind().to_string(),
            });
        }
        let pid = record.pid;
        let failed = |source| VmmError::Process { operation: "watch", pid, source };
        let Some(process) = Process::find(&record).map_err(failed)? else {
            dir.clear()?;
            return Ok(None);
        };
        let dir = Arc::new(dir);
        let parts = Parts {
            process,
            version: record.program_version,
            guest: record.guest,
            rest: Rest::new(Arc::clone(&dir), API),
            console: FifoConsole::open(&dir)?,
            link: Hybrid::new(&dir)?,
            log: Log::of_process(pid).map_err(failed)?,
            dir,
        };
        Ok(Some(Box::new(FirecrackerVm::new(parts))))
    }
}

async fn put(rest: &Rest, (path, body): requests::Put) -> Result<(), RestError> {
    rest.put(&path, &body).await.map(drop)
}

/// What it cannot have.
fn check_network(spec: &VmSpec) -> Result<(), VmmError> {
    let reason = match spec.network {
        NetworkSpec::None | NetworkSpec::NamedTap { .. } => return Ok(()),
        NetworkSpec::User { .. } => "is one of the VM process itself, which Firecracker does not have: give it a tap",
        NetworkSpec::Tap(_) => "is an open tap, and Firecracker opens its own: give it the tap's name",
    };
    Err(VmmError::BadSpec { id: spec.id.clone(), field: "network", reason: reason.to_owned() })
}

#[async_trait]
impl Driver for FirecrackerDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Firecracker
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolates: true,
            hardware: true,
            user_network: false,
            tap_network: true,
            named_tap: true,
            snapshots: true,
            restricts_network: false,
            limits_resources: true,
            max_vcpus: MAX_FIRECRACKER_VCPUS,
            max_memory_mib: MAX_MEMORY_MIB,
        }
    }

    fn version(&self) -> &str {
        &self.config.program.version
    }

    async fn launch(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        spec::validate(spec)?;
        check_network(spec)?;
        spec::check_files(spec)?;
        let memory_inode = spec::check_memory(spec)?;
        let saved = Saved::open(spec, PROGRAM)?;
        let Shape { vcpus, memory_mib, disk, card } = Shape::of(spec);
        // Memory of one that boots has no file.
        let memory_inode = memory_inode.filter(|_| saved.is_some());
        let guest = Guest { memory_mib, memory_inode, vcpus, disk, card };
        let dir = Arc::new(RunDir::open(&spec.run_dir)?);
        orphan::claim(&dir).await?;
        let files = Files::of(&dir);
        let lock = spec.disk.as_deref().map(|disk| spec::lock_disk(spec, disk)).transpose()?;
        if let Some(disk) = &spec.disk {
            dir.link_in(disk, DISK)?;
        }
        match &saved {
            Some(saved) => dir.write(DEVICES, &saved.devices)?,
            None => {
                dir.link_in(&spec.kernel, KERNEL)?;
                spec.initrd.iter().try_for_each(|initrd| dir.link_in(initrd, INITRD))?;
            }
        }
        dir.make_fifo(CONSOLE_FIFO)?;
        let (console, link) = (FifoConsole::open(&dir)?, Hybrid::new(&dir)?);
        let operation = "create the log for";
        let log =
            Log::create().map_err(|source| VmmError::RunDir { operation, path: dir.path().to_owned(), source })?;
        let started = Started::of(self.start(spec, &dir, &log, lock.as_ref())?);
        let process = started.process.clone();
        let rest = Rest::new(Arc::clone(&dir), API);
        let attempt = async {
            // As with QEMU: should we die now, this is how the process is found.
            let record = Record::of(&spec.id, process.pid(), self.kind(), self.version(), guest);
            if let Some(record) = record {
                dir.write_record(&record)?;
            }
            self.begin(spec, saved.as_ref(), &rest, &process, &log).await?;
            [DEVICES, KERNEL, INITRD].iter().try_for_each(|loaded| dir.remove(loaded))
        };
        match attempt.await {
            Ok(()) => {
                files.keep();
                let version = self.version().to_owned();
                let parts = Parts { process: started.keep(), version, guest, rest, console, link, log, dir };
                Ok(Box::new(FirecrackerVm::new(parts)))
            }
            Err(error) => {
                started.process.kill().await?;
                Err(error)
            }
        }
    }

    async fn adopt(&self, run_dir: &Path) -> Result<Option<Box<dyn Vm>>, VmmError> {
        let dir = RunDir::open(run_dir)?;
        match dir.read_record() {
            Some(record) => self.adopt_recorded(dir, record).await,
            None => {
                orphan::end(&dir).await?;
                dir.clear()?;
                Ok(None)
            }
        }
    }
}
