//! Snapshots, copies and rollback of a sandbox.
//!
//! A snapshot and a set of copies are the same at first: the sandbox stands still for a moment, what can change is kept, and
//! it goes on. What is kept is then written and used while it runs.

use std::{path::Path, sync::Arc};

use belljar_api::{log::level, node::NodeState, snapshot::SnapshotType};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Forked, Seed,
    boot::Booted,
    frozen::{self, FreezeError, Meanwhile, Parts, Scratch, Still},
    sleep::{SLEEP, SLEEP_NEW},
    task::{Stage, Task},
};
use crate::{
    Context, blocking, chain,
    snapshots::{Capture, Meta, SnapshotError, Snapshots},
    storage::StorageError,
};

impl Task {
    /// Takes a snapshot; the sandbox goes on, whatever becomes of it.
    pub(super) async fn snapshot(&mut self, booted: Booted, id: String, kind: SnapshotType) -> Stage {
        let parts = match kind {
            SnapshotType::Memory => Parts::All,
            SnapshotType::Filesystem => Parts::DiskOnly,
        };
        let into = self.ctx.storage.capture(&id);
        let (still, stage) = self.stand_still(booted, &into, parts).await;
        match still {
            Ok(still) => {
                let meta = Meta {
                    spec: self.record.spec.clone(),
                    runtime: self.runtime(),
                    sandbox_id: self.record.sandbox_id.clone(),
                    kind,
                };
                let parent = self.record.last_snapshot.replace(id.clone());
                let same_process = parent.is_some() && self.last_snapshot == parent;
                if kind == SnapshotType::Memory {
                    self.last_snapshot = Some(id.clone());
                }
                Snapshots::write_later(&self.ctx, Capture { id, meta, still, parent, same_process });
            }
            Err(error) => {
                self.drop_capture(into).await;
                self.note(level::WARN, &format!("no snapshot was taken: {}", chain(&error)));
                self.ctx.snapshots.fail(&id, chain(&error));
            }
        }
        stage
    }

    /// Gives the copies that wait what they are made from; the sandbox goes on, whatever becomes of them.
    pub(super) async fn copy(&mut self, booted: Booted, seats: Vec<oneshot::Sender<Forked>>) -> Stage {
        if seats.is_empty() {
            return Stage::Awake(booted);
        }
        let into = self.ctx.storage.fork(&belljar_api::id::new_id());
        let (still, stage) = self.stand_still(booted, &into, Parts::All).await;
        let seed = match still {
            Ok(still) => still.finish(&self.ctx, false).await,
            Err(error) => Err(error),
        };
        match seed {
            Ok(_) => {
                let seed = Seed { still: Arc::new(Scratch::new(into)), runtime: self.runtime() };
                for seat in seats {
                    // A copy that was ended meanwhile does not want it any more.
                    let _ = seat.send(Ok(seed.clone()));
                }
            }
            Err(error) => {
                self.drop_capture(into).await;
                let why = format!("its source could not be copied: {}", chain(&error));
                self.trouble("cannot be copied", &chain(&error));
                for seat in seats {
                    let _ = seat.send(Err(why.clone()));
                }
            }
        }
        stage
    }

    /// The one pause of a sandbox that goes on: stop, keep, go on.
    async fn stand_still(&mut self, booted: Booted, into: &Path, parts: Parts) -> (Result<Still, FreezeError>, Stage) {
        if !self.ctx.driver.capabilities().snapshots {
            let error = FreezeError::Vmm(belljar_vmm::VmmError::NoSnapshots);
            return (Err(error), Stage::Awake(booted));
        }
        let begun = Instant::now();
        let still = frozen::stop(&self.ctx, &booted, &self.dir, into, parts, Meanwhile::GoesOn).await;
        let stage = self.carry_on(booted).await;
        self.note(level::INFO, &format!("stood still, {} ms with what led there", begun.elapsed().as_millis()));
        (still, stage)
    }

    async fn drop_capture(&self, dir: std::path::PathBuf) {
        if let Err(error) = blocking(move || crate::storage::remove_dir(&dir)).await {
            tracing::warn!(%error, "what is left of a standstill stays behind");
        }
    }

    /// Puts it back to a snapshot of its own. The snapshot becomes what the sandbox sleeps in; from then on it is an
    /// ordinary wake.
    pub(super) async fn rollback(&mut self, now: Option<Booted>, snapshot_id: String) -> Stage {
        let was_asleep = self.record.state == NodeState::Suspended;
        // Not only when it is laid down: nobody may take it for done before.
        self.publish(NodeState::Resuming, None);
        let (ctx, dir, own) = (self.ctx.clone(), self.dir.clone(), self.record.sandbox_id.clone());
        let id = snapshot_id.clone();
        let laid = match self.unless_ended(async move { unpack(&ctx, &dir, &own, &id).await }).await {
            Ok(laid) => laid,
            Err(ending) => return Stage::Over(ending),
        };
        let laid = match laid {
            Ok(()) => self.lay_down(&snapshot_id, was_asleep).await,
            Err(error) => Err(error),
        };
        if let Err(error) = laid {
            self.trouble("cannot be rolled back", &chain(&error));
            return match now {
                Some(booted) if !was_asleep => {
                    self.drop_standstills().await;
                    Stage::Awake(booted)
                }
                resident => Stage::Asleep(resident),
            };
        }
        self.note(level::INFO, &format!("rolled back to snapshot {snapshot_id}"));
        // What it slept in until now, if it did.
        self.put_away(SLEEP_NEW).await;
        // Its present goes before its past wakes.
        self.give_back(now).await;
        self.wake(None).await
    }

    /// Makes `sleep.new` what the sandbox sleeps in. One that is awake sleeps there with the record's word, one that is
    /// asleep with the exchange of the two directories.
    async fn lay_down(&mut self, snapshot_id: &str, asleep: bool) -> Result<(), RollbackError> {
        let (ctx, dir) = (self.ctx.clone(), self.dir.clone());
        blocking(move || {
            ctx.faults.point("rollback: exchange")?;
            swap_in(&dir)
        })
        .await?;
        let mut next = self.record.clone();
        next.state = NodeState::Suspended;
        next.last_snapshot = Some(snapshot_id.to_owned());
        let point = self.ctx.faults.point("rollback: record").map_err(RollbackError::from);
        if let Err(error) = point.and_then(|()| next.save(&self.dir).map_err(RollbackError::from))
            && !asleep
        {
            // It may have got to the disk all the same.
            self.save();
            return Err(error);
        }
        self.record = next;
        Ok(())
    }
}

/// Gives `sleep.new` the name `sleep`, and what had that name the other: there is always one.
fn swap_in(dir: &Path) -> Result<(), StorageError> {
    let (new, sleep) = (dir.join(SLEEP_NEW), dir.join(SLEEP));
    let swap = || {
        if sleep.exists() {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            renameat_with(CWD, &new, CWD, &sleep, RenameFlags::EXCHANGE).map_err(std::io::Error::from)
        } else {
            std::fs::rename(&new, &sleep)
        }
    };
    swap().map_err(StorageError::io("exchange a standstill with", &sleep))?;
    frozen::sync_dir(dir)
}

/// Makes `sleep.new` of a snapshot, complete and durable.
async fn unpack(ctx: &Arc<Context>, dir: &Path, own: &str, snapshot_id: &str) -> Result<(), RollbackError> {
    let opened = ctx.snapshots.open(snapshot_id).await?;
    if opened.meta.kind != SnapshotType::Memory || opened.meta.sandbox_id != own {
        return Err(RollbackError::NotOwn(snapshot_id.to_owned()));
    }
    let (ctx, from, new) = (ctx.clone(), opened.dir(), dir.join(SLEEP_NEW));
    blocking(move || {
        crate::storage::remove_dir(&new)?;
        std::fs::create_dir(&new).map_err(StorageError::io("create", &new))?;
        ctx.faults.point("rollback: unpack")?;
        frozen::link(&ctx.storage, &from.join(frozen::MEMORY), &new.join(frozen::MEMORY))?;
        for name in [frozen::DEVICES, frozen::DISK] {
            ctx.storage.clone_disk(&from.join(name), &new.join(name), 0)?;
        }
        frozen::sync_all(&new)
    })
    .await?;
    // The files had to stay in the cache until here.
    drop(opened);
    Ok(())
}

/// A rollback that did not happen; the sandbox is as it was.
#[derive(Debug, thiserror::Error)]
enum RollbackError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Record(#[from] crate::record::RecordError),
    #[error("snapshot {0} is not a memory snapshot of this sandbox")]
    NotOwn(String),
}
