//! The run directory of one VM: what is in it, who the VM process was, and sockets with long paths.
//!
//! ```text
//! run_dir/  jail.json     which process is jailed, before it is the VM process
//!           link.sock     to the guest agent (QEMU only)
//!           vsock.sock    the same as a hybrid vsock; vsock.sock_1025 is where such a guest rings when its agent listens
//!           qmp.sock      to QEMU's control interface (QEMU only)
//!           api.sock      to the other programs' control interface; Cloud Hypervisor has api.sock.lock, too
//!           disk          the disk by another name, which does not change when a directory is renamed (not QEMU)
//!           kernel, initrd  the same, until they are loaded
//!           memory        the same, of a memory file
//!           devices.new   state of the devices that is being saved or loaded
//!           config.json, state.json  the same, in two files; memory-ranges keeps memory from being saved (Cloud Hypervisor only)
//!           console.fifo  where the console's output waits to be read (not QEMU)
//!           console.tail  console output that was already read
//!           vm.json       which process it is: written once it runs, removed last
//! ```
//!
//! Everything in it is reached through `/proc/self/fd/N/name`: a Unix socket address holds 107 bytes, a data directory may be
//! deeper than that; and the directory, or one above it, may be renamed while the VM runs.
//!
//! What a VM process opens or makes itself ([`ROOM_NAMES`]) is, where that is jailed ([`crate::jail`]), in a room of its own,
//! in memory, which is reached through the process. A hostile one may put anything there, so no link is followed there, and
//! nothing is taken for what it should be.

use crate::child;
use crate::dirty::Places;
use crate::driver::{DriverKind, NetworkSpec};
use crate::error::VmmError;
use crate::jail::{Inmate, ROOM, can_raise_limits, cgroup};
use crate::limits::{INMATE_BYTES, JAIL_ROOM_BYTES, RECORD_BYTES};
use crate::processor::Processor;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, fchown, fstat, openat};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// QEMU's, which is given it open.
pub(crate) const LINK: &str = "link.sock";
/// A hybrid vsock.
pub(crate) const VSOCK: &str = "vsock.sock";
pub(crate) const QMP: &str = "qmp.sock";
pub(crate) const DEVICES: &str = "devices.new";
pub(crate) const CONSOLE: &str = "console.tail";
pub(crate) const API: &str = "api.sock";
const API_LOCK: &str = "api.sock.lock";
/// A hybrid vsock's name for connections of the guest to port 1025: [`crate::hybrid`].
pub(crate) const BELL: &str = "vsock.sock_1025";
pub(crate) const DISK: &str = "disk";
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRD: &str = "initrd";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const CONFIG: &str = "config.json";
pub(crate) const STATE: &str = "state.json";
pub(crate) const RANGES: &str = "memory-ranges";
pub(crate) const CONSOLE_FIFO: &str = "console.fifo";
pub(crate) const INMATE: &str = "jail.json";
const RECORD: &str = "vm.json";
const RECORD_NEW: &str = "vm.json.new";

/// In the order of removal: the record goes last, so that an interrupted removal is finished by the next adoption.
const ALL: [&str; 19] = [
    LINK,
    VSOCK,
    BELL,
    QMP,
    API,
    API_LOCK,
    DISK,
    KERNEL,
    INITRD,
    MEMORY,
    DEVICES,
    CONFIG,
    STATE,
    RANGES,
    CONSOLE_FIFO,
    CONSOLE,
    INMATE,
    RECORD_NEW,
    RECORD,
];

/// What is in the room of a VM process that is jailed.
const ROOM_NAMES: [&str; 12] =
    [VSOCK, BELL, API, API_LOCK, KERNEL, INITRD, MEMORY, DEVICES, CONFIG, STATE, RANGES, CONSOLE_FIFO];

/// What a VM program needs no more once its guest runs.
pub(crate) const LOADED: [&str; 6] = [KERNEL, INITRD, MEMORY, DEVICES, CONFIG, STATE];

/// Format of `vm.json`; another number is not ours to read.
const RECORD_VERSION: u32 = 1;

/// Which process runs the VM of this directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub id: String,
    pub pid: u32,
    /// Clock ticks since boot.
    start_time: u64,
    boot_id: String,
    pub driver: DriverKind,
    /// Version of the VM program, which may be another one by now.
    pub program_version: String,
    /// It has a room.
    #[serde(default)]
    pub jailed: bool,
    #[serde(flatten)]
    pub guest: Guest,
}

/// What must be known of a guest to drive it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// Its memory, MiB: tells the guest's memory from the process's own.
    pub memory_mib: u64,
    /// Number of the file its memory began as, which finds it among the process's mappings. (A path may change.)
    #[serde(default)]
    pub memory_inode: Option<u64>,
    /// Where that is mapped in the process, for those that change the mapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_at: Option<Places>,
    /// Its virtual CPUs, and whether it has a disk and a network card: what its saved state fits.
    #[serde(default)]
    pub vcpus: u32,
    #[serde(default)]
    pub disk: bool,
    #[serde(default)]
    pub card: Card,
    /// What it was told of its processor.
    #[serde(default, rename = "cpu", skip_serializing_if = "Option::is_none")]
    pub processor: Option<Processor>,
}

/// The kind of a guest's network card. What a card can do depends on what it is connected to, and the guest has been told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CardWord", into = "CardWord")]
pub(crate) enum Card {
    #[default]
    None,
    User,
    Tap,
}

/// As it is written: earlier releases knew two kinds only.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum CardWord {
    Has(bool),
    Kind(String),
}

const TAP: &str = "tap";

impl From<Card> for CardWord {
    fn from(card: Card) -> Self {
        match card {
            Card::None => Self::Has(false),
            Card::User => Self::Has(true),
            Card::Tap => Self::Kind(TAP.to_owned()),
        }
    }
}

impl TryFrom<CardWord> for Card {
    type Error = String;

    fn try_from(word: CardWord) -> Result<Self, String> {
        match word {
            CardWord::Has(false) => Ok(Self::None),
            CardWord::Has(true) => Ok(Self::User),
            CardWord::Kind(kind) if kind == TAP => Ok(Self::Tap),
            CardWord::Kind(kind) => Err(format!("`{kind}` is no kind of network card")),
        }
    }
}

impl Card {
    pub(crate) fn of(network: &NetworkSpec) -> Self {
        match network {
            NetworkSpec::None => Self::None,
            NetworkSpec::User { .. } => Self::User,
            NetworkSpec::Tap(_) | NetworkSpec::NamedTap { .. } => Self::Tap,
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no network card",
            Self::User => "a network card of its own process",
            Self::Tap => "a network card on a tap",
        })
    }
}

impl Record {
    /// Describes a process that was just started; `None` when it has ended already.
    pub(crate) fn of(id: &str, pid: u32, driver: DriverKind, program_version: &str, guest: Guest) -> Option<Self> {
        let start_time = child::start_time(pid)?;
        let boot_id = child::boot_id()?;
        let (id, program_version) = (id.to_owned(), program_version.to_owned());
        Some(Self {
            version: RECORD_VERSION,
            id,
            pid,
            start_time,
            boot_id,
            driver,
            program_version,
            jailed: false,
            guest,
        })
    }

    /// The same of a process that is jailed, or not.
    pub(crate) fn jailed(self, jailed: bool) -> Self {
        Self { jailed, ..self }
    }

    /// Whether that very process (not a later one with its number) still runs.
    pub(crate) fn is_alive(&self) -> bool {
        child::is_alive(self.pid, self.start_time, &self.boot_id)
    }
}

/// An opened run directory.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// Opened as a path only; gives sockets in it a short name.
    handle: File,
    /// The same of the VM process's room, if it is jailed.
    room: OnceLock<OwnedFd>,
}

impl RunDir {
    /// Opens an existing directory that only its owner can enter.
    pub(crate) fn open(path: &Path) -> Result<Self, VmmError> {
        let error = |source| VmmError::RunDir { operation: "open run directory", path: path.to_owned(), source };
        let handle =
            OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path).map_err(error)?;
        let mode = handle.metadata().map_err(error)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(VmmError::RunDirOpen { path: path.to_owned(), mode });
        }
        Ok(Self { path: std::path::absolute(path).map_err(error)?, handle, room: OnceLock::new() })
    }

    /// Finds the room of the jailed process `pid`. Its way there is the launcher's work, which the process cannot change.
    pub(crate) fn enter_room(&self, pid: u32) -> io::Result<()> {
        let path = format!("/proc/{pid}/root{ROOM}");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        drop(self.room.set(openat(rustix::fs::CWD, path, flags, Mode::empty())?));
        Ok(())
    }

    /// Lets a process that is jailed write files of this size.
    pub(crate) fn allow_files_of(&self, pid: u32, bytes: u64) -> io::Result<()> {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        if self.room.get().is_none() || !can_raise_limits() {
            return Ok(());
        }
        let bytes = Some(bytes.max(JAIL_ROOM_BYTES));
        prlimit(Pid::from_raw(pid.cast_signed()), Resource::Fsize, Rlimit { current: bytes, maximum: bytes })?;
        Ok(())
    }

    /// The jailed process, whether or not it lives.
    pub(crate) fn inmate(&self) -> Option<Inmate> {
        serde_json::from_slice(&self.tail(INMATE, INMATE_BYTES).ok()?).ok()
    }

    /// Where a name is.
    fn place(&self, name: &str) -> std::os::fd::BorrowedFd<'_> {
        match self.room.get() {
            Some(room) if ROOM_NAMES.contains(&name) => room.as_fd(),
            _ => self.handle.as_fd(),
        }
    }

    /// Opens what is there and no link.
    fn open_at(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(File::from(openat(self.place(name), name, flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// What was made there is for the VM process to open.
    fn give(&self, name: &str) -> io::Result<()> {
        let owner = fstat(self.place(name))?;
        let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
        Ok(chownat(self.place(name), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Absolute path that the directory was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a file in it, for messages: where the directory is now.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let here = std::fs::read_link(format!("/proc/self/fd/{}", self.handle.as_raw_fd()));
        here.unwrap_or_else(|_| self.path.clone()).join(name)
    }

    /// A short path of a file in it, valid while `self` lives and in this process only.
    fn short(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.place(name).as_raw_fd()))
    }

    fn fail(&self, operation: &'static str, name: &str, source: io::Error) -> VmmError {
        VmmError::RunDir { operation, path: self.file(name), source }
    }

    /// Makes a listening socket.
    pub(crate) fn listen(&self, name: &'static str) -> Result<UnixListener, VmmError> {
        let listener = UnixListener::bind(self.short(name));
        let given = listener.and_then(|listener| self.give(name).map(|()| listener));
        given.map_err(|source| self.fail("create socket", name, source))
    }

    /// Connects to a socket in the directory.
    pub(crate) async fn connect(&self, name: &str) -> io::Result<tokio::net::UnixStream> {
        // What is connected to is what was looked at.
        let socket = self.open_at(name, OFlags::PATH)?;
        if !socket.metadata()?.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no socket"));
        }
        tokio::net::UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.short(name)).is_ok()
    }

    /// Waits until there is a file of this name.
    pub(crate) async fn appears(&self, name: &str) -> io::Result<()> {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        if self.has(name) {
            return Ok(());
        }
        let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let here = format!("/proc/self/fd/{}/.", self.place(name).as_raw_fd());
        add_watch(&events, here, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
        let events = child::register(events)?;
        // It may have come before we looked that way.
        while !self.has(name) {
            let mut ready = events.readable().await?;
            let mut buffer = [0_u8; 4096];
            while rustix::io::read(events.get_ref(), &mut buffer).is_ok() {}
            ready.clear_ready();
        }
        Ok(())
    }

    /// Gives a file outside a second name in the directory: one that stays the file's when directories are renamed, or, on
    /// another file system, at least finds it.
    pub(crate) fn link_in(&self, file: &Path, name: &str) -> Result<(), VmmError> {
        let to = self.short(name);
        let linked = std::fs::hard_link(file, &to).or_else(|_| std::os::unix::fs::symlink(file, &to));
        linked.map_err(|source| self.fail("link a file as", name, source))
    }

    /// Opens a file in it.
    pub(crate) fn open_file(&self, name: &str, options: &OpenOptions) -> Result<File, VmmError> {
        options.open(self.short(name)).map_err(|source| self.fail("open", name, source))
    }

    /// Makes a pipe with a name.
    pub(crate) fn make_fifo(&self, name: &str) -> Result<(), VmmError> {
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            self.short(name),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_bits_truncate(0o600),
            0,
        );
        let given = made.map_err(io::Error::from).and_then(|()| self.give(name));
        given.map_err(|source| self.fail("make a pipe", name, source))
    }

    /// Both ends of a pipe with a name, for reading without waiting.
    pub(crate) fn open_fifo(&self, name: &str) -> Result<tokio::net::unix::pipe::Receiver, VmmError> {
        let open = || tokio::net::unix::pipe::Receiver::from_file(self.open_at(name, OFlags::RDWR)?);
        open().map_err(|source| self.fail("open", name, source))
    }

    /// The last `limit` bytes of a file.
    pub(crate) fn tail(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut file = self.open_at(name, OFlags::RDONLY)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file"));
        }
        let length = metadata.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Removes a file. A missing one is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), VmmError> {
        match std::fs::remove_file(self.short(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.fail("remove", name, error)),
            _ => Ok(()),
        }
    }

    /// Replaces a file's content.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), VmmError> {
        std::fs::write(self.short(name), bytes).map_err(|source| self.fail("write", name, source))
    }

    /// Makes a file for the VM process to open.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> Result<(), VmmError> {
        self.remove(name)?;
        let write = || {
            let owner = fstat(self.place(name))?;
            let mut file = self.open_at(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
            fchown(&file, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)))?;
            file.write_all(bytes)
        };
        write().map_err(|source| self.fail("write", name, source))
    }

    /// Writes the record; whoever reads it finds all of it or none.
    pub(crate) fn write_record(&self, record: &Record) -> Result<(), VmmError> {
        let write = || {
            let mut file = File::create(self.short(RECORD_NEW))?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(&serde_json::to_vec(record)?)?;
            std::fs::rename(self.short(RECORD_NEW), self.short(RECORD))
        };
        write().map_err(|source| self.fail("write", RECORD, source))
    }

    /// The record, or `None` when there is none or it cannot be read as one.
    pub(crate) fn read_record(&self) -> Option<Record> {
        let bytes = self.tail(RECORD, RECORD_BYTES).ok()?;
        serde_json::from_slice::<Record>(&bytes).ok().filter(|record| record.version == RECORD_VERSION)
    }

    /// Whether no VM has left anything.
    pub(crate) fn is_clear(&self) -> bool {
        ALL.iter().all(|name| std::fs::symlink_metadata(self.short(name)).is_err())
    }

    /// Removes every file a VM may have left, and what its process had of the host. Missing ones are fine.
    pub(crate) fn clear(&self) -> Result<(), VmmError> {
        if let Some(inmate) = self.inmate() {
            cgroup::remove(&inmate.groups);
        }
        for name in ALL {
            match self.remove(name) {
                // A room goes with its process, whatever that put there.
                Err(error) if self.room.get().is_some() && ROOM_NAMES.contains(&name) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the room of a VM process is odd");
                }
                done => done?,
            }
        }
        Ok(())
    }
}
