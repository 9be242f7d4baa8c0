//! A pack: chunks one after the other and an index that tells what they are. Never changed once it has its name.
//!
//! ```text
//! magic 8 | version 4 | zero 4 | stored chunks ... | index: 40 bytes a chunk | trailer 56
//! index entry: BLAKE3 of the content 32 | stored length 4 | content length 4
//! trailer: offset of the index 8 | number of chunks 8 | pack id 32 | magic 8
//! ```
//! A chunk is stored as zstd, or as it is when its two lengths are equal. The pack's id is the BLAKE3 of its index, and
//! its name: so a manifest that names a pack and a slot in it names the content, and a pack alone is enough to find
//! every chunk in it again.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
};

use super::{
    VaultError,
    chunk::{CHUNK_MAX, Hash},
    codec::{Reader, check_format},
    files::Files,
};

const MAGIC: [u8; 8] = *b"BJ-PACK\n";
const MAGIC_END: [u8; 8] = *b"BJ-PEND\n";
const VERSION: u32 = 1;
const HEADER: usize = 16;
const ENTRY: usize = 40;
const TRAILER: usize = 56;
/// Bytes that are gathered before they are written: fewer, larger writes.
const WRITE_BUFFER: usize = 1 << 20;

// The format of files that are out there. Whoever changes one of these makes a new version and goes on reading this one.
const _: () = assert!(VERSION == 1 && HEADER == 16 && ENTRY == 40 && TRAILER == 56 && CHUNK_MAX == 1 << 20);

/// Name of a pack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PackId(pub(super) Hash);

impl PackId {
    /// Whether a file of this name is a pack.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let hash = blake3::Hash::from_hex(name).ok()?;
        let id = Self(*hash.as_bytes());
        (id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        blake3::Hash::from_bytes(self.0).to_hex().fmt(f)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a chunk lies in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) hash: Hash,
    pub(super) offset: u64,
    pub(super) stored: u32,
    pub(super) length: u32,
}

impl Entry {
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.stored)
    }
}

/// The index of a pack that is in place.
#[derive(Debug)]
pub(super) struct Pack {
    pub(super) id: PackId,
    pub(super) path: PathBuf,
    pub(super) entries: Vec<Entry>,
    pub(super) file_length: u64,
}

impl Pack {
    /// Reads and checks the index; chunks are checked when they are read.
    pub(super) fn load(files: &Files, path: &Path) -> Result<Self, VaultError> {
        let damaged = |why: &str| VaultError::damaged(path, why);
        let file = files.open(path)?;
        let file_length = files.length(&file, path)?;
        let Some(trailer_at) = file_length.checked_sub(TRAILER as u64).filter(|at| *at >= HEADER as u64) else {
            return Err(damaged("it is too short for a pack"));
        };
        let mut header = [0; HEADER];
        files.read_at(&file, path, &mut header, 0)?;
        check_format(&mut Reader::new(path, &header), MAGIC, VERSION)?;

        let mut trailer = [0; TRAILER];
        files.read_at(&file, path, &mut trailer, trailer_at)?;
        let mut reader = Reader::new(path, &trailer);
        let (index_at, count, id) = (reader.u64()?, reader.u64()?, PackId(reader.array()?));
        if reader.array()? != MAGIC_END {
            return Err(damaged("it was cut off: its end is missing"));
        }
        let index_length = trailer_at.checked_sub(index_at).filter(|length| {
            count.checked_mul(ENTRY as u64) == Some(*length)
                && count <= u64::from(u32::MAX)
                && index_at >= HEADER as u64
        });
        let Some(Ok(index_length)) = index_length.map(usize::try_from) else {
            return Err(damaged("its index does not fit its length"));
        };
        let mut index = vec![0; index_length];
        files.read_at(&file, path, &mut index, index_at)?;
        if PackId(*blake3::hash(&index).as_bytes()) != id {
            return Err(damaged("the checksum of its index is wrong"));
        }
        if path.file_name().is_none_or(|name| *name != *id.to_string()) {
            return Err(damaged("it lies under another pack's name"));
        }
        let entries = decode_index(path, &index, index_at)?;
        Ok(Self { id, path: path.to_owned(), entries, file_length })
    }
}

fn decode_index(path: &Path, index: &[u8], index_at: u64) -> Result<Vec<Entry>, VaultError> {
    let mut entries = Vec::with_capacity(index.len() / ENTRY);
    let mut offset = HEADER as u64;
    let mut reader = Reader::new(path, index);
    while reader.end().is_err() {
        let entry = Entry { hash: reader.array()?, offset, stored: reader.u32()?, length: reader.u32()? };
        if entry.stored == 0 || entry.stored > entry.length || entry.length > CHUNK_MAX {
            return Err(reader.damaged("its index holds a chunk of an impossible length"));
        }
        offset = entry.end();
        entries.push(entry);
    }
    if offset != index_at {
        return Err(reader.damaged("its chunks do not fill it"));
    }
    Ok(entries)
}

fn encode_index(entries: &[Entry]) -> Vec<u8> {
    let mut index = Vec::with_capacity(entries.len() * ENTRY);
    for entry in entries {
        index.extend_from_slice(&entry.hash);
        index.extend_from_slice(&entry.stored.to_le_bytes());
        index.extend_from_slice(&entry.length.to_le_bytes());
    }
    index
}

/// A pack that is being written, under a temporary name. Dropped before it is placed, it is gone.
#[derive(Debug)]
pub(super) struct PackWriter<'v> {
    files: &'v Files,
    dir: &'v Path,
    temporary: PathBuf,
    file: File,
    buffer: Vec<u8>,
    written: u64,
    entries: Vec<Entry>,
    placed: bool,
}

impl<'v> PackWriter<'v> {
    /// `name` tells apart the packs that are being written at once.
    pub(super) fn create(files: &'v Files, dir: &'v Path, name: &str) -> Result<Self, VaultError> {
        let temporary = dir.join(format!(".{name}.new"));
        let file = files.create(&temporary)?;
        let mut buffer = Vec::with_capacity(WRITE_BUFFER + CHUNK_MAX as usize);
        buffer.extend_from_slice(&MAGIC);
        buffer.extend_from_slice(&VERSION.to_le_bytes());
        buffer.extend_from_slice(&[0; 4]);
        Ok(Self { files, dir, temporary, file, buffer, written: 0, entries: Vec::new(), placed: false })
    }

    /// Appends a chunk of `length` bytes as `stored`; answers its slot.
    pub(super) fn push(&mut self, hash: Hash, length: u32, stored: &[u8]) -> Result<u32, VaultError> {
        let full = |_| VaultError::damaged(&self.temporary, "it would hold more chunks than a pack can");
        let slot = u32::try_from(self.entries.len()).map_err(full)?;
        let offset = self.written + self.buffer.len() as u64;
        let stored_length = u32::try_from(stored.len()).map_err(full)?;
        self.entries.push(Entry { hash, offset, stored: stored_length, length });
        self.buffer.extend_from_slice(stored);
        if self.buffer.len() >= WRITE_BUFFER {
            self.flush()?;
        }
        Ok(slot)
    }

    fn flush(&mut self) -> Result<(), VaultError> {
        self.files.write_at(&self.file, &self.temporary, &self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the index and syncs. What it answers becomes true with [`Self::place`].
    pub(super) fn seal(&mut self) -> Result<Pack, VaultError> {
        let index_at = self.written + self.buffer.len() as u64;
        let index = encode_index(&self.entries);
        let id = PackId(*blake3::hash(&index).as_bytes());
        self.buffer.extend_from_slice(&index);
        self.buffer.extend_from_slice(&index_at.to_le_bytes());
        self.buffer.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        self.buffer.extend_from_slice(&id.0);
        self.buffer.extend_from_slice(&MAGIC_END);
        self.flush()?;
        self.files.sync(&self.file, &self.temporary)?;
        let entries = std::mem::take(&mut self.entries);
        Ok(Pack { id, path: self.dir.join(id.to_string()), entries, file_length: self.written })
    }

    /// Gives the sealed pack its name; the directory is not synced.
    pub(super) fn place(mut self, pack: &Pack) -> Result<(), VaultError> {
        self.files.rename(&self.temporary, &pack.path)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for PackWriter<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // What cannot be removed now goes when the store is opened again.
            let _ = self.files.remove(&self.temporary);
        }
    }
}
