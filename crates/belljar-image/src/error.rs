//! What can go wrong with an image. One enum for the crate: its callers show the message and go on.

use std::{io, path::PathBuf};

use crate::{export::ExportError, oci::OciError};

/// An image operation that failed. Each message names what was asked for and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A name that no image can have.
    #[error("image name {name:?} {reason}; a name looks like `team/tool` or `team/tool:v2`")]
    BadName {
        /// As given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No image is registered under this name.
    #[error("image {name:?} not found; {}", available(.images))]
    NotFound {
        /// As asked for, before aliases.
        name: String,
        /// The names that exist.
        images: Vec<String>,
    },
    /// A name that is this product's own, and thus not a client's to change.
    #[error(
        "image {name:?} is one of those that sandboxes begin from when nothing else is said; only its machine's owner \
         changes it, with `belljar image`"
    )]
    Managed {
        /// The name.
        name: String,
    },
    /// The image's files do not match its record.
    #[error("image {digest} is damaged: {reason}; remove {} and build it again", .path.display())]
    Damaged {
        /// Content address.
        digest: String,
        /// The image's directory.
        path: PathBuf,
        /// What does not match.
        reason: String,
    },
    /// A build request that cannot be met.
    #[error("cannot build the image: {0}")]
    BadRequest(String),
    /// Building keeps owners and device nodes of the file tree.
    #[error("building an image needs root; run it again with sudo")]
    NeedsRoot,
    /// A program this crate runs is not installed.
    #[error("`{program}` is not installed; install the Debian package `{package}`")]
    MissingProgram {
        /// Program that was looked for.
        program: String,
        /// Debian package that has it.
        package: &'static str,
    },
    /// A program this crate runs failed.
    #[error("`{program}` failed ({status}):\n{tail}")]
    Tool {
        /// Program that ran.
        program: String,
        /// How it ended.
        status: String,
        /// End of its error output.
        tail: String,
    },
    /// A file could not be read or written.
    #[error("cannot {operation} {}", .path.display())]
    Io {
        /// Verb: `read`, `create`, ...
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else makes an image with this name.
    #[error("image {name:?} is being made by another `belljar image`; wait for that, or take another name")]
    Busy {
        /// The name.
        name: String,
    },
    /// Whoever wanted the image does not any more.
    #[error("it was stopped before there was an image")]
    Stopped,
    /// An image of elsewhere could not be imported.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// An image could not be written out.
    #[error("cannot export image {name:?}")]
    Export {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: ExportError,
    },
    /// A record in the store is not what this version writes.
    #[error("cannot use {}: {reason}; remove it and build the image again", .path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ImageError {
    /// Whether the disk is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Oci(OciError::NoSpace { .. }) => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// For `map_err` on an operation on one path.
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

fn available(images: &[String]) -> String {
    if images.is_empty() {
        "there is none yet: `belljar image build` makes the default one".to_owned()
    } else {
        format!("there are: {}", images.join(", "))
    }
}
