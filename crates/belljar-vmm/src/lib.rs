//! Starts and drives **one** virtual machine process.
//!
//! It is: a [`Driver`] per virtual machine monitor, the [`Vm`] that a driver hands out, and the probes that
//! tell which driver a machine can use. It is not: storage, network policy or anything about tenants; it gets paths and
//! numbers. The node agent calls it, one [`Vm`] per sandbox.
//!
//! ```text
//!              launch                         guest ends / process ends
//!   (nothing) --------> running ------------------------------------------> ended (why: VmExit)
//!      ^   \-- error: nothing is left behind  ^   |                            |
//!      |                                      |   | our own process dies       | kill
//!      |                                adopt |   v                            |
//!      |                                     (orphan: keeps running)           |
//!      +----------------------------- kill ------------------------------------+
//! ```
//!
//! A running VM may stand still: by [`Vm::pause`], or because it was launched with the saved state of another one. Its memory
//! then is a private view of a file that many VMs may share ([`VmSpec::memory`]), and [`Vm::copy_dirty`] tells what it wrote.
//!
//! A VM process is its own session and holds nothing of ours, so it outlives us; what is needed to find it again is in
//! its run directory (`run_dir` module). A guest that resets or panics does not end its process: the VM stays, stopped, so
//! that the reason and the console can be read, until [`Vm::kill`].

mod api;
mod changes;
mod child;
pub mod cloud_hypervisor;
#[cfg(test)]
mod conformance;
mod dirty;
mod driver;
mod error;
mod fifo_console;
pub mod firecracker;
mod guard;
mod hybrid;
pub mod jail;
pub mod limits;
mod log;
mod memory;
mod namespace;
mod orphan;
mod panic_words;
pub mod pci;
pub mod probe;
#[cfg(feature = "process-driver")]
pub mod process;
mod processor;
pub mod qemu;
mod rest;
mod run_dir;
mod saved;
mod shape;
mod spawn;
mod spec;
mod supervise;

pub use driver::{
    Accelerator, Capabilities, DirtyMemory, DiskLimits, Driver, DriverKind, MemoryChanges, NetworkSpec, Prepared, Vm,
    VmExit, VmSpec,
};
pub use error::{MonitorError, VmmError};
pub use memory::MemoryUse;
pub use pci::{PciAddress, PciDevice};
pub use processor::{CpuFeature, HiddenFeatures, UnknownFeature};
pub use rest::RestError;
