//! What of a VM decides which saved states it can go on with.

use crate::driver::VmSpec;
use crate::processor::{OtherProcessor, Processor};
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
    /// What its guest was told of its processor.
    #[serde(default, rename = "cpu", skip_serializing_if = "Option::is_none")]
    pub processor: Option<Processor>,
}

impl Shape {
    /// Of a guest that boots; `processor` is what it is told.
    pub(crate) fn of(spec: &VmSpec, processor: Option<Processor>) -> Self {
        let card = Card::of(&spec.network);
        Self { vcpus: spec.vcpus, memory_mib: spec.memory_mib, disk: spec.disk.is_some(), card, processor }
    }

    pub(crate) fn of_guest(guest: Guest) -> Self {
        let Guest { memory_mib, memory_inode: _, memory_at: _, vcpus, disk, card, processor } = guest;
        Self { vcpus, memory_mib, disk, card, processor }
    }

    /// Refuses another one, and a guest that was told of a processor that is not here.
    pub(crate) fn must_be(self, wanted: Self) -> Result<(), OtherShape> {
        if (Self { processor: wanted.processor, ..self }) != wanted {
            return Err(OtherShape::Other { saved: Box::new(self), wanted: Box::new(wanted) });
        }
        match self.processor {
            Some(told) => Ok(Processor::of_host().copied().unwrap_or_default().goes_on_with(told)?),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpus, memory_mib, disk, card, processor: _ } = self;
        let disk = if *disk { "a disk" } else { "no disk" };
        write!(f, "{vcpus} vcpus, {memory_mib} MiB of memory, {disk} and {card}")
    }
}

/// A state that does not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OtherShape {
    #[error("it is of a VM with {saved}, this one has {wanted}")]
    Other { saved: Box<Shape>, wanted: Box<Shape> },
    #[error(transparent)]
    Processor(#[from] OtherProcessor),
}
