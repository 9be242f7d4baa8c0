//! The disk of a snapshot as a source for the ext4 reader, and what is looked at before that reader is let near it.
//!
//! A guest makes its file system as it likes. The reader is safe Rust, but it believes some sizes: those that decide how
//! much it allocates are checked here first.

use std::{
    collections::{HashMap, VecDeque},
    error::Error,
    time::Instant,
};

use ext4_view::{Ext4, Ext4Read};

use super::{
    Part, VaultError,
    files::Files,
    read::{Located, Opened, PackReader},
};

/// Chunks that are kept unpacked; a chunk is at most a megabyte, a disk's 64 KiB.
const CHUNKS_KEPT: usize = 256;
/// Largest journal, bytes; `mke2fs` makes none larger for disks up to a terabyte. The reader's tables of it grow with it.
const JOURNAL_MAX: u64 = 512 << 20;
/// `mke2fs` refuses smaller groups; the reader allocates for each.
const BLOCKS_PER_GROUP_MIN: u32 = 256;

/// So that the journal's inode is in the first group.
const INODES_PER_GROUP_MIN: u32 = JOURNAL_INODE;

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// The inode that every journal is in.
const JOURNAL_INODE: u32 = 8;
const INCOMPAT_RECOVERY: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;

/// Reads a snapshot's disk, chunk by chunk, until the time is up.
pub(super) struct SnapshotDisk {
    opened: Opened,
    chunk_size: u32,
    length: u64,
    chunks: Vec<Located>,
    reader: PackReader,
    kept: HashMap<u32, Vec<u8>>,
    order: VecDeque<u32>,
    deadline: Instant,
}

impl SnapshotDisk {
    pub(super) fn new(files: &Files, opened: Opened, id: &str, deadline: Instant) -> Result<Self, VaultError> {
        let part = opened.part(Part::Disk).ok_or_else(|| VaultError::NoPart { id: id.to_owned(), part: Part::Disk })?;
        let (chunk_size, length, chunks) = (part.chunk_size, part.length, opened.chunks(part));
        let (reader, kept, order) = (PackReader::new(files), HashMap::new(), VecDeque::new());
        Ok(Self { opened, chunk_size, length, chunks, reader, kept, order, deadline })
    }

    /// Whether both have the same content.
    pub(super) fn equals(&self, other: &Self) -> bool {
        let what = |chunk: &Located| (chunk.index, chunk.entry.hash);
        self.length == other.length && self.chunks.iter().map(what).eq(other.chunks.iter().map(what))
    }

    /// Opens the file system in it.
    pub(super) fn mount(mut self) -> Result<Ext4, Box<dyn Error + Send + Sync>> {
        self.check()?;
        Ok(Ext4::load(Box::new(self))?)
    }

    fn check(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut superblock = [0; 1024];
        self.read(SUPERBLOCK, &mut superblock)?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| superblock[at + n]));
        let u16_at = |at: usize| u16::from_le_bytes(std::array::from_fn(|n| superblock[at + n]));
        if u16_at(0x38) != MAGIC {
            return Err("there is no ext4 file system on it".into());
        }
        let block_size = 1024_u64 << u32_at(0x18).min(7);
        let blocks = u64::from(u32_at(0x4))
            | if u32_at(0x60) & INCOMPAT_64BIT == 0 { 0 } else { u64::from(u32_at(0x150)) << 32 };
        if block_size > 65536 || blocks.checked_mul(block_size).is_none_or(|bytes| bytes > self.length) {
            return Err("its file system claims to be larger than the disk".into());
        }
        if u64::from(u32_at(0x150)) << 32 > blocks
            || u32_at(0x20) < BLOCKS_PER_GROUP_MIN
            || u32_at(0x28) < INODES_PER_GROUP_MIN
        {
            return Err("its file system has an impossible geometry".into());
        }
        if u32_at(0x60) & INCOMPAT_RECOVERY == 0 {
            return Ok(());
        }
        let descriptor_at = if block_size == 1024 { 2048 } else { block_size };
        let mut descriptor = [0; 64];
        self.read(descriptor_at, &mut descriptor)?;
        let wide = u32_at(0x60) & INCOMPAT_64BIT != 0;
        let half = |at: usize| u64::from(u32::from_le_bytes(std::array::from_fn(|n| descriptor[at + n])));
        let table = half(0x8) | if wide { half(0x28) << 32 } else { 0 };
        let inode_at = table
            .checked_mul(block_size)
            .and_then(|at| at.checked_add(u64::from(JOURNAL_INODE - 1) * u64::from(u16_at(0x58))))
            .ok_or("its file system has an impossible geometry")?;
        let mut inode = [0; 128];
        self.read(inode_at, &mut inode)?;
        let half = |at: usize| u64::from(u32::from_le_bytes(std::array::from_fn(|n| inode[at + n])));
        if u32_at(0xe0) != JOURNAL_INODE || half(0x4) | half(0x6c) << 32 > JOURNAL_MAX {
            return Err(format!("its journal is larger than {} MiB or at an unusual place", JOURNAL_MAX >> 20).into());
        }
        Ok(())
    }

    fn chunk(&mut self, index: u32) -> Result<Option<&[u8]>, VaultError> {
        let Ok(at) = self.chunks.binary_search_by_key(&index, |chunk| chunk.index) else { return Ok(None) };
        if !self.kept.contains_key(&index) {
            let mut content = Vec::new();
            self.reader.read(&self.opened, &self.chunks[at..=at], &mut content)?;
            if self.order.len() >= CHUNKS_KEPT
                && let Some(oldest) = self.order.pop_front()
            {
                self.kept.remove(&oldest);
            }
            self.order.push_back(index);
            self.kept.insert(index, content);
        }
        Ok(self.kept.get(&index).map(Vec::as_slice))
    }
}

impl Ext4Read for SnapshotDisk {
    fn read(&mut self, start: u64, mut into: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        if Instant::now() >= self.deadline {
            return Err("the time is up".into());
        }
        let mut at = start;
        if start.checked_add(into.len() as u64).is_none_or(|end| end > self.length) {
            return Err("it refers to what is past its end".into());
        }
        while !into.is_empty() {
            let size = u64::from(self.chunk_size);
            let (index, offset) = (u32::try_from(at / size)?, usize::try_from(at % size)?);
            let length = into.len().min(self.chunk_size as usize - offset);
            let (piece, rest) = into.split_at_mut(length);
            match self.chunk(index)?.map(|content| content.get(offset..offset + length)) {
                None => piece.fill(0),
                Some(Some(content)) => piece.copy_from_slice(content),
                Some(None) => return Err("it refers to what is past its end".into()),
            }
            (into, at) = (rest, at + length as u64);
        }
        Ok(())
    }
}
