//! What a launcher is told, over a file in memory: JSON of [`Plan`].

use super::cgroup::{Shares, Writes};
use super::{Jail, ROOM};
use crate::driver::{NetworkSpec, VmSpec};
use crate::limits::{JAIL_FILES, JAIL_LOCKED_BYTES, JAIL_MEMORY_MIB, JAIL_ROOM_BYTES, JAIL_ROOM_FILES, JAIL_THREADS};
use crate::pci::PciDevice;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The VM program, an absolute path or a name to be looked up in `PATH`.
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Files that it finds in its room.
    pub files: Vec<Entry>,
    /// It runs guests in hardware.
    pub kvm: bool,
    /// Devices of the host that it gives its guest.
    pub passed_through: Vec<PciDevice>,
    pub network: Network,
    pub limits: Limits,
    /// Where it gets a control group of its own.
    pub groups: Vec<Group>,
    /// How many descriptors of its own it has.
    pub fds: u32,
}

impl Plan {
    /// That of a VM. `more_mib`: memory that its process uses beyond its guest's and what all use.
    pub(crate) fn of(
        spec: &VmSpec,
        jail: &Jail,
        program: &Path,
        args: Vec<String>,
        files: Vec<Entry>,
        fds: usize,
        more_mib: u64,
    ) -> Self {
        let disk = spec.disk.as_ref().and_then(|disk| std::fs::metadata(disk).ok()).map_or(0, |disk| disk.len());
        // One that is not there yet will be beside the run directory.
        let place = spec.disk.as_deref().filter(|disk| disk.exists()).unwrap_or(&spec.run_dir);
        let writes = Writes::of(place, spec.disk_limits);
        let threads = JAIL_THREADS + u64::from(spec.vcpus);
        let memory = (spec.memory_mib + JAIL_MEMORY_MIB + more_mib) << 20;
        let network = match &spec.network {
            NetworkSpec::NamedTap { name, .. } => Network::Tap(name.clone()),
            NetworkSpec::User { .. } => Network::Host,
            NetworkSpec::None | NetworkSpec::Tap(_) => Network::Empty,
        };
        Self {
            program: program.to_owned(),
            args,
            files,
            kvm: true,
            passed_through: spec.passed_through.clone(),
            network,
            limits: Limits {
                files: JAIL_FILES,
                file_bytes: if super::can_raise_limits() { disk.max(JAIL_ROOM_BYTES) } else { u64::MAX },
                threads,
                // A device may write to guest memory at any time, so all of it is kept where it is.
                locked_bytes: if spec.passed_through.is_empty() { JAIL_LOCKED_BYTES } else { memory },
                room_bytes: JAIL_ROOM_BYTES,
                room_files: JAIL_ROOM_FILES,
            },
            groups: jail.controllers.groups(Shares { processors: spec.vcpus, memory, threads, writes }),
            fds: u32::try_from(fds).unwrap_or(u32::MAX),
        }
    }
}

/// A file under another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub from: PathBuf,
    /// In the room.
    pub name: String,
    /// It may be written to, and is its user's from now on.
    pub write: bool,
}

impl Entry {
    pub(crate) fn new(name: &str, from: &Path, write: bool) -> Self {
        Self { from: from.to_owned(), name: name.to_owned(), write }
    }

    /// Where it is in the jail.
    pub(crate) fn inside(name: &str) -> PathBuf {
        Path::new(ROOM).join(name)
    }
}

/// Which network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Network {
    /// One of its own, with nothing in it.
    Empty,
    /// That in which its launcher is: the host's.
    Host,
    /// That in which its launcher is: the sandbox's, where it opens this tap.
    Tap(String),
}

/// Limits of a process (`setrlimit`), and of its room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Open files.
    pub files: u64,
    /// Bytes of a file that it writes.
    pub file_bytes: u64,
    /// Processes and threads.
    pub threads: u64,
    /// Bytes of memory that cannot be moved.
    pub locked_bytes: u64,
    /// Bytes, and files, in its room.
    pub room_bytes: u64,
    pub room_files: u64,
}

/// A control group to be made below `parent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub parent: PathBuf,
    /// File and content.
    pub settings: Vec<(String, String)>,
}
