//! Chunks, and the maps that tell which chunk is where in a flat file.

use std::{fs::File, ops::Range, path::Path};

use super::{
    Part, VaultError,
    codec::{Reader, check_format, checked},
    files::Files,
    flat,
    manifest::chunk_length,
    parallel,
};
use crate::limits::{SNAPSHOT_MANIFEST_MAX, SNAPSHOT_PART_MAX};

/// BLAKE3 of a chunk's content.
pub(super) type Hash = [u8; 32];
/// Largest chunk of any format, bytes: bounds what a reader has to hold.
pub(super) const CHUNK_MAX: u32 = 1 << 20;

const MAGIC: [u8; 8] = *b"BJ-CMAP\n";
const VERSION: u32 = 1;
const ENTRY: usize = 36;

// The format of files that are out there. Whoever changes one of these makes a new version and goes on reading this one.
const _: () = assert!(VERSION == 1 && ENTRY == 36);

/// Which chunk is where in a flat file; chunks that are all zeros are absent.
///
/// Its sidecar file: magic 8, version 4, chunk size 4, length 8, number of chunks 8, for each its index 4 and its BLAKE3
/// 32, and the BLAKE3 of all that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkMap {
    pub(super) chunk_size: u32,
    pub(super) length: u64,
    /// By index.
    pub(super) chunks: Vec<(u32, Hash)>,
}

impl ChunkMap {
    /// Reads and hashes the data of a flat file, with [`crate::limits::SNAPSHOT_THREADS`] threads.
    pub fn of_file(part: Part, path: &Path) -> Result<Self, VaultError> {
        let files = Files::default();
        let file = files.open(path)?;
        let length = files.length(&file, path)?;
        let chunk_size = part.chunk_size();
        let mut map = Self { chunk_size, length, chunks: Vec::new() };
        let data = files.data_ranges(&file, path)?;
        let wanted = chunks_of(&data, chunk_size, length);
        let reader = ChunkReader { files: &files, file: &file, path, length, chunk_size };
        let batches = flat::batches(&wanted, chunk_size);
        parallel::in_order(
            &batches,
            || {
                let mut buffer = Vec::new();
                let reader = &reader;
                move |batch: &&[u32]| {
                    let mut hashes = Vec::new();
                    reader.each(batch, &mut buffer, |index, bytes| {
                        hashes.push((index, *blake3::hash(bytes).as_bytes()))
                    })?;
                    Ok(hashes)
                }
            },
            |hashes| {
                map.chunks.extend(hashes);
                Ok(())
            },
        )?;
        Ok(map)
    }

    /// Reads a sidecar.
    pub fn load(path: &Path) -> Result<Self, VaultError> {
        let files = Files::default();
        let file = files.open(path)?;
        let size = usize::try_from(files.length(&file, path)?).ok().filter(|size| *size <= SNAPSHOT_MANIFEST_MAX);
        let mut bytes = vec![0; size.ok_or_else(|| VaultError::damaged(path, "it is too large"))?];
        files.read_at(&file, path, &mut bytes, 0)?;
        check_format(&mut Reader::new(path, &bytes), MAGIC, VERSION)?;
        let mut reader = Reader::new(path, checked(path, &bytes)?);
        check_format(&mut reader, MAGIC, VERSION)?;
        let (chunk_size, length, count) = (reader.u32()?, reader.u64()?, reader.u64()?);
        if !chunk_size.is_power_of_two() || chunk_size > CHUNK_MAX || length > SNAPSHOT_PART_MAX {
            return Err(reader.damaged("its sizes are impossible"));
        }
        let mut chunks = Vec::with_capacity(reader.room(count, ENTRY));
        for _ in 0..count {
            chunks.push((reader.u32()?, reader.array()?));
        }
        reader.end()?;
        if !chunks.is_sorted_by(|a: &(u32, Hash), b| a.0 < b.0)
            || chunks.last().is_some_and(|last| u64::from(last.0) >= length.div_ceil(chunk_size.into()))
        {
            return Err(reader.damaged("its chunks are not in order"));
        }
        Ok(Self { chunk_size, length, chunks })
    }

    /// Writes a sidecar, so that a crash leaves the old file, the new one or none.
    pub fn save(&self, path: &Path) -> Result<(), VaultError> {
        let mut out = Vec::with_capacity(64 + self.chunks.len() * ENTRY);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.chunk_size.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&(self.chunks.len() as u64).to_le_bytes());
        for (index, hash) in &self.chunks {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(hash);
        }
        let checksum = blake3::hash(&out);
        out.extend_from_slice(checksum.as_bytes());
        Files::default().replace(path, &out)
    }

    /// Bytes of the flat file.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn hash(&self, index: u32) -> Option<&Hash> {
        self.chunks.binary_search_by_key(&index, |chunk| chunk.0).ok().map(|at| &self.chunks[at].1)
    }
}

/// The chunks that `ranges` (sorted) touch within `length` bytes, each once.
pub(super) fn chunks_of(ranges: &[Range<u64>], chunk_size: u32, length: u64) -> Vec<u32> {
    let mut chunks = Vec::new();
    let mut next = 0;
    for range in ranges {
        let first = (range.start / u64::from(chunk_size)).max(next);
        let end = range.end.min(length).div_ceil(chunk_size.into());
        // A part has at most `SNAPSHOT_PART_MAX` bytes, so the numbers of its chunks fit.
        chunks.extend((first..end).filter_map(|index| u32::try_from(index).ok()));
        next = next.max(end);
    }
    chunks
}

/// Reads chunks of one flat file.
pub(super) struct ChunkReader<'a> {
    pub(super) files: &'a Files,
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
    pub(super) length: u64,
    pub(super) chunk_size: u32,
}

impl ChunkReader<'_> {
    /// Calls `each` with the chunks of `batch` (sorted) that are not all zeros. Neighbours are read at once.
    pub(super) fn each(
        &self,
        batch: &[u32],
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(u32, &[u8]),
    ) -> Result<(), VaultError> {
        for run in batch.chunk_by(|a, b| a + 1 == *b) {
            let Some((first, last)) = run.first().zip(run.last()) else { continue };
            let start = u64::from(*first) * u64::from(self.chunk_size);
            let last_length = chunk_length(self.length, self.chunk_size, *last) as usize;
            buffer.resize((run.len() - 1) * self.chunk_size as usize + last_length, 0);
            self.files.read_at(self.file, self.path, buffer, start)?;
            for (index, bytes) in run.iter().zip(buffer.chunks(self.chunk_size as usize)) {
                if !flat::is_zero(bytes) {
                    each(*index, bytes);
                }
            }
        }
        Ok(())
    }
}
