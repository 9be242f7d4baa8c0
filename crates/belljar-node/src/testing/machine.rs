//! A machine that is not there: real memory and disk files, pages that were written, and a guest that stands still when the
//! machine does. It outlives the nodes that drive it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, Weak, atomic::AtomicUsize},
};

use belljar_api::guest::Configure;
use belljar_vmm::{DirtyMemory, MemoryChanges, VmExit};
use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::driver::World;
use crate::limits::PAGE;

/// Page or block to the number in it; what is zero is absent.
pub(super) type Contents = BTreeMap<u64, u64>;

pub(super) struct Machine {
    pub(super) token: u64,
    pub(super) world: Weak<World>,
    pub(super) memory_mib: u64,
    pub(super) state: Mutex<State>,
    pub(super) exit: watch::Sender<Option<VmExit>>,
    pub(super) goes: watch::Sender<bool>,
    /// One connection after the other.
    pub(super) port: tokio::sync::Mutex<()>,
    /// Lines of the guest's log.
    pub(super) said: watch::Sender<Vec<String>>,
    /// Who drives it: one, or nobody.
    pub(super) drivers: AtomicUsize,
}

pub(super) struct State {
    pub(super) base: File,
    pub(super) pages: BTreeMap<u64, Vec<u8>>,
    pub(super) disk: File,
    /// Size that the guest knows.
    pub(super) disk_bytes: u64,
    pub(super) guest: GuestState,
    pub(super) network: bool,
    /// Its memory went on from a standstill, and it was not configured since.
    pub(super) restored: bool,
    pub(super) configured: Vec<Configure>,
}

/// What the guest knows; it is saved with the devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct GuestState {
    pub(super) frozen: bool,
    pub(super) settled: bool,
    pub(super) life: Option<u64>,
    pub(super) sandbox_id: Option<String>,
}

/// The file of [`belljar_vmm::Vm::save_devices`]: it fits to one memory and one disk only.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Devices {
    memory_mib: u64,
    memory: Contents,
    disk: Contents,
    disk_bytes: u64,
    guest: GuestState,
}

impl Machine {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("state")
    }

    pub(super) fn world(&self) -> Arc<World> {
        self.world.upgrade().expect("the world lives")
    }

    pub(super) fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// One that stopped by itself has a process until it is killed.
    pub(super) fn has_process(&self) -> bool {
        !matches!(*self.exit.borrow(), Some(VmExit::Process { .. }))
    }

    pub(super) fn is_paused(&self) -> bool {
        !*self.goes.borrow()
    }

    /// A process of the guest's user can run.
    pub(super) fn runs_users(&self) -> bool {
        let state = self.state();
        self.is_alive() && !self.is_paused() && !state.guest.frozen && state.guest.life.is_some()
    }

    /// A user's process writes to memory, and another to the disk.
    pub(super) fn write(&self, page: u64, number: u64) {
        assert!(self.runs_users(), "nobody runs who could write");
        self.poke(page, number);
        self.write_disk(page, number);
    }

    /// A process writes a line to its output.
    pub(super) fn say(&self, line: &str) {
        self.said.send_modify(|said| said.push(line.to_owned()));
    }

    pub(super) fn write_disk(&self, block: u64, number: u64) {
        let place = disk_offset(block);
        self.state().disk.write_all_at(&number.to_le_bytes(), place).expect("the disk is written");
    }

    pub(super) fn poke(&self, page: u64, number: u64) {
        let mut bytes = vec![0; PAGE];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        self.state().pages.insert(page, bytes);
    }

    /// What is in memory and on the disk.
    pub(super) fn contents(&self) -> (Contents, Contents) {
        let state = self.state();
        (memory_of(&state), disk_of(&state.disk).expect("the disk is read"))
    }

    pub(super) fn last_configured(&self) -> Configure {
        self.state().configured.last().expect("it was configured").clone()
    }

    pub(super) fn set_going(&self, goes: bool) {
        let state = self.state();
        if goes && state.restored && !state.guest.frozen && state.guest.life.is_some() {
            self.world().complain("restored processes run before the guest is configured");
        }
        self.goes.send_replace(goes);
    }

    pub(super) fn end(&self, exit: VmExit) {
        self.exit.send_if_modified(|is| {
            let first = is.is_none();
            is.get_or_insert(exit);
            first
        });
    }

    pub(super) fn dirty(&self) -> DirtyMemory {
        let mut dirty = DirtyMemory::default();
        for (page, bytes) in &self.state().pages {
            let offset = page * PAGE as u64;
            match dirty.runs.last_mut() {
                Some((start, length)) if *start + *length == offset => *length += PAGE as u64,
                _ => dirty.runs.push((offset, PAGE as u64)),
            }
            dirty.data.extend_from_slice(bytes);
        }
        dirty
    }

    pub(super) fn save_devices(&self, to: &Path) -> io::Result<()> {
        let state = self.state();
        let devices = Devices {
            memory_mib: self.memory_mib,
            memory: memory_of(&state),
            disk: disk_of(&state.disk)?,
            disk_bytes: state.disk_bytes,
            guest: state.guest.clone(),
        };
        serde_json::to_writer(File::create_new(to)?, &devices).map_err(Into::into)
    }

    /// What a guest does when it is configured; an error is its answer.
    pub(super) fn configure(&self, body: Configure) {
        let world = self.world();
        if !world.entropy.lock().expect("entropy").insert(body.entropy.clone()) {
            world.complain("the same entropy twice");
        }
        if body.rehearsal {
            // It still is nobody.
            return;
        }
        let mut state = self.state();
        match state.guest.life {
            Some(life) if state.restored && life == body.life => {
                world.complain("restored memory lives the same life again")
            }
            Some(life) if !state.restored && life != body.life => world.complain("another life without a restore"),
            _ => {}
        }
        match &state.guest.sandbox_id {
            Some(id) if !state.restored && *id != body.sandbox_id => world.complain("a running guest gets another id"),
            _ => {}
        }
        state.restored = false;
        state.guest.frozen = false;
        state.guest.life = Some(body.life);
        state.guest.sandbox_id = Some(body.sandbox_id.clone());
        state.configured.push(body);
    }
}

impl State {
    /// Starts with these files: by booting, or where `devices` were saved.
    pub(super) fn launch(
        memory: &Path,
        disk: &Path,
        devices: Option<&Path>,
        changes: Option<&MemoryChanges>,
        memory_mib: u64,
    ) -> Result<Self, String> {
        let open = |path: &Path, write| {
            let file = fs::OpenOptions::new().read(true).write(write).open(path);
            file.map_err(|error| format!("{}: {error}", path.display()))
        };
        let (base, disk) = (open(memory, false)?, open(disk, true)?);
        let length = base.metadata().map_err(|error| error.to_string())?.len();
        if length != memory_mib << 20 {
            return Err(format!("the memory file has {length} bytes"));
        }
        let disk_bytes = disk.metadata().map_err(|error| error.to_string())?.len();
        let guest = GuestState { frozen: false, settled: false, life: None, sandbox_id: None };
        let mut state = Self {
            base,
            pages: BTreeMap::new(),
            disk,
            disk_bytes,
            guest,
            network: true,
            restored: false,
            configured: Vec::new(),
        };
        let Some(devices) = devices else {
            // What a boot leaves in memory.
            let mut page = vec![0; PAGE];
            page[..8].copy_from_slice(&rand::random::<u64>().to_le_bytes());
            state.pages.insert(0, page);
            return Ok(state);
        };
        if let Some(changes) = changes {
            state.pages = pages_of(changes);
        }
        let saved: Devices = serde_json::from_reader(open(devices, false)?).map_err(|error| error.to_string())?;
        let here = Devices {
            memory_mib,
            memory: memory_of(&state),
            disk: disk_of(&state.disk).map_err(|error| error.to_string())?,
            disk_bytes: saved.disk_bytes,
            guest: saved.guest.clone(),
        };
        if saved != here {
            return Err(format!("the devices do not belong to this memory and disk: {saved:?}, {here:?}"));
        }
        if disk_bytes < saved.disk_bytes {
            return Err("the disk was cut".to_owned());
        }
        state.disk_bytes = saved.disk_bytes;
        state.guest = saved.guest;
        state.restored = true;
        Ok(state)
    }
}

fn pages_of(changes: &MemoryChanges) -> BTreeMap<u64, Vec<u8>> {
    let from = File::open(&changes.from).expect("changes");
    let offsets = changes.runs.iter().flat_map(|(start, length)| (*start..start + length).step_by(PAGE));
    let page = |offset| {
        let mut bytes = vec![0; PAGE];
        from.read_exact_at(&mut bytes, offset).expect("changes are read");
        (offset / PAGE as u64, bytes)
    };
    offsets.map(page).collect()
}

fn disk_offset(block: u64) -> u64 {
    (2 << 20) + block * PAGE as u64
}

fn memory_of(state: &State) -> Contents {
    let mut contents = numbers(&state.base, 0).expect("memory is read");
    for (page, bytes) in &state.pages {
        match first(bytes) {
            0 => contents.remove(page),
            number => contents.insert(*page, number),
        };
    }
    contents
}

fn disk_of(disk: &File) -> io::Result<Contents> {
    numbers(disk, disk_offset(0))
}

fn first(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The first eight bytes of every page from `start` on that are not zero.
fn numbers(file: &File, start: u64) -> io::Result<Contents> {
    // A cursor of its own: others may seek, too.
    let file = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
    let (mut contents, mut at, page) = (Contents::new(), start, PAGE as u64);
    loop {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return Ok(contents),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
        at = data / page * page;
        while at < end {
            let mut bytes = [0; 8];
            let read = file.read_at(&mut bytes, at)?;
            let number = first(&bytes);
            if read == 8 && number != 0 {
                contents.insert((at - start) / page, number);
            }
            at += page;
        }
    }
}
