//! An ext4 file system as a tree of inodes: what there is of it without mounting it.
//!
//! What it knows is what `mke2fs` makes and Linux keeps of that: extents, directories with and without an index, extended
//! attributes beside the inode and in a block. A file system with anything else is refused by its features.

use std::{cell::Cell, path::Path};

use super::{
    ExportError,
    attribute::{self, Attribute},
    disk::{Disk, Fields},
    journal::{self, JOURNAL_BLOCKS_MAX},
};

/// Inode of the root directory.
pub(super) const ROOT: u32 = 2;
/// Bytes of the superblock, and where it is.
const SUPERBLOCK: usize = 1024;
const MAGIC: u16 = 0xEF53;
/// File types in directories, a journal to be looked at, extents, 64-bit numbers, flexible groups, checksum seeds, large
/// directories.
const KNOWN: u32 = 0x2 | NEEDS_RECOVERY | 0x40 | WIDE | 0x200 | 0x2000 | 0x4000;
const NEEDS_RECOVERY: u32 = 0x4;
const WIDE: u32 = 0x80;

/// Flags of an inode: it has an extent tree; its content is encrypted, or lies in the inode.
const EXTENTS: u32 = 0x8_0000;
const UNREADABLE: u32 = 0x800 | 0x1000_0000;

/// What may lie over one another in an extent tree.
const EXTENT_DEPTH_MAX: u16 = 5;
const EXTENT_MAGIC: u16 = 0xF30A;
/// Extents of one file; one of 128 MiB each is 100 TiB, and one of a block each 4 GiB.
const EXTENTS_MAX: usize = 1 << 20;
/// Bytes of a directory: some million names.
const DIRECTORY_MAX: u64 = 256 << 20;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// An inode.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) kind: Kind,
    /// Permissions.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    /// Seconds since 1970, and nanoseconds.
    pub(super) modified: (i64, u32),
    pub(super) links: u16,
    pub(super) attributes: Vec<Attribute>,
    flags: u32,
    /// Its extents, a short link, or a device's number.
    block: [u8; 60],
}

impl Inode {
    /// Major and minor number of a device.
    pub(super) fn device(&self) -> (u32, u32) {
        let fields = Fields(&self.block);
        let (old, new) = (fields.u32(0), fields.u32(4));
        if old != 0 {
            return (old >> 8 & 0xFF, old & 0xFF);
        }
        (new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xF_FF00)
    }
}

/// A stretch of a file, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) start: u64,
    pub(super) length: u64,
    /// First block.
    block: u64,
}

/// See the module.
pub(super) struct Filesystem {
    disk: Disk,
    first_block: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: usize,
    descriptor_size: usize,
    /// Entries of extent trees that were looked at. No honest file system has more than blocks.
    steps: Cell<u64>,
}

impl Filesystem {
    pub(super) fn open(path: &Path) -> Result<Self, ExportError> {
        let mut disk = Disk::open(path).map_err(ExportError::Read)?;
        let mut superblock = vec![0; SUPERBLOCK];
        disk.raw(&mut superblock, SUPERBLOCK as u64).map_err(ExportError::Read)?;
        let fields = Fields(&superblock);
        if fields.u16(0x38) != MAGIC || fields.u32(0x18) > 5 {
            return Err(ExportError::damaged("its superblock makes no sense"));
        }
        disk.cut(1024 << fields.u32(0x18)).map_err(ExportError::Read)?;
        let recovery = fields.u32(0x60) & NEEDS_RECOVERY != 0;
        let journal = fields.u32(0xE0);
        let mut this = Self::of(disk, &superblock)?;
        if recovery {
            let newer = journal::newer(&this.disk, &this.journal_blocks(journal)?)?;
            this.disk.renew(newer);
            // The journal may have a newer superblock, too: a disk that has grown.
            let (block, offset) = (SUPERBLOCK / this.disk.block_size, SUPERBLOCK % this.disk.block_size);
            let superblock = this.disk.block(block as u64)?[offset..offset + SUPERBLOCK].to_vec();
            this = Self::of(this.disk, &superblock)?;
        }
        Ok(this)
    }

    fn of(disk: Disk, superblock: &[u8]) -> Result<Self, ExportError> {
        let fields = Fields(superblock);
        let features = fields.u32(0x60);
        if features & !KNOWN != 0 {
            return Err(ExportError::Feature(format!("features 0x{:x}", features & !KNOWN)));
        }
        let wide = features & WIDE != 0;
        let inode_size = if fields.u32(0x4C) == 0 { 128 } else { usize::from(fields.u16(0x58)) };
        let descriptor_size = if wide { usize::from(fields.u16(0xFE)) } else { 32 };
        let this = Self {
            first_block: fields.u32(0x14).into(),
            inodes: fields.u32(0),
            inodes_per_group: fields.u32(0x28),
            inode_size,
            descriptor_size,
            steps: Cell::new(0),
            disk,
        };
        let power = |size: usize, least: usize| size.is_power_of_two() && size >= least && size <= this.disk.block_size;
        let sane = power(inode_size, 128) && power(descriptor_size, 32) && this.inodes_per_group >= 8;
        if !sane || this.first_block > 1 {
            return Err(ExportError::damaged("its superblock makes no sense"));
        }
        Ok(this)
    }

    /// Bytes of a block.
    pub(super) fn block_size(&self) -> u64 {
        self.disk.block_size as u64
    }

    fn journal_blocks(&self, number: u32) -> Result<Vec<u64>, ExportError> {
        let inode = self.inode(number)?;
        let mut blocks = Vec::new();
        for stretch in self.stretches(&inode)? {
            let count = stretch.length / self.block_size();
            if stretch.start != blocks.len() as u64 * self.block_size() || count > JOURNAL_BLOCKS_MAX as u64 {
                return Err(ExportError::damaged("its journal makes no sense"));
            }
            blocks.extend(stretch.block..stretch.block + count);
            if blocks.len() > JOURNAL_BLOCKS_MAX {
                return Err(ExportError::damaged("its journal is too large"));
            }
        }
        Ok(blocks)
    }

    pub(super) fn inode(&self, number: u32) -> Result<Inode, ExportError> {
        if number == 0 || number > self.inodes {
            return Err(ExportError::damaged(format!("there is no inode {number}")));
        }
        let (group, index) = ((number - 1) / self.inodes_per_group, (number - 1) % self.inodes_per_group);
        let at = group as usize * self.descriptor_size;
        let descriptors = self.disk.block(self.first_block + 1 + (at / self.disk.block_size) as u64)?;
        let at = at % self.disk.block_size;
        let descriptor = Fields(&descriptors[at..at + self.descriptor_size]);
        let table = if self.descriptor_size >= 64 { descriptor.split(0x8, 0x28) } else { descriptor.u32(0x8).into() };
        let at = index as usize * self.inode_size;
        let block = table.checked_add((at / self.disk.block_size) as u64);
        let block = self.disk.block(block.ok_or_else(|| ExportError::damaged("a group makes no sense"))?)?;
        let at = at % self.disk.block_size;
        self.parse(number, &block[at..at + self.inode_size])
    }

    fn parse(&self, number: u32, bytes: &[u8]) -> Result<Inode, ExportError> {
        let fields = Fields(bytes);
        let mode = u32::from(fields.u16(0));
        let kind = match mode >> 12 {
            0o01 => Kind::Fifo,
            0o02 => Kind::CharDevice,
            0o04 => Kind::Directory,
            0o06 => Kind::BlockDevice,
            0o10 => Kind::File,
            0o12 => Kind::Symlink,
            0o14 => Kind::Socket,
            _ => return Err(ExportError::damaged(format!("inode {number} is of no kind"))),
        };
        let extra = if bytes.len() > 128 { usize::from(fields.u16(0x80)).min(bytes.len() - 128) } else { 0 };
        let more = if extra >= 0x8C - 0x80 { fields.u32(0x88) } else { 0 };
        let seconds = i64::from(fields.u32(0x10).cast_signed()) + (i64::from(more & 3) << 32);
        let mut attributes = attribute::in_inode(&bytes[128.min(bytes.len()) + extra..])?;
        let block = u64::from(fields.u32(0x68)) | u64::from(fields.u16(0x76)) << 32;
        if block != 0 {
            attributes.extend(attribute::in_block(&self.disk.block(block)?)?);
        }
        let mut content = [0; 60];
        content.copy_from_slice(&bytes[0x28..0x28 + 60]);
        Ok(Inode {
            kind,
            mode: mode & 0o7777,
            uid: u32::from(fields.u16(0x2)) | u32::from(fields.u16(0x78)) << 16,
            gid: u32::from(fields.u16(0x18)) | u32::from(fields.u16(0x7A)) << 16,
            size: fields.split(0x4, 0x6C),
            modified: (seconds, (more >> 2).min(999_999_999)),
            links: fields.u16(0x1A),
            attributes,
            flags: fields.u32(0x20),
            block: content,
        })
    }

    /// The parts of an inode's content that hold data, in order; what is between them is zeros.
    pub(super) fn stretches(&self, inode: &Inode) -> Result<Vec<Stretch>, ExportError> {
        if inode.flags & UNREADABLE != 0 {
            return Err(ExportError::Feature("an encrypted file, or one that lies in its inode".into()));
        }
        if inode.size == 0 {
            return Ok(Vec::new());
        }
        if inode.flags & EXTENTS == 0 {
            return Err(ExportError::Feature("a file without extents".into()));
        }
        let mut found = Vec::new();
        self.extents(&inode.block, EXTENT_DEPTH_MAX, &mut found)?;
        let mut end = 0;
        found.retain_mut(|stretch: &mut Stretch| {
            stretch.length = stretch.length.min(inode.size.saturating_sub(stretch.start));
            stretch.length > 0
        });
        for stretch in &found {
            if stretch.start < end {
                return Err(ExportError::damaged("the extents of a file overlap"));
            }
            end = stretch.start + stretch.length;
        }
        Ok(found)
    }

    fn extents(&self, node: &[u8], depth_max: u16, found: &mut Vec<Stretch>) -> Result<(), ExportError> {
        const ENTRY: usize = 12;
        const UNWRITTEN: u16 = 32768;
        let bad = || ExportError::damaged("an extent tree makes no sense");
        let header = Fields(node);
        let (count, depth) = (usize::from(header.u16(2)), header.u16(6));
        if header.u16(0) != EXTENT_MAGIC || depth > depth_max || (count + 1) * ENTRY > node.len() {
            return Err(bad());
        }
        for entry in node[ENTRY..].chunks_exact(ENTRY).take(count).map(Fields) {
            self.steps.set(self.steps.get() + 1);
            // Each file is looked at twice at most.
            if found.len() >= EXTENTS_MAX || self.steps.get() > self.disk.blocks().saturating_mul(2) {
                return Err(bad());
            }
            if depth > 0 {
                let child = u64::from(entry.u32(4)) | u64::from(entry.u16(8)) << 32;
                let block = self.disk.block(child)?;
                // Each level has to be lower than the one above it, so that there is an end.
                if Fields(&block).u16(6) + 1 != depth {
                    return Err(bad());
                }
                self.extents(&block, depth - 1, found)?;
                continue;
            }
            let length = entry.u16(4);
            // What was only reserved reads as zeros.
            if length <= UNWRITTEN {
                found.push(Stretch {
                    start: u64::from(entry.u32(0)) * self.block_size(),
                    length: u64::from(length) * self.block_size(),
                    block: u64::from(entry.u32(8)) | u64::from(entry.u16(6)) << 32,
                });
            }
        }
        Ok(())
    }

    /// Hands the bytes of a stretch on, piece by piece.
    pub(super) fn copy(
        &self,
        stretch: &Stretch,
        to: &mut dyn FnMut(&[u8]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        /// Bytes that are read at once.
        const PIECE: usize = 1 << 20;
        let mut buffer = vec![0; PIECE];
        let mut done = 0;
        while done < stretch.length {
            let wanted = usize::try_from(stretch.length - done).unwrap_or(PIECE).min(PIECE);
            let whole = wanted.next_multiple_of(self.disk.block_size);
            let block = stretch.block.checked_add(done / self.block_size());
            let block = block.ok_or_else(|| ExportError::damaged("it refers to what is past its end"))?;
            self.disk.read(block, &mut buffer[..whole])?;
            to(&buffer[..wanted])?;
            done += wanted as u64;
        }
        Ok(())
    }

    /// The names in a directory with their inodes, sorted, without `.` and `..`.
    pub(super) fn entries(&self, directory: &Inode) -> Result<Vec<(Vec<u8>, u32)>, ExportError> {
        if directory.size > DIRECTORY_MAX {
            return Err(ExportError::damaged("a directory is too large"));
        }
        let mut entries = Vec::new();
        for stretch in self.stretches(directory)? {
            for block in stretch.block..stretch.block + stretch.length / self.block_size() {
                names(&self.disk.block(block)?, &mut entries)?;
            }
        }
        entries.sort();
        if entries.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(ExportError::damaged("a directory has one name twice"));
        }
        Ok(entries)
    }

    /// Where a symbolic link leads.
    pub(super) fn link(&self, inode: &Inode) -> Result<Vec<u8>, ExportError> {
        let length = usize::try_from(inode.size).ok().filter(|&length| length <= crate::limits::MAX_PATH_BYTES);
        let length = length.ok_or_else(|| ExportError::damaged("a symbolic link is too long"))?;
        if inode.flags & EXTENTS == 0 && length < inode.block.len() {
            return Ok(inode.block[..length].to_vec());
        }
        let mut target = Vec::new();
        for stretch in self.stretches(inode)? {
            self.copy(&stretch, &mut |bytes| {
                target.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        Ok(target)
    }
}

/// The names in one block of a directory. Those of its index look like unused ones.
fn names(block: &[u8], entries: &mut Vec<(Vec<u8>, u32)>) -> Result<(), ExportError> {
    const HEAD: usize = 8;
    let bad = || ExportError::damaged("a directory makes no sense");
    let mut at = 0;
    while at + HEAD <= block.len() {
        let fields = Fields(&block[at..]);
        let (inode, size, length) = (fields.u32(0), usize::from(fields.u16(4)), usize::from(fields.u8(6)));
        if size < HEAD || at + size > block.len() || HEAD + length > size {
            return Err(bad());
        }
        let name = &block[at + HEAD..at + HEAD + length];
        at += size;
        if inode == 0 || name == b"." || name == b".." {
            continue;
        }
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
            return Err(bad());
        }
        entries.push((name.to_vec(), inode));
    }
    Ok(())
}
