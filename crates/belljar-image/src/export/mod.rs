//! Writes an image as an OCI archive: what `skopeo` and `podman` call `oci-archive`, with one layer and its configuration.
//!
//! ```text
//! rootfs.ext4 ─► disk (journal looked into) ─► ext4: inodes ─► walk ─► tar ─► gzip ─► layer ─► archive
//! ```
//!
//! - `disk`, `journal`: blocks. `ext4`, `attribute`: inodes and what they say. `walk`: from the root down, as members of a
//!   tar stream, which `stream` writes. `archive`: what stands around the layer.
//!
//! The file system is read by this code and never mounted, since a guest may have made it: every number in it has a bound,
//! and what is read of it cannot be more than it has. What makes no sense is refused by name. It runs no program and needs no
//! root. Called by `belljar image export`, and by the node for builds that begin from an image of its store.

mod archive;
mod attribute;
mod disk;
mod ext4;
mod journal;
mod stream;
mod walk;

use std::io::{self, Write};

pub use self::archive::Packing;
use self::{ext4::Filesystem, walk::Walked};
use crate::{error::ImageError, store::Store};

/// An image that cannot be written out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The root file system does not come.
    #[error("cannot read its root file system")]
    Read(#[source] io::Error),
    /// Nobody takes the archive.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// The file system makes no sense.
    #[error("its file system is damaged: {0}; run `e2fsck` in a sandbox of it, and commit that")]
    Damaged(String),
    /// The file system has what this code does not read.
    #[error("its file system has {0}, which an export cannot read")]
    Feature(String),
    /// A file has a name that means something else in a layer.
    #[error(
        "{0} cannot be in an OCI image: there such a name says that a file is gone; remove it in a sandbox, and commit that"
    )]
    Whiteout(String),
}

impl ExportError {
    fn damaged(why: impl Into<String>) -> Self {
        Self::Damaged(why.into())
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Digest of the manifest: what the image is called by its content elsewhere.
    pub digest: String,
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the layer, packed.
    pub layer_bytes: u64,
    /// Sockets, which no archive can hold.
    pub sockets: u64,
}

impl Store {
    /// Writes the image behind a name as an OCI archive. `progress` is told how many bytes of its files have been read.
    ///
    /// # Errors
    /// [`ImageError::Export`] for what cannot be read or written, and [`Self::find`]'s.
    pub fn export(
        &self,
        name: &str,
        packing: Packing,
        to: &mut dyn Write,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Exported, ImageError> {
        let named = self.find(name)?;
        named.image.verify()?;
        let failed = |source| ImageError::Export { name: named.name.clone(), source };
        let tmp = self.root().join("tmp");
        // Nobody sees the file, so none is left.
        let file = tempfile::tempfile_in(&tmp).map_err(ImageError::io("create a file in", tmp))?;
        let filesystem = Filesystem::open(&named.image.rootfs).map_err(failed)?;
        let layer = archive::Layer::begin(file, packing);
        let (walked, layer) =
            walk::walk(&filesystem, named.image.size_bytes, packing == Packing::None, layer, progress)
                .map_err(failed)?;
        let layer = layer.finish().map_err(ExportError::Write).map_err(failed)?;
        let Walked { entries, sockets } = walked;
        let layer_bytes = layer.size;
        let digest = archive::write(&named, layer, to).map_err(ExportError::Write).map_err(failed)?;
        Ok(Exported { digest, entries, layer_bytes, sockets })
    }
}

#[cfg(test)]
#[path = "export_test.rs"]
mod tests;
