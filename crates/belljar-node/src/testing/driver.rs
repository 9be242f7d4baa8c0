//! A driver of [`Machine`]s. A machine is found by a token in its run directory, so that the directory may be renamed. Every
//! call can be made to fail.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use belljar_vmm::{
    Accelerator, Capabilities, DirtyMemory, Driver, DriverKind, MemoryUse, NetworkSpec, Prepared, Vm, VmExit, VmSpec,
    VmmError,
};
use tokio::{
    net::UnixStream,
    sync::{Mutex as AsyncMutex, watch},
    task::AbortHandle,
};

use super::{
    guest,
    machine::{Machine, State},
};
use crate::fault::Faults;

/// Name of the file that tells which machine a run directory belongs to.
pub(super) const TOKEN: &str = "machine";
/// The same of a process that waits for one.
const AHEAD: &str = "ahead";

/// What the guest's end of the link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    Answers,
    RefusesConfiguration,
    SpeaksAnotherProtocol,
    SendsGarbage,
    HangsUp,
    PowersOff,
    /// Takes system calls and never answers.
    Hangs,
}

/// Everything outside of the node.
pub(super) struct World {
    pub(super) guest: Mutex<Guest>,
    pub(super) machines: Mutex<HashMap<u64, Arc<Machine>>>,
    /// Driver calls and guest calls that fail.
    pub(super) faults: Faults,
    pub(super) entropy: Mutex<HashSet<String>>,
    /// What no guest may ever see, and did.
    pub(super) complaints: Mutex<Vec<String>>,
    /// See [`Capabilities::saving_ends_link`].
    pub(super) saving_ends_link: AtomicBool,
    /// See [`Capabilities::prepares`].
    pub(super) prepares: AtomicBool,
    /// Processes that wait for a guest, and how many have got one.
    pub(super) ahead: Mutex<HashSet<u64>>,
    pub(super) taken: AtomicUsize,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            guest: Mutex::new(Guest::Answers),
            machines: Mutex::default(),
            faults: Faults::default(),
            entropy: Mutex::default(),
            complaints: Mutex::default(),
            saving_ends_link: AtomicBool::default(),
            prepares: AtomicBool::default(),
            ahead: Mutex::default(),
            taken: AtomicUsize::default(),
        })
    }

    pub(super) fn complain(&self, what: &str) {
        self.complaints.lock().expect("complaints").push(what.to_owned());
    }

    pub(super) fn step(&self, name: &'static str) -> Result<(), VmmError> {
        let failed = |error: crate::storage::StorageError| VmmError::Link {
            path: "/fake".into(),
            source: io::Error::other(error.to_string()),
        };
        self.faults.point(name).map_err(failed)
    }

    /// The machine of a run directory, dead or alive.
    pub(super) fn find(&self, run_dir: &Path) -> Option<Arc<Machine>> {
        let token = fs::read_to_string(run_dir.join(TOKEN)).ok()?.parse().ok()?;
        self.machines.lock().expect("machines").get(&token).cloned()
    }

    /// Machines whose process is there.
    pub(super) fn alive(&self) -> Vec<Arc<Machine>> {
        let machines = self.machines.lock().expect("machines");
        machines.values().filter(|machine| machine.has_process()).cloned().collect()
    }

    pub(super) fn add(self: &Arc<Self>, token: u64, memory_mib: u64, state: State, goes: bool) -> Arc<Machine> {
        let machine = Arc::new(Machine {
            token,
            world: Arc::downgrade(self),
            memory_mib,
            state: Mutex::new(state),
            exit: watch::Sender::new(None),
            goes: watch::Sender::new(goes),
            port: AsyncMutex::default(),
            said: watch::Sender::new(Vec::new()),
            drivers: AtomicUsize::new(0),
        });
        self.machines.lock().expect("machines").insert(token, machine.clone());
        machine
    }
}

pub(super) struct FakeDriver(pub(super) Arc<World>);

struct FakeVm {
    world: Arc<World>,
    machine: Arc<Machine>,
    run_dir: PathBuf,
    /// What serves the link.
    served: Mutex<Option<AbortHandle>>,
}

impl FakeVm {
    fn open(world: &Arc<World>, machine: Arc<Machine>, run_dir: &Path) -> Box<dyn Vm> {
        if machine.drivers.fetch_add(1, Ordering::SeqCst) > 0 {
            // A real one has one control connection.
            world.complain("a VM is driven twice");
        }
        Box::new(Self { world: world.clone(), machine, run_dir: run_dir.to_owned(), served: Mutex::default() })
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.machine.drivers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Qemu { accel: Accelerator::Tcg }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolates: true,
            hardware: false,
            user_network: true,
            named_tap: false,
            tap_network: false,
            restricts_network: true,
            hides_features: true,
            passes_through: false,
            prepares: self.0.prepares.load(Ordering::SeqCst),
            takes_changes: true,
            takes_back_memory: false,
            snapshots: true,
            saving_ends_link: self.0.saving_ends_link.load(Ordering::SeqCst),
            limits_resources: true,
            max_vcpus: 4,
            max_memory_mib: 1 << 20,
        }
    }

    fn version(&self) -> &str {
        "1"
    }

    async fn launch(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        self.0.step("driver: launch")?;
        assert!(matches!(spec.network, NetworkSpec::User { restrict: false }));
        let run_dir = &spec.run_dir;
        assert!(run_dir.is_dir(), "{} is missing", run_dir.display());
        if self.0.find(run_dir).is_some_and(|machine| machine.has_process()) {
            return Err(VmmError::Occupied { path: run_dir.clone(), pid: 1 });
        }
        let (memory, disk) = (spec.memory.as_ref().expect("memory"), spec.disk.as_ref().expect("a disk"));
        if spec.changes.is_some() {
            self.0
                .step("driver: changes")
                .map_err(|error| VmmError::Changes { pid: 1, source: io::Error::other(error) })?;
        }
        let changes = spec.changes.as_ref();
        let state =
            State::launch(memory, disk, spec.devices.as_deref(), changes, spec.memory_mib).map_err(|reason| {
                let path = spec.devices.clone().unwrap_or_default();
                VmmError::Restore { id: spec.id.clone(), path, reason }
            })?;
        let token = rand::random();
        let operation = "write";
        let written = fs::write(run_dir.join(TOKEN), format!("{token}"));
        written.map_err(|source| VmmError::RunDir { operation, path: run_dir.clone(), source })?;
        let machine = self.0.add(token, spec.memory_mib, state, spec.devices.is_none());
        Ok(FakeVm::open(&self.0, machine, run_dir))
    }

    async fn prepare(&self, spec: &VmSpec) -> Result<Prepared, VmmError> {
        self.0.step("driver: prepare")?;
        let token: u64 = rand::random();
        fs::write(spec.run_dir.join(AHEAD), format!("{token}")).expect("written");
        self.0.ahead.lock().expect("ahead").insert(token);
        Ok(Prepared::new(token))
    }

    async fn launch_in(&self, prepared: Prepared, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        let token: u64 = prepared.into_inner().expect("ours");
        assert!(self.0.ahead.lock().expect("ahead").remove(&token), "it is gone");
        let found = fs::read_to_string(spec.run_dir.join(AHEAD)).expect("it was moved");
        assert_eq!(found, token.to_string());
        fs::remove_file(spec.run_dir.join(AHEAD)).expect("removed");
        let vm = self.launch(spec).await?;
        self.0.taken.fetch_add(1, Ordering::SeqCst);
        Ok(vm)
    }

    async fn end(&self, run_dir: &Path) -> Result<(), VmmError> {
        if let Ok(token) = fs::read_to_string(run_dir.join(AHEAD)) {
            self.0.step("driver: end")?;
            self.0.ahead.lock().expect("ahead").remove(&token.parse().expect("a number"));
            fs::remove_file(run_dir.join(AHEAD)).expect("removed");
        }
        match self.adopt(run_dir).await? {
            Some(vm) => vm.kill().await,
            None => Ok(()),
        }
    }

    async fn adopt(&self, run_dir: &Path) -> Result<Option<Box<dyn Vm>>, VmmError> {
        self.0.step("driver: adopt")?;
        match self.0.find(run_dir) {
            Some(machine) if machine.has_process() => Ok(Some(FakeVm::open(&self.0, machine, run_dir))),
            _ => {
                let _ = fs::remove_file(run_dir.join(TOKEN));
                Ok(None)
            }
        }
    }
}

fn killed() -> VmExit {
    VmExit::Process { code: None, signal: Some(9) }
}

#[async_trait]
impl Vm for FakeVm {
    fn pid(&self) -> u32 {
        1
    }

    async fn connect_link(&self) -> Result<UnixStream, VmmError> {
        self.world.step("driver: link")?;
        if !self.machine.is_alive() {
            return Err(VmmError::Link { path: self.run_dir.clone(), source: io::ErrorKind::ConnectionRefused.into() });
        }
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let served = tokio::spawn(guest::serve(self.machine.clone(), theirs)).abort_handle();
        *self.served.lock().expect("served") = Some(served);
        Ok(ours)
    }

    async fn wait(&self) -> VmExit {
        let mut exit = self.machine.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.expect("the machine is kept").clone();
        ended.expect("an exit")
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.world.step("driver: kill")?;
        self.machine.end(killed());
        self.machine.exit.send_replace(Some(killed()));
        if self.world.find(&self.run_dir).is_some_and(|machine| machine.token == self.machine.token) {
            let _ = fs::remove_file(self.run_dir.join(TOKEN));
        }
        Ok(())
    }

    async fn console(&self) -> Result<Vec<u8>, VmmError> {
        Ok(b"last\x1b words".to_vec())
    }

    async fn set_network(&self, connected: bool) -> Result<(), VmmError> {
        self.world.step("driver: network")?;
        // A real one takes its time.
        tokio::task::yield_now().await;
        self.machine.state().network = connected;
        Ok(())
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.world.step("driver: pause")?;
        self.machine.set_going(false);
        Ok(())
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.world.step("driver: resume")?;
        if !self.machine.is_alive() {
            return Err(VmmError::Link { path: self.run_dir.clone(), source: io::ErrorKind::BrokenPipe.into() });
        }
        self.machine.set_going(true);
        Ok(())
    }

    async fn is_paused(&self) -> Result<bool, VmmError> {
        self.world.step("driver: is paused")?;
        Ok(self.machine.is_paused())
    }

    async fn save_devices(&self, to: &Path) -> Result<(), VmmError> {
        self.world.step("driver: save devices")?;
        if !self.machine.is_paused() {
            return Err(VmmError::NotPaused { pid: 1 });
        }
        if self.world.saving_ends_link.load(Ordering::SeqCst) {
            self.served.lock().expect("served").iter().for_each(AbortHandle::abort);
        }
        self.machine.save_devices(to).map_err(|source| VmmError::Save { pid: 1, path: to.to_owned(), source })
    }

    fn room_for_dirty(&self) -> Result<Vec<u8>, VmmError> {
        Ok(Vec::new())
    }

    fn copy_dirty(&self, _room: Vec<u8>) -> Result<DirtyMemory, VmmError> {
        self.world.step("driver: copy dirty")?;
        assert!(self.machine.is_paused(), "pages of a running machine are copied");
        Ok(self.machine.dirty())
    }

    fn each_dirty(&self, each: &mut (dyn FnMut(u64, &[u8]) -> bool + Send)) -> Result<Vec<(u64, u64)>, VmmError> {
        let dirty = self.copy_dirty(Vec::new())?;
        let mut data = dirty.data.as_slice();
        for &(offset, length) in &dirty.runs {
            let (run, rest) = data.split_at(usize::try_from(length).expect("small"));
            data = rest;
            if !each(offset, run) {
                break;
            }
        }
        Ok(dirty.runs)
    }

    async fn grow_disk(&self, bytes: u64) -> Result<(), VmmError> {
        self.world.step("driver: grow disk")?;
        let mut state = self.machine.state();
        if bytes < state.disk_bytes {
            return Err(VmmError::SmallerDisk { pid: 1, current: state.disk_bytes, wanted: bytes });
        }
        state.disk.set_len(bytes).expect("the disk grows");
        state.disk_bytes = bytes;
        Ok(())
    }

    fn memory(&self) -> Result<MemoryUse, VmmError> {
        Ok(MemoryUse::default())
    }
}
