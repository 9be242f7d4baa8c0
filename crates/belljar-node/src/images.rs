//! The node's images: names from the image store, files cloned into the node's own storage.
//!
//! The store may lie on another file system, from which no disk can be reflinked; so each root file system is brought
//! into the node's storage once, and every sandbox clones that copy. What has been cloned depends on nothing here: an image
//! can be removed while sandboxes of it live.

mod from_snapshot;
mod import;
mod sandbox_file;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use belljar_api::image::{ImageInfo, Init, RuntimeConfig};
use belljar_image::{INIT_LABEL, INIT_SYSTEMD, Image, ImageError, Named, Sealed, Store, Which};

pub(crate) use self::{
    from_snapshot::{NewImageError, publish},
    import::{ImportError, Imports, begin, check_name},
    sandbox_file::{SandboxFileError, give},
};
use crate::storage::{self, Storage, StorageError, link_file};

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
    /// Keeps the file there until it has been cloned.
    _held: Arc<Held>,
}

/// Somebody is about to clone the node's copy of an image.
#[derive(Debug)]
struct Held;

/// Looks images up and brings them in.
#[derive(Debug)]
pub(crate) struct Images {
    store: PathBuf,
    /// One import at a time: the second of two asks finds the first one's file.
    /// Copies come and go under it, too.
    importing: tokio::sync::Mutex<()>,
    /// Copies that somebody is about to clone, by the names of their directories.
    held: Mutex<HashMap<OsString, Weak<Held>>>,
}

impl Images {
    pub(crate) fn new(store: PathBuf) -> Self {
        Self { store, importing: tokio::sync::Mutex::new(()), held: Mutex::default() }
    }

    /// All images, read from disk now.
    pub(crate) fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        Ok(Store::open(&self.store)?.list()?.iter().map(info).collect())
    }

    /// One image.
    pub(crate) fn find(&self, which: Which<'_>) -> Result<ImageInfo, ImageError> {
        let found = Store::open(&self.store)?.get(which)?;
        match which {
            // As it was asked for: a client looks for that in the answer.
            Which::Name(name) => Ok(info(&Named { name: name.to_owned(), ..found })),
            Which::Id(_) => Ok(info(&found)),
        }
    }

    /// Removes a name, or an image with all its names; gives the names that are no more. Sandboxes keep what they have.
    /// Blocking.
    pub(crate) fn delete(&self, which: Which<'_>, storage: &Storage) -> Result<Vec<String>, ImageError> {
        let _turn = self.importing.blocking_lock();
        let names = Store::open(&self.store)?.delete(which)?;
        self.tidy_locked(storage);
        Ok(names)
    }

    /// Names an image whose bytes lie in the node's storage already, as `disk`; they are not copied again. Blocking.
    fn name_ours(&self, sealed: Sealed, disk: &Path, storage: &Storage) -> Result<Image, ImageError> {
        let _turn = self.importing.blocking_lock();
        let image = sealed.commit()?;
        let dir = copy_dir(&image, storage);
        if !is_size(&dir.join("rootfs.ext4"), image.size_bytes)
            && let Err(error) = import(&dir, storage, |to| link_file(disk, to))
        {
            // The first sandbox of it brings it in.
            tracing::warn!(%error, "cannot keep a copy of an image");
        }
        self.tidy_locked(storage);
        Ok(image)
    }

    /// Removes the copy of an image that has just lost its name to another one. Blocking.
    fn tidy(&self, storage: &Storage) {
        let _turn = self.importing.blocking_lock();
        self.tidy_locked(storage);
    }

    fn tidy_locked(&self, storage: &Storage) {
        if let Err(error) = self.sweep_locked(storage) {
            // The next sweep finds it again.
            tracing::warn!(%error, "the copy of an image that lost its name stays");
        }
    }

    /// The image's file in the node's storage; cloned from the store when it is not there yet.
    pub(crate) async fn ensure(&self, name: &str, storage: &Storage) -> Result<LocalImage, NodeImageError> {
        let _turn = self.importing.lock().await;
        let image = Store::open(&self.store)?.lookup(name)?;
        let dir = copy_dir(&image, storage);
        let rootfs = dir.join("rootfs.ext4");
        if !is_size(&rootfs, image.size_bytes) {
            image.verify()?;
            import(&dir, storage, |to| storage.clone_disk(&image.rootfs, to, 0))?;
        }
        Ok(LocalImage { rootfs, runtime: runtime(&image), _held: self.hold(&dir) })
    }

    /// The runtime configuration of an image that is in use; it may have been removed meanwhile.
    pub(crate) fn find_runtime(&self, name: &str) -> Result<RuntimeConfig, ImageError> {
        Ok(runtime(&Store::open(&self.store)?.lookup(name)?))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<OsString, Weak<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, dir: &Path) -> Arc<Held> {
        let mut held = self.held();
        held.retain(|_, holder| holder.strong_count() > 0);
        let name = dir.file_name().unwrap_or_default().to_owned();
        let holder = held.get(&name).and_then(Weak::upgrade).unwrap_or_else(|| Arc::new(Held));
        held.insert(name, Arc::downgrade(&holder));
        holder
    }

    /// Removes files that no image of the store stands for any more. Blocking.
    pub(crate) fn sweep(&self, storage: &Storage) -> io::Result<()> {
        let _turn = self.importing.blocking_lock();
        self.sweep_locked(storage)
    }

    fn sweep_locked(&self, storage: &Storage) -> io::Result<()> {
        let Ok(kept) = Store::open(&self.store).and_then(|store| store.list()) else {
            // An unreadable store says nothing about what is in use.
            return Ok(());
        };
        let kept: Vec<PathBuf> = kept.iter().map(|it| copy_dir(&it.image, storage)).collect();
        for entry in fs::read_dir(storage.images())? {
            let entry = entry?;
            let is_held = self.held().get(&entry.file_name()).is_some_and(|holder| holder.strong_count() > 0);
            if !is_held && !kept.contains(&entry.path()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Where the node's copy of an image lies.
fn copy_dir(image: &Image, storage: &Storage) -> PathBuf {
    storage.images().join(image.digest.replace(':', "-"))
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
        init: init(&config.labels),
    }
}

/// What boots a machine, by the labels of its image. A value that this version does not know says nothing.
fn init(labels: &BTreeMap<String, String>) -> Init {
    match labels.get(INIT_LABEL).map(String::as_str) {
        Some(INIT_SYSTEMD) => Init::Systemd,
        _ => Init::Agent,
    }
}

/// The labels of an image that is made of a machine which was booted so.
fn labels(init: Init) -> BTreeMap<String, String> {
    match init {
        Init::Agent => BTreeMap::new(),
        Init::Systemd => BTreeMap::from([(INIT_LABEL.to_owned(), INIT_SYSTEMD.to_owned())]),
    }
}

fn is_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() == size)
}

/// Makes the directory of a copy, its file put there by `put`.
fn import(
    dir: &Path,
    storage: &Storage,
    put: impl FnOnce(&Path) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    storage.check_free()?;
    let new = storage.images().join(".import");
    storage::remove_dir(&new)?;
    fs::create_dir_all(&new).map_err(StorageError::io("create", &new))?;
    let result = put(&new.join("rootfs.ext4")).and_then(|()| {
        storage::remove_dir(dir)?;
        fs::rename(&new, dir).map_err(StorageError::io("rename an image to", dir))
    });
    if result.is_err() {
        let _ = storage::remove_dir(&new);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_boots_a_machine_is_said_by_a_label() {
        for by in [Init::Agent, Init::Systemd] {
            assert_eq!(init(&labels(by)), by);
        }
        assert_eq!(init(&[(INIT_LABEL.to_owned(), "openrc".to_owned())].into()), Init::Agent);
    }
}
