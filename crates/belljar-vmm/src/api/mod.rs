//! Drivers of VM programs that are driven over HTTP (`rest` module): what they have in common.
//!
//! ```text
//! validate -> claim run dir -> files' names -> process -> record -> pipe, bell -> API answers -> boot, or load -> running
//!                          \__________ Files ______________________________________________________/
//!                                                     \__ Started ________________________________/
//! ```
//! What each does its own way is an [`Api`]: Firecracker's and Cloud Hypervisor's. What both do otherwise than QEMU, and is
//! hidden here:
//!
//! - They save devices and memory in one go only, devices first. Memory is read from outside, as everywhere, so they are told to
//!   write it where they cannot, and say no when the devices are there.
//! - They end with their guest. What the guest said is in a pipe of ours.

mod vm;

use crate::child::{Ended, Process};
use crate::dirty::Places;
use crate::driver::{Capabilities, DiskLimits, Driver, DriverKind, NetworkSpec, Vm, VmExit, VmSpec};
use crate::error::VmmError;
use crate::fifo_console::FifoConsole;
use crate::guard::{Files, Started};
use crate::hybrid::Hybrid;
use crate::jail;
use crate::jail::plan::{Entry, Plan};
use crate::limits::LAUNCH;
use crate::log::Log;
use crate::namespace;
use crate::orphan;
use crate::probe::Program;
use crate::processor::Processor;
use crate::rest::{Rest, RestError};
use crate::run_dir::{API, CONSOLE_FIFO, DISK, Guest, LOADED, Record, RunDir};
use crate::saved::Saved;
use crate::shape::Shape;
use crate::spawn::{Start, spawn};
use crate::spec;
use crate::supervise::supervise;
use async_trait::async_trait;
use serde_json::{Value, json};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use vm::{ApiVm, Parts};

/// What slows a disk down, as both programs take it: buckets that are full again after a second. One without size is none.
pub(crate) fn rate_limiter(limits: DiskLimits) -> Value {
    let bucket = |limit: Option<NonZeroU64>| match limit {
        Some(limit) => json!({ "size": limit, "refill_time": 1000 }),
        None => json!({ "size": 0, "refill_time": 0 }),
    };
    json!({ "bandwidth": bucket(limits.bytes), "ops": bucket(limits.requests) })
}

/// Every guest has its own vsock: the number says nothing.
pub(crate) const GUEST_CID: u32 = 3;

/// What one such program does its own way.
#[async_trait]
pub(crate) trait Api: Copy + Send + Sync + 'static {
    /// The driver that it makes; its name is that of the program in saved states.
    const KIND: DriverKind;
    /// Whether memory of a guest that boots is a view of [`VmSpec::memory`], too, or the process's own, without a file.
    const BOOTS_FROM_MEMORY_FILE: bool;

    fn capabilities() -> Capabilities;

    /// The command line's arguments after the program's name, for an API on the socket [`API`].
    fn arguments(id: &str) -> Vec<String>;

    /// Why it cannot have this network card.
    fn network_obstacle(network: &NetworkSpec) -> Option<&'static str>;

    /// Which files of the host it will load, besides the disk: names of [`LOADED`].
    fn files(spec: &VmSpec, is_saved: bool) -> Vec<(&'static str, &Path)>;

    /// Puts the saved devices where it will load them from, by names of [`LOADED`].
    fn unpack(spec: &VmSpec, saved: &Saved, dir: &RunDir) -> Result<(), VmmError>;

    /// Has a new process boot a guest, or go on with the saved one and let that stand still.
    async fn begin(spec: &VmSpec, rest: &Rest) -> Result<(), RestError>;

    /// Lets the guest go on or stand still. Again is fine.
    async fn set_running(rest: &Rest, running: bool) -> Result<(), RestError>;

    /// Whether the guest stands still.
    async fn is_paused(rest: &Rest) -> Result<bool, RestError>;

    /// The devices of a guest that stands still, without a path of the host.
    async fn save(pid: u32, rest: &Rest, dir: &RunDir) -> Result<Vec<u8>, VmmError>;

    /// Has it find out that its disk has this many bytes now.
    async fn look_at_disk(rest: &Rest, bytes: u64) -> Result<(), RestError>;

    /// Why a process ended that left this on its console and in its log.
    fn reason(ended: Ended, console: &[u8], log: &str) -> VmExit;
}

/// Runs VMs with such a program.
pub(crate) struct ApiDriver<A> {
    program: Program,
    api: std::marker::PhantomData<A>,
    /// How long a launch may take.
    pub(crate) limit: Duration,
}

impl<A: Api> ApiDriver<A> {
    pub(crate) fn new(program: Program) -> Self {
        Self { program, api: std::marker::PhantomData, limit: LAUNCH }
    }

    async fn start(
        &self,
        spec: &VmSpec,
        is_saved: bool,
        dir: &Arc<RunDir>,
        log: &Log,
        disk: Option<&File>,
    ) -> Result<Process, VmmError> {
        let program = &self.program.path;
        let args = A::arguments(&spec.id);
        // For as long as it lives it holds our lock on the disk.
        let fds: Vec<_> = disk.iter().map(AsFd::as_fd).collect();
        let namespace = match &spec.network {
            NetworkSpec::NamedTap { namespace, .. } => Some(namespace.as_path()),
            _ => None,
        };
        if let Some(disk) = &spec.disk {
            dir.link_in(disk, DISK)?;
        }
        let files = A::files(spec, is_saved);
        if let Some(jail) = &spec.jail {
            let files = files.iter().map(|(name, path)| Entry::new(name, path, false));
            let disk = spec.disk.iter().map(|disk| Entry::new(DISK, disk, true));
            let plan = Plan::of(spec, jail, program, args, files.chain(disk).collect(), fds.len(), 0);
            return jail::start(jail, &plan, dir, log, &fds, namespace).await;
        }
        files.iter().try_for_each(|(name, path)| dir.link_in(path, name))?;
        let start =
            Start { program, args: &args, cwd: dir.path(), stdout: log.as_fd(), stderr: log.as_fd(), fds: &fds };
        let pid = namespace::enter(namespace, || spawn(&start));
        let failed = |source| VmmError::Spawn { program: program.clone(), source };
        Process::watch(pid.map_err(failed)?).map_err(failed)
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
        let (program, more) = (&self.program.path, spec::pinning(spec));
        supervise(program, self.limit, process, log, rest.ready()).await?;
        let rest = rest.clone().patient(more);
        let begun = supervise(program, self.limit + more, process, log, A::begin(spec, &rest)).await;
        let Some(saved) = saved else { return begun };
        let refused = |reason: String| {
            let reason = format!("{} {} read what {} wrote: {reason}", A::KIND, self.version(), saved.version);
            VmmError::Restore { id: spec.id.clone(), path: spec.devices.clone().unwrap_or_default(), reason }
        };
        begun.map_err(|error| match error {
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
        if record.jailed {
            dir.enter_room(pid).map_err(failed)?;
        }
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
        Ok(Some(Box::new(ApiVm::<A>::new(parts))))
    }
}

#[async_trait]
impl<A: Api> Driver for ApiDriver<A> {
    fn kind(&self) -> DriverKind {
        A::KIND
    }

    fn capabilities(&self) -> Capabilities {
        A::capabilities()
    }

    fn version(&self) -> &str {
        &self.program.version
    }

    async fn launch(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        spec::validate(spec, &A::capabilities())?;
        if let Some(reason) = A::network_obstacle(&spec.network) {
            return Err(VmmError::BadSpec { id: spec.id.clone(), field: "network", reason: reason.to_owned() });
        }
        spec::check_files(spec)?;
        let memory_inode = spec::check_memory(spec)?;
        let saved = Saved::open(spec, &A::KIND.to_string())?;
        let processor = match &saved {
            Some(saved) => saved.processor,
            None => Some(Processor::here(spec.hidden_features)),
        };
        let Shape { vcpus, memory_mib, disk, card, processor } = Shape::of(spec, processor);
        let memory_inode = memory_inode.filter(|_| A::BOOTS_FROM_MEMORY_FILE || saved.is_some());
        let mut guest = Guest { memory_mib, memory_inode, memory_at: None, vcpus, disk, card, processor };
        let dir = Arc::new(RunDir::open(&spec.run_dir)?);
        orphan::claim(&dir).await?;
        let files = Files::of(&dir);
        let lock = spec.disk.as_deref().map(|disk| spec::lock_disk(spec, disk)).transpose()?;
        let operation = "create the log for";
        let log =
            Log::create().map_err(|source| VmmError::RunDir { operation, path: dir.path().to_owned(), source })?;
        let started = Started::of(self.start(spec, saved.is_some(), &dir, &log, lock.as_ref()).await?);
        let process = started.process.clone();
        let attempt = async {
            let record = |guest| match Record::of(&spec.id, process.pid(), self.kind(), self.version(), guest) {
                Some(record) => dir.write_record(&record.jailed(spec.jail.is_some())),
                None => Ok(()),
            };
            // As with QEMU: should we die now, this is how the process is found.
            record(guest)?;
            // It waits to be told what to do with all of this.
            dir.make_fifo(CONSOLE_FIFO)?;
            let (console, link) = (FifoConsole::open(&dir)?, Hybrid::new(&dir)?);
            saved.iter().try_for_each(|saved| A::unpack(spec, saved, &dir))?;
            let rest = Rest::new(Arc::clone(&dir), API);
            self.begin(spec, saved.as_ref(), &rest, &process, &log).await?;
            LOADED.iter().try_for_each(|loaded| dir.remove(loaded))?;
            if let (Some(inode), true) = (memory_inode, A::capabilities().takes_back_memory) {
                let (pid, operation) = (process.pid(), "find the guest's memory in");
                let places = Places::find(pid, inode, memory_mib << 20);
                guest.memory_at = Some(places.map_err(|source| VmmError::Process { operation, pid, source })?);
                record(guest)?;
            }
            Ok((rest, console, link))
        };
        match attempt.await {
            Ok((rest, console, link)) => {
                files.keep();
                let version = self.version().to_owned();
                let parts = Parts { process: started.keep(), version, guest, rest, console, link, log, dir };
                Ok(Box::new(ApiVm::<A>::new(parts)))
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
                orphan::sweep(&dir).await?;
                Ok(None)
            }
        }
    }

    async fn end(&self, run_dir: &Path) -> Result<(), VmmError> {
        orphan::end_all(run_dir).await
    }
}

#[cfg(test)]
#[path = "api_test.rs"]
mod tests;
