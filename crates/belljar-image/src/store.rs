//! The image store: names for immutable root file systems, in one directory.
//!
//! ```text
//! <store>/images/blake3-<hex>/{rootfs.ext4,image.json}   an image, read-only once it is there
//! <store>/names/<name, escaped>.json                     which image a name stands for
//! <store>/builds/<key>.json                              which image a set of packages gave: the build cache
//! <store>/tmp/build/                                     the build under way; left-overs are removed by the next one
//! <store>/tmp/blobs/                                     layers for imports that broke off
//! <store>/tmp/making-<name, escaped>.lock                held while an image of this name is made
//! <store>/store.lock                                     held while names change, and while images come and go
//! <store>/build.lock                                     held during a build: one at a time
//! ```
//!
//! Readers take no lock: every change is one rename. A name is written after its image and removed before it.
//! The node and the CLI open the store by its path; nothing is kept in memory.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    digest,
    error::ImageError,
    name,
    record::{Image, NameRecord},
};

/// A store, by its directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A locked file; released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Its lock goes with the descriptor.
    _file: File,
}

/// Says that an image of this name is being made; ends when dropped, and leaves no file.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    _file: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Removed while it is locked: who has opened it by now will see that it is another one.
        let _ = fs::remove_file(&self.path);
    }
}

impl Lock {
    /// Waits until no one else holds the lock file at `path`.
    pub(crate) fn acquire(path: &Path) -> Result<Self, ImageError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(ImageError::io("open", path))?;
        file.lock().map_err(ImageError::io("lock", path))?;
        Ok(Self { _file: file })
    }
}

impl Store {
    /// Opens the store at `root`; makes the directories when they are missing.
    ///
    /// # Errors
    /// [`ImageError::Io`] when they cannot be made.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        for part in ["images", "names", "builds", "tmp"] {
            let dir = root.join(part);
            fs::create_dir_all(&dir).map_err(ImageError::io("create", dir))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// All names with their images, sorted by name.
    ///
    /// # Errors
    /// [`ImageError::BadRecord`] or [`ImageError::Io`] for a store that cannot be read.
    pub fn list(&self) -> Result<Vec<(String, Image)>, ImageError> {
        let mut images = Vec::new();
        for record in self.names()? {
            match Image::read(&self.image_dir(&record.digest)) {
                Ok(image) => images.push((record.name, image)),
                // Removed between the two reads, or by hand: as good as not listed.
                Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(images)
    }

    /// The image behind a name or an alias.
    ///
    /// # Errors
    /// [`ImageError::BadName`], [`ImageError::NotFound`], or [`ImageError::BadRecord`] for a record that cannot be read.
    pub fn lookup(&self, name: &str) -> Result<Image, ImageError> {
        let path = self.name_path(name::canonical(name)?);
        let found = NameRecord::read(&path).and_then(|record| Image::read(&self.image_dir(&record.digest)));
        match found {
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(self.not_found(name)?)
            }
            other => other,
        }
    }

    /// Lets `name` stand for the image with this content address, and no longer for another.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] when the store has no such image.
    pub fn register(&self, name: &str, digest: &str) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        self.register_locked(name::canonical(name)?, digest)?;
        self.remove_unnamed()
    }

    /// Removes a name, and its image when no other name stands for it.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] when there is no such name.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        let path = self.name_path(name::canonical(name)?);
        if !path.exists() {
            return Err(self.not_found(name)?);
        }
        fs::remove_file(&path).map_err(ImageError::io("remove", path))?;
        self.remove_unnamed()
    }

    /// The image that a build with this key gave, when it is still there.
    pub(crate) fn built(&self, key: &str) -> Option<Image> {
        let record = NameRecord::read(&self.build_path(key)).ok()?;
        let image = Image::read(&self.image_dir(&record.digest)).ok()?;
        image.verify().is_ok().then_some(image)
    }

    /// Takes a finished build over: moves its directory to its place, names it and remembers the key.
    pub(crate) fn commit(&self, built: &Path, image: &Image, name: &str, key: &str) -> Result<Image, ImageError> {
        let _lock = self.lock()?;
        let dir = self.image_dir(&image.digest);
        if !Image::read(&dir).is_ok_and(|old| old.verify().is_ok()) {
            remove_dir(&dir)?;
            fs::rename(built, &dir).map_err(ImageError::io("rename a directory to", &dir))?;
        }
        NameRecord::new(key, &image.digest).write(&self.build_path(key))?;
        self.register_locked(name::canonical(name)?, &image.digest)?;
        self.remove_unnamed()?;
        Image::read(&dir)
    }

    /// The directory for a build under way, emptied; the lock keeps every other build away from it.
    pub(crate) fn stage(&self) -> Result<(PathBuf, Lock), ImageError> {
        let lock = Lock::acquire(&self.root.join("build.lock"))?;
        let dir = self.root.join("tmp/build");
        remove_dir(&dir)?;
        fs::create_dir(&dir).map_err(ImageError::io("create", &dir))?;
        Ok((dir, lock))
    }

    /// Where layers of imports that broke off are kept.
    pub(crate) fn blobs_dir(&self) -> PathBuf {
        self.root.join("tmp/blobs")
    }

    /// Claims a name for an image that is to be made: a second one under it would only take its place at once.
    pub(crate) fn claim(&self, name: &str) -> Result<Claim, ImageError> {
        let path = self.root.join("tmp").join(format!("making-{}", name::to_file_name(name))).with_extension("lock");
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(ImageError::io("open", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(ImageError::Busy { name: name.to_owned() }),
                Err(TryLockError::Error(error)) => return Err(ImageError::io("lock", path)(error)),
            }
            let ours = file.metadata().map_err(ImageError::io("read", &path))?;
            if fs::metadata(&path).is_ok_and(|found| found.ino() == ours.ino()) {
                return Ok(Claim { path, _file: file });
            }
        }
    }

    fn register_locked(&self, name: &str, digest: &str) -> Result<(), ImageError> {
        if !digest::is_valid(digest) || !self.image_dir(digest).is_dir() {
            return Err(self.not_found(digest)?);
        }
        NameRecord::new(name, digest).write(&self.name_path(name))
    }

    /// Removes images that no name stands for, with what the build cache says about them.
    fn remove_unnamed(&self) -> Result<(), ImageError> {
        let named: Vec<String> = self.names()?.iter().map(|record| digest::to_dir_name(&record.digest)).collect();
        for path in entries(&self.root.join("images"))? {
            if !named.iter().any(|name| path.ends_with(name)) {
                remove_dir(&path)?;
            }
        }
        for path in entries(&self.root.join("builds"))? {
            let kept = NameRecord::read(&path).is_ok_and(|record| self.image_dir(&record.digest).is_dir());
            if !kept {
                fs::remove_file(&path).map_err(ImageError::io("remove", path))?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<NameRecord>, ImageError> {
        let mut names = Vec::new();
        for path in entries(&self.root.join("names"))? {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match NameRecord::read(&path) {
                Ok(record) => names.push(record),
                Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }

    fn not_found(&self, name: &str) -> Result<ImageError, ImageError> {
        let images = self.names()?.into_iter().map(|record| record.name).collect();
        Ok(ImageError::NotFound { name: name.to_owned(), images })
    }

    fn lock(&self) -> Result<Lock, ImageError> {
        Lock::acquire(&self.root.join("store.lock"))
    }

    fn image_dir(&self, digest: &str) -> PathBuf {
        self.root.join("images").join(digest::to_dir_name(digest))
    }

    fn name_path(&self, name: &str) -> PathBuf {
        self.root.join("names").join(name::to_file_name(name))
    }

    fn build_path(&self, key: &str) -> PathBuf {
        self.root.join("builds").join(format!("{key}.json"))
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(ImageError::io("list", dir))
}

fn remove_dir(dir: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
