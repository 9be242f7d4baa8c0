//! The node's snapshots: which there are, which are being written, which failed.
//!
//! ```text
//! begin -> InProgress --write--> Completed (in the vault) --delete--> Deleted (told once, then forgotten)
//!                     \-- failed: Failed (remembered until the server deletes it) --delete--> Deleted
//! ```
//! What is complete lies in the [`crate::vault`] and nowhere else; the rest is in memory alone, and a new node process knows
//! nothing of it: the server then hears that it is not there. Called by sandboxes' tasks, the registry and the uplink.

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use belljar_api::{
    image::RuntimeConfig,
    node::{SandboxSpec, SnapshotReport, SnapshotState},
    snapshot::SnapshotType,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, broadcast};

use crate::{
    Context, blocking, chain,
    limits::{FAILED_SNAPSHOTS_MAX, SNAPSHOT_WRITERS},
    registry::Changed,
    sandbox::frozen::{self, Still},
    storage::{self, StorageError},
    vault::{Base, ChunkMap, Compaction, NewSnapshot, Part, PartSource, Unpacked, Vault, VaultError},
};

/// What the vault keeps beside a snapshot's bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// What the source was.
    pub(crate) spec: SandboxSpec,
    /// What its image said.
    pub(crate) runtime: RuntimeConfig,
    /// Sandbox that it was taken of.
    pub(crate) sandbox_id: String,
    /// What it holds.
    pub(crate) kind: SnapshotType,
}

/// A snapshot that is not there, or not whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("snapshot {id} has metadata that this release does not read: {why}")]
    Meta { id: String, why: String },
}

impl SnapshotError {
    pub(crate) fn is_no_space(&self) -> bool {
        match self {
            Self::Vault(error) => error.is_no_space(),
            Self::Storage(error) => error.is_no_space(),
            Self::Meta { .. } => false,
        }
    }
}

/// A snapshot's files, held in the cache for as long as this lives.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) meta: Meta,
    files: Unpacked,
}

impl Opened {
    /// Its disk, which never changes.
    pub(crate) fn disk(&self) -> PathBuf {
        self.files.part(Part::Disk)
    }

    /// Directory with its `memory`, `devices` and `disk`.
    pub(crate) fn dir(&self) -> PathBuf {
        // Every snapshot has a disk, and its parts lie beside each other.
        self.files.part(Part::Disk).parent().map(Path::to_owned).unwrap_or_default()
    }
}

/// See the module.
pub(crate) struct Snapshots {
    pub(crate) vault: Arc<Vault>,
    passing: Mutex<HashMap<String, Passing>>,
    changes: broadcast::Sender<Changed>,
    writers: Semaphore,
}

/// A snapshot that is not in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Passing {
    InProgress { deleted: bool },
    Failed(String),
    Deleted,
}

/// A standstill of which a snapshot is to be made.
pub(crate) struct Capture {
    pub(crate) id: String,
    pub(crate) meta: Meta,
    pub(crate) still: Still,
    /// The last snapshot of the same sandbox.
    pub(crate) parent: Option<String>,
    /// The same VM process was running then: what it has written since it began covers what differs.
    pub(crate) same_process: bool,
}

impl Snapshots {
    pub(crate) fn new(vault: Vault, changes: broadcast::Sender<Changed>) -> Self {
        let writers = Semaphore::new(SNAPSHOT_WRITERS);
        Self { vault: Arc::new(vault), passing: Mutex::default(), changes, writers }
    }

    fn passing(&self) -> MutexGuard<'_, HashMap<String, Passing>> {
        self.passing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, id: &str) {
        // Nobody listening is fine: who listens later is told everything.
        let _ = self.changes.send(Changed::Snapshot(id.to_owned()));
    }

    /// Announces a snapshot; false when it is known already.
    pub(crate) fn begin(&self, id: &str) -> bool {
        let known = self.vault.get(id).is_ok();
        let mut passing = self.passing();
        if known || passing.contains_key(id) {
            return false;
        }
        passing.insert(id.to_owned(), Passing::InProgress { deleted: false });
        drop(passing);
        self.changed(id);
        true
    }

    /// It is not taken, for this reason.
    pub(crate) fn fail(&self, id: &str, error: String) {
        tracing::warn!(snapshot = id, error, "a snapshot failed");
        {
            let mut passing = self.passing();
            let deleted = passing.get(id) == Some(&Passing::InProgress { deleted: true });
            let failed = passing.values().filter(|it| matches!(it, Passing::Failed(_))).count();
            match (deleted, failed >= FAILED_SNAPSHOTS_MAX) {
                (true, _) => passing.insert(id.to_owned(), Passing::Deleted),
                (false, true) => passing.remove(id),
                (false, false) => passing.insert(id.to_owned(), Passing::Failed(error)),
            };
        }
        self.changed(id);
    }

    /// Writes a snapshot to the vault, in the background.
    pub(crate) fn write_later(ctx: &Arc<Context>, capture: Capture) {
        let task = {
            let ctx = ctx.clone();
            async move {
                let (id, dir) = (capture.id.clone(), ctx.storage.capture(&capture.id));
                // The semaphore is never closed.
                let _turn = ctx.snapshots.writers.acquire().await;
                let written = write(&ctx, capture).await;
                let cleaned = blocking(move || crate::storage::remove_dir(&dir)).await;
                if let Err(error) = cleaned {
                    tracing::warn!(%error, "cannot remove what a snapshot was written from");
                }
                match written {
                    Ok(()) => ctx.snapshots.completed(&ctx, &id).await,
                    Err(error) => ctx.snapshots.fail(&id, chain(&error)),
                }
            }
        };
        ctx.spawn(task);
    }

    /// It is in the vault. One that was deleted meanwhile is never told as complete.
    async fn completed(&self, ctx: &Arc<Context>, id: &str) {
        let deleted = {
            let mut passing = self.passing();
            let deleted = passing.get(id) == Some(&Passing::InProgress { deleted: true });
            if !deleted {
                passing.remove(id);
            }
            deleted
        };
        if !deleted {
            self.changed(id);
        } else if let Err(error) = self.remove(ctx, id).await {
            tracing::warn!(snapshot = id, %error, "cannot remove a snapshot");
            self.passing().remove(id);
            self.changed(id);
        }
        let vault = self.vault.clone();
        let compacted = blocking(move || vault.compact(Compaction::Bounded)).await;
        if let Err(error) = compacted {
            tracing::warn!(error = chain(&error), "cannot compact the snapshots");
        }
    }

    /// Removes a snapshot; one that is being written goes when it is written. Again is fine.
    pub(crate) async fn delete(&self, ctx: &Arc<Context>, id: &str) -> Result<(), SnapshotError> {
        if let Some(passing @ Passing::InProgress { .. }) = self.passing().get_mut(id) {
            *passing = Passing::InProgress { deleted: true };
            return Ok(());
        }
        self.remove(ctx, id).await
    }

    async fn remove(&self, ctx: &Arc<Context>, id: &str) -> Result<(), SnapshotError> {
        let (vault, name) = (self.vault.clone(), id.to_owned());
        blocking(move || vault.delete(&name)).await?;
        self.passing().insert(id.to_owned(), Passing::Deleted);
        self.changed(id);
        let vault = self.vault.clone();
        let collect = async move {
            if let Err(error) = blocking(move || vault.collect()).await {
                tracing::warn!(error = chain(&error), "cannot reclaim space");
            }
        };
        ctx.spawn(collect);
        Ok(())
    }

    /// How one stands; a deleted one is told once. `None` when there is none.
    pub(crate) fn report(&self, id: &str) -> Option<SnapshotReport> {
        let passing = {
            let mut passing = self.passing();
            let found = passing.get(id).cloned();
            if found == Some(Passing::Deleted) {
                passing.remove(id);
            }
            found
        };
        let state = match passing {
            Some(Passing::InProgress { .. }) => SnapshotState::InProgress,
            Some(Passing::Failed(error)) => SnapshotState::Failed { error },
            Some(Passing::Deleted) => SnapshotState::Deleted,
            None => self.completed_state(id)?,
        };
        Some(SnapshotReport { snapshot_id: id.to_owned(), state })
    }

    fn completed_state(&self, id: &str) -> Option<SnapshotState> {
        let snapshot = self.vault.get(id).ok()?;
        let disk = snapshot.parts.iter().find(|(part, _)| *part == Part::Disk);
        let rootfs_disk_bytes = disk.map_or(0, |(_, length)| *length);
        Some(SnapshotState::Completed { size_bytes: snapshot.size_bytes, rootfs_disk_bytes })
    }

    /// How all of them stand.
    pub(crate) fn reports(&self) -> Vec<SnapshotReport> {
        let mut ids = self.vault.ids();
        let passing: Vec<String> = self.passing().keys().cloned().collect();
        ids.extend(passing);
        ids.sort();
        ids.dedup();
        ids.iter().filter_map(|id| self.report(id)).collect()
    }

    /// Its files, unpacked where they are not in the cache.
    pub(crate) async fn open(&self, id: &str) -> Result<Opened, SnapshotError> {
        let (vault, id) = (self.vault.clone(), id.to_owned());
        blocking(move || {
            let snapshot = vault.get(&id)?;
            let meta = serde_json::from_slice(&snapshot.metadata)
                .map_err(|error| SnapshotError::Meta { id: id.clone(), why: error.to_string() })?;
            let files = vault.unpacked(&id, &[])?;
            Ok(Opened { meta, files })
        })
        .await
    }
}

async fn write(ctx: &Arc<Context>, capture: Capture) -> Result<(), SnapshotError> {
    let Capture { id, meta, still, parent, same_process } = capture;
    let runs = still.finish(ctx, false).await.map_err(|error| match error {
        frozen::FreezeError::Storage(error) => SnapshotError::Storage(error),
        other => SnapshotError::Meta { id: id.clone(), why: other.to_string() },
    })?;
    let (ctx, dir) = (ctx.clone(), ctx.storage.capture(&id));
    blocking(move || {
        ctx.faults.point("snapshot: store")?;
        let vault = &ctx.snapshots.vault;
        let parent = parent.filter(|parent| vault.get(parent).is_ok());
        let metadata = serde_json::to_vec(&meta)
            .map_err(|error| SnapshotError::Meta { id: id.clone(), why: error.to_string() })?;
        let memory_base = match (&parent, same_process) {
            (Some(parent), true) => vault.chunk_map(parent, Part::Memory).ok().map(|map| (map, ranges(&runs))),
            _ => None,
        };
        let disk_base = parent.as_deref().and_then(|parent| disk_base(&ctx, parent, &dir));
        let files = [
            (Part::Disk, dir.join(frozen::DISK)),
            (Part::Memory, dir.join(frozen::MEMORY)),
            (Part::Devices, dir.join(frozen::DEVICES)),
        ];
        let there = || files.iter().filter(|(_, path)| path.exists());
        let parts: Vec<PartSource<'_>> = there()
            .map(|(part, file)| {
                let base = match part {
                    Part::Disk => disk_base.as_ref(),
                    Part::Memory => memory_base.as_ref(),
                    Part::Devices => None,
                };
                PartSource { part: *part, file, base: base.map(|(map, changed)| Base { map, changed }) }
            })
            .collect();
        vault.write(&NewSnapshot { id: &id, parent: parent.as_deref(), metadata: &metadata, parts: &parts })?;
        ctx.faults.point("snapshot: cache")?;
        let flat: Vec<(Part, &Path)> = there().map(|(part, path)| (*part, path.as_path())).collect();
        if let Err(error) = vault.adopt(&id, &flat) {
            // Only the first restore gets slower.
            tracing::warn!(snapshot = id, error = chain(&error), "cannot keep a snapshot unpacked");
        }
        Ok(())
    })
    .await
}

/// What the disk of the parent was, and where this one's differs, as far as that can be told.
fn disk_base(ctx: &Context, parent: &str, dir: &Path) -> Option<(ChunkMap, Vec<Range<u64>>)> {
    let map = ctx.snapshots.vault.chunk_map(parent, Part::Disk).ok()?;
    // Without a guard: if it leaves the cache meanwhile, the whole disk is read instead.
    let flat = ctx.storage.cached_snapshot(parent).join(frozen::DISK);
    let changed = storage::changed_extents(&flat, &dir.join(frozen::DISK)).ok()?;
    Some((map, changed))
}

fn ranges(runs: &[(u64, u64)]) -> Vec<Range<u64>> {
    runs.iter().map(|(offset, length)| *offset..offset + length).collect()
}
