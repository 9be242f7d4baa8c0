//! What a directory takes.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Bytes on disk of a file, or of everything below a directory; holes take nothing, blocks that a clone shares count. What
/// vanishes meanwhile counts nothing.
pub(crate) fn dir_usage(path: &Path) -> io::Result<u64> {
    let absent_is_empty = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(0),
        _ => Err(error),
    };
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) => return absent_is_empty(error),
    };
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return absent_is_empty(error),
        };
        for entry in entries {
            bytes += dir_usage(&entry?.path())?;
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
        assert_eq!(dir_usage(&dir.path().join("absent")).expect("absent"), 0);
    }
}
