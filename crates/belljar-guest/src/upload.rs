//! A file that is being written from outside.
//!
//! It is written to a temporary file beside its target and takes its name only when it is whole and on disk, so that
//! readers see the old file or the new one, and a write that breaks off leaves nothing.
//!
//! Whole blocks go past the page cache where the file system can do that. In an emulated machine the cache's work for each
//! page costs more than all else that happens to the page, writing would wait for it every few megabytes, and a large
//! file would leave itself in the memory of every snapshot. What is smaller than a block, and so is likely to be
//! read at once, stays in the cache.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use bytes::{Buf, Bytes};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::{
    limits::{UPLOAD_ALIGNMENT, UPLOAD_BLOCK},
    paths::{self, Owner},
    random,
};

/// Bytes on their way to a file, aligned as the disk wants them.
pub(crate) struct Block {
    memory: Vec<u8>,
    start: usize,
    filled: usize,
}

impl Block {
    pub(crate) fn new() -> Self {
        // Not touched, and so not there, before it is filled.
        let memory = vec![0; UPLOAD_BLOCK + UPLOAD_ALIGNMENT];
        let start = memory.as_ptr().align_offset(UPLOAD_ALIGNMENT).min(UPLOAD_ALIGNMENT);
        Self { memory, start, filled: 0 }
    }

    /// Takes as many bytes as fit.
    pub(crate) fn fill(&mut self, bytes: &mut Bytes) {
        let from = self.start + self.filled;
        let count = bytes.len().min(UPLOAD_BLOCK - self.filled);
        bytes.copy_to_slice(&mut self.memory[from..from + count]);
        self.filled += count;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.filled == UPLOAD_BLOCK
    }

    pub(crate) fn clear(&mut self) {
        self.filled = 0;
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.filled]
    }
}

/// How a file is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing was written yet.
    Open,
    Direct,
    Cached,
}

/// Dropped before [`Upload::finish`] it leaves nothing.
pub(crate) struct Upload {
    file: File,
    length: u64,
    way: Way,
    /// The temporary file and its target; `None` for a device, which is written directly.
    rename: Option<(PathBuf, PathBuf)>,
}

impl Upload {
    pub(crate) fn begin(path: PathBuf, owner: Option<Owner>) -> io::Result<Self> {
        let target = paths::follow_links(path)?;
        let existing = match fs::metadata(&target) {
            Ok(metadata) if metadata.is_dir() => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Ok(metadata) if !metadata.is_file() => return Self::device(&target),
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let directory = target.parent().unwrap_or(Path::new("/"));
        paths::make_directories(directory, owner)?;
        let temporary = directory.join(format!(".belljar-{}.tmp", random::hex::<8>()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let upload = Self { file, length: 0, way: Way::Open, rename: Some((temporary, target)) };
        let (mode, owner) = match existing {
            Some(existing) => (existing.mode() & 0o7777, Some(Owner { uid: existing.uid(), gid: existing.gid() })),
            None => (0o644, owner),
        };
        if let Some(owner) = owner {
            // Not root (hosted mode): then the file is ours, as it was.
            let _ = fchown(&upload.file, Some(owner.uid), Some(owner.gid));
        }
        upload.file.set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(upload)
    }

    fn device(target: &Path) -> io::Result<Self> {
        let file = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(target)?;
        Ok(Self { file, length: 0, way: Way::Cached, rename: None })
    }

    /// Appends a full block.
    pub(crate) fn write(&mut self, block: &Block) -> io::Result<()> {
        if self.way == Way::Open {
            self.way = if set_direct(&self.file, true).is_ok() { Way::Direct } else { Way::Cached };
        }
        match self.append(block) {
            // Not every file system that has the flag takes every block.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && self.way == Way::Direct => {
                self.leave_direct()?;
                self.append(block)
            }
            result => result,
        }
    }

    fn append(&mut self, block: &Block) -> io::Result<()> {
        let bytes = block.bytes();
        match self.rename {
            Some(_) => self.file.write_all_at(bytes, self.length)?,
            None => self.file.write_all(bytes)?,
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn leave_direct(&mut self) -> io::Result<()> {
        self.way = Way::Cached;
        set_direct(&self.file, false)
    }

    /// Appends the rest and gives the file its name.
    pub(crate) fn finish(mut self, rest: &Block) -> io::Result<()> {
        if self.way == Way::Direct {
            self.leave_direct()?;
        }
        self.append(rest)?;
        let Some((temporary, target)) = &self.rename else { return Ok(()) };
        self.file.sync_all()?;
        fs::rename(temporary, target)?;
        self.rename = None;
        Ok(())
    }
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_DIRECT, direct);
    fcntl(file, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.rename
            && let Err(error) = fs::remove_file(temporary)
        {
            tracing::warn!("{}: {error}", temporary.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(directory: &Path, length: usize) {
        let content: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).expect("small")).collect();
        let mut upload = Upload::begin(directory.join("file"), None).expect("begun");
        let (mut block, mut bytes) = (Block::new(), Bytes::from(content.clone()));
        while !bytes.is_empty() {
            block.fill(&mut bytes);
            if block.is_full() {
                upload.write(&block).expect("written");
                block.clear();
            }
        }
        upload.finish(&block).expect("finished");
        assert!(fs::read(directory.join("file")).expect("the file") == content, "{length} bytes");
        assert_eq!(fs::read_dir(directory).expect("the directory").count(), 1);
    }

    #[test]
    fn every_length_arrives_whole_on_every_file_system() {
        // One is likely to be on a disk, the other in memory.
        let usual = tempfile::tempdir().expect("a directory");
        let in_memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        for directory in [usual.path(), in_memory.path()] {
            for length in [0, 1, UPLOAD_BLOCK - 1, UPLOAD_BLOCK, UPLOAD_BLOCK + 1, 2 * UPLOAD_BLOCK + 4095] {
                check(directory, length);
            }
        }
    }

    #[test]
    fn one_that_breaks_off_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut upload = Upload::begin(directory.path().join("file"), None).expect("begun");
        let mut block = Block::new();
        block.fill(&mut Bytes::from(vec![1; UPLOAD_BLOCK]));
        upload.write(&block).expect("written");
        drop(upload);
        assert_eq!(fs::read_dir(directory.path()).expect("the directory").count(), 0);
    }
}
