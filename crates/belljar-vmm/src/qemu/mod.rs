//! QEMU's `microvm` machine, in hardware or in software.
//!
//! Launching is a row of steps, each of which may fail; what was made so far is undone by the guards `Files` and
//! `Started` when they are dropped, hence also when the caller gives up waiting:
//!
//! ```text
//! validate -> claim run dir -> sockets, log -> process -> record -> control connection -> (devices loaded) -> running
//!                          \__________ Files ___________________________________________________________/
//!                                                     \__ Started ______________________________________/
//! ```
//!
//! The sockets are made here and given to QEMU as descriptors: they exist before QEMU runs, so connecting needs no retry.

mod arguments;
mod heads;
mod qmp;
mod state;
mod stream;
mod tsc;
mod vm;

use crate::changes::{self, When};
use crate::child::Process;
use crate::dirty::Origin;
use crate::driver::{Accelerator, Capabilities, Driver, DriverKind, NetworkSpec, Vm, VmExit, VmSpec};
use crate::error::VmmError;
use crate::guard::{self, Started};
use crate::jail;
use crate::jail::plan::Plan;
use crate::limits::{LAUNCH, MAX_MEMORY_MIB, MAX_VCPUS, QMP_REPLY, TRANSLATION_CACHE_MIB};
use crate::log::Log;
use crate::orphan;
use crate::probe::Program;
use crate::processor::{HiddenFeatures, Processor};
use crate::run_dir::{Guest, LINK, QMP, Record, RunDir};
use crate::shape::Shape;
use crate::spawn::{Start, spawn};
use crate::spec;
use crate::supervise::supervise;
pub use arguments::LINK_PORT;
use async_trait::async_trait;
use heads::Heads;
use qmp::Qmp;
pub use qmp::QmpError;
use serde_json::json;
use state::State;
use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tsc::Tsc;
use vm::{Parts, QemuVm};

/// How to run QEMU.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The program, as [`probe::qemu`](crate::probe::qemu) found it.
    pub program: Program,
    /// How guest code is executed.
    pub accel: Accelerator,
    /// Size of the translation cache, MiB (software emulation only).
    pub translation_cache_mib: u32,
    /// How long a launch may take.
    pub launch_limit: Duration,
}

impl QemuConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(program: Program, accel: Accelerator) -> Self {
        Self { program, accel, translation_cache_mib: TRANSLATION_CACHE_MIB, launch_limit: LAUNCH }
    }
}

/// Runs VMs with QEMU.
#[derive(Debug)]
pub struct QemuDriver {
    config: QemuConfig,
    heads: Arc<Heads>,
    tsc: Tsc,
}

impl QemuDriver {
    #[must_use]
    pub fn new(config: QemuConfig) -> Self {
        Self { heads: Arc::new(Heads::new(config.clone())), config, tsc: Tsc::new() }
    }

    /// What a guest that boots is told of its processor.
    fn processor(&self, hidden: HiddenFeatures) -> Option<Processor> {
        match self.config.accel {
            Accelerator::Kvm => Some(Processor::here(hidden)),
            // Whatever is emulated, on every host.
            Accelerator::Tcg => (!hidden.is_empty()).then(|| Processor::emulated(hidden)),
        }
    }

    async fn start(
        &self,
        spec: &VmSpec,
        tsc_khz: Option<u64>,
        dir: &Arc<RunDir>,
        log: &Log,
        state: Option<&State>,
    ) -> Result<Process, VmmError> {
        let program = &self.config.program.path;
        let qmp = dir.listen(QMP)?;
        let link = dir.listen(LINK)?;
        let mut fds = vec![qmp.as_fd(), link.as_fd()];
        fds.extend(state.map(|state| state.file.as_fd()));
        if let NetworkSpec::Tap(tap) = &spec.network {
            fds.push(tap.as_fd());
        }
        if let Some(jail) = &spec.jail {
            let args = arguments::arguments(&self.config, &arguments::inside(spec), tsc_khz);
            let (kvm, more_mib) = match self.config.accel {
                Accelerator::Kvm => (true, 0),
                Accelerator::Tcg => (false, u64::from(self.config.translation_cache_mib)),
            };
            let plan = Plan::of(spec, jail, program, args, arguments::entries(spec), fds.len(), more_mib);
            return jail::start(jail, &Plan { kvm, ..plan }, dir, log, &fds, None).await;
        }
        let args = arguments::arguments(&self.config, spec, tsc_khz);
        let failed = |source| VmmError::Spawn { program: program.clone(), source };
        let (stdout, stderr) = (log.as_fd(), log.as_fd());
        let pid = spawn(&Start { program, args: &args, cwd: dir.path(), stdout, stderr, fds: &fds }).map_err(failed)?;
        Process::watch(pid).map_err(failed)
    }

    /// Waits until QEMU has done what it was asked for, or has ended, or took too long.
    async fn supervise<T>(
        &self,
        process: &Process,
        log: &Log,
        work: impl Future<Output = Result<T, QmpError>>,
    ) -> Result<T, VmmError> {
        supervise(&self.config.program.path, self.config.launch_limit, process, log, work).await
    }

    /// Has a QEMU that waits for it load its devices.
    async fn load(
        &self,
        spec: &VmSpec,
        state: &State,
        qmp: &Qmp,
        process: &Process,
        log: &Log,
    ) -> Result<(), VmmError> {
        let loaded = async {
            qmp.command("migrate-set-capabilities", arguments::capabilities()).await?;
            qmp.command("migrate-incoming", arguments::incoming()).await?;
            match qmp.migrated().await {
                // It says why in its log, and ends: that is waited for.
                Err(QmpError::NotMigrated { .. }) => std::future::pending().await,
                done => done,
            }
        };
        let refused = |reason: &dyn fmt::Display| {
            let reason = format!("QEMU {} read what {} wrote: {reason}", self.version(), state.qemu);
            VmmError::Restore { id: spec.id.clone(), path: spec.devices.clone().unwrap_or_default(), reason }
        };
        self.supervise(process, log, loaded).await.map_err(|error| match error {
            VmmError::EndedEarly { log, .. } => refused(&log),
            VmmError::Monitor { source, .. } => refused(&source),
            other => other,
        })?;
        self.supervise(process, log, activate_disk(qmp)).await
    }

    async fn adopt_recorded(&self, dir: RunDir, record: Record) -> Result<Option<Box<dyn Vm>>, VmmError> {
        if !matches!(record.driver, DriverKind::Qemu { .. }) {
            return Err(VmmError::OtherDriver {
                path: dir.path().to_owned(),
                found: record.driver.to_string(),
                expected: self.kind().to_string(),
            });
        }
        let pid = record.pid;
        let failed = |operation| move |source| VmmError::Process { operation, pid, source };
        let Some(process) = Process::find(&record).map_err(failed("watch"))? else {
            dir.clear()?;
            return Ok(None);
        };
        if record.jailed {
            dir.enter_room(pid).map_err(failed("look into the room of"))?;
        }
        let log = Log::of_process(pid).map_err(failed("read the log of"))?;
        let monitor = |source: QmpError| VmmError::Monitor { pid, source: source.into() };
        let Driven { qmp, stopped, paused } = tokio::time::timeout(QMP_REPLY, drive(&dir))
            .await
            .map_err(|_| monitor(QmpError::Silent { command: "connect" }))?
            .map_err(monitor)?;
        let heads = Arc::clone(&self.heads);
        let version = record.program_version;
        let parts = Parts { dir: Arc::new(dir), process, version, guest: record.guest, heads, restored: paused };
        Ok(Some(Box::new(QemuVm::new(parts, qmp, log, stopped))))
    }
}

/// Connects to a QEMU, and asks whether its guest has stopped already: the event that tells goes to whoever is in
/// command mode at that moment, which may have been an earlier process of ours, or nobody yet.
async fn drive(dir: &RunDir) -> Result<Driven, QmpError> {
    let qmp = Qmp::start(dir.connect(QMP).await?).await?;
    let status = qmp.command("query-status", json!({})).await?;
    let status = status.get("status").and_then(serde_json::Value::as_str);
    // A guest without ACPI can only stop by resetting.
    let stopped = (status == Some("shutdown")).then_some(VmExit::GuestReset);
    Ok(Driven { qmp, stopped, paused: status == Some("paused") })
}

/// A QEMU that is connected to.
struct Driven {
    qmp: Qmp,
    /// Why its guest has stopped, if it has.
    stopped: Option<VmExit>,
    paused: bool,
}

/// Has QEMU take its disk now: it would do so when the guest goes on, and find out only then that another VM uses it.
async fn activate_disk(qmp: &Qmp) -> Result<(), QmpError> {
    match qmp.command("blockdev-set-active", json!({ "active": true })).await {
        // QEMU 9 has no such command, and does it then.
        Err(QmpError::Refused { class, .. }) if class == "CommandNotFound" => Ok(()),
        done => done.map(drop),
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Qemu { accel: self.config.accel }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolates: true,
            hardware: self.config.accel == Accelerator::Kvm,
            user_network: true,
            tap_network: true,
            named_tap: false,
            snapshots: true,
            saving_ends_link: false,
            restricts_network: true,
            hides_features: true,
            passes_through: false,
            prepares: false,
            takes_changes: true,
            takes_back_memory: false,
            limits_resources: true,
            max_vcpus: MAX_VCPUS,
            max_memory_mib: MAX_MEMORY_MIB,
        }
    }

    fn version(&self) -> &str {
        &self.config.program.version
    }

    async fn launch(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        spec::validate(spec, &self.capabilities())?;
        check_network(spec)?;
        spec::check_files(spec)?;
        let memory_inode = spec::check_memory(spec)?;
        let state = State::open(spec)?;
        // Who is restored has been told.
        let tsc_khz = if state.is_none() { self.tsc.khz().await } else { None };
        let processor = match &state {
            Some(state) => state.processor,
            None => self.processor(spec.hidden_features),
        };
        let Shape { vcpus, memory_mib, disk, card, processor } = Shape::of(spec, processor);
        let guest = Guest { memory_mib, memory_inode, memory_at: None, vcpus, disk, card, processor };
        // Who is restored has been told.
        let hidden_features = processor.map_or_else(HiddenFeatures::default, |processor| processor.hidden);
        let spec = &VmSpec { hidden_features, ..spec.clone() };
        let (dir, files, log) = guard::begin(&spec.run_dir).await?;
        let started = Started::of(self.start(spec, tsc_khz, &dir, &log, state.as_ref()).await?);
        let attempt = async {
            let process = started.process.clone();
            // The record comes before anything that takes time: should we die now, it is how the process is found.
            // (There is none of a process that has ended already; connecting reports that.)
            let record = Record::of(&spec.id, process.pid(), self.kind(), self.version(), guest);
            if let Some(record) = record {
                dir.write_record(&record.jailed(spec.jail.is_some()))?;
            }
            let Driven { qmp, stopped, .. } = self.supervise(&process, &log, drive(&dir)).await?;
            if let Some(inode) = guest.memory_inode {
                changes::put(process.pid(), Origin::File(inode), spec, When::BeforeDevices).await?;
            }
            if let Some(state) = &state {
                self.load(spec, state, &qmp, &process, &log).await?;
            }
            Ok((qmp, stopped))
        };
        match attempt.await {
            Ok((qmp, stopped)) => {
                files.keep();
                let (version, heads) = (self.version().to_owned(), Arc::clone(&self.heads));
                let parts = Parts { dir, process: started.keep(), version, guest, heads, restored: state.is_some() };
                Ok(Box::new(QemuVm::new(parts, qmp, log, stopped)))
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

/// What it is not started for.
fn check_network(spec: &VmSpec) -> Result<(), VmmError> {
    let NetworkSpec::NamedTap { .. } = spec.network else { return Ok(()) };
    let reason = "is a tap by name: give QEMU one that is open".to_owned();
    Err(VmmError::BadSpec { id: spec.id.clone(), field: "network", reason })
}

#[cfg(test)]
#[path = "qemu_test.rs"]
mod tests;

#[cfg(test)]
#[path = "snapshot_test.rs"]
mod snapshot_tests;
