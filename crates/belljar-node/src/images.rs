//! The node's images: names from the image store, files cloned into the node's own storage.
//!
//! The store may lie on another file system, from which no disk can be reflinked; so each root file system is brought
//! into the node's storage once, and every sandbox clones that copy.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use belljar_api::image::{ImageInfo, RuntimeConfig};
use belljar_image::{Image, ImageError, Named, Store};

use crate::storage::{self, Storage, StorageError};

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeImageError {
    /// It is not there, or damaged.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// It cannot be brought into the node's storage.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Whether the name is at fault, not the store.
pub(crate) fn is_not_found(error: &ImageError) -> bool {
    matches!(error, ImageError::NotFound { .. } | ImageError::BadName { .. })
}

/// An image, ready to be cloned.
#[derive(Debug, Clone)]
pub(crate) struct LocalImage {
    pub(crate) rootfs: PathBuf,
    pub(crate) runtime: RuntimeConfig,
}

/// Looks images up and brings them in.
#[derive(Debug)]
pub(crate) struct Images {
    store: PathBuf,
    /// One import at a time: the second of two asks finds the first one's file.
    importing: tokio::sync::Mutex<()>,
}

impl Images {
    pub(crate) fn new(store: PathBuf) -> Self {
        Self { store, importing: tokio::sync::Mutex::new(()) }
    }

    /// All images, read from disk now.
    pub(crate) fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        Ok(Store::open(&self.store)?.list()?.iter().map(info).collect())
    }

    /// One image by name or alias.
    pub(crate) fn find(&self, name: &str) -> Result<ImageInfo, ImageError> {
        let found = Store::open(&self.store)?.find(name)?;
        // As it was asked for: a client looks for that in the answer.
        Ok(info(&Named { name: name.to_owned(), ..found }))
    }

    /// The image's file in the node's storage; cloned from the store when it is not there yet.
    pub(crate) async fn ensure(&self, name: &str, storage: &Storage) -> Result<LocalImage, NodeImageError> {
        let _turn = self.importing.lock().await;
        let image = Store::open(&self.store)?.lookup(name)?;
        let dir = storage.images().join(image.digest.replace(':', "-"));
        let rootfs = dir.join("rootfs.ext4");
        if !is_size(&rootfs, image.size_bytes) {
            image.verify()?;
            import(&image.rootfs, &dir, storage)?;
        }
        Ok(LocalImage { rootfs, runtime: runtime(&image) })
    }

    /// The runtime configuration of an image that is in use; it may have been removed meanwhile.
    pub(crate) fn find_runtime(&self, name: &str) -> Result<RuntimeConfig, ImageError> {
        Ok(runtime(&Store::open(&self.store)?.lookup(name)?))
    }

    /// Removes files that no image of the store stands for any more.
    pub(crate) fn sweep(&self, storage: &Storage) -> io::Result<()> {
        let Ok(kept) = Store::open(&self.store).and_then(|store| store.list()) else {
            // An unreadable store says nothing about what is in use.
            return Ok(());
        };
        let kept: Vec<String> = kept.into_iter().map(|it| it.image.digest.replace(':', "-")).collect();
        for entry in fs::read_dir(storage.images())? {
            let entry = entry?;
            if !kept.iter().any(|name| entry.file_name() == name.as_str()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

fn info(named: &Named) -> ImageInfo {
    let image = &named.image;
    ImageInfo {
        id: image.id(),
        name: named.name.clone(),
        snapshot_id: image.digest.clone(),
        global: named.public,
        physical_size_bytes: image.disk_bytes,
        logical_size_bytes: image.size_bytes,
        created_at: image.created_at.clone(),
        updated_at: image.created_at.clone(),
    }
}

fn runtime(image: &Image) -> RuntimeConfig {
    let config = image.config.clone();
    RuntimeConfig {
        env: config.env,
        workdir: config.workdir,
        user: config.user,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
    }
}

fn is_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() == size)
}

fn import(from: &Path, dir: &Path, storage: &Storage) -> Result<(), StorageError> {
    storage.check_free()?;
    let new = storage.images().join(".import");
    storage::remove_dir(&new)?;
    fs::create_dir_all(&new).map_err(StorageError::io("create", &new))?;
    let result = storage.clone_disk(from, &new.join("rootfs.ext4"), 0).and_then(|()| {
        storage::remove_dir(dir)?;
        fs::rename(&new, dir).map_err(StorageError::io("rename an image to", dir))
    });
    if result.is_err() {
        let _ = storage::remove_dir(&new);
    }
    result
}
