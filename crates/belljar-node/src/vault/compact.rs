//! Compaction: bounds how many packs a snapshot needs and how much of a pack nobody needs.
//!
//! ```text
//! live chunks of the chosen packs -> one new pack in place (pinned) -> each manifest replaced, one by one -> old packs
//!                                                                                          without use collected
//! ```
//! After each arrow everything can be read: a manifest refers to old packs or to the new one, and both are there.

use std::collections::{BTreeMap, HashMap, HashSet};

use belljar_api::snapshot::Collected;

use super::{
    Compaction, Vault, VaultError,
    chunk::Hash,
    manifest::{self, Manifest, PartChunks, join},
    pack::{Entry, Pack, PackId, PackWriter},
    state::{Known, Pins, lock},
};
use crate::limits::{SNAPSHOT_COMPACT_STEP, SNAPSHOT_PACKS_MAX};

/// Bytes that are copied at once.
const COPY: u64 = 1 << 20;

/// What a decision needs to know of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Filling {
    live: u64,
    total: u64,
}

/// What manifests say about packs.
#[derive(Debug, Default)]
struct Liveness {
    /// For each slot of a pack whether a snapshot needs it.
    slots: HashMap<PackId, Vec<bool>>,
    /// The packs that each snapshot needs.
    needs: Vec<Vec<PackId>>,
}

/// New slots of the chunks of old packs.
type Moved = HashMap<PackId, HashMap<u32, u32>>;

impl Vault {
    pub(super) fn compact_packs(&self, how: Compaction) -> Result<Collected, VaultError> {
        let _one = lock(&self.compacting);
        let mut collected = self.remove_dead_packs()?;
        let liveness = self.liveness()?;
        let fillings = self.fillings(&liveness)?;
        for group in groups(&choose(&fillings, &liveness.needs, how), &fillings) {
            let written = self.rewrite(&group, &liveness);
            // Also after a failure: the new pack may be of no use.
            let freed = self.remove_dead_packs();
            let (written, freed) = (written?, freed?);
            collected.freed_bytes += freed.freed_bytes.saturating_sub(written);
            collected.removed_files += freed.removed_files;
        }
        Ok(collected)
    }

    /// Bytes of chunks that no snapshot needs.
    pub(super) fn garbage(&self) -> Result<u64, VaultError> {
        let fillings = self.fillings(&self.liveness()?)?;
        Ok(fillings.values().map(|filling| filling.total - filling.live).sum())
    }

    fn liveness(&self) -> Result<Liveness, VaultError> {
        let mut liveness = Liveness::default();
        for id in self.ids() {
            if !matches!(lock(&self.state).snapshots.get(&id), Some(Known::Whole { .. })) {
                continue;
            }
            let manifest = match self.manifest(&id) {
                Ok((manifest, _)) => manifest,
                // Deleted meanwhile.
                Err(VaultError::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            };
            for run in manifest.parts.iter().flat_map(|part| &part.runs) {
                let slots = liveness.slots.entry(manifest.packs[run.pack as usize]).or_default();
                let end = run.slot as usize + run.count as usize;
                slots.resize(slots.len().max(end), false);
                slots[run.slot as usize..end].fill(true);
            }
            liveness.needs.push(manifest.packs);
        }
        Ok(liveness)
    }

    fn fillings(&self, liveness: &Liveness) -> Result<BTreeMap<PackId, Filling>, VaultError> {
        let packs: Vec<_> = lock(&self.state).packs().map(|pack| (pack.id, pack.chunks, pack.stored)).collect();
        let mut fillings = BTreeMap::new();
        for (id, chunks, total) in packs {
            let slots = liveness.slots.get(&id);
            let live = match slots.map_or(0, |slots| slots.iter().filter(|live| **live).count()) {
                0 => 0,
                live if live == chunks => total,
                // Only then the index is needed.
                _ => match lock(&self.state).pack_by_id(&id).map(|pack| pack.load(&self.files)).transpose()? {
                    Some(pack) => live_entries(&pack, liveness).map(|(_, entry)| u64::from(entry.stored)).sum(),
                    None => continue,
                },
            };
            fillings.insert(id, Filling { live, total });
        }
        Ok(fillings)
    }

    /// Moves the live chunks of a group of packs to a new one; answers its size.
    fn rewrite(&self, group: &[PackId], liveness: &Liveness) -> Result<u64, VaultError> {
        let pins = Pins::new(&self.state, &self.files);
        let (writer, moved) = self.copy(group, liveness)?;
        let number = self.place(writer, &pins)?;
        let new = lock(&self.state).pack(number).map(|pack| (pack.id, pack.file_length));
        let Some((new, file_length)) = new else { return Ok(0) };
        let users: Vec<String> = {
            let state = lock(&self.state);
            let uses = |known: &Known| matches!(known, Known::Whole { packs, .. } if packs.iter().any(|pack| moved.contains_key(pack)));
            state.snapshots.iter().filter(|(_, known)| uses(known)).map(|(id, _)| id.clone()).collect()
        };
        for id in users {
            self.switch(&id, new, &moved)?;
        }
        Ok(file_length)
    }

    /// Copies live chunks as they are stored: what is damaged stays so, and is found when it is read.
    fn copy(&self, group: &[PackId], liveness: &Liveness) -> Result<(PackWriter<'_>, Moved), VaultError> {
        let mut writer = PackWriter::create(&self.files, &self.packs_dir, "compaction")?;
        let mut moved = Moved::new();
        let mut slots: HashMap<Hash, u32> = HashMap::new();
        let mut buffer = Vec::new();
        for id in group {
            let loaded = lock(&self.state).pack_by_id(id).map(|pack| pack.load(&self.files));
            let Some(pack) = loaded.transpose()? else { continue };
            let file = self.files.open(&pack.path)?;
            let new_slots = moved.entry(*id).or_default();
            let live: Vec<_> = live_entries(&pack, liveness).collect();
            let neighbours = |a: &(u32, &Entry), b: &(u32, &Entry)| {
                a.1.end() == b.1.offset && b.1.offset / COPY == a.1.offset / COPY
            };
            for run in live.chunk_by(neighbours) {
                let (Some((_, first)), Some((_, last))) = (run.first(), run.last()) else { continue };
                buffer.resize(usize::try_from(last.end() - first.offset).unwrap_or(usize::MAX), 0);
                self.files.read_at(&file, &pack.path, &mut buffer, first.offset)?;
                let mut rest = &buffer[..];
                for (slot, entry) in run {
                    let (stored, after) = rest.split_at(entry.stored as usize);
                    rest = after;
                    let new_slot = match slots.get(&entry.hash) {
                        Some(new_slot) => *new_slot,
                        None => writer.push(entry.hash, entry.length, stored)?,
                    };
                    slots.insert(entry.hash, new_slot);
                    new_slots.insert(*slot, new_slot);
                }
            }
        }
        Ok((writer, moved))
    }

    /// Makes a manifest refer to the new pack.
    fn switch(&self, id: &str, new: PackId, moved: &Moved) -> Result<(), VaultError> {
        let _changes = lock(&self.changes);
        let manifest = match self.manifest_locked(id) {
            Ok((manifest, _)) => manifest,
            // Deleted meanwhile.
            Err(VaultError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let parts: Vec<PartChunks> = manifest
            .parts
            .iter()
            .map(|part| {
                let mut part = part.split(&manifest.packs);
                for (_, pack, slot) in &mut part.chunks {
                    // A chunk that came to use after the packs were looked at stays where it is.
                    if let Some(new_slot) = moved.get(pack).and_then(|slots| slots.get(slot)) {
                        (*pack, *slot) = (new, *new_slot);
                    }
                }
                part
            })
            .collect();
        let (packs, parts) = join(&parts);
        let old_packs = manifest.packs.clone();
        let bytes = Manifest { packs: packs.clone(), parts, ..manifest }.encode();
        let replaced = self.files.replace(&self.snapshot_dir(id).join(manifest::FILE), &bytes);
        let packs = match replaced {
            Ok(()) => packs,
            // Nobody knows which of the two is there now.
            Err(_) => packs.into_iter().chain(old_packs).collect(),
        };
        lock(&self.state).snapshots.insert(id.to_owned(), Known::Whole { packs });
        replaced
    }
}

fn live_entries<'a>(pack: &'a Pack, liveness: &'a Liveness) -> impl Iterator<Item = (u32, &'a Entry)> {
    let live = liveness.slots.get(&pack.id).map_or(&[][..], Vec::as_slice);
    (0..).zip(&pack.entries).zip(live).filter(|(_, live)| **live).map(|(entry, _)| entry)
}

/// Which packs to rewrite.
fn choose(fillings: &BTreeMap<PackId, Filling>, needs: &[Vec<PackId>], how: Compaction) -> HashSet<PackId> {
    let wasteful = |filling: &Filling| match how {
        // Collected, once nobody is about to need it.
        _ if filling.live == 0 => false,
        Compaction::Bounded => filling.live < filling.total / 2,
        Compaction::Full => filling.live < filling.total,
    };
    let mut chosen: HashSet<PackId> =
        fillings.iter().filter(|(_, filling)| wasteful(filling)).map(|(id, _)| *id).collect();
    for needed in needs {
        let mut kept: Vec<_> = needed
            .iter()
            .filter(|id| !chosen.contains(id))
            .filter_map(|id| fillings.get(id).map(|filling| (filling.live, *id)))
            .collect();
        if kept.len() < SNAPSHOT_PACKS_MAX || needed.len() <= SNAPSHOT_PACKS_MAX {
            continue;
        }
        // The smallest ones: the large pack of a chain's start is not written again and again. Half of them, so that it
        // is not due again with the next snapshot.
        kept.sort_unstable();
        let excess = kept.len() + 1 - SNAPSHOT_PACKS_MAX / 2;
        chosen.extend(kept.iter().take(excess).map(|(_, id)| *id));
    }
    chosen
}

/// Cuts what was chosen into steps of bounded size, the smallest packs first.
fn groups(chosen: &HashSet<PackId>, fillings: &BTreeMap<PackId, Filling>) -> Vec<Vec<PackId>> {
    let mut sizes: Vec<_> =
        chosen.iter().filter_map(|id| fillings.get(id).map(|filling| (filling.live, *id))).collect();
    sizes.sort_unstable();
    let mut groups: Vec<Vec<PackId>> = Vec::new();
    let mut bytes = 0;
    for (live, id) in sizes {
        bytes += live;
        match groups.last_mut().filter(|_| bytes <= SNAPSHOT_COMPACT_STEP) {
            Some(group) => group.push(id),
            None => {
                groups.push(vec![id]);
                bytes = live;
            }
        }
    }
    groups
}
