//! What can go wrong between "start this VM" and "it is gone".

use crate::limits;
use crate::qemu::QmpError;
use crate::rest::RestError;
use std::io;
use std::path::PathBuf;

/// Every message names the input at fault and, where there is one, the remedy. After an error from
/// [`Driver::launch`](crate::Driver::launch) no process and no file is left.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// What a guest wrote in an earlier life cannot be put into its memory ([`VmSpec::changes`](crate::VmSpec::changes)).
    #[error("cannot put what the guest wrote before into the memory of process {pid}: {source}")]
    Changes {
        /// The VM process.
        pid: u32,
        /// Why not.
        source: io::Error,
    },
    /// A number or text in the specification cannot be used.
    #[error("VM {id}: {field} {reason}")]
    BadSpec { id: String, field: &'static str, reason: String },
    /// A file the VM needs cannot be opened.
    #[error("VM {id}: cannot open the {what} {path}")]
    File { id: String, what: &'static str, path: PathBuf, source: io::Error },
    /// Two VMs would write to it.
    #[error("VM {id}: the disk {path} is locked: another VM uses it")]
    DiskInUse { id: String, path: PathBuf },
    /// The run directory cannot be used, or a file in it.
    #[error("cannot {operation} {path}")]
    RunDir { operation: &'static str, path: PathBuf, source: io::Error },
    /// The run directory can be entered by others, who could then drive the VM.
    #[error("run directory {path} has mode {mode:o}, so others could drive the VM: chmod 700 it")]
    RunDirOpen { path: PathBuf, mode: u32 },
    /// A VM already runs there.
    #[error("run directory {path} belongs to a running VM (pid {pid}): adopt or kill that one first")]
    Occupied { path: PathBuf, pid: u32 },
    /// What runs there was started by another driver.
    #[error("the VM in {path} was started by driver {found}, not by {expected}: adopt it with that driver")]
    OtherDriver { path: PathBuf, found: String, expected: String },
    /// The VM program could not be started at all.
    #[error("cannot start {program}: is it installed and executable?")]
    Spawn { program: PathBuf, source: io::Error },
    /// The VM program ended before it was ready.
    #[error("{program} ended before the VM was ready ({ended}); it said: {log}")]
    EndedEarly { program: PathBuf, ended: String, log: String },
    /// The VM program runs and did not become ready.
    #[error("{program} was not ready within {} s and was ended; it said: {log}", limit.as_secs_f32())]
    NotReady { program: PathBuf, limit: std::time::Duration, log: String },
    /// The control connection to the VM process failed.
    #[error("control connection to VM process {pid}")]
    Monitor { pid: u32, source: MonitorError },
    /// The byte stream to the guest cannot be opened.
    #[error("cannot connect to the guest link {path}; has the VM ended?")]
    Link { path: PathBuf, source: io::Error },
    /// The operating system refused an operation on the VM process.
    #[error("cannot {operation} VM process {pid}")]
    Process { operation: &'static str, pid: u32, source: io::Error },
    /// The driver cannot keep its guests off the network.
    #[error("driver {driver} cannot cut a guest off the network: run it with another driver")]
    NoNetworkControl { driver: crate::DriverKind },
    /// No process is started before its guest is known: [`crate::Capabilities::prepares`].
    #[error("driver {driver} has not made this process, or makes none ahead")]
    NotAhead { driver: crate::DriverKind },
    /// The driver can neither pause nor save its guests.
    #[error("this driver cannot pause or save a guest: run it with another driver")]
    NoSnapshots,
    /// Only a VM that stands still can be saved.
    #[error("VM process {pid} is not paused: pause it first")]
    NotPaused { pid: u32 },
    /// Only a VM that was started with a memory file can be saved.
    #[error("VM process {pid} was started without a memory file, so it cannot be saved: start it with one")]
    NoMemoryFile { pid: u32 },
    /// The state of the devices could not be written.
    #[error("cannot save the devices of VM process {pid} to {path}")]
    Save { pid: u32, path: PathBuf, source: io::Error },
    /// The state of the devices cannot be gone on with.
    #[error(
        "VM {id}: cannot go on with the device state {path}; it must be whole and of a VM with the same program, cpus, \
         memory, disk and network card: {reason}"
    )]
    Restore { id: String, path: PathBuf, reason: String },
    /// A disk would lose its end.
    #[error("the disk of VM process {pid} has {current} bytes and cannot be made smaller ({wanted})")]
    SmallerDisk { pid: u32, current: u64, wanted: u64 },
    /// Processes in a hosted sandbox fork faster than they can be stopped.
    #[error(
        "processes below {pid} fork faster than they can be stopped ({} rounds tried): end them by hand",
        limits::KILL_ROUNDS
    )]
    Unstoppable { pid: u32 },
}

/// A control connection that failed, by its protocol.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// QEMU's.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// HTTP, of the other VM programs.
    #[error(transparent)]
    Rest(#[from] RestError),
}
