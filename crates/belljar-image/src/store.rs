//! The image store: names for immutable root file systems, in one directory.
//!
//! ```text
//! <store>/images/blake3-<hex>/{rootfs.ext4,image.json}   an image, read-only once it is there
//! <store>/names/<name, escaped>.json                     which image a name stands for, and what that says if others have its bytes
//! <store>/builds/<key>.json                              which image a set of packages gave: the build cache
//! <store>/tmp/build/                                     the build under way; left-overs are removed by the next one
//! <store>/tmp/blobs/                                     layers for imports that broke off
//! <store>/tmp/making-<name, escaped>.lock                held while an image of this name is made
//! <store>/tmp/making-<name, escaped>.draft/              what a file that lies elsewhere becomes; guarded by that lock
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
    digest, draft,
    error::ImageError,
    limits::RESERVE_BYTES,
    name,
    record::{Image, NameRecord},
};

/// A name, and the image that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// Whether it is there for every project.
    pub public: bool,
    /// The image.
    pub image: Image,
}

/// How a client names an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// By a name or an alias.
    Name(&'a str),
    /// By its [`Image::id`], with all the names that it has.
    Id(&'a str),
}

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

impl Claim {
    /// A directory for whoever holds this.
    pub(crate) fn dir(&self) -> PathBuf {
        self.path.with_extension("draft")
    }
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

    /// Takes the lock if nobody holds it.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>, ImageError> {
        let file = File::options().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(ImageError::io("open", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(ImageError::io("lock", path)(error)),
        }
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
    pub fn list(&self) -> Result<Vec<Named>, ImageError> {
        let mut images = Vec::new();
        for record in self.names()? {
            match self.image_of(&record) {
                Ok(image) => images.push(Named { name: record.name, public: record.public, image }),
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
        Ok(self.find(name)?.image)
    }

    /// The same, with what its name says. The name is the one that an alias leads to.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn find(&self, name: &str) -> Result<Named, ImageError> {
        let path = self.name_path(name::canonical(name)?);
        let found = NameRecord::read(&path).and_then(|record| {
            let image = self.image_of(&record)?;
            Ok(Named { name: record.name, public: record.public, image })
        });
        match found {
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(self.not_found(name)?)
            }
            other => other,
        }
    }

    /// The image that a client names; of several names the first.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn get(&self, which: Which<'_>) -> Result<Named, ImageError> {
        match which {
            Which::Name(name) => self.find(name),
            Which::Id(id) => {
                let found = self.list()?.into_iter().find(|it| it.image.id() == id);
                found.map_or_else(|| Err(self.not_found(id)?), Ok)
            }
        }
    }

    /// The names that stand for an image, sorted.
    ///
    /// # Errors
    /// [`ImageError::BadRecord`] for a record that cannot be read.
    pub fn names_of(&self, image: &Image) -> Result<Vec<String>, ImageError> {
        let names = self.list()?.into_iter().filter(|it| it.image.id() == image.id());
        Ok(names.map(|it| it.name).collect())
    }

    /// Lets a second name stand for the image behind `name`, and no longer for another. Nothing is copied.
    ///
    /// # Errors
    /// [`ImageError::BadName`], or [`ImageError::NotFound`] for `name`.
    pub fn tag(&self, name: &str, new: &str) -> Result<Named, ImageError> {
        let new = name::canonical(new)?;
        let _lock = self.lock()?;
        let found = self.find(name)?;
        let record = NameRecord::read(&self.name_path(&found.name))?;
        record.called(new).write(&self.name_path(new))?;
        self.remove_unnamed()?;
        Ok(Named { name: new.to_owned(), ..found })
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

    /// Removes what a client names: a name, or an image with all its names. An image goes with its last name. Gives the
    /// names that are no more.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], or [`ImageError::Managed`] when one of the names is this product's own; then nothing has
    /// been removed.
    pub fn delete(&self, which: Which<'_>) -> Result<Vec<String>, ImageError> {
        let _lock = self.lock()?;
        let found = self.get(which)?;
        let names = match which {
            Which::Name(_) => vec![found.name],
            Which::Id(_) => self.names_of(&found.image)?,
        };
        if let Some(name) = names.iter().find(|name| name::is_managed(name)) {
            return Err(ImageError::Managed { name: name.clone() });
        }
        for path in names.iter().map(|name| self.name_path(name)) {
            fs::remove_file(&path).map_err(ImageError::io("remove", path))?;
        }
        self.remove_unnamed()?;
        Ok(names)
    }

    /// Names the image that a build with this key gave, when it is still there and `pass` lets it.
    pub(crate) fn reuse(
        &self,
        name: &str,
        key: &str,
        public: bool,
        pass: impl FnOnce() -> Result<(), ImageError>,
    ) -> Result<Option<Image>, ImageError> {
        let _lock = self.lock()?;
        let Some((record, image)) = self.built(key) else { return Ok(None) };
        let name = name::canonical(name)?;
        pass()?;
        record.called(name).shown(public).write(&self.name_path(name))?;
        self.remove_unnamed()?;
        Ok(Some(image))
    }

    /// The image that a build with this key gave, when it is still there.
    fn built(&self, key: &str) -> Option<(NameRecord, Image)> {
        let record = NameRecord::read(&self.build_path(key)).ok()?;
        let image = self.image_of(&record).ok()?;
        image.verify().is_ok().then_some((record, image))
    }

    /// Takes a finished image over: moves its directory to its place, names it, and remembers the key of its build.
    pub(crate) fn commit(
        &self,
        built: &Path,
        image: &Image,
        name: &str,
        key: Option<&str>,
        public: bool,
    ) -> Result<Image, ImageError> {
        let _lock = self.lock()?;
        let (dir, name) = (self.image_dir(&image.digest), name::canonical(name)?);
        let there = Image::read(&dir).ok().filter(|old| old.verify().is_ok());
        if there.is_none() {
            remove_dir(&dir)?;
            fs::rename(built, &dir).map_err(ImageError::io("rename a directory to", &dir))?;
        }
        let variant = there.as_ref().and_then(|there| image.beside(there));
        let record = NameRecord::new(name, &image.digest, public, variant);
        let of_build = key.map(|key| (self.build_path(key), record.clone().called(key)));
        let named = of_build
            .map_or(Ok(()), |(path, record)| record.write(&path))
            .and_then(|()| record.write(&self.name_path(name)));
        if named.is_err() && there.is_none() {
            // Without a name it would only take space until somebody prunes.
            let _ = remove_dir(&dir);
        }
        named?;
        self.remove_unnamed()?;
        self.image_of(&record)
    }

    /// The directory for a build under way, emptied; the lock keeps every other build away from it.
    pub(crate) fn stage(&self) -> Result<(PathBuf, Lock), ImageError> {
        let lock = Lock::acquire(&self.root.join("build.lock"))?;
        let dir = self.build_dir();
        remove_dir(&dir)?;
        fs::create_dir(&dir).map_err(ImageError::io("create", &dir))?;
        Ok((dir, lock))
    }

    /// A file without a name, for something on its way into the store that has so many bytes.
    ///
    /// # Errors
    /// [`crate::OciError::NoSpace`], or [`ImageError::Io`].
    pub fn scratch(&self, bytes: u64) -> Result<File, ImageError> {
        let tmp = self.root.join("tmp");
        draft::check_space(&tmp, bytes, RESERVE_BYTES)?;
        tempfile::tempfile_in(&tmp).map_err(ImageError::io("create a file in", tmp))
    }

    /// Where a build is made.
    pub(crate) fn build_dir(&self) -> PathBuf {
        self.root.join("tmp/build")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
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

    /// The image that a record stands for.
    fn image_of(&self, record: &NameRecord) -> Result<Image, ImageError> {
        Ok(Image::read(&self.image_dir(&record.digest))?.varied(record.variant.as_ref()))
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

    pub(crate) fn names(&self) -> Result<Vec<NameRecord>, ImageError> {
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

    pub(crate) fn lock(&self) -> Result<Lock, ImageError> {
        Lock::acquire(&self.root.join("store.lock"))
    }

    fn image_dir(&self, digest: &str) -> PathBuf {
        self.root.join("images").join(digest::to_dir_name(digest))
    }

    pub(crate) fn name_path(&self, name: &str) -> PathBuf {
        self.root.join("names").join(name::to_file_name(name))
    }

    fn build_path(&self, key: &str) -> PathBuf {
        self.root.join("builds").join(format!("{key}.json"))
    }
}

pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(ImageError::io("list", dir))
}

pub(crate) fn remove_dir(dir: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
pub(crate) mod tests;
