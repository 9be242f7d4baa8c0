//! Grows the mounted root file system (ext4) to its device: an image is small, a sandbox's disk is not.
//!
//! Before a golden snapshot is taken of the machine, when it is configured, and whenever the kernel says that a disk has another size ([`crate::uevent`]): a
//! restored machine learns of its larger disk by an interrupt, which may come a moment after it goes on.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    sync::Mutex,
    time::Instant,
};

use crate::sync::lock;

/// `EXT4_IOC_RESIZE_FS`: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
/// Where the superblock begins, bytes.
const SUPERBLOCK_AT: u64 = 1024;
/// Bytes of it that are read.
const SUPERBLOCK_LEN: usize = 1024;

/// What the superblock says.
#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    blocks: u64,
    block_size: u64,
}

/// Grows it if the device has room for more. A sandbox whose disk is smaller than it may be is one all the same.
pub(crate) fn grow_root_or_warn() {
    let started = Instant::now();
    match grow_root() {
        Ok(Some(blocks)) => tracing::info!("root file system grown to {blocks} blocks in {:?}", started.elapsed()),
        Ok(None) => {}
        Err(error) => tracing::warn!("root file system cannot be grown: {error}"),
    }
}

/// The root file system's device, and the bytes that it had when its file system was last found to fill it. To find that out
/// takes a restored guest longer than the rest of the look.
static FILLED: Mutex<Option<(File, u64)>> = Mutex::new(None);

/// Gives the new number of blocks.
fn grow_root() -> io::Result<Option<u64>> {
    let mut filled = lock(&FILLED);
    if let Some((device, size)) = &mut *filled
        && device.seek(SeekFrom::End(0))? == *size
    {
        return Ok(None);
    }
    let root = File::open("/")?;
    let device = root.metadata()?.dev();
    let mut device = File::open(device_path(device)?)?;
    let mut superblock = [0; SUPERBLOCK_LEN];
    device.read_exact_at(&mut superblock, SUPERBLOCK_AT)?;
    let Some(now) = parse(&superblock) else { return Ok(None) };
    let size = device.seek(SeekFrom::End(0))?;
    let blocks = wanted(&now, size);
    if let Some(blocks) = blocks {
        resize(&root, blocks)?;
    }
    *filled = Some((device, size));
    Ok(blocks)
}

/// The device's node, made by devtmpfs under the kernel's name for it.
fn device_path(device: u64) -> io::Result<String> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let mut text = String::new();
    File::open(format!("/sys/dev/block/{major}:{minor}/uevent"))?.read_to_string(&mut text)?;
    match text.lines().find_map(|line| line.strip_prefix("DEVNAME=")) {
        Some(name) => Ok(format!("/dev/{name}")),
        None => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}

fn parse(superblock: &[u8; SUPERBLOCK_LEN]) -> Option<Superblock> {
    let number = |at: usize| superblock[at..].first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
    const INCOMPAT_64BIT: u32 = 0x80;
    if superblock[0x38..0x3a] != [0x53, 0xef] {
        return None;
    }
    let high = if number(0x60)? & INCOMPAT_64BIT == 0 { 0 } else { number(0x150)? };
    let block_size = 1024_u64.checked_shl(number(0x18)?).filter(|size| (1024..=65536).contains(size))?;
    Some(Superblock { blocks: u64::from(high) << 32 | u64::from(number(0x4)?), block_size })
}

/// Blocks that the device has room for, if they are more.
fn wanted(now: &Superblock, device_bytes: u64) -> Option<u64> {
    Some(device_bytes / now.block_size).filter(|blocks| *blocks > now.blocks)
}

#[expect(unsafe_code, reason = "ext4 resizes only by ioctl")]
fn resize(root: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: the kernel reads one u64, which lives through the call.
    match unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_superblock_is_read_and_only_growth_is_wanted() {
        let mut superblock = [0; SUPERBLOCK_LEN];
        assert_eq!(parse(&superblock), None);
        superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        superblock[0x4..0x8].copy_from_slice(&1000_u32.to_le_bytes());
        superblock[0x18] = 2;
        superblock[0x150] = 1;
        let now = parse(&superblock).expect("ext4");
        assert_eq!(now, Superblock { blocks: 1000, block_size: 4096 });
        superblock[0x60] = 0x80;
        assert_eq!(parse(&superblock).map(|now| now.blocks), Some((1 << 32) + 1000));
        assert_eq!(wanted(&now, 1000 * 4096 + 4095), None);
        assert_eq!(wanted(&now, 1001 * 4096), Some(1001));
    }
}
