//! Drivers of VM programs that are driven over HTTP (`rest` module): what they have in common.
//!
//! ```text
//! claim run dir -> process -> record -> pipe, bell -> API answers ──► Waiting ──► files' names -> boot, or load -> running
//!               \____________ Files, Started ___________________/             \____ Files, Started ____________/
//! ```
//! A [`Waiting`] process can be made ahead of a guest that goes on ([`Driver::prepare`]).
//!
//! What each does its own way is an [`Api`]: Firecracker's and Cloud Hypervisor's. What both do otherwise than QEMU, and is
//! hidden here:
//!
//! - They save devices and memory in one go only, devices first. Memory is read from outside, as everywhere, so they are told to
//!   write it where they cannot, and say no when the devices are there.
//! - They end with their guest. What the guest said is in a pipe of ours.

mod vm;

use crate::changes::{self, When};
use crate::child::{Ended, Process};
use crate::dirty::{Origin, Places};
use crate::driver::{Capabilities, DiskLimits, Driver, DriverKind, NetworkSpec, Prepared, Vm, VmExit, VmSpec};
use crate::error::VmmError;
use crate::fifo_console::FifoConsole;
use crate::guard::{self, Files, Started};
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
use crate::spec::{self, DiskLock};
use crate::supervise::supervise;
use async_trait::async_trait;
use serde_json::{Value, json};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
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

    /// What a new process can be told before its guest is known.
    async fn prepare(rest: &Rest) -> Result<(), RestError>;

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

/// A process without a guest, and what leads to it. Where it is dropped it goes on, as any VM's does.
#[derive(Debug)]
pub(crate) struct Waiting {
    process: Process,
    dir: Arc<RunDir>,
    log: Log,
    console: FifoConsole,
    link: Hybrid,
    rest: Rest,
    /// What it was started for.
    wanted: VmSpec,
}

impl Waiting {
    /// Whether it may have this guest: what it was given at its start is what that needs.
    fn check_fit(&self, spec: &VmSpec) -> Result<(), VmmError> {
        let had = &self.wanted;
        let misfit = [
            ("vcpus", had.vcpus == spec.vcpus),
            ("memory_mib", had.memory_mib == spec.memory_mib),
            ("disk_limits", had.disk_limits == spec.disk_limits && is_beside(spec)),
            ("network", namespace_of(had) == namespace_of(spec)),
            ("jail", had.jail.is_some() == spec.jail.is_some()),
            ("passed_through", had.passed_through == spec.passed_through),
        ];
        match misfit.into_iter().find(|(_, fits)| !fits) {
            None => Ok(()),
            Some((field, _)) => {
                let reason = "is not what the process was prepared for".to_owned();
                Err(VmmError::BadSpec { id: spec.id.clone(), field, reason })
            }
        }
    }
}

/// Where it opens its tap itself.
fn namespace_of(spec: &VmSpec) -> Option<&Path> {
    match &spec.network {
        NetworkSpec::NamedTap { namespace, .. } => Some(namespace),
        _ => None,
    }
}

/// Whether what limits it is the right device's: that of its run directory.
fn is_beside(spec: &VmSpec) -> bool {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|it| it.dev());
    spec.disk.as_deref().is_none_or(|disk| device(disk) == device(&spec.run_dir))
}

/// What a launch was found to need.
struct Checked {
    saved: Option<Saved>,
    guest: Guest,
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

    /// A process that waits for what it will load.
    async fn start(&self, spec: &VmSpec, dir: &Arc<RunDir>, log: &Log) -> Result<Process, VmmError> {
        let program = &self.program.path;
        let args = A::arguments(&spec.id);
        let namespace = match &spec.network {
            NetworkSpec::NamedTap { namespace, .. } => Some(namespace.as_path()),
            _ => None,
        };
        if let Some(jail) = &spec.jail {
            let plan = Plan::of(spec, jail, program, args, Vec::new(), 0, 0);
            return jail::start(jail, &plan, dir, log, &[], namespace).await;
        }
        let start = Start { program, args: &args, cwd: dir.path(), stdout: log.as_fd(), stderr: log.as_fd(), fds: &[] };
        let pid = namespace::enter(namespace, || spawn(&start));
        let failed = |source| VmmError::Spawn { program: program.clone(), source };
        Process::watch(pid.map_err(failed)?).map_err(failed)
    }

    /// Starts a process, up to where its API answers.
    async fn make_waiting(&self, spec: &VmSpec) -> Result<Waiting, VmmError> {
        let (dir, files, log) = guard::begin(&spec.run_dir).await?;
        let started = Started::of(self.start(spec, &dir, &log).await?);
        let process = started.process.clone();
        let attempt = async {
            // As with QEMU: should we die now, this is how the process is found.
            self.record(spec, &dir, &process, Guest::default())?;
            // It waits to be told what to do with all of this.
            dir.make_fifo(CONSOLE_FIFO)?;
            let (console, link) = (FifoConsole::open(&dir)?, Hybrid::new(&dir)?);
            let rest = Rest::new(Arc::clone(&dir), API);
            let ready = async {
                rest.ready().await?;
                A::prepare(&rest).await
            };
            supervise(&self.program.path, self.limit, &process, &log, ready).await?;
            Ok((console, link, rest))
        };
        match attempt.await {
            Ok((console, link, rest)) => {
                files.keep();
                let process = started.keep();
                Ok(Waiting { process, dir, log, console, link, rest, wanted: spec.clone() })
            }
            Err(error) => {
                started.process.kill().await?;
                Err(error)
            }
        }
    }

    fn record(&self, spec: &VmSpec, dir: &RunDir, process: &Process, guest: Guest) -> Result<(), VmmError> {
        match Record::of(&spec.id, process.pid(), self.kind(), self.version(), guest) {
            Some(record) => dir.write_record(&record.jailed(spec.jail.is_some())),
            None => Ok(()),
        }
    }

    fn validate(spec: &VmSpec) -> Result<(), VmmError> {
        spec::validate(spec, &A::capabilities())?;
        match A::network_obstacle(&spec.network) {
            Some(reason) => Err(VmmError::BadSpec { id: spec.id.clone(), field: "network", reason: reason.to_owned() }),
            None => Ok(()),
        }
    }

    /// What a launch needs, before anything is started for it.
    fn check(spec: &VmSpec) -> Result<Checked, VmmError> {
        Self::validate(spec)?;
        spec::check_files(spec)?;
        let memory_inode = spec::check_memory(spec)?;
        let saved = Saved::open(spec, &A::KIND.to_string())?;
        let processor = match &saved {
            Some(saved) => saved.processor,
            None => Some(Processor::here(spec.hidden_features)),
        };
        let Shape { vcpus, memory_mib, disk, card, processor } = Shape::of(spec, processor);
        let memory_inode = memory_inode.filter(|_| A::BOOTS_FROM_MEMORY_FILE || saved.is_some());
        let guest = Guest { memory_mib, memory_inode, memory_at: None, vcpus, disk, card, processor };
        Ok(Checked { saved, guest })
    }

    /// Gives a waiting process a guest. Where that fails there is neither.
    async fn load(&self, waiting: Waiting, spec: &VmSpec, checked: Checked) -> Result<Box<dyn Vm>, VmmError> {
        let Waiting { process, dir, log, console, link, rest, .. } = waiting;
        let (files, started) = (Files::of(&dir), Started::of(process));
        let process = started.process.clone();
        let Checked { saved, mut guest } = checked;
        let link = link.of_saved(saved.as_ref().and_then(|saved| saved.link));
        let attempt = async {
            let lock = DiskLock::of(&spec.id, spec.disk.as_deref())?;
            self.record(spec, &dir, &process, guest)?;
            self.bring_in(spec, saved.is_some(), &dir, &process)?;
            saved.iter().try_for_each(|saved| A::unpack(spec, saved, &dir))?;
            self.begin(spec, saved.as_ref(), &rest, &process, &log).await?;
            LOADED.iter().try_for_each(|loaded| dir.remove(loaded))?;
            if let (Some(inode), true) = (guest.memory_inode, A::capabilities().takes_back_memory) {
                let (pid, operation) = (process.pid(), "find the guest's memory in");
                let places = Places::find(pid, inode, guest.memory_mib << 20);
                guest.memory_at = Some(places.map_err(|source| VmmError::Process { operation, pid, source })?);
                self.record(spec, &dir, &process, guest)?;
            }
            if let Some(inode) = guest.memory_inode {
                let origin = guest.memory_at.map_or(Origin::File(inode), Origin::At);
                changes::put(process.pid(), origin, spec, When::AfterDevices).await?;
            }
            Ok(lock)
        };
        match attempt.await {
            Ok(lock) => {
                files.keep();
                let version = self.version().to_owned();
                let parts = Parts { process: started.keep(), version, guest, rest, console, link, log, dir, lock };
                Ok(Box::new(ApiVm::<A>::new(parts)))
            }
            Err(error) => {
                started.process.kill().await?;
                Err(error)
            }
        }
    }

    /// Puts the files that it will load where it finds them.
    fn bring_in(&self, spec: &VmSpec, is_saved: bool, dir: &RunDir, process: &Process) -> Result<(), VmmError> {
        if let Some(disk) = &spec.disk {
            dir.link_in(disk, DISK)?;
        }
        let files = A::files(spec, is_saved);
        if spec.jail.is_none() {
            return files.iter().try_for_each(|(name, path)| dir.link_in(path, name));
        }
        let files = files.iter().map(|(name, path)| Entry::new(name, path, false));
        let disk = spec.disk.iter().map(|disk| Entry::new(DISK, disk, true));
        let pid = process.pid();
        let admitted = jail::admit(process, &files.chain(disk).collect::<Vec<_>>());
        let operation = "bring files into the jail of";
        admitted.map_err(|source| VmmError::Process { operation, pid, source })?;
        let size = spec.disk.as_ref().and_then(|disk| std::fs::metadata(disk).ok()).map_or(0, |disk| disk.len());
        dir.allow_files_of(pid, size).map_err(|source| VmmError::Process { operation: "limit", pid, source })
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
        let disk = dir.has(DISK).then(|| dir.file(DISK));
        let lock = DiskLock::of(&record.id, disk.as_deref())?;
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
            lock,
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
        let checked = Self::check(spec)?;
        let waiting = self.make_waiting(spec).await?;
        self.load(waiting, spec, checked).await
    }

    async fn prepare(&self, spec: &VmSpec) -> Result<Prepared, VmmError> {
        Self::validate(spec)?;
        Ok(Prepared::new(self.make_waiting(spec).await?))
    }

    async fn launch_in(&self, prepared: Prepared, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        let waiting: Waiting = prepared.into_inner().ok_or(VmmError::NotAhead { driver: A::KIND })?;
        match Self::check(spec).and_then(|checked| waiting.check_fit(spec).map(|()| checked)) {
            Ok(checked) => self.load(waiting, spec, checked).await,
            Err(error) => {
                waiting.process.kill().await?;
                waiting.dir.clear()?;
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
