//! A VM at a standstill as three files in a directory: `memory`, `devices`, `disk`. Beside them may lie what its resolver
//! remembered ([`network::NAMES`]), and what is changed in its memory ([`super::changes`]).
//!
//! ```text
//! capture:  clone memory base, flush disk -> freeze guest -> pause VM -> [copy written pages | save devices | clone disk]
//!           -> (go on) -> write the pages into the clone
//!           A VM that need not go on keeps its pages until they are written, so nobody else has to find memory for them.
//! revive:   link memory, clone disk -> launch with devices -> VM stands still
//! ```
//! Sleeping sandboxes, golden templates, live copies and unpacked snapshots are all such directories. `memory` and `disk`
//! belong to the same instant. A `memory` file never changes once it is written: VMs map it copy-on-write and hard links to
//! it keep it alive, so nobody counts who uses it, and a hundred copies share its pages.
//!
//! It knows files and one VM, and no commands, records or names. Called by the sandbox's task and by the templates.

use std::{
    fmt::{self, Write},
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use belljar_vmm::{DirtyMemory, Vm, VmmError};

use super::{
    boot::{self, Booted},
    changes,
};
use crate::{
    Context, blocking,
    guest::{self, GuestError},
    limits::PAGE,
    network,
    storage::{self, Storage, StorageError},
    vault::is_zero,
};

pub(crate) const MEMORY: &str = "memory";
pub(crate) const DEVICES: &str = "devices";
pub(crate) const DISK: &str = "disk";

/// A standstill that could not be reached or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezeError {
    #[error("the guest does not come to rest: {0}")]
    Guest(#[from] GuestError),
    #[error("the VM cannot be saved")]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl FreezeError {
    pub(crate) fn is_no_space(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_no_space())
    }
}

/// What to keep of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    /// Memory, devices and disk.
    All,
    /// The disk alone, made consistent by the guest.
    DiskOnly,
}

/// What becomes of the VM while its state is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    /// It goes on: what it wrote is copied to our memory first.
    GoesOn,
    /// It stands still, and what it wrote is read from it.
    StandsStill,
}

/// A VM that stands still, and everything that can change once it goes on.
pub(crate) struct Still {
    into: PathBuf,
    pages: Pages,
    /// See [`Still::beyond`].
    base: Option<PathBuf>,
}

/// What a VM wrote to its memory.
enum Pages {
    /// Nobody wants it.
    Unwanted,
    /// In our memory.
    Copied(DirtyMemory),
    /// In the VM, which has to stand still until they are written.
    InVm(Arc<dyn Vm>),
}

/// Freezes the guest's processes, stops the VM and takes hold of its state; it stays stopped. On error it is left as it
/// may be: the caller lets it go on. `into` is a new directory; `home` is where the VM's `memory` and `disk.ext4` lie.
pub(super) async fn stop(
    ctx: &Arc<Context>,
    booted: &Booted,
    home: &Path,
    into: &Path,
    parts: Parts,
    meanwhile: Meanwhile,
) -> Result<Still, FreezeError> {
    let mut steps = Steps::begin();
    let room = prepare(ctx, booted, home, into, parts, meanwhile).await?;
    steps.done("preparation");
    ctx.faults.point("freeze: guest")?;
    // In memory the page cache is kept, so only a disk that goes alone has to be complete.
    guest::freeze(&booted.link, parts == Parts::DiskOnly).await?;
    steps.done("freeze");
    ctx.faults.point("freeze: pause")?;
    booted.vm.pause().await?;
    steps.done("pause");
    ctx.faults.point("freeze: keep")?;
    let disk = {
        let (ctx, from, to) = (ctx.clone(), home.join(boot::DISK), into.join(DISK));
        blocking(move || ctx.storage.clone_disk(&from, &to, 0))
    };
    let pages = match parts {
        Parts::DiskOnly => {
            disk.await?;
            Pages::Unwanted
        }
        Parts::All => {
            let vm = booted.vm.clone();
            let devices = into.join(DEVICES);
            let pages = async {
                Ok::<_, VmmError>(match meanwhile {
                    Meanwhile::GoesOn => {
                        let vm = vm.clone();
                        Pages::Copied(blocking(move || vm.copy_dirty(room)).await?)
                    }
                    Meanwhile::StandsStill => Pages::InVm(vm.clone()),
                })
            };
            let devices = vm.save_devices(&devices);
            let kept = async {
                // One that tells the guest of it does so in memory; for any other, the pause is as long as the longest of these.
                if ctx.driver.capabilities().saving_ends_link {
                    devices.await?;
                    return pages.await;
                }
                let (devices, pages) = tokio::join!(devices, pages);
                devices.and(pages)
            };
            let (disk, pages) = tokio::join!(disk, kept);
            disk?;
            pages?
        }
    };
    steps.done("keep");
    tracing::debug!(into = %into.display(), "stopped: {steps}");
    Ok(Still { into: into.to_owned(), pages, base: None })
}

/// What takes long and need not be done while the VM stands still.
async fn prepare(
    ctx: &Arc<Context>,
    booted: &Booted,
    home: &Path,
    into: &Path,
    parts: Parts,
    meanwhile: Meanwhile,
) -> Result<Vec<u8>, FreezeError> {
    let (ctx, vm, home, into) = (ctx.clone(), booted.vm.clone(), home.to_owned(), into.to_owned());
    let resolver = booted.gate.as_ref().map(|gate| gate.resolver().clone());
    blocking(move || {
        ctx.faults.point("freeze: prepare")?;
        ctx.storage.check_free()?;
        fs::create_dir_all(&into).map_err(StorageError::io("create", &into))?;
        if parts == Parts::All {
            ctx.storage.clone_disk(&home.join(MEMORY), &into.join(MEMORY), 0)?;
            if let Some(resolver) = resolver {
                let names = into.join(network::NAMES);
                resolver.tell(&names).map_err(StorageError::io("write", &names))?;
            }
        }
        let room = match (parts, meanwhile) {
            (Parts::All, Meanwhile::GoesOn) => vm.room_for_dirty()?,
            _ => Vec::new(),
        };
        // A clone first writes what is not on the disk yet. Most of that is done here, the rest in the pause.
        let disk = home.join(boot::DISK);
        File::open(&disk).and_then(|file| file.sync_data()).map_err(StorageError::io("sync", &disk))?;
        Ok(room)
    })
    .await
}

impl Still {
    /// Of a VM that was stopped some other way, and whose other files are there.
    pub(crate) fn of(into: &Path, vm: Arc<dyn Vm>) -> Self {
        Self { into: into.to_owned(), pages: Pages::InVm(vm), base: None }
    }

    /// Notes in what it differs from the file that its VM has mapped, if that is of use.
    pub(super) fn beyond(self, base: Option<PathBuf>) -> Self {
        Self { base, ..self }
    }

    /// Writes the pages, after which the directory is complete; with `durable` it also survives a crash of the host.
    pub(crate) async fn finish(self, ctx: &Arc<Context>, durable: bool) -> Result<Vec<(u64, u64)>, FreezeError> {
        let ctx = ctx.clone();
        blocking(move || {
            let mut steps = Steps::begin();
            ctx.faults.point("freeze: write memory")?;
            let memory = self.into.join(MEMORY);
            let runs = match self.pages {
                Pages::Unwanted => Vec::new(),
                Pages::Copied(dirty) => {
                    write_pages(&memory, &dirty).map_err(failed_to_write(&memory))?;
                    dirty.runs
                }
                Pages::InVm(vm) => write_from_vm(&memory, &*vm)?,
            };
            if let Some(base) = &self.base {
                ctx.faults.point("freeze: changes")?;
                changes::note(&ctx.storage, &self.into, base, &runs)?;
            }
            steps.done("write");
            ctx.faults.point("freeze: sync")?;
            if durable {
                sync_all(&self.into)?;
            }
            steps.done("sync");
            tracing::debug!(into = %self.into.display(), "written: {steps}");
            Ok(runs)
        })
        .await
    }
}

fn failed_to_write(memory: &Path) -> impl FnOnce(io::Error) -> StorageError {
    StorageError::io("write the memory of a VM to", memory)
}

/// As [`write_pages`], of a VM that stands still.
fn write_from_vm(path: &Path, vm: &dyn Vm) -> Result<Vec<(u64, u64)>, FreezeError> {
    let file = open_memory(path).map_err(failed_to_write(path))?;
    let mut written = Ok(());
    let runs = vm.each_dirty(&mut |offset, bytes| {
        written = write_run(&file, offset, bytes);
        written.is_ok()
    })?;
    written.and_then(|()| close_memory(&file)).map_err(failed_to_write(path))?;
    Ok(runs)
}

fn open_memory(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).open(path)
}

/// From here on nobody writes to it.
fn close_memory(file: &File) -> io::Result<()> {
    let mut permissions = file.metadata()?.permissions();
    permissions.set_mode(0o400);
    file.set_permissions(permissions)
}

/// Writes runs of pages; pages of zeroes become holes.
fn write_pages(path: &Path, dirty: &DirtyMemory) -> io::Result<()> {
    let file = open_memory(path)?;
    let mut data = dirty.data.as_slice();
    for &(offset, length) in &dirty.runs {
        let (run, rest) = data
            .split_at_checked(usize::try_from(length).map_err(io::Error::other)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the VM's pages end early"))?;
        data = rest;
        write_run(&file, offset, run)?;
    }
    close_memory(&file)
}

/// Writes what is not zero in as few calls as it takes, and punches holes for the rest.
fn write_run(file: &File, offset: u64, run: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < run.len() {
        let pages = run[at..].chunks(PAGE);
        let zero = is_zero(&run[at..(at + PAGE).min(run.len())]);
        let same = pages.take_while(|page| is_zero(page) == zero).map(<[u8]>::len).sum::<usize>();
        let place = offset + at as u64;
        if zero {
            let mode = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(file, mode, place, same as u64) {
                // A file system without holes holds zeroes.
                Err(rustix::io::Errno::OPNOTSUPP) => file.write_all_at(&run[at..at + same], place)?,
                other => other?,
            }
        } else {
            file.write_all_at(&run[at..at + same], place)?;
        }
        at += same;
    }
    Ok(())
}

/// Makes the files of a directory and the directory itself durable.
pub(crate) fn sync_all(dir: &Path) -> Result<(), StorageError> {
    for entry in fs::read_dir(dir).map_err(StorageError::io("list", dir))? {
        let path = entry.map_err(StorageError::io("list", dir))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(StorageError::io("sync", &path))?;
    }
    sync_dir(dir)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(StorageError::io("sync the directory", dir))
}

/// Brings the files of a standstill into a sandbox's directory: memory by link, disk by clone, and what its resolver knew.
/// What lay there is replaced. `memory`: [`MEMORY`], or [`super::changes::BASE`] where changes are still to be made.
pub(crate) fn bring_in(storage: &Storage, from: &Path, memory: &str, home: &Path) -> Result<(), StorageError> {
    let (memory_to, disk_to) = (home.join(MEMORY), home.join(boot::DISK));
    for old in [&memory_to, &disk_to] {
        remove_file(old)?;
    }
    link(storage, &from.join(memory), &memory_to)?;
    storage.clone_disk(&from.join(DISK), &disk_to, 0)?;
    let names = home.join(network::NAMES);
    remove_file(&names)?;
    match fs::copy(from.join(network::NAMES), &names) {
        // Nothing, or not under rules, answered the guest.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        copied => copied.map(drop).map_err(StorageError::io("write", &names)),
    }
}

/// A second name for a file that never changes; a clone of it where links end.
pub(crate) fn link(storage: &Storage, from: &Path, to: &Path) -> Result<(), StorageError> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::TooManyLinks | io::ErrorKind::CrossesDevices) => {
            storage.clone_disk(from, to, 0)
        }
        Err(source) => Err(StorageError::Io { operation: "link a memory image to", path: to.to_owned(), source }),
    }
}

/// Makes the sparse file that a booting VM's memory begins as.
pub(crate) fn blank_memory(home: &Path, memory_mb: u64) -> Result<PathBuf, StorageError> {
    let path = home.join(MEMORY);
    remove_file(&path)?;
    let made = File::create(&path).and_then(|file| file.set_len(memory_mb << 20));
    made.map_err(StorageError::io("create", &path))?;
    Ok(path)
}

/// Removes a file that may not be there.
pub(crate) fn remove_file(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// How long the steps of one operation took, for the log.
pub(crate) struct Steps {
    last: Instant,
    text: String,
}

impl Steps {
    pub(crate) fn begin() -> Self {
        Self { last: Instant::now(), text: String::new() }
    }

    /// The step that this ends.
    pub(crate) fn done(&mut self, name: &str) {
        let comma = if self.text.is_empty() { "" } else { ", " };
        let _ = write!(self.text, "{comma}{name} {:.1} ms", self.last.elapsed().as_secs_f64() * 1000.0);
        self.last = Instant::now();
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A standstill in a directory that goes away with it: what live copies begin from.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = storage::remove_dir(&self.0) {
            tracing::warn!(%error, "what copies were made from stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn pages_land_where_they_belong_and_zeroes_take_no_space() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("memory");
        let file = File::create(&path).expect("a file");
        file.write_all_at(&[9; 8 * PAGE], 0).expect("write");
        file.set_len(1 << 20).expect("size");
        let page = |byte: u8| vec![byte; PAGE];
        let dirty = DirtyMemory {
            runs: vec![(0, 4 * PAGE as u64), (16 * PAGE as u64, PAGE as u64)],
            data: [page(0), page(0), page(1), page(0), page(2)].concat(),
        };
        write_pages(&path, &dirty).expect("written");
        let bytes = fs::read(&path).expect("read");
        let first = |n: usize| bytes[n * PAGE];
        assert_eq!([first(0), first(1), first(2), first(3), first(4), first(16)], [0, 0, 1, 0, 9, 2]);
        assert!(fs::metadata(&path).expect("stat").blocks() * 512 <= 6 * PAGE as u64, "holes were filled");
        let early = DirtyMemory { runs: vec![(0, PAGE as u64)], data: vec![1] };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        assert!(write_pages(&path, &early).is_err());
    }
}
