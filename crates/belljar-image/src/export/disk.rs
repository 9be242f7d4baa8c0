//! The blocks of an ext4 file system in a file, with what its journal says about them.
//!
//! It reads and never writes. Whoever made the file system may be hostile, so every number in it is checked before it is
//! used, and nothing is allocated by its word.

use std::{cell::RefCell, collections::HashMap, fs::File, io, os::unix::fs::FileExt, path::Path, rc::Rc};

use super::ExportError;

/// Blocks that are kept after they were read: tables are read piece by piece.
const CACHED_BLOCKS: usize = 1024;

/// Where the journal has the newest content of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Newer {
    /// Block of the file system in which it lies.
    pub(super) at: u64,
    /// Its first four bytes were taken away, as they looked like a journal's own.
    pub(super) escaped: bool,
}

/// What the first bytes of a block of the journal are.
pub(super) const JOURNAL_MAGIC: u32 = 0xC03B_3998;

/// The file, cut into blocks.
pub(super) struct Disk {
    file: File,
    /// Bytes of a block.
    pub(super) block_size: usize,
    /// Blocks that the file has room for.
    blocks: u64,
    newer: HashMap<u64, Newer>,
    cache: RefCell<HashMap<u64, Rc<Vec<u8>>>>,
}

impl Disk {
    /// Opens the file, blocks of a size not known yet.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self { file, block_size: 0, blocks: 0, newer: HashMap::new(), cache: RefCell::default() })
    }

    /// Bytes where they stand, whatever the journal says.
    pub(super) fn raw(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    /// Sets the size of blocks, which is a power of two.
    pub(super) fn cut(&mut self, block_size: usize) -> io::Result<()> {
        self.block_size = block_size;
        self.blocks = self.file.metadata()?.len() / block_size as u64;
        self.cache.borrow_mut().clear();
        Ok(())
    }

    /// Lets the journal's content stand for that of blocks.
    pub(super) fn renew(&mut self, newer: HashMap<u64, Newer>) {
        self.newer = newer;
        self.cache.borrow_mut().clear();
    }

    /// Blocks that there are.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// A block of tables or directories.
    pub(super) fn block(&self, number: u64) -> Result<Rc<Vec<u8>>, ExportError> {
        if let Some(found) = self.cache.borrow().get(&number) {
            return Ok(Rc::clone(found));
        }
        let mut bytes = vec![0; self.block_size];
        self.read(number, &mut bytes)?;
        let bytes = Rc::new(bytes);
        let mut cache = self.cache.borrow_mut();
        if cache.len() >= CACHED_BLOCKS {
            cache.clear();
        }
        cache.insert(number, Rc::clone(&bytes));
        Ok(bytes)
    }

    /// Blocks of a file, from `number` on; `into` is a whole number of them.
    pub(super) fn read(&self, number: u64, into: &mut [u8]) -> Result<(), ExportError> {
        let count = (into.len() / self.block_size) as u64;
        if number.checked_add(count).is_none_or(|end| end > self.blocks) {
            return Err(ExportError::damaged("it refers to what is past its end"));
        }
        self.raw(into, number * self.block_size as u64).map_err(ExportError::Read)?;
        if self.newer.is_empty() {
            return Ok(());
        }
        for (number, bytes) in (number..).zip(into.chunks_mut(self.block_size)) {
            let Some(newer) = self.newer.get(&number) else { continue };
            self.raw(bytes, newer.at * self.block_size as u64).map_err(ExportError::Read)?;
            if newer.escaped {
                bytes[..4].copy_from_slice(&JOURNAL_MAGIC.to_be_bytes());
            }
        }
        Ok(())
    }
}

/// Numbers of fixed places in bytes that are as long as that; zero past their end.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn u8(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    /// As journals write it.
    pub(super) fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes(at))
    }

    /// A number in two places.
    pub(super) fn split(&self, low: usize, high: usize) -> u64 {
        u64::from(self.u32(low)) | u64::from(self.u32(high)) << 32
    }
}
