//! Reading a snapshot back: chunk maps, and flat files with every chunk verified.

use std::{collections::HashSet, fs::File, io, path::Path, sync::Arc};

use super::{
    ChunkMap, Part, Relative, Vault, VaultError,
    chunk::Hash,
    files::Files,
    manifest::{Manifest, PartRuns},
    pack::{Entry, Pack},
    parallel,
    state::lock,
};

/// Bytes of chunks that a worker takes on at once.
const BATCH: usize = 1 << 20;

type Decompressor = zstd::bulk::Decompressor<'static>;

/// A manifest with the packs it needs, open: they can be read although they are removed meanwhile.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) manifest: Manifest,
    packs: Vec<(Arc<Pack>, File)>,
}

/// A chunk of a part and where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Located {
    pub(super) index: u32,
    pub(super) entry: Entry,
    /// Index into the manifest's packs.
    pack: usize,
}

impl Vault {
    /// The manifest of a snapshot, and the length of its file.
    pub(super) fn manifest(&self, id: &str) -> Result<(Manifest, u64), VaultError> {
        // Held while the file is read: a deletion or a rewrite comes before or after.
        let _changes = lock(&self.changes);
        self.manifest_locked(id)
    }

    pub(super) fn manifest_locked(&self, id: &str) -> Result<(Manifest, u64), VaultError> {
        if !lock(&self.state).snapshots.contains_key(id) {
            return Err(VaultError::NotFound { id: id.to_owned() });
        }
        match Manifest::load(&self.files, &self.snapshot_dir(id)) {
            // Its deletion failed half-way.
            Err(VaultError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(VaultError::NotFound { id: id.to_owned() })
            }
            loaded => loaded,
        }
    }

    /// A snapshot, ready to be read.
    pub(super) fn open_snapshot(&self, id: &str) -> Result<Opened, VaultError> {
        let _changes = lock(&self.changes);
        let (manifest, _) = self.manifest_locked(id)?;
        let mut packs = Vec::new();
        for pack_id in &manifest.packs {
            let path = self.packs_dir.join(pack_id.to_string());
            let loaded = lock(&self.state).pack_by_id(pack_id).map(|pack| pack.load(&self.files));
            let Some(pack) = loaded.transpose()? else {
                // It was refused when the vault was opened: say why, or that it is gone.
                Pack::load(&self.files, &path)?;
                return Err(VaultError::damaged(&path, "it cannot be read; a restart of the node may help"));
            };
            let file = self.files.open(&path)?;
            packs.push((pack, file));
        }
        let opened = Opened { manifest, packs };
        opened.check(&self.snapshot_dir(id).join(super::manifest::FILE))?;
        Ok(opened)
    }

    pub(super) fn unpack_snapshot(&self, id: &str, into: &Path, relatives: &[Relative<'_>]) -> Result<(), VaultError> {
        let opened = self.open_snapshot(id)?;
        let name = into.file_name().unwrap_or_default().to_string_lossy();
        let temporary = into.with_file_name(format!(".{name}.new"));
        let made = self.files.remove_dir(&temporary).and_then(|()| {
            self.files.create_dir(&temporary)?;
            for part in &opened.manifest.parts {
                let relative = relatives.iter().find(|relative| relative.part == part.part);
                self.unpack_part(&opened, part, &temporary.join(part.part.name()), relative)?;
            }
            self.files.rename(&temporary, into)
        });
        if made.is_err() {
            let _ = self.files.remove_dir(&temporary);
        }
        made
    }

    fn unpack_part(
        &self,
        opened: &Opened,
        part: &PartRuns,
        path: &Path,
        relative: Option<&Relative<'_>>,
    ) -> Result<(), VaultError> {
        let mut chunks = opened.chunks(part);
        let clone = relative
            .filter(|relative| relative.map.chunk_size == part.chunk_size)
            .and_then(|relative| Some((self.files.reflink(relative.file, path).ok()?, relative.map)));
        let file = match clone {
            Some((file, map)) => {
                self.files.set_length(&file, path, part.length)?;
                let kept: HashSet<u32> = chunks.iter().map(|chunk| chunk.index).collect();
                let gone = |index: &u32| !kept.contains(index) && part.chunk_length(*index) > 0;
                for (index, _) in map.chunks.iter().filter(|(index, _)| gone(index)) {
                    let offset = u64::from(*index) * u64::from(part.chunk_size);
                    self.files.clear(&file, path, offset, part.chunk_length(*index).into())?;
                }
                chunks.retain(|chunk| map.hash(chunk.index) != Some(&chunk.entry.hash));
                file
            }
            None => {
                let file = self.files.create(path)?;
                self.files.set_length(&file, path, part.length)?;
                file
            }
        };
        let batches: Vec<_> = chunks.chunks((BATCH / part.chunk_size as usize).max(1)).collect();
        let worker = || {
            let (mut reader, mut content) = (PackReader::new(&self.files), Vec::new());
            let file = &file;
            move |batch: &&[Located]| {
                for run in batch.chunk_by(|a, b| a.index + 1 == b.index) {
                    content.clear();
                    reader.read(opened, run, &mut content).inspect_err(|_| {
                        // Later snapshots store it anew.
                        if let Some(hash) = reader.corrupted {
                            lock(&self.state).distrust(&hash);
                        }
                    })?;
                    let offset = run.first().map_or(0, |chunk| u64::from(chunk.index) * u64::from(part.chunk_size));
                    self.files.write_at(file, path, &content, offset)?;
                }
                Ok(())
            }
        };
        parallel::in_order(&batches, worker, |()| Ok(()))
    }
}

impl Opened {
    /// Whether every run lies in its pack and its chunks have the lengths that the part has.
    fn check(&self, path: &Path) -> Result<(), VaultError> {
        for part in &self.manifest.parts {
            let covered: u64 = part.runs.iter().map(|run| u64::from(run.count)).sum();
            let chunks = self.chunks(part);
            if chunks.len() as u64 != covered
                || chunks.iter().any(|chunk| chunk.entry.length != part.chunk_length(chunk.index))
            {
                return Err(VaultError::damaged(path, format!("the chunks of its {} are not in its packs", part.part)));
            }
        }
        Ok(())
    }

    pub(super) fn part(&self, part: Part) -> Option<&PartRuns> {
        self.manifest.parts.iter().find(|runs| runs.part == part)
    }

    /// The chunks of a part that are not zeros, by index.
    pub(super) fn chunks(&self, part: &PartRuns) -> Vec<Located> {
        let mut chunks = Vec::new();
        for run in &part.runs {
            let pack = run.pack as usize;
            let slots = self
                .packs
                .get(pack)
                .and_then(|(pack, _)| pack.entries.get(run.slot as usize..)?.get(..run.count as usize));
            let entries = slots.unwrap_or_default();
            chunks.extend((run.first..).zip(entries).map(|(index, entry)| Located { index, entry: *entry, pack }));
        }
        chunks
    }

    pub(super) fn map(&self, part: &PartRuns) -> ChunkMap {
        let chunks = self.chunks(part).iter().map(|chunk| (chunk.index, chunk.entry.hash)).collect();
        ChunkMap { chunk_size: part.chunk_size, length: part.length, chunks }
    }
}

/// Reads and verifies chunks.
pub(super) struct PackReader {
    files: Files,
    stored: Vec<u8>,
    decompressor: Option<Decompressor>,
    /// The chunk that turned out to be corrupted.
    corrupted: Option<Hash>,
}

impl PackReader {
    pub(super) fn new(files: &Files) -> Self {
        Self { files: files.clone(), stored: Vec::new(), decompressor: None, corrupted: None }
    }

    /// Appends the contents of `chunks`. Those that lie side by side are read at once.
    pub(super) fn read(
        &mut self,
        opened: &Opened,
        chunks: &[Located],
        content: &mut Vec<u8>,
    ) -> Result<(), VaultError> {
        let adjacent = |a: &Located, b: &Located| a.pack == b.pack && a.entry.end() == b.entry.offset;
        for run in chunks.chunk_by(adjacent) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let Some((pack, file)) = opened.packs.get(first.pack) else { continue };
            let size = usize::try_from(last.entry.end() - first.entry.offset).unwrap_or(usize::MAX);
            self.stored.resize(size, 0);
            self.files.read_at(file, &pack.path, &mut self.stored, first.entry.offset)?;
            let mut at = 0;
            for chunk in run {
                let end = at + chunk.entry.stored as usize;
                unpack_chunk(&mut self.decompressor, &chunk.entry, &self.stored[at..end], content).map_err(|why| {
                    self.corrupted = Some(chunk.entry.hash);
                    VaultError::damaged(&pack.path, format!("the chunk at byte {} {why}", chunk.entry.offset))
                })?;
                at = end;
            }
        }
        Ok(())
    }
}

fn unpack_chunk(
    decompressor: &mut Option<Decompressor>,
    entry: &Entry,
    stored: &[u8],
    content: &mut Vec<u8>,
) -> Result<(), String> {
    let start = content.len();
    if entry.stored == entry.length {
        content.extend_from_slice(stored);
    } else {
        let decompressor = match decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new().map_err(|error| error.to_string())?),
        };
        content.resize(start + entry.length as usize, 0);
        let length = decompressor
            .decompress_to_buffer(stored, &mut content[start..])
            .map_err(|error| format!("cannot be decompressed: {error}"))?;
        if length != entry.length as usize {
            return Err("has another length than the index says".into());
        }
    }
    if *blake3::hash(&content[start..]).as_bytes() != entry.hash {
        return Err("is corrupted: its checksum is wrong".into());
    }
    Ok(())
}
