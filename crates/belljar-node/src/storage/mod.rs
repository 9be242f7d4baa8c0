//! Where a node keeps what it owns, and how a disk is cloned.
//!
//! ```text
//! data/  node.json                 id of the node
//!        volume.xfs, volume/       only where the data directory cannot reflink: see [`volume`]
//!        <root>/images/<digest>/rootfs.ext4    immutable copies of the image store's files
//!        <root>/sandboxes/<id>/    everything a sandbox owns: record, disk, run/
//!        <root>/logs/<id>.jsonl    what it said; outlives it
//! ```
//! `<root>` is `data/volume` or `data`. It knows no VM and no server.

mod clone;
mod volume;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use self::volume::Volume;

/// The file system refused; names the operation and the path.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// An operation on a path failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program that makes or mounts the volume failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The end of what it wrote.
        output: String,
    },
    /// Less than [`crate::limits::FREE_DISK_MIN`] is left.
    #[error("{free_mb} MiB are free in {path}, at least {needed_mb} are needed; remove sandboxes or files")]
    Full {
        /// Where.
        path: PathBuf,
        /// What is left, MiB.
        free_mb: u64,
        /// What is asked, MiB.
        needed_mb: u64,
    },
}

impl StorageError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Program { .. } => false,
        }
    }
}

/// The node's directories, opened once at its start.
#[derive(Debug)]
pub struct Storage {
    root: PathBuf,
    volume: Option<Volume>,
}

impl Storage {
    /// Opens (or makes) the data directory. Where it cannot reflink and we are root, an XFS file is made and mounted;
    /// where that fails too, clones are sparse copies.
    pub fn open(data: &Path) -> Result<Self, StorageError> {
        fs::create_dir_all(data).map_err(StorageError::io("create", data))?;
        let (root, volume) = if clone::can_reflink(data) {
            (data.to_owned(), None)
        } else {
            match Volume::open(data) {
                Ok(volume) => (volume.mount_point().to_owned(), Some(volume)),
                Err(error) => {
                    tracing::warn!(%error, "no reflink volume: every sandbox gets a sparse copy of its image");
                    (data.to_owned(), None)
                }
            }
        };
        Self::in_dir(root, volume)
    }

    /// Storage without a volume, whatever the file system can.
    #[cfg(test)]
    pub(crate) fn plain(data: &Path) -> Result<Self, StorageError> {
        Self::in_dir(data.to_owned(), None)
    }

    fn in_dir(root: PathBuf, volume: Option<Volume>) -> Result<Self, StorageError> {
        fs::create_dir_all(&root).map_err(StorageError::io("create", &root))?;
        let storage = Self { root, volume };
        for dir in [storage.images(), storage.sandboxes(), storage.logs()] {
            fs::create_dir_all(&dir).map_err(StorageError::io("create", &dir))?;
        }
        Ok(storage)
    }

    /// Directory of image copies.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Directory of sandboxes.
    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    /// Directory of one sandbox.
    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    /// Directory of logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Fails when little space is left.
    pub fn check_free(&self) -> Result<(), StorageError> {
        let needed = crate::limits::FREE_DISK_MIN;
        let free = clone::free_bytes(&self.root).map_err(StorageError::io("ask the free space of", &self.root))?;
        if free < needed {
            return Err(StorageError::Full { path: self.root.clone(), free_mb: free >> 20, needed_mb: needed >> 20 });
        }
        Ok(())
    }

    /// Clones the file `from` to `to` and makes it `size` bytes large (never smaller than `from`).
    pub fn clone_disk(&self, from: &Path, to: &Path, size: u64) -> Result<(), StorageError> {
        let file = clone::clone_file(from, to).map_err(StorageError::io("clone an image to", to))?;
        let have = file.metadata().map_err(StorageError::io("read the size of", to))?.len();
        file.set_len(size.max(have)).map_err(StorageError::io("grow", to))
    }

    /// Unmounts the volume, if there is one. Call when no sandbox is left.
    pub fn close(&self) -> Result<(), StorageError> {
        match &self.volume {
            Some(volume) => volume.close(),
            None => Ok(()),
        }
    }
}
