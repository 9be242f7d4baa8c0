//! Writing a snapshot.
//!
//! ```text
//! for each part: what is known from the base is looked up; the rest is read, hashed, looked up, compressed (in parallel)
//! new chunks -> pack, synced -> pack in place (pinned) -> manifest, synced -> manifest in place -> it exists
//! ```

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

use super::{
    Base, ChunkMap, NewSnapshot, Part, PartSource, Vault, VaultError, Written,
    chunk::{ChunkReader, Hash, chunks_of},
    flat,
    manifest::{self, Manifest, PartChunks, chunk_length, join},
    pack::PackWriter,
    parallel,
    state::{Known, Pins, Place, State, lock},
};
use crate::limits::{SNAPSHOT_MANIFEST_MAX, SNAPSHOT_METADATA_MAX, SNAPSHOT_PART_MAX, SNAPSHOT_ZSTD_LEVEL};

/// Where a chunk of the new snapshot lies.
#[derive(Debug, Clone, Copy)]
enum Where {
    /// In a pack that was there before.
    Held(Place),
    /// In this slot of the snapshot's own pack.
    Own(u32),
}

/// Chunks of a part by index, and where each lies.
type Found = Vec<(u32, Hash, Where)>;

/// A chunk that was read.
struct Made {
    index: u32,
    hash: Hash,
    length: u32,
    /// Where it is already; else what to store.
    place: Option<Place>,
    stored: Vec<u8>,
}

/// One call of [`Vault::write`].
struct Session<'v> {
    vault: &'v Vault,
    id: &'v str,
    pins: Pins<'v>,
    /// Made with the first new chunk.
    pack: Option<PackWriter<'v>>,
    /// Slots of the chunks in it.
    own: HashMap<Hash, u32>,
}

/// An id that nobody else may write meanwhile.
struct Reserved<'v> {
    vault: &'v Vault,
    id: &'v str,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        lock(&self.vault.state).writing.remove(self.id);
    }
}

impl Vault {
    pub(super) fn write_snapshot(&self, new: &NewSnapshot<'_>) -> Result<Written, VaultError> {
        check(new)?;
        let _reserved = self.reserve(new.id)?;
        let pins = Pins::new(&self.state, &self.files);
        let mut session = Session { vault: self, id: new.id, pins, pack: None, own: HashMap::new() };
        let mut sources: Vec<_> = new.parts.iter().collect();
        sources.sort_by_key(|source| source.part);
        let mut parts = Vec::new();
        for source in sources {
            let (length, found) = session.part(source)?;
            parts.push((source.part, length, found));
        }
        let result = session.complete(new, &parts);
        drop(session);
        match result {
            Ok(snapshot) => {
                let maps = parts.into_iter().map(|(part, length, found)| {
                    let chunks = found.into_iter().map(|(index, hash, _)| (index, hash)).collect();
                    (part, ChunkMap { chunk_size: part.chunk_size(), length, chunks })
                });
                Ok(Written { snapshot, maps: maps.collect() })
            }
            Err(error) => {
                // The pack may be in place. What cannot be removed now is collected later.
                let _ = self.remove_dead_packs();
                Err(error)
            }
        }
    }

    fn reserve<'v>(&'v self, id: &'v str) -> Result<Reserved<'v>, VaultError> {
        let mut state = lock(&self.state);
        if state.snapshots.contains_key(id) || !state.writing.insert(id.to_owned()) {
            return Err(VaultError::Exists { id: id.to_owned() });
        }
        Ok(Reserved { vault: self, id })
    }
}

fn check(new: &NewSnapshot<'_>) -> Result<(), VaultError> {
    let refused = |why: String| Err(VaultError::Refused { id: new.id.to_owned(), why });
    if !belljar_api::id::is_id(new.id) {
        return refused("this is no id".into());
    }
    if new.parent.is_some_and(|parent| !belljar_api::id::is_id(parent)) {
        return refused("its parent is no id".into());
    }
    if new.metadata.len() > SNAPSHOT_METADATA_MAX {
        return refused(format!("its metadata is larger than {SNAPSHOT_METADATA_MAX} bytes"));
    }
    let parts: BTreeSet<_> = new.parts.iter().map(|source| source.part).collect();
    if parts.len() != new.parts.len() || parts.is_empty() {
        return refused("it needs parts, each once".into());
    }
    Ok(())
}

impl<'v> Session<'v> {
    /// Stores the chunks of one part; answers its length and where they are.
    fn part(&mut self, source: &PartSource<'_>) -> Result<(u64, Found), VaultError> {
        let files = &self.vault.files;
        let (path, chunk_size) = (source.file, source.part.chunk_size());
        let file = files.open(path)?;
        let length = files.length(&file, path)?;
        if length > SNAPSHOT_PART_MAX {
            let why = format!("{} is larger than {SNAPSHOT_PART_MAX} bytes", path.display());
            return Err(VaultError::Refused { id: self.id.to_owned(), why });
        }
        let data = files.data_ranges(&file, path)?;
        let plan = plan(source.base, &data, length, chunk_size);
        let mut found = Found::new();
        let mut read = plan.read;
        let places = self.pins.find(plan.known.iter().map(|(_, hash)| hash));
        for ((index, hash), place) in plan.known.into_iter().zip(places) {
            match place {
                Some(place) => found.push((index, hash, Where::Held(place))),
                // Known, but not stored here yet.
                None => read.push(index),
            }
        }
        read.sort_unstable();
        let reader = ChunkReader { files, file: &file, path, length, chunk_size };
        self.store(&reader, &read, &mut found)?;
        found.sort_unstable_by_key(|(index, ..)| *index);
        Ok((length, found))
    }

    /// Reads chunks and stores those that are new.
    fn store(&mut self, reader: &ChunkReader<'_>, read: &[u32], found: &mut Found) -> Result<(), VaultError> {
        let Self { vault, id, pins, pack, own } = self;
        let batches = flat::batches(read, reader.chunk_size);
        let worker = || {
            let (mut buffer, mut compressor) = (Vec::new(), None);
            let pins = &*pins;
            move |batch: &&[u32]| make(reader, batch, pins, &mut buffer, &mut compressor)
        };
        parallel::in_order(&batches, worker, |made: Vec<Made>| {
            for chunk in made {
                let place = match (chunk.place, own.get(&chunk.hash)) {
                    (Some(place), _) => Where::Held(place),
                    (None, Some(slot)) => Where::Own(*slot),
                    (None, None) => {
                        let pack = match &mut *pack {
                            Some(pack) => pack,
                            none => none.insert(PackWriter::create(&vault.files, &vault.packs_dir, id)?),
                        };
                        let slot = pack.push(chunk.hash, chunk.length, &chunk.stored)?;
                        own.insert(chunk.hash, slot);
                        Where::Own(slot)
                    }
                };
                found.push((chunk.index, chunk.hash, place));
            }
            Ok(())
        })
    }

    /// Puts the pack in place, then the manifest.
    fn complete(&mut self, new: &NewSnapshot<'_>, parts: &[(Part, u64, Found)]) -> Result<super::Snapshot, VaultError> {
        let own = match self.pack.take() {
            Some(writer) => Some(self.vault.place(writer, &self.pins)?),
            None => None,
        };
        let manifest = {
            let state = lock(&self.vault.state);
            build(&state, new, parts, own)
        }
        .ok_or_else(|| VaultError::damaged(&self.vault.packs_dir, "a pack that is in use is gone"))?;
        let bytes = manifest.encode();
        if bytes.len() > SNAPSHOT_MANIFEST_MAX {
            let why = format!("its manifest would be larger than {SNAPSHOT_MANIFEST_MAX} bytes");
            return Err(VaultError::Refused { id: new.id.to_owned(), why });
        }
        let dir = self.vault.snapshot_dir(new.id);
        let files = &self.vault.files;
        let made = files.create_dir(&dir).and_then(|()| files.sync_dir(&self.vault.snapshots_dir));
        let written = made.and_then(|()| {
            let replaced = files.replace(&dir.join(manifest::FILE), &bytes);
            if replaced.is_err() && files.remove(&dir.join(manifest::FILE)).and_then(|()| files.sync_dir(&dir)).is_err()
            {
                // The manifest may be there after a restart: what it needs has to be there too.
                self.pins.keep();
            }
            replaced
        });
        if let Err(error) = written {
            let _ = files.remove_dir(&dir);
            return Err(error);
        }
        let known = Known::Whole { packs: manifest.packs.clone() };
        lock(&self.vault.state).snapshots.insert(new.id.to_owned(), known);
        Ok(manifest.describe(bytes.len() as u64))
    }
}

impl Vault {
    /// Gives a pack its name and pins it; answers its number.
    pub(super) fn place(&self, mut writer: PackWriter<'_>, pins: &Pins<'_>) -> Result<u32, VaultError> {
        let pack = writer.seal()?;
        let number = {
            // Under the lock, so that a collection does not remove a pack of the same name in between.
            let mut state = lock(&self.state);
            writer.place(&pack)?;
            let number = state.add(pack);
            pins.pin(&mut state, number);
            number
        };
        self.files.sync_dir(&self.packs_dir)?;
        Ok(number)
    }
}

/// What is to be done for a part.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Chunks whose content the base tells.
    known: Vec<(u32, Hash)>,
    /// Chunks to read; all others are zeros.
    read: Vec<u32>,
}

fn plan(base: Option<Base<'_>>, data: &[Range<u64>], length: u64, chunk_size: u32) -> Plan {
    let with_data = chunks_of(data, chunk_size, length);
    let Some(base) = base.filter(|base| base.map.chunk_size == chunk_size) else {
        return Plan { known: Vec::new(), read: with_data };
    };
    let mut changed = base.changed.to_vec();
    // Where one file ends and the other does not, the chunk cannot be the same.
    if base.map.length != length {
        changed.push(base.map.length.min(length).saturating_sub(1)..length);
    }
    changed.retain(|range| range.start < range.end);
    changed.sort_unstable_by_key(|range| range.start);
    let changed = chunks_of(&changed, chunk_size, length);
    let is_changed = |index: &u32| changed.binary_search(index).is_ok();
    let read = with_data.into_iter().filter(is_changed).collect();
    let chunks = length.div_ceil(chunk_size.into());
    let known = base.map.chunks.iter().filter(|(index, _)| u64::from(*index) < chunks && !is_changed(index));
    Plan { known: known.copied().collect(), read }
}

/// What a worker does with a batch.
fn make(
    reader: &ChunkReader<'_>,
    batch: &[u32],
    pins: &Pins<'_>,
    buffer: &mut Vec<u8>,
    compressor: &mut Option<zstd::bulk::Compressor<'static>>,
) -> Result<Vec<Made>, VaultError> {
    let failed = |error| VaultError::io("compress a chunk of", reader.path)(error);
    let mut contents = Vec::new();
    let mut made = Vec::new();
    reader.each(batch, buffer, |index, bytes| {
        let hash = *blake3::hash(bytes).as_bytes();
        let length = chunk_length(reader.length, reader.chunk_size, index);
        contents.extend_from_slice(bytes);
        made.push(Made { index, hash, length, place: None, stored: Vec::new() });
    })?;
    let places = pins.find(made.iter().map(|chunk| &chunk.hash));
    let compressor = match compressor {
        Some(compressor) => compressor,
        none => none.insert(zstd::bulk::Compressor::new(SNAPSHOT_ZSTD_LEVEL).map_err(failed)?),
    };
    let mut rest = &contents[..];
    for (chunk, place) in made.iter_mut().zip(places) {
        let (bytes, after) = rest.split_at(chunk.length as usize);
        rest = after;
        chunk.place = place;
        if place.is_none() {
            chunk.stored = compressor.compress(bytes).map_err(failed)?;
            if chunk.stored.len() >= bytes.len() {
                chunk.stored = bytes.to_vec();
            }
        }
    }
    Ok(made)
}

/// The manifest; `None` when a chunk is not where it was found, which pins prevent.
fn build(state: &State, new: &NewSnapshot<'_>, parts: &[(Part, u64, Found)], own: Option<u32>) -> Option<Manifest> {
    let own = own.and_then(|number| state.pack(number));
    let mut chunks_of_parts = Vec::new();
    for (part, length, found) in parts {
        let mut chunks = Vec::with_capacity(found.len());
        for (index, _, at) in found {
            chunks.push(match at {
                Where::Held(place) => (*index, state.pack(place.pack)?.id, place.slot),
                Where::Own(slot) => (*index, own?.id, *slot),
            });
        }
        chunks_of_parts.push(PartChunks { part: *part, chunk_size: part.chunk_size(), length: *length, chunks });
    }
    let (packs, parts) = join(&chunks_of_parts);
    Some(Manifest {
        id: new.id.to_owned(),
        parent: new.parent.map(str::to_owned),
        metadata: new.metadata.to_vec(),
        own_bytes: own.map_or(0, |pack| pack.file_length),
        packs,
        parts,
    })
}
