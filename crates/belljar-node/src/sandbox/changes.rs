//! What the memory of a sandbox that sleeps has beyond the file that its VM began with: two more files of a standstill.
//!
//! ```text
//! memory   all of it, as in every standstill
//! base     the file that the VM had mapped: another name for it
//! changes  where the two differ: `[[offset, bytes], ...]`, ascending; what is there now is in `memory`
//! ```
//! A VM that goes on with `base`, into which its changes are copied first, shares with all others from the same golden snapshot what
//! it never wrote: there is one copy of that in the host's memory, and it is there already. With `memory` it would read that from
//! the disk, and have it for itself. Copying takes its time, so where there are many changes there are no such files, and `memory` is
//! what the next life begins with, and is compared with. Called by [`super::frozen`] and [`super::boot`].

use std::{fs, io, path::Path};

use belljar_vmm::MemoryChanges;

use super::frozen::{self, MEMORY};
use crate::{
    limits::CHANGES_MAX,
    storage::{Storage, StorageError},
};

pub(super) const BASE: &str = "base";
const RUNS: &str = "changes";

/// Notes in what `memory` of the standstill `into` differs from `base`, unless that is too much. Blocking.
pub(super) fn note(storage: &Storage, into: &Path, base: &Path, runs: &[(u64, u64)]) -> Result<(), StorageError> {
    if runs.iter().map(|(_, length)| length).sum::<u64>() > CHANGES_MAX {
        return Ok(());
    }
    frozen::link(storage, base, &into.join(BASE))?;
    let path = into.join(RUNS);
    let text = serde_json::to_vec(runs).map_err(io::Error::from);
    text.and_then(|text| fs::write(&path, text)).map_err(StorageError::io("write", &path))
}

/// The changes of a standstill, if it has such. Blocking.
pub(super) fn open(still: &Path) -> Result<Option<MemoryChanges>, StorageError> {
    let path = still.join(RUNS);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(StorageError::io("read", &path))?,
    };
    let runs: Vec<_> = serde_json::from_slice(&text).map_err(|error| StorageError::io("read", &path)(error.into()))?;
    Ok(Some(MemoryChanges { from: still.join(MEMORY), runs: runs.into() }))
}
