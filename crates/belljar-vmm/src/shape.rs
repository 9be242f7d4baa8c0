//! What of a VM decides which saved states it can go on with.

use crate::driver::VmSpec;
use crate::run_dir::{Card, Guest};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What two VMs must have in common for one to go on with the state of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk: bool,
    pub card: Card,
}

impl Shape {
    pub(crate) fn of(spec: &VmSpec) -> Self {
        let card = Card::of(&spec.network);
        Self { vcpus: spec.vcpus, memory_mib: spec.memory_mib, disk: spec.disk.is_some(), card }
    }

    pub(crate) fn of_guest(guest: Guest) -> Self {
        Self { vcpus: guest.vcpus, memory_mib: guest.memory_mib, disk: guest.disk, card: guest.card }
    }

    /// Refuses another one.
    pub(crate) fn must_be(self, wanted: Self) -> Result<(), OtherShape> {
        if self == wanted { Ok(()) } else { Err(OtherShape { saved: self, wanted }) }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpus, memory_mib, disk, card } = self;
        let disk = if *disk { "a disk" } else { "no disk" };
        write!(f, "{vcpus} vcpus, {memory_mib} MiB of memory, {disk} and {card}")
    }
}

/// A state that does not fit.
#[derive(Debug, thiserror::Error)]
#[error("it is of a VM with {saved}, this one has {wanted}")]
pub(crate) struct OtherShape {
    saved: Shape,
    wanted: Shape,
}
