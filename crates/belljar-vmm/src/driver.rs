//! The two traits at the seam, and the plain values that cross it.

use crate::jail::Jail;
use crate::pci::PciDevice;
use crate::{HiddenFeatures, MemoryUse, VmmError};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One way to run a VM. Cheap to share; holds no VM.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Which driver this is.
    fn kind(&self) -> DriverKind;

    /// What VMs of this driver can do; placement compares it with what a sandbox asks for.
    fn capabilities(&self) -> Capabilities;

    /// Version of the VM program, as it names itself, e.g. `10.0.2`.
    fn version(&self) -> &str;

    /// Starts a VM and returns once it can be driven (not: once the guest has booted). One that is restored
    /// ([`VmSpec::devices`]) stands still until [`Vm::resume`]. On error, and when the future is dropped, nothing is left
    /// behind.
    async fn launch(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError>;

    /// Starts a process that waits for a guest that goes on, as far as nothing has to be known of that: what is said of disk,
    /// memory and devices is not looked at. Only where [`Capabilities::prepares`]. On error, and when the future is dropped,
    /// nothing is left behind.
    async fn prepare(&self, _spec: &VmSpec) -> Result<Prepared, VmmError> {
        Err(VmmError::NotAhead { driver: self.kind() })
    }

    /// [`Driver::launch`] in such a process. Its run directory may have been renamed; processors, memory, network, limits and
    /// jail are those it was prepared for. On error, and when the future is dropped, there is no such process any more.
    async fn launch_in(&self, _prepared: Prepared, _spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        Err(VmmError::NotAhead { driver: self.kind() })
    }

    /// Finds the VM that an earlier process of ours launched with this run directory. `None` when it is gone; what it
    /// left in the directory is then removed.
    async fn adopt(&self, run_dir: &Path) -> Result<Option<Box<dyn Vm>>, VmmError>;

    /// Ends the VM that was launched with this run directory, if there is one, and removes what it had there. Its process is asked
    /// nothing where it may hang.
    async fn end(&self, run_dir: &Path) -> Result<(), VmmError> {
        match self.adopt(run_dir).await? {
            Some(vm) => vm.kill().await,
            None => Ok(()),
        }
    }
}

/// A process that waits for a guest: [`Driver::prepare`]. Dropping it lets go of the process and does not end it:
/// [`Driver::end`] does.
#[derive(Debug)]
pub struct Prepared(Box<dyn Any + Send>);

impl Prepared {
    /// What its driver knows of it.
    pub fn new(process: impl Any + Send) -> Self {
        Self(Box::new(process))
    }

    /// The same again; `None` where another driver has made it.
    #[must_use]
    pub fn into_inner<T: Any>(self) -> Option<T> {
        self.0.downcast().ok().map(|process| *process)
    }
}

/// One VM. Dropping it lets go of the VM process and does not end it.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Process id of the VM process.
    fn pid(&self) -> u32;

    /// Opens the byte stream to the guest agent. One at a time: a second stream is served after the first is closed. A
    /// new stream may begin in the middle of what the guest was saying. To a restored VM only once it has gone on.
    async fn connect_link(&self) -> Result<tokio::net::UnixStream, VmmError>;

    /// Resolves when the VM has ended, with the reason; may be called often and by many. Except for
    /// [`VmExit::Process`] and [`VmExit::OutOfMemory`] the VM process is still there, stopped, and waits for [`Vm::kill`].
    async fn wait(&self) -> VmExit;

    /// Ends the VM process if it still runs, waits until it is gone, and removes the files it had in its run directory.
    /// Calling it again is fine.
    async fn kill(&self) -> Result<(), VmmError>;

    /// The last console output, at most [`CONSOLE_BYTES`](crate::limits::CONSOLE_BYTES). Written by the guest, so
    /// untrusted bytes.
    async fn console(&self) -> Result<Vec<u8>, VmmError>;

    /// Plugs the guest's network card in or out. With the plug out nothing leaves and nothing arrives, DNS included;
    /// connections that were open hang until it is back. A VM starts plugged in; where it has no card, or the driver
    /// does not restrict networks ([`Capabilities::restricts_network`]), this is an error.
    async fn set_network(&self, connected: bool) -> Result<(), VmmError>;

    /// Stops the guest's processors; devices finish what they were doing. Again is fine.
    async fn pause(&self) -> Result<(), VmmError>;

    /// Lets them go on. Again is fine.
    async fn resume(&self) -> Result<(), VmmError>;

    /// Whether they stand still because of [`Vm::pause`] or a restore. Asks the VM process.
    async fn is_paused(&self) -> Result<bool, VmmError>;

    /// Writes the state of everything but memory and disk to the new file `to`, for [`VmSpec::devices`] of a VM with the
    /// same cpus, memory and network card. Only while paused. It holds no host path. Not synced.
    async fn save_devices(&self, to: &Path) -> Result<(), VmmError>;

    /// Memory that [`Vm::copy_dirty`] will need as far as can be told now, touched. To be taken before the pause, which then
    /// does not pay for it. Blocking.
    fn room_for_dirty(&self) -> Result<Vec<u8>, VmmError>;

    /// Copies what the guest wrote to its memory since it began with [`VmSpec::memory`]. Only while paused, and
    /// after [`Vm::save_devices`] where that writes to memory ([`Capabilities::saving_ends_link`]). Blocking: about
    /// 30 ms for 100 MiB where `room` is large enough; it may be empty.
    fn copy_dirty(&self, room: Vec<u8>) -> Result<DirtyMemory, VmmError>;

    /// Shows what [`Vm::copy_dirty`] would copy, piece by piece: offset in guest memory and content, at most
    /// [`crate::limits::PIECE_BYTES`] each, ascending, until `each` says false. Answers the runs it
    /// consists of. Only while paused. Blocking; for a VM that need not go on soon, because it takes no memory.
    fn each_dirty(&self, each: &mut (dyn FnMut(u64, &[u8]) -> bool + Send)) -> Result<Vec<(u64, u64)>, VmmError>;

    /// Tells the guest that its disk has `bytes` now, and makes it so. Only ever larger.
    async fn grow_disk(&self, bytes: u64) -> Result<(), VmmError>;

    /// What memory the VM process occupies and what for. Reads `/proc`; a few milliseconds for a large VM.
    fn memory(&self) -> Result<MemoryUse, VmmError>;
}

/// Which program and which way to execute guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    /// Firecracker, in hardware.
    Firecracker,
    /// Cloud Hypervisor, in hardware.
    CloudHypervisor,
    /// QEMU's `microvm` machine.
    Qemu { accel: Accelerator },
    /// The guest agent as a plain child. Isolates nothing; only with the feature `process-driver`.
    Process,
}

/// How QEMU executes guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// In hardware, through `/dev/kvm`.
    Kvm,
    /// In software. Needs nothing from the machine.
    Tcg,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Qemu { accel: Accelerator::Kvm } => "qemu-kvm",
            Self::Qemu { accel: Accelerator::Tcg } => "qemu-tcg",
            Self::Process => "process",
        })
    }
}

/// What differs between drivers, as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// A guest cannot reach the host other than through its devices.
    pub isolates: bool,
    /// Guest code runs on the hardware.
    pub hardware: bool,
    /// [`NetworkSpec::User`] works.
    pub user_network: bool,
    /// Frames may go to a tap, so that rules hold: [`NetworkSpec::Tap`], or [`NetworkSpec::NamedTap`].
    pub tap_network: bool,
    /// It is [`NetworkSpec::NamedTap`].
    pub named_tap: bool,
    /// `NetworkSpec::None` and `restrict: true` really keep the guest off the network.
    pub restricts_network: bool,
    /// [`Vm::save_devices`], [`Vm::copy_dirty`], [`Vm::each_dirty`] and [`VmSpec::devices`] work.
    pub snapshots: bool,
    /// [`Vm::save_devices`] ends the byte stream to the guest agent, and whatever went over it, also of a guest that goes on; it
    /// tells the guest so in its memory, which therefore has to be copied afterwards.
    pub saving_ends_link: bool,
    /// [`VmSpec::hidden_features`] are hidden.
    pub hides_features: bool,
    /// [`VmSpec::passed_through`] works.
    pub passes_through: bool,
    /// [`Driver::prepare`] works.
    pub prepares: bool,
    /// [`VmSpec::changes`] works.
    pub takes_changes: bool,
    /// Memory that a guest frees goes back to the host while it runs.
    pub takes_back_memory: bool,
    /// `vcpus` and `memory_mib` are enforced.
    pub limits_resources: bool,
    /// Most virtual CPUs of one VM.
    pub max_vcpus: u32,
    /// Most memory of one VM, MiB.
    pub max_memory_mib: u64,
}

/// Everything a driver needs to start one VM.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Name of the VM in process listings and errors: letters, digits, `-`, `_`.
    pub id: String,
    /// An existing private (0700) directory that is this VM's alone; sockets, log and record are made there and removed
    /// by [`Vm::kill`]. Its path may be of any length.
    pub run_dir: PathBuf,
    /// Guest kernel, an ELF `vmlinux` with a PVH entry.
    pub kernel: PathBuf,
    /// Initial RAM file system holding the guest agent.
    pub initrd: Option<PathBuf>,
    /// Raw disk image, opened for writing; the guest sees `/dev/vda`.
    pub disk: Option<PathBuf>,
    /// Appended to the kernel command line, parted by blanks.
    pub cmdline_extra: String,
    /// Virtual CPUs, 1 to [`MAX_VCPUS`](crate::limits::MAX_VCPUS).
    pub vcpus: u32,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// What guest memory begins with: a file of exactly `memory_mib`, a sparse one for a boot. It is mapped copy-on-write
    /// and never written, so many VMs may share it; it must not change for as long as one of them lives.
    pub memory: Option<PathBuf>,
    /// Go on with this device state ([`Vm::save_devices`]) instead of booting; `memory` is what belongs to it. Kernel and
    /// command line are in there: `kernel`, `initrd` and `cmdline_extra` are not used, so a state of a guest that was
    /// still loading its kernel cannot be gone on with.
    pub devices: Option<PathBuf>,
    /// What of `memory` is to be other content before the guest goes on with `devices`: what it wrote in an earlier life, in which it
    /// had the same `memory`. It counts as written. Where that cannot be, the launch fails with [`VmmError::Changes`].
    pub changes: Option<MemoryChanges>,
    /// How much of its disk's speed the guest may have. Of a guest that goes on, too, whatever it had before.
    pub disk_limits: DiskLimits,
    /// Features of the processor that a guest that boots is not told of; one that goes on knows what it was told.
    pub hidden_features: HiddenFeatures,
    /// Devices of the host that are the guest's alone: whole IOMMU groups ([`crate::pci::group_of`]). All of the guest's memory
    /// stays in the host's then, and its state cannot be saved.
    pub passed_through: Vec<PciDevice>,
    /// The guest's network card.
    pub network: NetworkSpec,
    /// What the VM process is locked in, as root. `None`: nothing.
    pub jail: Option<Jail>,
}

/// Runs of a file that belong into guest memory.
#[derive(Debug, Clone)]
pub struct MemoryChanges {
    /// The file.
    pub from: PathBuf,
    /// Offset, the same in both, and length: ascending, apart, aligned to pages.
    pub runs: Arc<[(u64, u64)]>,
}

/// What a guest may read from and write to its disk together, in each second; `None`: as much as there is. What it did not
/// use of one second it may use in the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Bytes.
    pub bytes: Option<NonZeroU64>,
    /// Requests.
    pub requests: Option<NonZeroU64>,
}

/// Pages of guest memory, copied out of a paused VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirtyMemory {
    /// Runs of written bytes, ascending, apart, aligned to pages: offset in guest memory and length.
    pub runs: Vec<(u64, u64)>,
    /// Their content, one after the other.
    pub data: Vec<u8>,
}

/// The guest's network card.
#[derive(Debug, Clone)]
pub enum NetworkSpec {
    /// No network card.
    None,
    /// Outgoing connections are made by the VM process itself, with the host's identity: the guest also reaches what
    /// listens on the host's loopback. The guest is 10.0.2.15/24, its router 10.0.2.2, its DNS server 10.0.2.3.
    User {
        /// A card that leads nowhere, for a guest that expects one.
        restrict: bool,
    },
    /// Frames go to a TAP device (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`) that this is an open queue of: what may leave is up
    /// to whoever made it. The VM process keeps its own copy of the descriptor.
    Tap(Arc<OwnedFd>),
    /// The same, for VM programs that open the tap themselves: nobody else may have a queue of it open.
    NamedTap {
        /// File of the network namespace where it is.
        namespace: PathBuf,
        /// Its name there.
        name: String,
    },
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest rebooted, which is also how a guest without ACPI ends itself.
    GuestReset,
    /// The guest's kernel gave up. The message is the guest's own, so untrusted, and capped.
    GuestPanic { message: String },
    /// The kernel ended the VM process: it used more memory than it may.
    OutOfMemory,
    /// The VM process ended, by itself or killed. Both are `None` when it was an adopted one: only a parent is told.
    Process { code: Option<i32>, signal: Option<i32> },
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestShutdown => f.write_str("the guest powered off"),
            Self::GuestReset => f.write_str("the guest rebooted"),
            Self::GuestPanic { message } => write!(f, "the guest kernel panicked: {message}"),
            Self::OutOfMemory => f.write_str("the VM process used more memory than it may, and was ended"),
            Self::Process { code: Some(code), .. } => write!(f, "the VM process ended with exit code {code}"),
            Self::Process { signal: Some(signal), .. } => write!(f, "the VM process was ended by signal {signal}"),
            Self::Process { code: None, signal: None } => f.write_str("the VM process ended"),
        }
    }
}
