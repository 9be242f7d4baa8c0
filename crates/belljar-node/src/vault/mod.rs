//! The durable snapshots of a node: flat files in, flat files out, and in between every distinct chunk once.
//!
//! ```text
//! <root>/snapshots/<id>/manifest     one snapshot: its metadata, and for each part which chunk lies where
//!                  packs/<pack id>   the chunks that one snapshot was first to need, and their index; never changed
//! <root>/cache/<id>/{disk,memory,devices}   unpacked snapshots, ready to be mapped; bounded, made again on demand
//!
//! flat files --write--> new chunks into one new pack --> manifest --(rename: it exists)--> completed
//!                                                                                          |       |
//!                                                               unpack: every chunk verified       delete: manifest gone
//!                                                                                          |       |
//!                                                                                flat files        collect: packs that
//!                                                                                                  nobody needs are gone
//! ```
//! A part (disk, memory, devices) is cut into chunks, named by the BLAKE3 of what is in them. A chunk that the vault has
//! already is not stored again, a chunk of zeros is not stored at all. So a snapshot depends on packs of earlier ones,
//! never on their manifests: deleting one harms no other. The number of packs that it needs is bounded by [`Vault::compact`].
//! Whatever ends the program in whatever moment, a snapshot is whole or absent; [`Vault::open`] removes what was half done.
//!
//! It knows no VM, no sandbox and no server: ids, files and bytes are all it is given. Everything here blocks; an async
//! caller uses a thread. All of it may be called from many threads at once.

mod cache;
mod chunk;
mod codec;
mod collect;
mod compact;
#[cfg(test)]
mod crash_test;
mod diff;
#[cfg(test)]
mod diff_test;
mod error;
mod ext4;
#[cfg(test)]
mod faults;
mod files;
mod flat;
#[cfg(test)]
mod format_test;
mod manifest;
#[cfg(test)]
mod model_test;
mod pack;
mod parallel;
mod read;
mod state;
#[cfg(test)]
mod vault_test;
mod write;

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicUsize},
};

use belljar_api::snapshot::{Collected, SnapshotDiff};

pub(crate) use self::flat::is_zero;
use self::{
    cache::Cache,
    files::Files,
    state::{State, lock},
};
pub use self::{cache::Unpacked, chunk::ChunkMap, error::VaultError};
use crate::limits::{DIFF_TIMEOUT, SNAPSHOT_CACHE_MAX};

/// A part of a snapshot; each is one flat file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The root disk.
    Disk,
    /// Guest memory.
    Memory,
    /// State of the virtual machine's devices.
    Devices,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Disk, Self::Memory, Self::Devices];

    /// Name of its flat file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Devices => "devices",
        }
    }

    /// Bytes of its chunks. Guest memory changes in scattered pages, and a chunk is stored whole: for 10 MiB of scattered
    /// pages, chunks of 4, 8 and 16 KiB stored 5.6, 9.3 and 15.7 MiB, for a whole memory 128, 126 and 121 MiB, while the
    /// smaller ones took a third more time. Disks change in longer runs; larger chunks compress better and need fewer names.
    fn chunk_size(self) -> u32 {
        match self {
            Self::Memory => 4 << 10,
            Self::Disk | Self::Devices => 64 << 10,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Disk => 1,
            Self::Memory => 2,
            Self::Devices => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.code() == code)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What [`Vault::write`] is to keep.
#[derive(Debug, Clone, Copy)]
pub struct NewSnapshot<'a> {
    /// Id: 21 characters of `[0-9a-z]`, not in the vault yet.
    pub id: &'a str,
    /// The fork tree's edge; need not exist, nothing depends on it.
    pub parent: Option<&'a str>,
    /// Whatever the caller wants back; at most [`crate::limits::SNAPSHOT_METADATA_MAX`] bytes.
    pub metadata: &'a [u8],
    /// The parts, each at most once.
    pub parts: &'a [PartSource<'a>],
}

/// The flat file of a part.
#[derive(Debug, Clone, Copy)]
pub struct PartSource<'a> {
    /// Which part it is.
    pub part: Part,
    /// The file. Nobody changes it until the call returns.
    pub file: &'a Path,
    /// What it mostly equals; without it the whole file is read.
    pub base: Option<Base<'a>>,
}

/// A file that is mostly equal, in which parts differ at most.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// The chunks of that file: [`ChunkMap::load`] of a sidecar, [`Vault::chunk_map`] of a snapshot, or what
    /// [`Written`] told.
    pub map: &'a ChunkMap,
    /// Bytes outside of these ranges are the same in both files (as far as both reach). In any order, may overlap.
    pub changed: &'a [Range<u64>],
}

/// A completed snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its parent, as it was written.
    pub parent: Option<String>,
    /// As it was written.
    pub metadata: Vec<u8>,
    /// The parts and the lengths of their flat files, bytes.
    pub parts: Vec<(Part, u64)>,
    /// Bytes on disk that only this snapshot needed when it was written.
    pub size_bytes: u64,
    /// Packs that it needs: the length of its chain.
    pub packs: usize,
}

/// What [`Vault::write`] made.
#[derive(Debug)]
pub struct Written {
    /// As [`Vault::get`] will tell it.
    pub snapshot: Snapshot,
    /// The chunks of each part: the next snapshot's [`Base`].
    pub maps: Vec<(Part, ChunkMap)>,
}

/// A flat file whose content is close to a part that is to be unpacked: cloned by reflink and corrected, which is
/// quicker than unpacking all. Without reflink it is not used.
#[derive(Debug, Clone, Copy)]
pub struct Relative<'a> {
    /// The part.
    pub part: Part,
    /// The file; immutable.
    pub file: &'a Path,
    /// Its chunks. Trusted: the chunks taken over are not verified.
    pub map: &'a ChunkMap,
}

/// What the vault takes, bytes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VaultUse {
    /// Packs and manifests.
    pub snapshots_bytes: u64,
    /// Of these, chunks that no snapshot needs any more.
    pub garbage_bytes: u64,
    /// Unpacked snapshots.
    pub cache_bytes: u64,
}

/// How much [`Vault::compact`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    /// What bounds chains and waste; for the background, after a snapshot.
    Bounded,
    /// Everything that frees space; for `belljar gc`.
    Full,
}

/// The store, opened once per node.
#[derive(Debug)]
pub struct Vault {
    files: Files,
    snapshots_dir: PathBuf,
    packs_dir: PathBuf,
    state: Mutex<State>,
    cache: Arc<Cache>,
    /// Held by the one compaction.
    compacting: Mutex<()>,
    /// Diffs that are being made.
    diffs: Arc<AtomicUsize>,
    /// Held while a manifest is removed, replaced or read. Taken before `state`.
    changes: Mutex<()>,
}

impl Vault {
    /// Opens or makes the store in `<root>/snapshots` and `<root>/cache`, and removes what a crash left half done. A
    /// snapshot or pack that cannot be read does not stop it: those that need it answer with an error.
    pub fn open(root: &Path) -> Result<Self, VaultError> {
        Self::open_with(root, Files::default(), SNAPSHOT_CACHE_MAX)
    }

    fn open_with(root: &Path, files: Files, cache_max: u64) -> Result<Self, VaultError> {
        let snapshots_dir = root.join("snapshots");
        let packs_dir = snapshots_dir.join("packs");
        let cache = Arc::new(Cache::open(files.clone(), root.join("cache"), cache_max)?);
        let (state, compacting, changes, diffs) = Default::default();
        let vault = Self { files, snapshots_dir, packs_dir, state, cache, compacting, diffs, changes };
        vault.files.create_dir(&vault.packs_dir)?;
        vault.load()?;
        vault.cache.retain(|id| vault.exists(id));
        Ok(vault)
    }

    /// Writes a snapshot. When this returns it is durable; when it fails nothing of it is left. An id that exists already
    /// gives [`VaultError::Exists`].
    pub fn write(&self, new: &NewSnapshot<'_>) -> Result<Written, VaultError> {
        self.write_snapshot(new)
    }

    /// One snapshot; [`VaultError::NotFound`] when there is none.
    pub fn get(&self, id: &str) -> Result<Snapshot, VaultError> {
        let (manifest, file_length) = self.manifest(id)?;
        Ok(manifest.describe(file_length))
    }

    /// Ids of all snapshots, also of those that cannot be read.
    pub fn ids(&self) -> Vec<String> {
        lock(&self.state).snapshots.keys().cloned().collect()
    }

    /// The chunks of a part of a snapshot.
    pub fn chunk_map(&self, id: &str, part: Part) -> Result<ChunkMap, VaultError> {
        let opened = self.open_snapshot(id)?;
        let runs = opened.part(part).ok_or_else(|| VaultError::NoPart { id: id.to_owned(), part })?;
        Ok(opened.map(runs))
    }

    /// Makes the flat files of a snapshot in the new directory `into`, every chunk verified. Not synced.
    /// A crash may leave `.<name>.new` beside it, which the next call with the same directory removes.
    pub fn unpack(&self, id: &str, into: &Path, relatives: &[Relative<'_>]) -> Result<(), VaultError> {
        self.unpack_snapshot(id, into, relatives)
    }

    /// The flat files of a snapshot from the cache, unpacking them first when they are not there.
    pub fn unpacked(&self, id: &str, relatives: &[Relative<'_>]) -> Result<Unpacked, VaultError> {
        if !self.exists(id) {
            return Err(VaultError::NotFound { id: id.to_owned() });
        }
        self.cache.get(id, |dir| self.unpack_snapshot(id, dir, relatives))
    }

    /// Puts flat files that were just captured into the cache, by hard link (or reflink, or a copy): the first restore
    /// need not unpack. They must be what was or will be written as `id`, and must never change. When the snapshot is not
    /// written after all, [`Vault::delete`] removes them.
    pub fn adopt(&self, id: &str, files: &[(Part, &Path)]) -> Result<Unpacked, VaultError> {
        if !belljar_api::id::is_id(id) {
            return Err(VaultError::Refused { id: id.to_owned(), why: "this is no id".into() });
        }
        self.cache.get(id, |dir| {
            self.files.create_dir(dir)?;
            files.iter().try_for_each(|(part, file)| self.files.link(file, &dir.join(part.name())))
        })
    }

    /// Removes a snapshot; `false` when there was none. Its chunks stay until [`Vault::collect`], as others may need them.
    pub fn delete(&self, id: &str) -> Result<bool, VaultError> {
        let deleted = self.delete_snapshot(id)?;
        self.cache.remove(id);
        Ok(deleted)
    }

    /// Removes packs that no snapshot needs. Quick: nothing is rewritten. `node_id` is left empty.
    pub fn collect(&self) -> Result<Collected, VaultError> {
        self.remove_dead_packs()
    }

    /// Rewrites the live chunks of packs that are mostly dead, or that make a chain too long, and collects. Takes time;
    /// snapshots can be written, read and deleted meanwhile.
    pub fn compact(&self, how: Compaction) -> Result<Collected, VaultError> {
        self.compact_packs(how)
    }

    /// What it takes. Reads every manifest.
    pub fn usage(&self) -> Result<VaultUse, VaultError> {
        let snapshots = crate::storage::dir_usage(&self.snapshots_dir);
        Ok(VaultUse {
            snapshots_bytes: snapshots.map_err(VaultError::io("measure", &self.snapshots_dir))?,
            garbage_bytes: self.garbage()?,
            cache_bytes: self.cache.bytes(),
        })
    }

    /// How the files on the disk of `second` differ from those of `first`, without mounting anything.
    pub fn diff(&self, first: &str, second: &str) -> Result<SnapshotDiff, VaultError> {
        self.diff_within(first, second, DIFF_TIMEOUT)
    }

    fn exists(&self, id: &str) -> bool {
        lock(&self.state).snapshots.contains_key(id)
    }

    fn snapshot_dir(&self, id: &str) -> PathBuf {
        self.snapshots_dir.join(id)
    }
}
