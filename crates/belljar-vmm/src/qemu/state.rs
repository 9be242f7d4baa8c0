//! A saved state of a VM's devices, as a file: a stream for QEMU (see `stream`), with a note of ours on what VM it is of.
//!
//! QEMU would take the state of a VM with fewer processors or without a card, and would not notice a flipped bit. The note
//! is what QEMU calls a description: it is read over.

use super::stream::{self, StreamError};
use crate::driver::VmSpec;
use crate::error::VmmError;
use crate::limits::DEVICES_BYTES;
use crate::processor::Processor;
use crate::shape::{OtherShape, Shape};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// What is noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Version of the QEMU that wrote it, for messages: another one may well understand it.
    qemu: String,
    #[serde(flatten)]
    shape: Shape,
    /// CRC-32 of the stream, less this note.
    crc: u32,
}

/// Why a state cannot be gone on with.
#[derive(Debug, thiserror::Error)]
enum StateError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("its note cannot be read")]
    Note(#[from] serde_json::Error),
    #[error("it is damaged: its checksum is another one")]
    Damaged,
    #[error(transparent)]
    OtherShape(#[from] OtherShape),
}

/// Makes a state of what a QEMU told: `head` of the VM's memory, `devices` of all else.
fn encode(qemu: &str, shape: Shape, head: &[u8], devices: &[u8]) -> Result<Vec<u8>, StateError> {
    let stream = stream::join(head, devices)?;
    let note = Note { qemu: qemu.to_owned(), shape, crc: crc32fast::hash(&stream) };
    Ok(stream::annotate(stream, &serde_json::to_vec(&note)?)?)
}

/// Makes sure that a VM of this shape can go on with the state, as far as that can be said without QEMU. Returns the version
/// of the QEMU that wrote it, and what the guest was told of its processor.
fn check(state: &[u8], wanted: Shape) -> Result<(String, Option<Processor>), StateError> {
    let (stream, note) = stream::annotation(state)?;
    let note: Note = serde_json::from_slice(note)?;
    if crc32fast::hash(stream) != note.crc {
        return Err(StateError::Damaged);
    }
    note.shape.must_be(wanted)?;
    Ok((note.qemu, note.shape.processor))
}

/// Writes a new state file; on error there is none.
pub(super) fn write(to: &Path, qemu: &str, shape: Shape, head: &[u8], devices: &[u8]) -> io::Result<()> {
    let state = encode(qemu, shape, head, devices).map_err(io::Error::other)?;
    let mut file = File::create_new(to)?;
    file.write_all(&state).inspect_err(|_| drop(std::fs::remove_file(to)))
}

/// A state that can be gone on with.
#[derive(Debug)]
pub(super) struct State {
    pub file: File,
    /// Version of the QEMU that wrote it.
    pub qemu: String,
    /// What its guest was told of its processor.
    pub processor: Option<Processor>,
}

impl State {
    /// That of a specification, if there is one.
    pub(super) fn open(spec: &VmSpec) -> Result<Option<Self>, VmmError> {
        let Some(path) = &spec.devices else { return Ok(None) };
        let read = || {
            let mut bytes = Vec::new();
            File::open(path)?.take(DEVICES_BYTES).read_to_end(&mut bytes)?;
            // One that QEMU may open whoever it is.
            let mut file = File::from(memfd_create("belljar-vmm-devices", MemfdFlags::CLOEXEC)?);
            file.write_all(&bytes)?;
            Ok((file, bytes))
        };
        let what = "device state";
        let failed = |source| VmmError::File { id: spec.id.clone(), what, path: path.clone(), source };
        let (file, bytes) = read().map_err(failed)?;
        match check(&bytes, Shape::of(spec, None)) {
            Ok((qemu, processor)) => Ok(Some(Self { file, qemu, processor })),
            Err(error) => Err(VmmError::Restore { id: spec.id.clone(), path: path.clone(), reason: error.to_string() }),
        }
    }
}

/// The state with its checksum made right.
#[cfg(test)]
pub(super) fn renewed(state: &[u8]) -> Vec<u8> {
    let (stream, note) = stream::annotation(state).unwrap();
    let note = Note { crc: crc32fast::hash(stream), ..serde_json::from_slice(note).unwrap() };
    stream::annotate(stream.to_vec(), &serde_json::to_vec(&note).unwrap()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::stream::tests::{DEVICES, HEAD};
    use crate::run_dir::Card;

    const SHAPE: Shape = Shape { vcpus: 2, memory_mib: 64, disk: true, card: Card::None, processor: None };

    fn state() -> Vec<u8> {
        encode("10.0.2", SHAPE, &HEAD.concat(), &DEVICES.concat()).unwrap()
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = state();
        assert_eq!(check(&good, SHAPE).unwrap().0, "10.0.2");
        for at in 0..good.len() {
            assert!(check(&good[..at], SHAPE).is_err(), "cut at {at}");
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            // What stands for the version, and the blanks, may change.
            assert!(check(&bad, SHAPE).map_or(true, |_| at > good.len() - stream::NOTE_BYTES), "flipped at {at}");
        }
    }

    #[test]
    fn other_shapes_are_refused_in_words() {
        let check = |other: Shape, expected: &str| {
            let error = check(&state(), other).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(
            Shape { vcpus: 1, ..SHAPE },
            "2 vcpus, 64 MiB of memory, a disk and no network card, this one has 1 vcpus",
        );
        check(Shape { memory_mib: 65, ..SHAPE }, "this one has 2 vcpus, 65 MiB");
        check(Shape { disk: false, ..SHAPE }, "this one has 2 vcpus, 64 MiB of memory, no disk");
        check(Shape { card: Card::User, ..SHAPE }, "a disk and a network card");
    }
}
