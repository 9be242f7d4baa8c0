//! Where a node keeps what it owns, and how a disk is cloned.
//!
//! ```text
//! data/  node.json                 id of the node
//!        volume.xfs, volume/       only where the data directory cannot reflink: see [`volume`]
//!        <root>/images/<digest>/rootfs.ext4    immutable copies of the image store's files
//!        <root>/sandboxes/<id>/    everything a sandbox owns: record, disk, run/
//!        <root>/templates/<key>/   golden snapshots
//!        <root>/spares/<id>/       VMs that are kept ready
//!        <root>/passing/           standstills on their way; emptied at start
//!        <root>/snapshots/, cache/ see [`crate::vault`]
//!        <root>/logs/<id>.jsonl    what it said; outlives it
//! ```
//! `<root>` is `data/volume` or `data`. It knows no VM and no server.

mod clone;
mod extents;
mod usage;
mod volume;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use self::extents::changed_extents;
use self::volume::Volume;
pub(crate) use self::{
    clone::{clone_file, data_ranges, link_file},
    usage::dir_usage,
};
use crate::program::ProgramError;

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
    #[error(transparent)]
    Program(#[from] ProgramError),
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
            Self::Program(_) => false,
        }
    }
}

/// What the owner of the host may choose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageOptions {
    /// File that becomes the volume where the data directory cannot reflink; `None` is `volume.xfs` in it.
    pub volume_path: Option<PathBuf>,
    /// Bytes of a new volume; `None` takes most of what is free. It is a sparse file: only what is used takes space.
    pub volume_size: Option<u64>,
}

/// Removes a directory that may not be there.
pub(crate) fn remove_dir(path: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The node's directories, opened once at its start.
#[derive(Debug)]
pub struct Storage {
    root: PathBuf,
    volume: Option<Volume>,
    clone_method: &'static str,
}

impl Storage {
    /// Opens (or makes) the data directory. Where it cannot reflink and we are root, an XFS file is made and mounted;
    /// where that fails too, clones are sparse copies.
    pub fn open(data: &Path, options: &StorageOptions) -> Result<Self, StorageError> {
        fs::create_dir_all(data).map_err(StorageError::io("create", data))?;
        if clone::can_reflink(data) {
            return Self::in_dir(data.to_owned(), None, "reflink");
        }
        match Volume::open(data, options) {
            Ok(volume) => Self::in_dir(volume.mount_point().to_owned(), Some(volume), "reflink (volume)"),
            // Who asked for it is to be told that it cannot be had.
            Err(error) if *options != StorageOptions::default() => Err(error),
            Err(error) => {
                tracing::warn!(%error, "no reflink volume: every sandbox gets a sparse copy of its image");
                Self::in_dir(data.to_owned(), None, "copy")
            }
        }
    }

    /// Storage without a volume, whatever the file system can.
    #[cfg(test)]
    pub(crate) fn plain(data: &Path) -> Result<Self, StorageError> {
        Self::in_dir(data.to_owned(), None, "copy")
    }

    fn in_dir(root: PathBuf, volume: Option<Volume>, clone_method: &'static str) -> Result<Self, StorageError> {
        fs::create_dir_all(&root).map_err(StorageError::io("create", &root))?;
        let storage = Self { root, volume, clone_method };
        let passing = storage.passing();
        remove_dir(&passing)?;
        let shelves =
            [storage.images(), storage.sandboxes(), storage.logs(), storage.templates(), storage.spares(), passing];
        for dir in shelves {
            fs::create_dir_all(&dir).map_err(StorageError::io("create", &dir))?;
        }
        Ok(storage)
    }

    /// Where images, sandboxes, logs and snapshots lie.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How disks are cloned: `reflink`, `reflink (volume)` or `copy`.
    pub fn clone_method(&self) -> &'static str {
        self.clone_method
    }

    /// Bytes of the file system in all, and what is free on it.
    pub fn space(&self) -> Result<(u64, u64), StorageError> {
        let both = clone::total_bytes(&self.root).and_then(|total| Ok((total, clone::free_bytes(&self.root)?)));
        both.map_err(StorageError::io("ask the free space of", &self.root))
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

    /// Directory of golden snapshots.
    pub fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    /// Directory of VMs that are kept ready.
    pub fn spares(&self) -> PathBuf {
        self.root.join("spares")
    }

    /// Directory of standstills that are only passing through.
    pub fn passing(&self) -> PathBuf {
        self.root.join("passing")
    }

    /// Where a snapshot waits to be written.
    pub fn capture(&self, snapshot_id: &str) -> PathBuf {
        self.passing().join(format!("snapshot-{snapshot_id}"))
    }

    /// Where copies are made from.
    pub fn fork(&self, id: &str) -> PathBuf {
        self.passing().join(format!("fork-{id}"))
    }

    /// Where what a sandbox slept in waits to be removed.
    pub fn slept(&self, id: &str) -> PathBuf {
        self.passing().join(format!("slept-{id}"))
    }

    /// Where the vault unpacks a snapshot.
    pub fn cached_snapshot(&self, id: &str) -> PathBuf {
        self.root.join("cache").join(id)
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
