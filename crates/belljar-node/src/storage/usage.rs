//! What a directory takes.

use std::{collections::HashSet, fs, io, os::unix::fs::MetadataExt, path::Path};

/// Bytes on disk of a file, or of everything below a directory; holes take nothing, a file with several names counts once, blocks
/// that a clone shares count. What vanishes meanwhile counts nothing.
pub(crate) fn dir_usage(path: &Path) -> io::Result<u64> {
    usage(path, &mut HashSet::new())
}

/// `counted`: device and number of files with several names.
fn usage(path: &Path, counted: &mut HashSet<(u64, u64)>) -> io::Result<u64> {
    let absent_is_empty = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(0),
        _ => Err(error),
    };
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) => return absent_is_empty(error),
    };
    if !meta.is_dir() && meta.nlink() > 1 && !counted.insert((meta.dev(), meta.ino())) {
        return Ok(0);
    }
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return absent_is_empty(error),
        };
        for entry in entries {
            bytes += usage(&entry?.path(), counted)?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let empty = dir_usage(dir.path()).expect("usage");
        fs::create_dir(dir.path().join("sub")).expect("mkdir");
        let file = fs::File::create(dir.path().join("sub/file")).expect("create");
        file.set_len(1 << 30).expect("length");
        rustix::io::pwrite(&file, &[1; 65536], 1 << 20).expect("write");
        file.sync_all().expect("sync");
        let bytes = dir_usage(dir.path()).expect("usage") - empty;
        assert!((65536..262_144).contains(&bytes), "{bytes}");
        fs::hard_link(dir.path().join("sub/file"), dir.path().join("again")).expect("link");
        assert_eq!(dir_usage(dir.path()).expect("usage") - empty, bytes, "another name takes nothing");
        assert_eq!(dir_usage(&dir.path().join("absent")).expect("absent"), 0);
    }
}
