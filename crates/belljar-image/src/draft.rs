//! An image that is made of a root file system which lies elsewhere: a snapshot's disk, or a file.
//!
//! ```text
//! Store::draft -> Draft --(the caller puts the file there)--> seal -> commit: named
//!                    \--------- dropped at any point: nothing is left ---------/
//! ```
//! Each draft has a directory of its own, so that none waits for another or for a build. The file is never looked into:
//! whoever wrote it may be hostile. Called by `import.rs` and by the node.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    build::seal,
    error::ImageError,
    limits::RESERVE_BYTES,
    name,
    oci::OciError,
    record::{HistoryEntry, Image, ROOTFS, RuntimeConfig, bounded},
    store::{Claim, Store, remove_dir},
};

/// What is known of an image beside its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// What a sandbox takes over from it.
    pub config: RuntimeConfig,
    /// Where it is from, in words.
    pub origin: Option<String>,
    /// How it came about; oldest first. The last step is this one, and without a time gets that of now.
    pub history: Vec<HistoryEntry>,
    /// Whether its name is there for every project.
    pub public: bool,
}

/// See the module. Nobody else can make an image of this name meanwhile.
#[derive(Debug)]
pub struct Draft {
    store: Store,
    name: String,
    dir: PathBuf,
    /// Released after the directory is gone.
    _claim: Claim,
}

/// A draft whose bytes are fixed.
#[derive(Debug)]
pub struct Sealed {
    draft: Draft,
    image: Image,
    public: bool,
}

impl Store {
    /// Begins an image with this name.
    ///
    /// # Errors
    /// [`ImageError::BadName`], [`ImageError::Managed`] for a name that is this product's own and not a client's to take,
    /// [`ImageError::Busy`] while somebody else makes one of this name.
    pub fn draft(&self, name: &str) -> Result<Draft, ImageError> {
        let name = name::canonical(name)?;
        if name::is_managed(name) {
            return Err(ImageError::Managed { name: name.to_owned() });
        }
        self.draft_of_any(name)
    }

    /// The same for the owner of the machine, who may take any name.
    pub(crate) fn draft_of_any(&self, name: &str) -> Result<Draft, ImageError> {
        let name = name::canonical(name)?.to_owned();
        let claim = self.claim(&name)?;
        let dir = claim.dir();
        // A crash may have left one.
        remove_dir(&dir)?;
        fs::create_dir(&dir).map_err(ImageError::io("create", &dir))?;
        Ok(Draft { store: self.clone(), name, dir, _claim: claim })
    }
}

impl Draft {
    /// Where the root file system has to be put.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join(ROOTFS)
    }

    /// Says whether a file that takes `bytes` on disk can be put there, and enough stays free.
    ///
    /// # Errors
    /// [`OciError::NoSpace`].
    pub fn check_space(&self, bytes: u64) -> Result<(), ImageError> {
        check_space(&self.dir, bytes, RESERVE_BYTES)?;
        Ok(())
    }

    /// Writes the file out, protects it and computes its content address: some seconds for a large one.
    ///
    /// # Errors
    /// [`ImageError::BadRequest`] for what is no ext4 file system, [`ImageError::Io`] for what cannot be read or written.
    pub fn seal(self, about: About) -> Result<Sealed, ImageError> {
        let mut image = seal(&self.rootfs(), about.config)?;
        image.verify().map_err(|error| match error {
            ImageError::Damaged { reason, .. } => {
                ImageError::BadRequest(format!("its disk cannot be booted: {reason}"))
            }
            other => other,
        })?;
        (image.origin, image.history) = (about.origin, bounded(about.history));
        if let Some(step) = image.history.last_mut() {
            step.created.get_or_insert_with(|| image.created_at.clone());
        }
        image.write(&self.dir)?;
        Ok(Sealed { draft: self, image, public: about.public })
    }
}

impl Sealed {
    /// Puts the image in its place and names it. What its name stood for before goes with its last name.
    ///
    /// # Errors
    /// [`ImageError::Io`]; the store is then as it was.
    pub fn commit(self) -> Result<Image, ImageError> {
        self.draft.store.commit(&self.draft.dir, &self.image, &self.draft.name, None, self.public)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = remove_dir(&self.dir) {
            // The next draft of this name, or `prune`, removes it.
            tracing::warn!(%error, "what an image was made of stays behind");
        }
    }
}

/// Whether `needed` bytes can be written where `path` lies, and `reserve` more stay free.
pub(crate) fn check_space(path: &Path, needed: u64, reserve: u64) -> Result<(), OciError> {
    // What cannot be asked shows itself when it is full.
    let Ok(found) = rustix::fs::statvfs(path) else { return Ok(()) };
    let free = found.f_bavail * found.f_frsize;
    if free < needed.saturating_add(reserve) {
        return Err(OciError::NoSpace { path: path.to_owned(), free, needed, reserve });
    }
    Ok(())
}

#[cfg(test)]
#[path = "draft_test.rs"]
mod tests;
