//! Opening, deleting and collecting: what is there, and what goes.

use belljar_api::snapshot::Collected;

use super::{
    Vault, VaultError,
    manifest::{self, Manifest},
    pack::{Pack, PackId},
    state::{Known, lock},
};

impl Vault {
    /// Reads what there is and removes what a crash left half done.
    pub(super) fn load(&self) -> Result<(), VaultError> {
        for name in self.files.names(&self.packs_dir)? {
            let path = self.packs_dir.join(&name);
            if name.starts_with('.') {
                self.files.remove(&path)?;
            } else if let Some(id) = PackId::parse(&name) {
                match Pack::load(&self.files, &path) {
                    Ok(pack) => {
                        lock(&self.state).add(pack);
                    }
                    Err(error) => {
                        tracing::error!(%error, "snapshots that need this pack cannot be restored");
                        lock(&self.state).broken.insert(id);
                    }
                }
            }
        }
        for id in self.files.names(&self.snapshots_dir)?.into_iter().filter(|name| belljar_api::id::is_id(name)) {
            self.load_snapshot(&id)?;
        }
        Ok(())
    }

    fn load_snapshot(&self, id: &str) -> Result<(), VaultError> {
        let dir = self.snapshot_dir(id);
        let names = self.files.names(&dir)?;
        if !names.iter().any(|name| name == manifest::FILE) {
            // Half written or half deleted.
            return self.files.remove_dir(&dir);
        }
        for name in names.iter().filter(|name| name.starts_with('.')) {
            self.files.remove(&dir.join(name))?;
        }
        let known = match Manifest::load(&self.files, &dir) {
            Ok((manifest, _)) => Known::Whole { packs: manifest.packs },
            Err(error) => {
                tracing::error!(%error, snapshot = id, "this snapshot cannot be restored");
                Known::Unreadable(error.to_string())
            }
        };
        lock(&self.state).snapshots.insert(id.to_owned(), known);
        Ok(())
    }

    pub(super) fn delete_snapshot(&self, id: &str) -> Result<bool, VaultError> {
        let _changes = lock(&self.changes);
        if !lock(&self.state).snapshots.contains_key(id) {
            return Ok(false);
        }
        let dir = self.snapshot_dir(id);
        // Absent when a deletion failed after that.
        if dir.exists() {
            self.files.remove(&dir.join(manifest::FILE))?;
            self.files.sync_dir(&dir)?;
            self.files.remove_dir(&dir)?;
        }
        self.files.sync_dir(&self.snapshots_dir)?;
        lock(&self.state).snapshots.remove(id);
        Ok(true)
    }

    /// Removes packs that no snapshot needs and nobody is about to need.
    pub(super) fn remove_dead_packs(&self) -> Result<Collected, VaultError> {
        let (dead, broken, unreadable) = {
            let state = lock(&self.state);
            (state.dead(), state.dead_broken(), state.unreadable())
        };
        if let Some(why) = unreadable.filter(|_| !dead.is_empty() || !broken.is_empty()) {
            // What it needs is not known; a newer release may be able to read it.
            return Err(VaultError::damaged(&self.snapshots_dir, why));
        }
        let mut collected = Collected::default();
        for number in dead {
            // For each anew: a large file takes long to remove, and others wait for the lock.
            let mut state = lock(&self.state);
            // It may have come to use since.
            let Some(pack) = state.pack(number).filter(|pack| state.is_dead(number, &pack.id)) else { continue };
            let file_length = pack.file_length;
            self.files.remove(&pack.path)?;
            state.remove(number);
            collected.freed_bytes += file_length;
            collected.removed_files += 1;
        }
        for id in broken {
            let mut state = lock(&self.state);
            if state.broken.contains(&id) {
                self.files.remove(&self.packs_dir.join(id.to_string()))?;
                state.broken.remove(&id);
                collected.removed_files += 1;
            }
        }
        Ok(collected)
    }
}
