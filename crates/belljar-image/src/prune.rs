//! Finds what lies in the store and is of no use, and removes it: what no name stands for, and what a build, an import or
//! a crash left behind. It takes nothing that somebody works with: each thing is looked at under the lock that guards it.
//! Called by `belljar image prune`.

use std::{
    collections::HashSet,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use crate::{
    digest,
    error::ImageError,
    record::{NameRecord, disk_bytes},
    store::{Lock, Store, entries},
};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Each thing, in the order in which it went.
    pub removed: Vec<Removed>,
    /// An image is being made: what it works with was not looked at.
    pub busy: bool,
}

/// One thing that was of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// What it was, in words.
    pub what: &'static str,
    /// Where it lay.
    pub path: PathBuf,
    /// Bytes that it took on disk.
    pub bytes: u64,
}

impl Pruned {
    /// Bytes of all of it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.removed.iter().map(|it| it.bytes).sum()
    }

    fn found(&mut self, what: &'static str, path: PathBuf) -> Result<(), ImageError> {
        let bytes = usage(&path).map_err(ImageError::io("add up", &path))?;
        self.removed.push(Removed { what, path, bytes });
        Ok(())
    }
}

impl Store {
    /// Removes what is of no use, or only says what that would be.
    ///
    /// # Errors
    /// [`ImageError::BadRecord`] for a name's file that cannot be read, when nothing has been removed yet: what it stands
    /// for is not known. [`ImageError::Io`] for what cannot be removed.
    pub fn prune(&self, dry_run: bool) -> Result<Pruned, ImageError> {
        let mut pruned = Pruned::default();
        // In the order in which a build takes them.
        let build = Lock::try_acquire(&self.root().join("build.lock"))?;
        let _lock = self.lock()?;
        self.find_unnamed(&mut pruned)?;
        self.find_unfinished(&mut pruned)?;
        match &build {
            Some(_) => self.find_left_by_builds(&mut pruned)?,
            None => pruned.busy = true,
        }
        if !dry_run {
            for it in &pruned.removed {
                remove(&it.path).map_err(ImageError::io("remove", &it.path))?;
            }
        }
        Ok(pruned)
    }

    /// Images without a name, names without an image, and what the build cache says of such.
    fn find_unnamed(&self, pruned: &mut Pruned) -> Result<(), ImageError> {
        let images = self.root().join("images");
        let mut kept = HashSet::new();
        for record in self.names()? {
            let dir = images.join(digest::to_dir_name(&record.digest));
            if dir.is_dir() {
                kept.insert(dir);
            } else {
                pruned.found("name without an image", self.name_path(&record.name))?;
            }
        }
        for path in entries(&images)?.into_iter().filter(|path| !kept.contains(path)) {
            pruned.found("image without a name", path)?;
        }
        for path in entries(&self.root().join("builds"))?.into_iter().filter(|path| !is_new(path)) {
            let image = NameRecord::read(&path).map(|record| images.join(digest::to_dir_name(&record.digest)));
            if !image.is_ok_and(|dir| kept.contains(&dir)) {
                pruned.found("record of a build", path)?;
            }
        }
        Ok(())
    }

    /// Records that were being written, and claims of names that nobody holds any more, with what was made under them.
    fn find_unfinished(&self, pruned: &mut Pruned) -> Result<(), ImageError> {
        for dir in ["names", "builds"] {
            for path in entries(&self.root().join(dir))?.into_iter().filter(|path| is_new(path)) {
                pruned.found("record half written", path)?;
            }
        }
        let (claims, others): (Vec<_>, Vec<_>) =
            entries(&self.root().join("tmp"))?.into_iter().partition(|path| is_claim(path));
        for path in others.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "draft")) {
            let claim = path.with_extension("lock");
            // Whoever makes one holds its lock from before there is a directory until there is none.
            if !claim.exists() || locked(&claim).map_err(ImageError::io("lock", &claim))?.is_some() {
                pruned.found("image half made", path)?;
            }
        }
        for path in claims {
            if locked(&path).map_err(ImageError::io("lock", &path))?.is_some() {
                pruned.found("claim of a name", path)?;
            }
        }
        Ok(())
    }

    /// What the build that was last under way left, and layers of imports that broke off.
    fn find_left_by_builds(&self, pruned: &mut Pruned) -> Result<(), ImageError> {
        let build = self.build_dir();
        if build.is_dir() {
            pruned.found("unfinished build", build)?;
        }
        let blobs = self.blobs_dir();
        if blobs.is_dir() {
            for path in entries(&blobs)? {
                pruned.found("layer of an import that broke off", path)?;
            }
        }
        Ok(())
    }
}

/// A record on its way to its place.
fn is_new(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "new")
}

fn is_claim(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "lock")
}

/// The lock file at `path`, locked; `None` when somebody holds it, or has just removed it.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if is_claim(path) {
        // Removed while it is locked, as its holder does: who has it open by now sees that it is another one.
        let Some(_held) = locked(path)? else { return Ok(()) };
        return fs::remove_file(path);
    }
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes on disk of a file, or of a directory with all that is in it.
fn usage(path: &Path) -> io::Result<u64> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        found => found?,
    };
    let mut bytes = disk_bytes(&found);
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += usage(&entry?.path())?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "prune_test.rs"]
mod tests;
