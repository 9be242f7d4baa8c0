//! Small files with secrets: whole or not there, and for their owner only.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// For its owner only.
const MODE: u32 = 0o600;

/// Bits of a mode that let others than the owner in.
const OTHERS: u32 = 0o077;

/// What is wrong with a file that others than its owner can read; `None` when nobody else can.
pub(crate) fn exposure(path: &Path) -> io::Result<Option<String>> {
    let mode = fs::metadata(path)?.permissions().mode();
    let words = || format!("others than its owner can read it: its mode is {:o} and must be 600", mode & 0o777);
    Ok((mode & OTHERS != 0).then(words))
}

/// Writes a file, or puts another one in its place.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let new = path.with_file_name(format!(".{}.new", name.display()));
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(&new)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, path))
}
