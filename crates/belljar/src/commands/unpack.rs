//! Unpacking an archive that a sandbox made. The sandbox is hostile: nothing of it may land outside the directory.
//!
//! `tar`'s `unpack_in` checks each entry's directory against the root with all links resolved. On top of that, what
//! would be done *to* an entry that is already there as a link is refused here, and so is everything that is neither
//! a file, a directory nor a link. Owners, set-user-id bits and extended attributes are not taken over.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tar::{Archive, Entry, EntryType};

/// Why an archive was not, or not wholly, unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// An entry leads out of the directory.
    #[error("refused {0:?} from the sandbox: it leads out of the directory")]
    Escapes(PathBuf),
    /// An entry is a device or the like.
    #[error("refused {0:?} from the sandbox: it is neither a file, a directory nor a link")]
    Kind(PathBuf),
    /// An entry cannot be written.
    #[error("cannot unpack {path:?}")]
    Entry {
        /// Its name in the archive.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be made.
    #[error("cannot make {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The archive is broken or broke off.
    #[error("the archive from the sandbox cannot be read")]
    Archive(#[source] io::Error),
}

/// Unpacks into `root`, which is made where it is not there. What comes before a refused entry stays.
pub(super) fn unpack(reader: impl io::Read, root: &Path) -> Result<(), UnpackError> {
    fs::create_dir_all(root).map_err(|source| UnpackError::Directory { path: root.to_owned(), source })?;
    let mut archive = Archive::new(reader);
    archive.set_preserve_permissions(false);
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(false);
    archive.set_overwrite(true);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        one(&mut entry.map_err(UnpackError::Archive)?, root)?;
    }
    Ok(())
}

fn one(entry: &mut Entry<'_, impl io::Read>, root: &Path) -> Result<(), UnpackError> {
    let path = entry.path().map_err(UnpackError::Archive)?.into_owned();
    let kind = entry.header().entry_type();
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse | EntryType::Symlink | EntryType::Link => {}
        // Its mode is set through the name, which would be that of whatever a link leads to.
        EntryType::Directory if fs::symlink_metadata(root.join(&path)).is_ok_and(|there| there.is_symlink()) => {
            return Err(UnpackError::Escapes(path));
        }
        EntryType::Directory => {}
        _ => return Err(UnpackError::Kind(path)),
    }
    match entry.unpack_in(root) {
        Ok(true) => Ok(()),
        Ok(false) => Err(UnpackError::Escapes(path)),
        Err(source) => Err(UnpackError::Entry { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tar::{Builder, Header};

    use super::*;

    /// Kind, name, link target, mode.
    type Sample = (EntryType, &'static str, &'static str, u32);

    fn archive(entries: &[Sample]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for &(kind, name, target, mode) in entries {
            let mut header = Header::new_gnu();
            let content: &[u8] = if kind == EntryType::Regular { b"content" } else { b"" };
            // `set_path` would refuse what a hostile archive has.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).expect("append");
        }
        builder.into_inner().expect("archive")
    }

    /// Unpacks beside a file and a directory that must not change.
    #[track_caller]
    fn check(entries: &[Sample], expected: Result<(), &str>) {
        let world = tempfile::tempdir().expect("directory");
        let (outside, root) = (world.path().join("outside"), world.path().join("root"));
        fs::create_dir(&outside).expect("outside");
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).expect("mode");
        fs::write(world.path().join("victim"), "whole").expect("victim");
        let got = unpack(archive(entries).as_slice(), &root);
        match (&got, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            _ => panic!("{entries:?}: {got:?}"),
        }
        assert_eq!(fs::read_to_string(world.path().join("victim")).expect("victim"), "whole");
        assert_eq!(fs::read_dir(&outside).expect("outside").count(), 0);
        assert_eq!(fs::metadata(&outside).expect("outside").permissions().mode() & 0o777, 0o700);
        let mut left: Vec<_> =
            fs::read_dir(world.path()).expect("world").map(|e| e.expect("entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["outside", "root", "victim"]);
    }

    #[test]
    fn nothing_lands_outside() {
        use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
        check(&[(Directory, "d", "", 0o755), (Regular, "d/f", "", 0o644), (Symlink, "d/l", "f", 0o777)], Ok(()));
        check(&[(Regular, "f", "", 0o644), (Link, "g", "f", 0o644)], Ok(()));
        check(&[(Regular, "../victim", "", 0o644)], Err("leads out"));
        check(&[(Regular, "d/../../victim", "", 0o644)], Err("leads out"));
        check(&[(Symlink, "l", "../outside", 0o777), (Regular, "l/f", "", 0o644)], Err("cannot unpack"));
        check(&[(Symlink, "l", "../outside", 0o777), (Directory, "l", "", 0o777)], Err("leads out"));
        check(&[(Symlink, "l", "../outside", 0o777), (Directory, "l/d", "", 0o777)], Err("cannot unpack"));
        check(&[(Symlink, "l", "../victim", 0o777), (Regular, "l", "", 0o644)], Ok(()));
        check(&[(Link, "l", "../victim", 0o644), (Regular, "l", "", 0o644)], Err("cannot unpack"));
        for kind in [Fifo, Char, Block] {
            check(&[(kind, "x", "", 0o644)], Err("neither a file"));
        }
    }

    #[test]
    fn modes_are_kept_but_for_the_dangerous_bits() {
        let world = tempfile::tempdir().expect("directory");
        let bytes = archive(&[(EntryType::Regular, "f", "", 0o4755), (EntryType::Regular, "/g", "", 0o644)]);
        unpack(bytes.as_slice(), world.path()).expect("unpack");
        let mode = |name| fs::metadata(world.path().join(name)).expect(name).permissions().mode() & 0o7777;
        assert_eq!((mode("f"), mode("g")), (0o755, 0o644));
    }
}
