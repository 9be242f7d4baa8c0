//! VMs that are restored from a template ahead of time and stand still until a sandbox takes one over.
//!
//! A spare is a directory with `memory`, `disk.ext4`, `network` and `run/`, exactly as a sandbox's, so taking it over is
//! four renames.
//! It is refilled when one is taken. It has no owner and no identity: the sandbox that takes it configures it. A new node
//! process knows none of them and ends them ([`sweep`]).

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use belljar_api::{id::new_id, sandbox::Resources};
use belljar_vmm::{Vm, VmSpec};

use super::Key;
use crate::{
    Context, blocking, chain, guest,
    limits::{RESTORE_TIMEOUT, SPARES_MAX, UNDO_PAUSE},
    network,
    sandbox::{
        boot::{self, BootError, vm_spec},
        frozen,
        linked::{Linked, linked},
    },
    storage::StorageError,
};

/// A restored VM that stands still, and whose agent has been reached. Nobody else can drive it meanwhile.
pub(super) struct Spare {
    dir: PathBuf,
    vm: Arc<dyn Vm>,
    link: Linked,
}

/// A spare that was taken out. What is not moved elsewhere goes with it, when nobody drives it any more.
pub(crate) struct Claimed {
    /// It may be driven wherever its directory is moved to.
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) link: Linked,
    pub(crate) home: Unclaimed,
}

impl Claimed {
    pub(super) fn new(ctx: Arc<Context>, spare: Spare) -> Self {
        let Spare { dir, vm, link } = spare;
        Self { vm, link, home: Unclaimed::new(ctx, dir) }
    }
}

/// Directory of a VM that is nobody's. When this is dropped, whatever was not moved elsewhere is ended and removed.
pub(crate) struct Unclaimed {
    ctx: Arc<Context>,
    dir: PathBuf,
}

impl Unclaimed {
    pub(crate) fn new(ctx: Arc<Context>, dir: PathBuf) -> Self {
        Self { ctx, dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// It stays.
    pub(crate) fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.dir)
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        let (ctx, dir) = (self.ctx.clone(), std::mem::take(&mut self.dir));
        if !dir.as_os_str().is_empty() && dir.exists() {
            self.ctx.spawn(async move { discard(&ctx, &dir).await });
        }
    }
}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spare").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// All spares.
#[derive(Debug)]
pub(super) struct Spares {
    per_template: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ready: HashMap<Key, Vec<Spare>>,
    /// Being made, by template.
    making: HashMap<Key, usize>,
}

impl Inner {
    fn count(&self, key: &Key) -> usize {
        self.ready.get(key).map_or(0, Vec::len) + self.making.get(key).copied().unwrap_or(0)
    }

    fn total(&self) -> usize {
        self.ready.values().map(Vec::len).sum::<usize>() + self.making.values().sum::<usize>()
    }
}

impl Spares {
    pub(super) fn new(per_template: usize) -> Self {
        Self { per_template, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest one.
    pub(super) fn take(&self, key: &Key) -> Option<Spare> {
        let mut inner = self.lock();
        let ready = inner.ready.get_mut(key)?;
        let spare = (!ready.is_empty()).then(|| ready.remove(0));
        if ready.is_empty() {
            inner.ready.remove(key);
        }
        spare
    }

    /// Makes as many as are missing, in the background. Where there are too many in all, those of the template that was
    /// asked for win: another one's are ended.
    pub(super) fn refill(&self, ctx: &Arc<Context>, key: Key) {
        let (missing, evicted) = {
            let mut inner = self.lock();
            let missing = self.per_template.saturating_sub(inner.count(&key));
            *inner.making.entry(key.clone()).or_default() += missing;
            let mut evicted = Vec::new();
            while inner.total() > SPARES_MAX {
                let Some(other) = inner.ready.keys().find(|other| **other != key).cloned() else { break };
                evicted.extend(inner.ready.remove(&other));
            }
            (missing, evicted.into_iter().flatten().collect::<Vec<_>>())
        };
        let task = {
            let ctx = ctx.clone();
            async move {
                for spare in evicted {
                    drop(Claimed::new(ctx.clone(), spare));
                }
                for _ in 0..missing {
                    ctx.templates.spares.make_one(&ctx, &key).await;
                }
            }
        };
        ctx.spawn(task);
    }

    async fn make_one(&self, ctx: &Arc<Context>, key: &Key) {
        // Sandboxes that are being made have the machine first.
        ctx.calm.wait().await;
        let slot = ctx.boot_slots.acquire().await;
        let dir = ctx.storage.spares().join(new_id());
        let made = make(ctx, key, &dir).await;
        drop(slot);
        let kept = {
            let mut inner = self.lock();
            if let Some(making) = inner.making.get_mut(key) {
                *making = making.saturating_sub(1);
            }
            made.map(|(vm, link)| {
                let spare = Spare { dir: dir.clone(), vm, link };
                inner.ready.entry(key.clone()).or_default().push(spare);
            })
        };
        if let Err(error) = kept {
            tracing::warn!(error = chain(&error), "cannot keep a VM ready");
            discard(ctx, &dir).await;
        }
    }

    /// Lets go of all of them.
    pub(super) fn clear(&self) {
        self.lock().ready.clear();
    }
}

async fn make(ctx: &Arc<Context>, key: &Key, dir: &Path) -> Result<(Arc<dyn Vm>, Linked), BootError> {
    let template = ctx.storage.templates().join(&key.0);
    let (this, from, to) = (ctx.clone(), template.clone(), dir.to_owned());
    let resources = blocking(move || {
        this.faults.point("spare: prepare")?;
        this.storage.check_free()?;
        boot::make_run_dir(&to.join(boot::RUN))?;
        frozen::bring_in(&this.storage, &from, frozen::MEMORY, &to)?;
        super::resources(&from)
    })
    .await?;
    let resources: Resources = resources;
    let devices = Some(template.join(frozen::DEVICES));
    let network = network::plug(ctx, dir).await?;
    let spec = VmSpec { devices, ..vm_spec(ctx, "spare", dir, &resources, network) };
    let vm: Arc<dyn Vm> = Arc::from(ctx.driver.launch(&spec).await?);
    let link = rehearse(ctx, &*vm).await?;
    // What the rehearsal sent is nobody's to be told of.
    network::lay_rules(ctx, dir).await?;
    Ok((vm, link))
}

/// Lets the guest do once what it will have to do first, and stops it again: emulated code has to be translated before it
/// runs, and that is most of the time that a first configuration and a first program take. The link stays: it stands still
/// with the guest.
async fn rehearse(ctx: &Arc<Context>, vm: &dyn Vm) -> Result<Linked, BootError> {
    ctx.faults.point("spare: rehearse")?;
    vm.resume().await?;
    let link = linked(vm, None, RESTORE_TIMEOUT, |link| async move {
        guest::configure(&link, &boot::rehearsal(ctx)).await?;
        Ok(link)
    })
    .await?;
    vm.pause().await?;
    Ok(link)
}

/// As [`end`], until it works: nobody else would do it.
pub(super) async fn discard(ctx: &Arc<Context>, dir: &Path) {
    let mut pause = UNDO_PAUSE.0;
    while let Err(error) = end(ctx, dir).await {
        tracing::warn!(error = chain(&error), "a VM that was kept ready stays behind");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(UNDO_PAUSE.1);
    }
}

/// Ends the VM of a directory, if there is one, and removes the directory, if it is there.
async fn end(ctx: &Arc<Context>, dir: &Path) -> Result<(), BootError> {
    boot::end_vm(ctx, dir).await?;
    let dir = dir.to_owned();
    Ok(blocking(move || crate::storage::remove_dir(&dir)).await?)
}

/// Ends every spare and what was being built.
pub(super) async fn sweep(ctx: &Arc<Context>) -> Result<(), BootError> {
    let shelf = ctx.storage.spares();
    let entries = std::fs::read_dir(&shelf).map_err(StorageError::io("list", &shelf))?;
    for entry in entries {
        end(ctx, &entry.map_err(StorageError::io("list", &shelf))?.path()).await?;
    }
    end(ctx, &ctx.storage.templates().join(super::BUILDING)).await
}
