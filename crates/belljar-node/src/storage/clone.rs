//! Cloning one file: by reflink, or by copying the parts that hold data.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    ops::Range,
    path::Path,
};

use rustix::fs::{SeekFrom, ioctl_ficlone, seek, statvfs};

use super::StorageError;

/// Whether files in `dir` can share blocks: tried, not guessed.
pub(super) fn can_reflink(dir: &Path) -> bool {
    let (from, to) = (dir.join(".reflink-probe-from"), dir.join(".reflink-probe-to"));
    let result = fs::write(&from, [1; 4096]).and_then(|()| {
        let target = File::create(&to)?;
        Ok(ioctl_ficlone(&target, File::open(&from)?)?)
    });
    for file in [&from, &to] {
        // Only ours, and only there when the probe got that far.
        let _ = fs::remove_file(file);
    }
    result.is_ok()
}

/// Bytes that an unprivileged writer may still use on the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of the file system of `path` in all.
pub(super) fn total_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Clones `from` to the new file `to`, a disk or memory, holes and all; on failure `to` is gone.
pub(crate) fn clone_file(from: &Path, to: &Path) -> io::Result<File> {
    let source = File::open(from)?;
    let target = OpenOptions::new().read(true).write(true).create_new(true).open(to)?;
    let result = match ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(()),
        Err(_) => sparse_copy(&source, &target),
    };
    match result {
        Ok(()) => Ok(target),
        Err(error) => {
            let _ = fs::remove_file(to);
            Err(error)
        }
    }
}

/// A second name for a file that never changes, or a clone of it where it cannot have one.
pub(crate) fn link_file(from: &Path, to: &Path) -> Result<(), StorageError> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(_) => clone_file(from, to).map(drop).map_err(StorageError::io("clone a file to", to)),
    }
}

fn sparse_copy(source: &File, target: &File) -> io::Result<()> {
    target.set_len(source.metadata()?.len())?;
    for Range { start, end } in data_ranges(source)? {
        seek(source, SeekFrom::Start(start))?;
        seek(target, SeekFrom::Start(start))?;
        // Copies inside the kernel where the two file systems can.
        let (mut from, mut to) = (source.take(end - start), target);
        if io::copy(&mut from, &mut to)? != end - start {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was copied"));
        }
    }
    Ok(())
}

/// The parts of a file that hold data, in order.
pub(crate) fn data_ranges(file: &File) -> io::Result<Vec<Range<u64>>> {
    let size = file.metadata()?.len();
    let mut ranges = Vec::new();
    let mut offset = 0;
    while offset < size {
        let start = match seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            // No data after `offset`: the rest is a hole.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        if start >= end {
            break;
        }
        ranges.push(start..end);
        offset = end;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn a_clone_has_the_bytes_and_the_holes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut file = File::create(&from).expect("create");
        file.write_all(&[7; 8192]).expect("write");
        file.set_len(64 << 20).expect("hole");
        rustix::io::pwrite(&file, b"end", (64 << 20) - 3).expect("pwrite");

        clone_file(&from, &to).expect("clone");
        assert_eq!(fs::read(&from).expect("read"), fs::read(&to).expect("read"));
        assert!(fs::metadata(&to).expect("stat").blocks() * 512 < 1 << 20, "the hole was filled");
        assert_eq!(clone_file(&from, &to).expect_err("exists").kind(), io::ErrorKind::AlreadyExists);
        assert!(clone_file(&dir.path().join("missing"), &dir.path().join("x")).is_err());
        assert!(!dir.path().join("x").exists());
    }
}
