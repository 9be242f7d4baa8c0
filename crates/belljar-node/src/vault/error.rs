//! What can go wrong with the vault.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A snapshot that could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The file system said no.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that is not what it should be: foreign, cut, corrupted, too large, or made by a newer release.
    #[error("{path} is not usable: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No such snapshot.
    #[error("this node has no snapshot {id}")]
    NotFound {
        /// The id.
        id: String,
    },
    /// A snapshot without memory, for example.
    #[error("snapshot {id} holds no {part}")]
    NoPart {
        /// The id.
        id: String,
        /// What was asked for.
        part: super::Part,
    },
    /// The disks of two snapshots cannot be compared.
    #[error("snapshots {first} and {second} cannot be compared: {why}")]
    Diff {
        /// One id.
        first: String,
        /// The other.
        second: String,
        /// Why not.
        why: String,
    },
    /// The id is taken.
    #[error("this node has a snapshot {id} already")]
    Exists {
        /// The id.
        id: String,
    },
    /// The caller's mistake.
    #[error("snapshot {id} cannot be written: {why}")]
    Refused {
        /// The id.
        id: String,
        /// What is wrong.
        why: String,
    },
}

impl VaultError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    pub(crate) fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }

    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}
