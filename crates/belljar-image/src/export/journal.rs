//! What a journal has of blocks that were not written to their places yet: a guest's disk is copied while it is mounted.
//!
//! ```text
//! descriptor: which blocks -> their content … -> commit        revoke: older content of these blocks does not count
//! ```
//! A transaction without a commit has not happened. Nothing is written: whoever reads a block looks here first.

use std::collections::HashMap;

use super::{
    ExportError,
    disk::{Disk, Fields, JOURNAL_MAGIC, Newer},
};

/// Most blocks of a journal: a gigabyte of large ones. `mke2fs` makes none larger.
pub(super) const JOURNAL_BLOCKS_MAX: usize = 262_144;

const REVOKE: u32 = 0x1;
const WIDE: u32 = 0x2;
const CHECKSUM_3: u32 = 0x10;

/// Kinds of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOCATION: u32 = 5;

/// Bytes before what a block of its own kind says.
const HEADER: usize = 12;

/// Flags of a tag.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;

struct Journal<'a> {
    disk: &'a Disk,
    /// Where its blocks lie.
    places: &'a [u64],
    /// Its first block for transactions, and how many blocks it has.
    first: usize,
    length: usize,
    features: u32,
}

/// What the journal whose blocks lie there says.
pub(super) fn newer(disk: &Disk, places: &[u64]) -> Result<HashMap<u64, Newer>, ExportError> {
    let bad = || ExportError::damaged("its journal makes no sense");
    let superblock = disk.block(*places.first().ok_or_else(bad)?)?;
    let fields = Fields(&superblock);
    let (length, first) = (fields.be32(0x10) as usize, fields.be32(0x14) as usize);
    let (sequence, start) = (fields.be32(0x18), fields.be32(0x1C) as usize);
    let features = fields.be32(0x28);
    if fields.be32(0) != JOURNAL_MAGIC || !matches!(fields.be32(4), 3 | 4) {
        return Err(bad());
    }
    if start == 0 {
        return Ok(HashMap::new());
    }
    if features & !(REVOKE | WIDE | CHECKSUM_3) != 0 {
        return Err(ExportError::Feature(format!("features 0x{features:x} of its journal")));
    }
    let sane = fields.be32(0xC) as usize == disk.block_size && (1..length).contains(&first) && length <= places.len();
    if !sane || !(first..length).contains(&start) {
        return Err(bad());
    }
    let journal = Journal { disk, places, first, length, features };
    journal.replay(start, sequence)
}

/// A block and where its content lies in the journal.
type Record = (u64, Newer);

impl Journal<'_> {
    fn replay(&self, mut at: usize, mut sequence: u32) -> Result<HashMap<u64, Newer>, ExportError> {
        let (mut transactions, mut revoked) = (Vec::new(), HashMap::new());
        let (mut records, mut revocations) = (Vec::<Record>::new(), Vec::new());
        // No journal is gone round twice.
        let mut left = self.length;
        while left > 0 {
            left -= 1;
            let block = self.block(at)?;
            let fields = Fields(&block);
            if fields.be32(0) != JOURNAL_MAGIC || fields.be32(8) != sequence {
                break;
            }
            at = self.next(at);
            match fields.be32(4) {
                DESCRIPTOR => {
                    for (target, escaped) in self.tags(&block)? {
                        left = left.saturating_sub(1);
                        records.push((target, Newer { at: self.place(at)?, escaped }));
                        at = self.next(at);
                    }
                }
                REVOCATION => revocations.extend(self.revocations(&block)?),
                COMMIT => {
                    revoked.extend(revocations.drain(..).map(|target| (target, transactions.len())));
                    transactions.push(std::mem::take(&mut records));
                    sequence = sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        let mut newer = HashMap::new();
        for (number, records) in transactions.into_iter().enumerate() {
            let counts = |(target, _): &Record| revoked.get(target).is_none_or(|&by| by < number);
            newer.extend(records.into_iter().filter(counts));
        }
        Ok(newer)
    }

    fn place(&self, at: usize) -> Result<u64, ExportError> {
        self.places.get(at).copied().ok_or_else(|| ExportError::damaged("its journal makes no sense"))
    }

    fn block(&self, at: usize) -> Result<std::rc::Rc<Vec<u8>>, ExportError> {
        self.disk.block(self.place(at)?)
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 < self.length { at + 1 } else { self.first }
    }

    /// The blocks whose content follows, and whether it was escaped.
    fn tags(&self, block: &[u8]) -> Result<Vec<(u64, bool)>, ExportError> {
        const UUID: usize = 16;
        let (wide, checksum) = (self.features & WIDE != 0, self.features & CHECKSUM_3 != 0);
        let size = match (checksum, wide) {
            (true, _) => 16,
            (false, true) => 12,
            (false, false) => 8,
        };
        let end = block.len() - if checksum { 4 } else { 0 };
        let (mut tags, mut at) = (Vec::new(), HEADER);
        while at + size <= end {
            let fields = Fields(&block[at..at + size]);
            let flags = if checksum { fields.be32(4) } else { fields.be32(4) & 0xFFFF };
            let high = if wide { u64::from(fields.be32(8)) << 32 } else { 0 };
            let target = u64::from(fields.be32(0)) | high;
            if target >= self.disk.blocks() {
                return Err(ExportError::damaged("its journal refers to what is past its end"));
            }
            tags.push((target, flags & ESCAPED != 0));
            at += size + if flags & SAME_UUID == 0 { UUID } else { 0 };
            if flags & LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    fn revocations(&self, block: &[u8]) -> Result<Vec<u64>, ExportError> {
        let size = if self.features & WIDE != 0 { 8 } else { 4 };
        let end = Fields(block).be32(HEADER) as usize;
        let entries = block.get(HEADER + 4..end).ok_or_else(|| ExportError::damaged("its journal makes no sense"))?;
        let number = |entry: &[u8]| entry.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        Ok(entries.chunks_exact(size).map(number).collect())
    }
}

#[cfg(test)]
#[path = "journal_test.rs"]
mod tests;
