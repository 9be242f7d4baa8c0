//! The saved state of a QEMU without its memory, made of two pieces. Pure: bytes in, bytes out.
//!
//! QEMU has no command that saves a VM with private memory and leaves the memory out. It has one that writes only the devices
//! (`xen-save-devices-state`), and nothing that reads that back. But a whole migration stream, which QEMU does read, is the same
//! device sections behind a description of memory; and with `x-ignore-shared` a VM whose memory is *shared* sends that
//! description without the memory. So a saved state is
//!
//! ```text
//! "QEVM" version | CONFIGURATION | RAM: START, PART.., END   of a VM of the same shape that never ran (the head)
//! FULL (timer) | FULL .. | EOF                               of the VM that is saved, less its own "QEVM" version
//! VMDESCRIPTION                                              which QEMU expects behind EOF and reads over: a note of ours
//! ```
//!
//! Big-endian, as QEMU's `migration/savevm.c` (sections) and `migration/ram.c` (what is in the RAM sections) write it:
//!
//! ```text
//! CONFIGURATION  07  length:4 machine  { 05 length:1 "configuration/capabilities" version:4 count:4 { length:1 name } }
//! START          01  id:4 length:1 name instance:4 version:4  RAM  7e id:4
//! PART, END      02, 03  id:4  RAM  7e id:4
//! COMMAND        08  command:2 length:2 data
//! FULL           04  as START, with whatever the device writes: its length is in QEMU's program only
//! EOF            00
//! VMDESCRIPTION  06  length:4 data
//!
//! RAM            { address and flags:8 .. } up to flag EOS
//!   MEM_SIZE       address is the size of all blocks: { length:1 name size:8 place:8 }
//!   ZERO, PAGE     { length:1 block name } unless CONTINUE; then 1 byte of fill, or 4096 of content
//! ```

use std::ops::Range;

const MAGIC: &[u8] = b"QEVM\0\0\0\x03";
const EOF: u8 = 0;
const START: u8 = 1;
const PART: u8 = 2;
const END: u8 = 3;
const FULL: u8 = 4;
const SUBSECTION: u8 = 5;
const DESCRIPTION: u8 = 6;
const CONFIGURATION: u8 = 7;
const COMMAND: u8 = 8;
const FOOTER: u8 = 0x7e;

const RAM_ZERO: u64 = 0x02;
const RAM_SIZES: u64 = 0x04;
const RAM_PAGE: u64 = 0x08;
const RAM_EOS: u64 = 0x10;
const RAM_CONTINUE: u64 = 0x20;
const RAM_FLUSH: u64 = 0x200;
const RAM_FLAGS: u64 = 0xfff;
const PAGE_BYTES: usize = 4096;

const CAPABILITIES: &[u8] = b"configuration/capabilities";
const CAPABILITY: &[u8] = b"x-ignore-shared";
/// Name of the block that is the guest's memory: the id of its `-object`.
const MEMORY: &[u8] = b"mem";

/// Mark and number that end a section.
const FOOTER_BYTES: usize = 5;

/// Bytes of a note, filled up with blanks: a fixed number, so that it is found from the end.
pub(super) const NOTE_BYTES: usize = 256;

/// What is between the last device and the note.
const TAIL: [u8; 6] = [EOF, DESCRIPTION, 0, 0, 1, 0];
const _: () = assert!(u32::from_be_bytes([TAIL[2], TAIL[3], TAIL[4], TAIL[5]]) as usize == NOTE_BYTES);

/// Why bytes are not what QEMU or we wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamError {
    #[error("it ends within {0}")]
    Short(&'static str),
    #[error("at byte {at} there is {found:#x} where {expected} must be")]
    Unexpected { at: usize, found: u64, expected: &'static str },
    #[error("it does not leave memory out")]
    NotIgnored,
    #[error("it holds no guest memory block")]
    NoMemory,
    #[error("it does not end as a saved state does: was it cut short?")]
    NoEnd,
    #[error("a note of {0} bytes is too long")]
    LongNote(usize),
}

/// The first piece of a saved state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Where it is in the stream.
    pub bytes: Range<usize>,
    /// Size of guest memory, bytes.
    pub memory: u64,
}

/// Finds the head of a stream: all before the first device.
pub(super) fn head(stream: &[u8]) -> Result<Head, StreamError> {
    let mut reader = Reader { stream, at: 0 };
    reader.exact(MAGIC, "a migration stream")?;
    configuration(&mut reader)?;
    let mut memory = None;
    loop {
        let begin = reader.at;
        match reader.byte("a section")? {
            FULL => {
                let memory = memory.ok_or(StreamError::NoMemory)?;
                return Ok(Head { bytes: 0..begin, memory });
            }
            COMMAND => {
                reader.number(2, "a command")?;
                let length = reader.number(2, "a command")?;
                reader.skip(length, "a command")?;
            }
            kind @ (START | PART | END) => {
                let id = reader.number(4, "a section")?;
                if kind == START {
                    reader.name("a section")?;
                    reader.skip(8, "a section")?;
                }
                ram(&mut reader, &mut memory)?;
                reader.exact(&[FOOTER], "the end of a memory section")?;
                if reader.number(4, "a section's end")? != id {
                    return Err(StreamError::Unexpected {
                        at: reader.at - 4,
                        found: id,
                        expected: "a section's number",
                    });
                }
            }
            other => {
                return Err(StreamError::Unexpected { at: begin, found: other.into(), expected: "a section" });
            }
        }
    }
}

fn configuration(reader: &mut Reader<'_>) -> Result<(), StreamError> {
    reader.exact(&[CONFIGURATION], "the configuration")?;
    let length = reader.number(4, "the machine's name")?;
    reader.skip(length, "the machine's name")?;
    let mut ignored = false;
    while reader.peek() == Some(SUBSECTION) {
        reader.byte("the configuration")?;
        let at = reader.at;
        if reader.name("the configuration")? != CAPABILITIES {
            return Err(StreamError::Unexpected { at, found: SUBSECTION.into(), expected: "capabilities" });
        }
        reader.number(4, "capabilities")?;
        for _ in 0..reader.number(4, "capabilities")? {
            ignored |= reader.name("capabilities")? == CAPABILITY;
        }
    }
    if ignored { Ok(()) } else { Err(StreamError::NotIgnored) }
}

/// Reads the content of a RAM section.
fn ram(reader: &mut Reader<'_>, memory: &mut Option<u64>) -> Result<(), StreamError> {
    loop {
        let at = reader.at;
        let word = reader.number(8, "memory")?;
        match word & RAM_FLAGS & !RAM_CONTINUE {
            RAM_EOS => return Ok(()),
            RAM_FLUSH => {}
            RAM_SIZES => {
                let mut left = word & !RAM_FLAGS;
                while left > 0 {
                    let name = reader.name("memory blocks")?;
                    let size = reader.number(8, "memory blocks")?;
                    reader.number(8, "memory blocks")?;
                    if name == MEMORY {
                        *memory = Some(size);
                    }
                    left = left.checked_sub(size).filter(|_| size > 0).ok_or(StreamError::Unexpected {
                        at,
                        found: size,
                        expected: "the size of a memory block",
                    })?;
                }
            }
            kind @ (RAM_ZERO | RAM_PAGE) => {
                if word & RAM_CONTINUE == 0 && reader.name("a page")? == MEMORY {
                    return Err(StreamError::NotIgnored);
                }
                reader.skip(if kind == RAM_ZERO { 1 } else { PAGE_BYTES as u64 }, "a page")?;
            }
            found => return Err(StreamError::Unexpected { at, found, expected: "a page" }),
        }
    }
}

/// Puts a stream together, but for its end. `head` comes from [`head`], `devices` is what `xen-save-devices-state` wrote.
pub(super) fn join(head: &[u8], devices: &[u8]) -> Result<Vec<u8>, StreamError> {
    let mut reader = Reader { stream: devices, at: 0 };
    reader.exact(MAGIC, "saved devices")?;
    let sections = devices.get(reader.at..).and_then(|rest| rest.strip_suffix(&[EOF])).ok_or(StreamError::NoEnd)?;
    let stream = [head, sections].concat();
    check(&stream)?;
    Ok(stream)
}

/// Makes sure that there is a head, and behind it something that begins and ends as devices do.
fn check(stream: &[u8]) -> Result<(), StreamError> {
    let devices = stream.get(head(stream)?.bytes.end..).unwrap_or_default();
    let footer = devices.len().checked_sub(FOOTER_BYTES).and_then(|at| devices.get(at));
    if footer == Some(&FOOTER) { Ok(()) } else { Err(StreamError::NoEnd) }
}

/// Puts an end with a note to a stream.
pub(super) fn annotate(mut stream: Vec<u8>, note: &[u8]) -> Result<Vec<u8>, StreamError> {
    let blanks = NOTE_BYTES.checked_sub(note.len()).ok_or(StreamError::LongNote(note.len()))?;
    stream.extend_from_slice(&TAIL);
    stream.extend_from_slice(note);
    stream.extend(std::iter::repeat_n(b' ', blanks));
    Ok(stream)
}

/// The stream without its end, and the note in that.
pub(super) fn annotation(state: &[u8]) -> Result<(&[u8], &[u8]), StreamError> {
    let (rest, note) = state.split_last_chunk::<NOTE_BYTES>().ok_or(StreamError::NoEnd)?;
    let stream = rest.strip_suffix(&TAIL).ok_or(StreamError::NoEnd)?;
    check(stream)?;
    Ok((stream, note))
}

/// A place in a stream. Every step checks that it stays inside.
struct Reader<'a> {
    stream: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.stream.get(self.at).copied()
    }

    fn take(&mut self, length: u64, what: &'static str) -> Result<&'a [u8], StreamError> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let taken = end.and_then(|end| self.stream.get(self.at..end)).ok_or(StreamError::Short(what))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn skip(&mut self, length: u64, what: &'static str) -> Result<(), StreamError> {
        self.take(length, what).map(drop)
    }

    fn number(&mut self, bytes: u64, what: &'static str) -> Result<u64, StreamError> {
        Ok(self.take(bytes, what)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, StreamError> {
        Ok(self.take(1, what)?.iter().fold(0, |_, byte| *byte))
    }

    fn name(&mut self, what: &'static str) -> Result<&'a [u8], StreamError> {
        let length = self.byte(what)?;
        self.take(length.into(), what)
    }

    fn exact(&mut self, wanted: &'static [u8], expected: &'static str) -> Result<(), StreamError> {
        let at = self.at;
        if self.stream.get(at..).is_some_and(|rest| rest.starts_with(wanted)) {
            self.at += wanted.len();
            return Ok(());
        }
        let found = self.peek().ok_or(StreamError::Short(expected))?;
        Err(StreamError::Unexpected { at, found: found.into(), expected })
    }
}

#[cfg(test)]
#[path = "stream_test.rs"]
pub(super) mod tests;
