//! Layers that were transferred, in the store's `tmp/blobs`, so that an import that broke off goes on from them.
//!
//! ```text
//! sha256-<hex>.part   what has arrived so far        sha256-<hex>   all of it, verified
//! ```
//!
//! The build lock of the store guards the directory. An import removes its own when it is done; what is old is removed by
//! the next one.

use std::{
    fs::{self, File},
    io::{self, Seek},
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest, Sha256};

use super::layer::hex;
use crate::{error::ImageError, limits::KEEP_BLOBS};

/// The directory.
#[derive(Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
}

/// A file that is being written: what it has, and the hash of that.
pub(super) struct Part {
    pub(super) file: File,
    pub(super) length: u64,
    pub(super) hash: Sha256,
}

impl Blobs {
    /// Opens it, and removes what is too old to be of use.
    pub(super) fn open(dir: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(dir).map_err(ImageError::io("create", dir))?;
        let now = SystemTime::now();
        for entry in fs::read_dir(dir).map_err(ImageError::io("list", dir))? {
            let path = entry.map_err(ImageError::io("list", dir))?.path();
            let modified = fs::metadata(&path).and_then(|found| found.modified());
            let modified = modified.map_err(ImageError::io("read", &path))?;
            if now.duration_since(modified).is_ok_and(|age| age > KEEP_BLOBS) {
                fs::remove_file(&path).map_err(ImageError::io("remove", path))?;
            }
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// A layer that is there whole, by the hexadecimal digits of its digest.
    pub(super) fn whole(&self, digest: &str) -> Result<Option<File>, ImageError> {
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("open", path)(error)),
        }
    }

    /// What there is of a layer, to go on with.
    pub(super) fn part(&self, digest: &str) -> Result<Part, ImageError> {
        let path = self.part_path(digest);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(ImageError::io("open", &path))?;
        let mut hash = Sha256::new();
        let length = io::copy(&mut file, &mut Hashing(&mut hash)).map_err(ImageError::io("read", path))?;
        Ok(Part { file, length, hash })
    }

    /// Takes a layer that is complete for whole, if its hash says so; gives what it is otherwise.
    pub(super) fn complete(&self, digest: &str, mut part: Part) -> Result<Result<File, String>, ImageError> {
        let path = self.part_path(digest);
        let found = hex(part.hash);
        if found != digest {
            fs::remove_file(&path).map_err(ImageError::io("remove", path))?;
            return Ok(Err(found));
        }
        part.file.sync_data().and_then(|()| part.file.rewind()).map_err(ImageError::io("write", &path))?;
        fs::rename(&path, self.path(digest)).map_err(ImageError::io("rename", path))?;
        Ok(Ok(part.file))
    }

    /// Begins a layer anew.
    pub(super) fn restart(&self, digest: &str, part: &mut Part) -> Result<(), ImageError> {
        let emptied = part.file.set_len(0).and_then(|()| part.file.rewind());
        emptied.map_err(ImageError::io("write", self.part_path(digest)))?;
        (part.length, part.hash) = (0, Sha256::new());
        Ok(())
    }

    /// Removes a layer, whole or in part.
    pub(super) fn forget(&self, digest: &str) -> Result<(), ImageError> {
        for path in [self.path(digest), self.part_path(digest)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn part_path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("sha256-{digest}.part"))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("sha256-{digest}"))
    }
}

struct Hashing<'a>(&'a mut Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        for (name, age) in [("sha256-new", Duration::ZERO), ("sha256-old", KEEP_BLOBS + Duration::from_secs(60))] {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let blobs = Blobs::open(dir.path()).unwrap();
        assert!(blobs.whole("new").unwrap().is_some() && blobs.whole("old").unwrap().is_none());
    }
}
