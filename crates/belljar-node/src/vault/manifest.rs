//! A manifest: one snapshot, told as metadata and as runs of chunks in packs.
//!
//! ```text
//! magic 8 | version 4 | id | parent (empty: none) | metadata | bytes of its own pack
//! number of packs, their ids 32 each, by id | number of parts, parts | BLAKE3 of all before it 32
//! part: kind 1 | chunk size | length | number of runs, runs
//! run: chunks since the last run's end | number of chunks | pack (its place in the list) | first slot
//! ```
//! Texts and byte strings have their length before them; numbers without a size are LEB128. Chunk `first + n` of a run
//! lies in slot `slot + n`. Chunks in no run are zeros. A pack's id names its content, so the checksum covers that too.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use super::{
    Part, Snapshot, VaultError,
    chunk::CHUNK_MAX,
    codec::{Reader, check_format, checked, put_bytes, put_varint},
    files::Files,
    pack::PackId,
};
use crate::limits::{SNAPSHOT_MANIFEST_MAX, SNAPSHOT_METADATA_MAX, SNAPSHOT_PART_MAX};

/// Name of the file in the snapshot's directory.
pub(super) const FILE: &str = "manifest";
const MAGIC: [u8; 8] = *b"BJ-SNAP\n";
pub(super) const VERSION: u32 = 1;
/// Shortest run, bytes.
const RUN_MIN: usize = 4;

// The format of files that are out there. Whoever changes one of these makes a new version and goes on reading this one.
const _: () = assert!(VERSION == 1 && RUN_MIN == 4);

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) id: String,
    pub(super) parent: Option<String>,
    pub(super) metadata: Vec<u8>,
    pub(super) own_bytes: u64,
    pub(super) packs: Vec<PackId>,
    pub(super) parts: Vec<PartRuns>,
}

/// Where the chunks of one part lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartRuns {
    pub(super) part: Part,
    pub(super) chunk_size: u32,
    pub(super) length: u64,
    /// By chunk; they do not overlap.
    pub(super) runs: Vec<Run>,
}

/// Consecutive chunks in consecutive slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u32,
    /// Index into [`Manifest::packs`].
    pub(super) pack: u32,
    pub(super) slot: u32,
}

/// A part as a list of its chunks: index, pack and slot of each.
#[derive(Debug)]
pub(super) struct PartChunks {
    pub(super) part: Part,
    pub(super) chunk_size: u32,
    pub(super) length: u64,
    /// By index.
    pub(super) chunks: Vec<(u32, PackId, u32)>,
}

/// The packs that the parts need, by id, and the parts as runs.
pub(super) fn join(parts: &[PartChunks]) -> (Vec<PackId>, Vec<PartRuns>) {
    let packs: BTreeSet<PackId> = parts.iter().flat_map(|part| &part.chunks).map(|(_, pack, _)| *pack).collect();
    let order: HashMap<PackId, u32> = packs.iter().copied().zip(0..).collect();
    let parts = parts.iter().map(|part| {
        let mut runs: Vec<Run> = Vec::new();
        for (index, pack, slot) in &part.chunks {
            let (first, pack, slot) = (*index, order[pack], *slot);
            match runs.last_mut() {
                Some(run) if run.pack == pack && run.first + run.count == first && run.slot + run.count == slot => {
                    run.count += 1;
                }
                _ => runs.push(Run { first, count: 1, pack, slot }),
            }
        }
        PartRuns { part: part.part, chunk_size: part.chunk_size, length: part.length, runs }
    });
    let parts = parts.collect();
    (packs.into_iter().collect(), parts)
}

impl PartRuns {
    /// The chunks of the part, by index. `packs` are those of the manifest.
    pub(super) fn split(&self, packs: &[PackId]) -> PartChunks {
        let chunks = self.runs.iter().flat_map(|run| {
            (0..run.count).filter_map(|n| Some((run.first + n, *packs.get(run.pack as usize)?, run.slot + n)))
        });
        PartChunks { part: self.part, chunk_size: self.chunk_size, length: self.length, chunks: chunks.collect() }
    }

    /// Bytes of chunk `index` of the part.
    pub(super) fn chunk_length(&self, index: u32) -> u32 {
        chunk_length(self.length, self.chunk_size, index)
    }
}

/// Bytes of chunk `index` of a file: the last one may be shorter.
pub(super) fn chunk_length(length: u64, chunk_size: u32, index: u32) -> u32 {
    let left = length.saturating_sub(u64::from(index) * u64::from(chunk_size));
    u32::try_from(left).unwrap_or(u32::MAX).min(chunk_size)
}

impl Manifest {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024 + self.metadata.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        put_bytes(&mut out, self.id.as_bytes());
        put_bytes(&mut out, self.parent.as_deref().unwrap_or_default().as_bytes());
        put_bytes(&mut out, &self.metadata);
        put_varint(&mut out, self.own_bytes);
        put_varint(&mut out, self.packs.len() as u64);
        for pack in &self.packs {
            out.extend_from_slice(&pack.0);
        }
        put_varint(&mut out, self.parts.len() as u64);
        for part in &self.parts {
            out.push(part.part.code());
            put_varint(&mut out, part.chunk_size.into());
            put_varint(&mut out, part.length);
            put_varint(&mut out, part.runs.len() as u64);
            let mut end = 0;
            for run in &part.runs {
                put_varint(&mut out, (run.first - end).into());
                put_varint(&mut out, run.count.into());
                put_varint(&mut out, run.pack.into());
                put_varint(&mut out, run.slot.into());
                end = run.first + run.count;
            }
        }
        let checksum = blake3::hash(&out);
        out.extend_from_slice(checksum.as_bytes());
        out
    }

    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Self, VaultError> {
        check_format(&mut Reader::new(path, bytes), MAGIC, VERSION)?;
        let mut reader = Reader::new(path, checked(path, bytes)?);
        check_format(&mut reader, MAGIC, VERSION)?;
        let id = reader.text()?.to_owned();
        let parent = Some(reader.text()?).filter(|parent| !parent.is_empty()).map(str::to_owned);
        let metadata = reader.bytes()?.to_vec();
        if metadata.len() > SNAPSHOT_METADATA_MAX {
            return Err(reader.damaged("its metadata is too large"));
        }
        let own_bytes = reader.varint()?;
        let count = reader.varint()?;
        let mut packs = Vec::with_capacity(reader.room(count, 32));
        for _ in 0..count {
            packs.push(PackId(reader.array()?));
        }
        if !packs.is_sorted_by(|a, b| a < b) {
            return Err(reader.damaged("its list of packs is not in order"));
        }
        let mut parts = Vec::new();
        for _ in 0..reader.varint()? {
            parts.push(PartRuns::decode(&mut reader, packs.len())?);
        }
        if !parts.is_sorted_by(|a: &PartRuns, b| a.part < b.part) {
            return Err(reader.damaged("its parts are not in order"));
        }
        reader.end()?;
        Ok(Self { id, parent, metadata, own_bytes, packs, parts })
    }

    /// Reads the manifest of the snapshot directory `dir`, which is named by the id.
    pub(super) fn load(files: &Files, dir: &Path) -> Result<(Self, u64), VaultError> {
        let path = dir.join(FILE);
        let file = files.open(&path)?;
        let length = files.length(&file, &path)?;
        let Some(size) = usize::try_from(length).ok().filter(|size| *size <= SNAPSHOT_MANIFEST_MAX) else {
            return Err(VaultError::damaged(&path, format!("it is larger than {SNAPSHOT_MANIFEST_MAX} bytes")));
        };
        let mut bytes = vec![0; size];
        files.read_at(&file, &path, &mut bytes, 0)?;
        let manifest = Self::decode(&path, &bytes)?;
        if dir.file_name().is_none_or(|name| *name != *manifest.id) {
            return Err(VaultError::damaged(&path, format!("it is the manifest of snapshot {}", manifest.id)));
        }
        Ok((manifest, length))
    }

    /// What a caller is told, given the length of the file.
    pub(super) fn describe(&self, file_length: u64) -> Snapshot {
        Snapshot {
            id: self.id.clone(),
            parent: self.parent.clone(),
            metadata: self.metadata.clone(),
            parts: self.parts.iter().map(|part| (part.part, part.length)).collect(),
            size_bytes: self.own_bytes + file_length,
            packs: self.packs.len(),
        }
    }
}

impl PartRuns {
    fn decode(reader: &mut Reader<'_>, packs: usize) -> Result<Self, VaultError> {
        let code = reader.array::<1>()?[0];
        let part = Part::from_code(code).ok_or_else(|| reader.damaged(format!("part {code} is not known")))?;
        let (chunk_size, length) = (reader.varint_u32()?, reader.varint()?);
        if !chunk_size.is_power_of_two() || !(4096..=CHUNK_MAX).contains(&chunk_size) || length > SNAPSHOT_PART_MAX {
            return Err(reader.damaged(format!("the sizes of its {part} are impossible")));
        }
        let chunks = length.div_ceil(chunk_size.into());
        let count = reader.varint()?;
        let mut runs = Vec::with_capacity(reader.room(count, RUN_MIN));
        let mut end = 0_u32;
        for _ in 0..count {
            let gap = reader.varint_u32()?;
            let (count, pack, slot) = (reader.varint_u32()?, reader.varint_u32()?, reader.varint_u32()?);
            let first = end.checked_add(gap);
            let sound = first.and_then(|first| first.checked_add(count)).filter(|end| {
                count > 0 && u64::from(*end) <= chunks && (pack as usize) < packs && slot.checked_add(count).is_some()
            });
            let (Some(first), Some(run_end)) = (first, sound) else {
                return Err(reader.damaged(format!("the chunks of its {part} are impossible")));
            };
            runs.push(Run { first, count, pack, slot });
            end = run_end;
        }
        Ok(Self { part, chunk_size, length, runs })
    }
}
