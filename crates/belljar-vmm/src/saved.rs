//! A saved state of a VM's devices as a file of ours: one line that says what VM it is of, then what the VM program wrote.
//!
//! For VM programs whose own format has no room for a note. (QEMU's has: `qemu/state.rs`.)

use crate::driver::VmSpec;
use crate::error::VmmError;
use crate::limits::DEVICES_BYTES;
use crate::processor::Processor;
use crate::shape::{OtherShape, Shape};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// First bytes of the line.
const MAGIC: &str = "belljar-devices ";

/// What the line says, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Program that wrote it, and reads it: `firecracker`.
    pub program: String,
    /// Its version, for messages: another one may well understand it.
    pub version: String,
    #[serde(flatten)]
    pub shape: Shape,
    /// The host's end of the link that its guest will still take for open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<u32>,
    /// CRC-32 of what follows, and of `link`.
    crc: u32,
}

impl Note {
    pub(crate) fn new(program: impl ToString, version: &str, shape: Shape, link: Option<u32>) -> Self {
        Self { program: program.to_string(), version: version.to_owned(), shape, link, crc: 0 }
    }
}

/// Why a state cannot be gone on with.
#[derive(Debug, thiserror::Error)]
enum SavedError {
    #[error("it is no state of {0}, or cut short")]
    None(String),
    #[error("its first line cannot be read")]
    Note(#[from] serde_json::Error),
    #[error("it is damaged: its checksum is another one")]
    Damaged,
    #[error("it was written by {found}, and only that can go on with it; this one is {wanted}")]
    OtherProgram { found: String, wanted: String },
    #[error(transparent)]
    OtherShape(#[from] OtherShape),
}

/// Writes a new state file; on error there is none.
pub(crate) fn write(to: &Path, note: Note, devices: &[u8]) -> io::Result<()> {
    let note = Note { crc: checksum(devices, note.link), ..note };
    let line = format!("{MAGIC}{}\n", serde_json::to_string(&note)?);
    let mut file = File::create_new(to)?;
    let written = file.write_all(line.as_bytes()).and_then(|()| file.write_all(devices));
    written.inspect_err(|_| drop(std::fs::remove_file(to)))
}

fn checksum(devices: &[u8], link: Option<u32>) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(devices);
    sum.update(link.map(u32::to_le_bytes).as_ref().map_or(&[], <[u8; 4]>::as_slice));
    sum.finalize()
}

fn check<'a>(state: &'a [u8], program: &str, wanted: Shape) -> Result<(Note, &'a [u8]), SavedError> {
    let none = || SavedError::None(program.to_owned());
    let rest = state.strip_prefix(MAGIC.as_bytes()).ok_or_else(none)?;
    let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(none)?;
    let (line, devices) = (&rest[..end], &rest[end + 1..]);
    let note: Note = serde_json::from_slice(line)?;
    if note.program != program {
        return Err(SavedError::OtherProgram { found: note.program, wanted: program.to_owned() });
    }
    if checksum(devices, note.link) != note.crc {
        return Err(SavedError::Damaged);
    }
    note.shape.must_be(wanted)?;
    Ok((note, devices))
}

/// A state that can be gone on with.
#[derive(Debug)]
pub(crate) struct Saved {
    /// Version of the program that wrote it.
    pub version: String,
    /// What it wrote.
    pub devices: Vec<u8>,
    /// What its guest was told of its processor.
    pub processor: Option<Processor>,
    /// See [`Note::link`].
    pub link: Option<u32>,
}

impl Saved {
    /// That of a specification, if there is one.
    pub(crate) fn open(spec: &VmSpec, program: &str) -> Result<Option<Self>, VmmError> {
        let Some(path) = &spec.devices else { return Ok(None) };
        let read = || {
            let mut bytes = Vec::new();
            File::open(path)?.take(DEVICES_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let what = "device state";
        let state =
            read().map_err(|source| VmmError::File { id: spec.id.clone(), what, path: path.clone(), source })?;
        match check(&state, program, Shape::of(spec, None)) {
            Ok((note, devices)) => {
                let Note { version, shape, link, .. } = note;
                Ok(Some(Self { version, devices: devices.to_vec(), processor: shape.processor, link }))
            }
            Err(error) => Err(VmmError::Restore { id: spec.id.clone(), path: path.clone(), reason: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::Card;

    const SHAPE: Shape = Shape { vcpus: 2, memory_mib: 64, disk: true, card: Card::None, processor: None };

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("devices");
        let note = Note::new("vmm", "1.2.3", SHAPE, Some(7));
        write(&path, note.clone(), b"some devices").unwrap();
        write(&path, note, b"others").unwrap_err();
        let good = std::fs::read(&path).unwrap();
        let (note, devices) = check(&good, "vmm", SHAPE).unwrap();
        assert_eq!((note.version.as_str(), note.link, devices), ("1.2.3", Some(7), &b"some devices"[..]));
        for at in 0..good.len() {
            assert!(check(&good[..at], "vmm", SHAPE).is_err(), "cut at {at}");
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            // The version is for people.
            let flipped = check(&bad, "vmm", SHAPE);
            assert!(flipped.is_err() || flipped.unwrap().0.version != "1.2.3", "flipped at {at}");
        }
        let error = check(&good, "other", SHAPE).unwrap_err().to_string();
        assert!(error.contains("written by vmm"), "{error}");
        let error = check(&good, "vmm", Shape { vcpus: 1, ..SHAPE }).unwrap_err().to_string();
        assert!(error.contains("2 vcpus") && error.contains("this one has 1 vcpus"), "{error}");
    }
}
