//! What the vault knows while it runs: which packs and snapshots there are, and where each chunk lies.
//!
//! All of it comes from the files. A pack in use (by a writer that refers to its chunks, or not yet referred to by a
//! manifest) is pinned: it is not collected.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{
    VaultError,
    chunk::Hash,
    files::Files,
    pack::{Pack, PackId},
};

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// Number of the pack in this process.
    pub(super) pack: u32,
    pub(super) slot: u32,
}

/// A pack and who needs it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: PackId,
    pub(super) path: PathBuf,
    pub(super) file_length: u64,
    /// Number of its chunks and the bytes that they are stored in.
    pub(super) chunks: usize,
    pub(super) stored: u64,
    pins: u32,
    /// Its index, while somebody uses it: all indexes together would be a hundredth of what they tell about.
    index: Weak<Pack>,
}

impl Held {
    pub(super) fn load(&mut self, files: &Files) -> Result<Arc<Pack>, VaultError> {
        if let Some(pack) = self.index.upgrade() {
            return Ok(pack);
        }
        let pack = Arc::new(Pack::load(files, &self.path)?);
        self.index = Arc::downgrade(&pack);
        Ok(pack)
    }
}

/// A snapshot in the vault.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// The packs it needs.
    Whole { packs: Vec<PackId> },
    /// Its manifest cannot be read: why.
    Unreadable(String),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct State {
    numbers: HashMap<PackId, u32>,
    packs: BTreeMap<u32, Held>,
    next: u32,
    /// By the first eight bytes of the hash: the rest is compared with the pack's index.
    index: HashMap<u64, Place>,
    pub(super) snapshots: BTreeMap<String, Known>,
    /// Packs that are there and cannot be read.
    pub(super) broken: BTreeSet<PackId>,
    /// Ids that are being written.
    pub(super) writing: BTreeSet<String>,
}

fn prefix(hash: &Hash) -> u64 {
    hash.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

impl State {
    /// Adds a pack that is in place; the number of the one that is there already if there is one. Its chunks become those
    /// that later snapshots refer to.
    pub(super) fn add(&mut self, pack: Pack) -> u32 {
        if let Some(number) = self.numbers.get(&pack.id) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        for (slot, entry) in (0..).zip(&pack.entries) {
            self.index.insert(prefix(&entry.hash), Place { pack: number, slot });
        }
        self.numbers.insert(pack.id, number);
        // It took the place of a damaged one of the same content.
        self.broken.remove(&pack.id);
        let held = Held {
            id: pack.id,
            chunks: pack.entries.len(),
            stored: pack.entries.iter().map(|entry| u64::from(entry.stored)).sum(),
            path: pack.path,
            file_length: pack.file_length,
            pins: 0,
            index: Weak::new(),
        };
        self.packs.insert(number, held);
        number
    }

    /// From now on nobody refers to this chunk any more: it turned out to be damaged.
    pub(super) fn distrust(&mut self, hash: &Hash) {
        self.index.remove(&prefix(hash));
    }

    pub(super) fn pack(&self, number: u32) -> Option<&Held> {
        self.packs.get(&number)
    }

    pub(super) fn pack_by_id(&mut self, id: &PackId) -> Option<&mut Held> {
        self.packs.get_mut(self.numbers.get(id)?)
    }

    pub(super) fn packs(&self) -> impl Iterator<Item = &Held> {
        self.packs.values()
    }

    /// The packs that manifests refer to.
    pub(super) fn referred(&self) -> HashSet<PackId> {
        self.needs().copied().collect()
    }

    fn needs(&self) -> impl Iterator<Item = &PackId> {
        self.snapshots.values().flat_map(|known| match known {
            Known::Whole { packs } => packs.as_slice(),
            Known::Unreadable(_) => &[],
        })
    }

    /// Why one of the snapshots cannot be read, if there is such a one.
    pub(super) fn unreadable(&self) -> Option<String> {
        self.snapshots.iter().find_map(|(id, known)| match known {
            Known::Unreadable(why) => Some(format!(
                "nothing is collected while snapshot {id} cannot be read ({why}); delete it or use the release that made it"
            )),
            Known::Whole { .. } => None,
        })
    }

    /// Numbers of the packs that nobody needs.
    pub(super) fn dead(&self) -> Vec<u32> {
        let referred = self.referred();
        let dead = self.packs.iter().filter(|(_, held)| held.pins == 0 && !referred.contains(&held.id));
        dead.map(|(number, _)| *number).collect()
    }

    /// Whether nobody needs this one.
    pub(super) fn is_dead(&self, number: u32, id: &PackId) -> bool {
        self.packs.get(&number).is_some_and(|held| held.pins == 0) && self.needs().all(|needed| needed != id)
    }

    /// The packs that cannot be read and nobody needs.
    pub(super) fn dead_broken(&self) -> Vec<PackId> {
        let referred = self.referred();
        self.broken.iter().filter(|id| !referred.contains(id)).copied().collect()
    }

    pub(super) fn remove(&mut self, number: u32) {
        let Some(held) = self.packs.remove(&number) else { return };
        self.numbers.remove(&held.id);
        self.index.retain(|_, place| place.pack != number);
    }
}

/// Locks, also after another thread panicked: every change of the state is complete in itself.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packs that stay as long as this does, and their indexes as far as they were needed.
#[derive(Debug)]
pub(super) struct Pins<'v> {
    state: &'v Mutex<State>,
    files: &'v Files,
    held: Mutex<BTreeMap<u32, Option<Arc<Pack>>>>,
}

impl<'v> Pins<'v> {
    pub(super) fn new(state: &'v Mutex<State>, files: &'v Files) -> Self {
        Self { state, files, held: Mutex::default() }
    }

    /// Finds chunks and pins their packs, under one lock.
    pub(super) fn find<'h>(&self, hashes: impl Iterator<Item = &'h Hash>) -> Vec<Option<Place>> {
        let mut state = lock(self.state);
        hashes.map(|hash| self.find_one(&mut state, hash)).collect()
    }

    fn find_one(&self, state: &mut State, hash: &Hash) -> Option<Place> {
        let place = *state.index.get(&prefix(hash))?;
        self.pin(state, place.pack);
        let mut held = lock(&self.held);
        let pack = match held.get_mut(&place.pack)? {
            Some(pack) => pack,
            // What cannot be read any more is stored anew.
            none => none.insert(state.packs.get_mut(&place.pack)?.load(self.files).ok()?),
        };
        (pack.entries.get(place.slot as usize)?.hash == *hash).then_some(place)
    }

    /// They stay until the vault is opened again.
    pub(super) fn keep(&self) {
        lock(&self.held).clear();
    }

    pub(super) fn pin(&self, state: &mut State, number: u32) {
        if let Some(pack) = state.packs.get_mut(&number)
            && let Entry::Vacant(entry) = lock(&self.held).entry(number)
        {
            entry.insert(None);
            pack.pins += 1;
        }
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        let mut state = lock(self.state);
        for number in lock(&self.held).keys() {
            if let Some(pack) = state.packs.get_mut(number) {
                pack.pins -= 1;
            }
        }
    }
}
