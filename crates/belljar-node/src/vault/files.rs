//! The vault's only way to the disk: every call is one step, and a test can make any step fail.
//!
//! Errors come out with the operation and the path in them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
};

use rustix::fs::{FallocateFlags, fallocate};

use super::VaultError;
use crate::storage::{clone_file, data_ranges};

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    #[cfg(test)]
    pub(super) faults: std::sync::Arc<super::faults::Faults>,
}

/// What a step does; what a test can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Read,
    /// Takes space, so that a full disk refuses it.
    Write,
    Sync,
    Rename,
    Remove,
}

impl Files {
    /// `done` runs unless the step is to fail.
    fn step<T>(
        &self,
        step: Step,
        operation: &'static str,
        path: &Path,
        done: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, VaultError> {
        #[cfg(test)]
        self.faults.step(step).map_err(VaultError::io(operation, path))?;
        #[cfg(not(test))]
        let _ = step;
        done().map_err(VaultError::io(operation, path))
    }

    pub(super) fn open(&self, path: &Path) -> Result<File, VaultError> {
        self.step(Step::Read, "open", path, || File::open(path))
    }

    pub(super) fn length(&self, file: &File, path: &Path) -> Result<u64, VaultError> {
        self.step(Step::Read, "read the size of", path, || Ok(file.metadata()?.len()))
    }

    /// The parts of a file that hold data, in order.
    pub(super) fn data_ranges(&self, file: &File, path: &Path) -> Result<Vec<Range<u64>>, VaultError> {
        self.step(Step::Read, "look for data in", path, || data_ranges(file))
    }

    pub(super) fn read_at(&self, file: &File, path: &Path, into: &mut [u8], offset: u64) -> Result<(), VaultError> {
        self.step(Step::Read, "read", path, || file.read_exact_at(into, offset))
    }

    /// The names in a directory; an absent one is empty.
    pub(super) fn names(&self, dir: &Path) -> Result<Vec<String>, VaultError> {
        self.step(Step::Read, "list", dir, || {
            let entries = match fs::read_dir(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let mut names: Vec<String> = names.collect::<io::Result<_>>()?;
            names.sort_unstable();
            Ok(names)
        })
    }

    pub(super) fn create_dir(&self, path: &Path) -> Result<(), VaultError> {
        self.step(Step::Write, "create", path, || fs::create_dir_all(path))
    }

    /// A new file, in place of one that a failure may have left there.
    pub(super) fn create(&self, path: &Path) -> Result<File, VaultError> {
        self.step(Step::Write, "create", path, || {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
        })
    }

    pub(super) fn write_at(&self, file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<(), VaultError> {
        #[cfg(test)]
        if let Some(part) = self.faults.torn(bytes.len()) {
            let _ = file.write_all_at(&bytes[..part], offset);
        }
        #[cfg(test)]
        self.faults.written(path);
        self.step(Step::Write, "write", path, || file.write_all_at(bytes, offset))
    }

    pub(super) fn set_length(&self, file: &File, path: &Path, length: u64) -> Result<(), VaultError> {
        self.step(Step::Write, "set the size of", path, || file.set_len(length))
    }

    /// Makes a hole.
    pub(super) fn clear(&self, file: &File, path: &Path, offset: u64, length: u64) -> Result<(), VaultError> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.step(Step::Write, "make a hole in", path, || Ok(fallocate(file, flags, offset, length)?))
    }

    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<(), VaultError> {
        self.step(Step::Sync, "sync", path, || file.sync_all())?;
        #[cfg(test)]
        self.faults.synced(path);
        Ok(())
    }

    pub(super) fn sync_dir(&self, path: &Path) -> Result<(), VaultError> {
        self.step(Step::Sync, "sync the directory", path, || File::open(path)?.sync_all())
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), VaultError> {
        #[cfg(test)]
        self.faults.renamed(from);
        self.step(Step::Rename, "rename to", to, || fs::rename(from, to))
    }

    /// A second name for a file, or a copy where the file system has no such thing.
    pub(super) fn link(&self, from: &Path, to: &Path) -> Result<(), VaultError> {
        self.step(Step::Write, "link", to, || match fs::hard_link(from, to) {
            Ok(()) => Ok(()),
            Err(_) => clone_file(from, to).map(drop),
        })
    }

    /// A reflink of `from` as the new file `to`; fails where the file system has none, except in tests.
    pub(super) fn reflink(&self, from: &Path, to: &Path) -> Result<File, VaultError> {
        self.step(Step::Write, "clone to", to, || {
            if cfg!(test) {
                return clone_file(from, to);
            }
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(to)?;
            rustix::fs::ioctl_ficlone(&file, File::open(from)?)?;
            Ok(file)
        })
    }

    /// Removes a file; an absent one is fine.
    pub(super) fn remove(&self, path: &Path) -> Result<(), VaultError> {
        self.step(Step::Remove, "remove", path, || absent_is_fine(fs::remove_file(path)))
    }

    /// Removes a directory and what is in it; an absent one is fine.
    pub(super) fn remove_dir(&self, path: &Path) -> Result<(), VaultError> {
        self.step(Step::Remove, "remove", path, || absent_is_fine(fs::remove_dir_all(path)))
    }

    /// Writes a whole file in the existing directory of `path` so that a crash leaves the old or the new one.
    pub(super) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), VaultError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let temporary = dir.join(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
        let written = self.create(&temporary).and_then(|file| {
            self.write_at(&file, &temporary, bytes, 0)?;
            self.sync(&file, &temporary)?;
            self.rename(&temporary, path)
        });
        if written.is_err() {
            let _ = self.remove(&temporary);
        }
        written.and_then(|()| self.sync_dir(dir))
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
