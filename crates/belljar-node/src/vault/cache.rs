//! Unpacked snapshots, ready to be cloned or mapped: bounded, the least recently used goes first.
//!
//! ```text
//! (absent) -> being made -> ready, in use (guards) <-> ready, idle -> evicted
//! ```
//! One thread makes an entry, others that want it wait. An entry in use is not evicted; whoever linked or mapped its
//! files meanwhile keeps them anyway. Nothing in here is synced, so after the host itself restarted it is thrown away.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use super::{Part, VaultError, files::Files, state::lock};

/// File that tells during which run of the host's kernel the cache was filled.
const BOOT_FILE: &str = "boot-id";

/// An unpacked snapshot that stays in the cache until this is dropped.
#[derive(Debug)]
pub struct Unpacked {
    cache: Arc<Cache>,
    id: String,
}

impl Unpacked {
    /// The flat file of `part`, if the snapshot has one: immutable, to be cloned, linked or mapped privately.
    pub fn part(&self, part: Part) -> PathBuf {
        self.cache.dir.join(&self.id).join(part.name())
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        self.cache.release(&self.id);
    }
}

#[derive(Debug)]
pub(super) struct Cache {
    files: Files,
    dir: PathBuf,
    bytes_max: u64,
    inner: Mutex<Inner>,
    made: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<String, Entry>,
    /// Counts uses; orders them.
    clock: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// `None` while it is being made.
    bytes: Option<u64>,
    used: u64,
    guards: u32,
    /// To be removed with the last guard.
    doomed: bool,
}

/// An entry that is being made: whatever happens, those that wait for it are woken.
struct Making<'a> {
    cache: &'a Cache,
    id: &'a str,
    /// Its size, once it is complete.
    bytes: Option<u64>,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let mut inner = lock(&self.cache.inner);
        match (self.bytes, inner.entries.get_mut(self.id)) {
            (Some(bytes), Some(entry)) => (entry.bytes, entry.guards) = (Some(bytes), 1),
            _ => {
                inner.entries.remove(self.id);
                // Removed by the next one who makes it, if not now.
                let _ = self.cache.files.remove_dir(&self.cache.dir.join(self.id));
            }
        }
        self.cache.made.notify_all();
    }
}

impl Cache {
    pub(super) fn open(files: Files, dir: PathBuf, bytes_max: u64) -> Result<Self, VaultError> {
        let cache = Self { files, dir, bytes_max, inner: Mutex::default(), made: Condvar::new() };
        cache.files.create_dir(&cache.dir)?;
        let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot_file = cache.dir.join(BOOT_FILE);
        let same_boot = !boot.is_empty() && fs::read(&boot_file).is_ok_and(|found| found == boot);
        for name in cache.files.names(&cache.dir)? {
            let path = cache.dir.join(&name);
            if same_boot && belljar_api::id::is_id(&name) {
                let entry = Entry { bytes: Some(cache.size(&path)?), ..Entry::default() };
                lock(&cache.inner).entries.insert(name, entry);
            } else if name != BOOT_FILE {
                cache.files.remove_dir(&path)?;
            }
        }
        if !same_boot {
            cache.files.replace(&boot_file, &boot)?;
        }
        cache.trim();
        Ok(cache)
    }

    /// The entry `id`; `make` fills the new directory it is given when there is none yet.
    pub(super) fn get(
        self: &Arc<Self>,
        id: &str,
        make: impl FnOnce(&Path) -> Result<(), VaultError>,
    ) -> Result<Unpacked, VaultError> {
        if let Some(guard) = self.find(id) {
            return Ok(guard);
        }
        let mut making = Making { cache: self, id, bytes: None };
        let path = self.dir.join(id);
        // An eviction that failed may have left something there.
        self.files.remove_dir(&path)?;
        make(&path)?;
        making.bytes = Some(self.size(&path)?);
        drop(making);
        self.trim();
        Ok(Unpacked { cache: self.clone(), id: id.to_owned() })
    }

    /// The entry, once nobody is making it. When there is none, it is the caller who makes it.
    fn find(self: &Arc<Self>, id: &str) -> Option<Unpacked> {
        let mut inner = lock(&self.inner);
        loop {
            inner.clock += 1;
            let used = inner.clock;
            match inner.entries.get_mut(id) {
                None => {
                    inner.entries.insert(id.to_owned(), Entry { used, ..Entry::default() });
                    return None;
                }
                Some(entry) if entry.bytes.is_some() => {
                    (entry.used, entry.guards) = (used, entry.guards + 1);
                    return Some(Unpacked { cache: self.clone(), id: id.to_owned() });
                }
                Some(_) => inner = self.made.wait(inner).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn release(&self, id: &str) {
        let mut inner = lock(&self.inner);
        let Some(entry) = inner.entries.get_mut(id) else { return };
        entry.guards -= 1;
        if entry.guards == 0 && entry.doomed {
            let gone = self.take_out(&mut inner, id);
            drop(inner);
            self.discard(gone);
        } else {
            drop(inner);
        }
        self.trim();
    }

    /// Removes the entry of a snapshot that is deleted; when it is in use, as soon as it is not.
    pub(super) fn remove(&self, id: &str) {
        let mut inner = lock(&self.inner);
        let Some(entry) = inner.entries.get_mut(id) else { return };
        if entry.guards > 0 || entry.bytes.is_none() {
            entry.doomed = true;
            return;
        }
        let gone = self.take_out(&mut inner, id);
        drop(inner);
        self.discard(gone);
    }

    /// Evicts idle entries until the rest fits.
    fn trim(&self) {
        loop {
            let mut inner = lock(&self.inner);
            if total(&inner) <= self.bytes_max {
                return;
            }
            let idle = inner.entries.iter().filter(|(_, entry)| entry.guards == 0 && entry.bytes.is_some());
            let Some(id) = idle.min_by_key(|(_, entry)| entry.used).map(|(id, _)| id.clone()) else { return };
            let gone = self.take_out(&mut inner, &id);
            drop(inner);
            self.discard(gone);
        }
    }

    /// Forgets an entry and moves its files aside, so that they can be removed without the lock.
    fn take_out(&self, inner: &mut Inner, id: &str) -> Result<PathBuf, VaultError> {
        inner.entries.remove(id);
        let gone = self.dir.join(format!(".{id}.gone"));
        self.files.rename(&self.dir.join(id), &gone)?;
        Ok(gone)
    }

    fn discard(&self, gone: Result<PathBuf, VaultError>) {
        if let Err(error) = gone.and_then(|path| self.files.remove_dir(&path)) {
            tracing::warn!(%error, "an unpacked snapshot stays until it is made anew or the node starts again");
        }
    }

    /// Removes entries that are not wanted any more.
    pub(super) fn retain(&self, wanted: impl Fn(&str) -> bool) {
        let ids: Vec<String> = lock(&self.inner).entries.keys().filter(|id| !wanted(id)).cloned().collect();
        for id in ids {
            self.remove(&id);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        total(&lock(&self.inner))
    }

    fn size(&self, dir: &Path) -> Result<u64, VaultError> {
        crate::storage::dir_usage(dir).map_err(VaultError::io("measure", dir))
    }
}

fn total(inner: &Inner) -> u64 {
    inner.entries.values().filter_map(|entry| entry.bytes).sum()
}
