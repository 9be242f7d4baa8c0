//! Golden snapshots: a machine that has booted once, so that no later sandbox has to.
//!
//! ```text
//! (absent) --build_later--> building --published--> ready --(unused, or its use failed)--> gone
//!                              \-- failed: the next sandbox asks again
//! ```
//! A template is a standstill ([`crate::sandbox::frozen`]) of a guest that was only rehearsed
//! ([`Configure::rehearsal`](belljar_api::guest::Configure::rehearsal)): it is nobody's yet, and holds no
//! secret. Its key is a hash of everything that went into it, the VMM's version included, so one that no longer fits is simply
//! not found; the bound of [`TEMPLATES_MAX`] removes it in the end. Sandboxes hold hard links to its memory, so its removal
//! harms none.
//!
//! The first sandbox of a kind does not wait for it: it boots while the template is built beside it.
//! [`spares`] keeps VMs restored from it ready. Called by [`crate::sandbox::boot`] and at the node's start.

mod spares;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use belljar_api::{
    image::Init,
    sandbox::{Resources, ResourcesRequest},
};
use belljar_vmm::{Vm, VmSpec};
use tokio::sync::Semaphore;

use self::spares::Spares;
pub(crate) use self::spares::{Claimed, Unclaimed};
use crate::{
    Context, blocking, chain, guest,
    images::LocalImage,
    limits::{
        BOOT_TIMEOUT, REST_REPORTING_WINDOWS, REST_SHARE, REST_WINDOW, REST_WINDOWS_MAX, SETTLE_TIMEOUT,
        SYSTEM_SETTLE_TIMEOUT, TEMPLATES_MAX,
    },
    network,
    sandbox::{
        boot::{self, BootError, vm_spec},
        frozen::{self, Still},
        linked::linked,
    },
    standby,
    storage::StorageError,
};

/// Changes whenever a template of an earlier release must not be used any more.
const FORMAT: &str = "1";
/// Hexadecimal digits of a key.
const KEY_DIGITS: usize = 32;
/// What a template's VM has.
const RESOURCES: &str = "resources.json";
/// Of `/proc`: the same on all architectures (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;
/// Where a template is made.
const BUILDING: &str = ".building";

/// What a template is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(String);

/// All templates of a node.
#[derive(Debug)]
pub(crate) struct Templates {
    enabled: bool,
    spares: Spares,
    /// Hash of kernel and initramfs, read once.
    artifacts: OnceLock<String>,
    /// Being built, or waiting for their turn.
    building: Mutex<HashSet<Key>>,
    /// One at a time: building takes a processor for seconds, and sandboxes come first.
    turn: Semaphore,
}

impl Templates {
    /// `enabled`: whether there are any; `spares`: VMs to keep ready for each.
    pub(crate) fn new(enabled: bool, spares: usize) -> Self {
        Self {
            enabled,
            spares: Spares::new(if enabled { spares } else { 0 }),
            artifacts: OnceLock::new(),
            building: Mutex::default(),
            turn: Semaphore::new(1),
        }
    }

    /// Ends and removes every spare and what is half-made. Before the first and after the last use of all this.
    pub(crate) async fn sweep(&self, ctx: &Arc<Context>) {
        self.spares.clear();
        ctx.standby.clear();
        if let Err(error) = spares::sweep(ctx).await {
            tracing::warn!(error = chain(&error), "VMs that were kept ready stay behind");
        }
    }

    /// Builds the default image's template.
    pub(crate) async fn start(&self, ctx: &Arc<Context>) {
        if !self.enabled {
            return;
        }
        let Ok(resources) = ResourcesRequest::default().resolve() else { return };
        standby::refill(ctx, &resources);
        match ctx.images.ensure(belljar_image::DEFAULT_IMAGE, &ctx.storage).await {
            Ok(image) => match self.key(ctx, &image, &resources) {
                Some(key) if self.find(ctx, &key).is_some() => self.spares.refill(ctx, key),
                Some(key) => self.build_later(ctx, key, image, resources),
                None => {}
            },
            Err(error) => tracing::info!(error = chain(&error), "no template of the default image is built"),
        }
    }

    /// Key of what fits; `None` where there are no templates.
    pub(crate) fn key(&self, ctx: &Context, image: &LocalImage, resources: &Resources) -> Option<Key> {
        if !self.enabled || !ctx.driver.capabilities().snapshots {
            return None;
        }
        let artifacts = match self.artifacts.get() {
            Some(hash) => hash,
            None => {
                let hash = hash_artifacts(ctx)
                    .inspect_err(|error| tracing::warn!(error = chain(error), "no templates"))
                    .ok()?;
                self.artifacts.get_or_init(|| hash)
            }
        };
        let (image, init) = (image.rootfs.to_string_lossy(), boot::command_line(image.runtime.init));
        let vcpus = resources.cpus.ceil().to_string();
        let memory = resources.memory_mb.to_string();
        let driver = ctx.driver.kind().to_string();
        let hidden = ctx.hidden_features.names().collect::<Vec<_>>().join(",");
        let (version, network) = (ctx.driver.version(), ctx.network.kind());
        let mut hasher = blake3::Hasher::new();
        for part in [FORMAT, artifacts, &image, init, &vcpus, &memory, &driver, version, network, &hidden] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Some(Key(hasher.finalize().to_hex()[..KEY_DIGITS].to_owned()))
    }

    /// Directory of a finished template, marked as used now.
    pub(crate) fn find(&self, ctx: &Context, key: &Key) -> Option<PathBuf> {
        let dir = ctx.storage.templates().join(&key.0);
        // Its age decides which one goes first; that it cannot be set makes it only go earlier.
        fs::File::open(&dir).and_then(|file| file.set_modified(SystemTime::now())).ok().map(|()| dir)
    }

    /// A VM that was kept ready. Another takes its place.
    pub(crate) fn claim(&self, ctx: &Arc<Context>, key: &Key) -> Option<Claimed> {
        let spare = self.spares.take(key);
        if self.find(ctx, key).is_some() {
            self.spares.refill(ctx, key.clone());
        }
        spare.map(|spare| Claimed::new(ctx.clone(), spare))
    }

    /// Removes a template that turned out to be of no use, and the VMs that were restored from it.
    pub(crate) fn discard(&self, ctx: &Arc<Context>, key: &Key) {
        while let Some(spare) = self.spares.take(key) {
            drop(Claimed::new(ctx.clone(), spare));
        }
        if let Err(error) = crate::storage::remove_dir(&ctx.storage.templates().join(&key.0)) {
            tracing::warn!(%error, "cannot remove a template");
        }
    }

    /// Builds a template in the background, unless that is under way.
    pub(crate) fn build_later(&self, ctx: &Arc<Context>, key: Key, image: LocalImage, resources: Resources) {
        if !self.building().insert(key.clone()) {
            return;
        }
        let task = {
            let ctx = ctx.clone();
            async move {
                // The semaphore is never closed.
                let _turn = ctx.templates.turn.acquire().await;
                let begun = tokio::time::Instant::now();
                let built = build(&ctx, &key, &image, &resources).await;
                ctx.templates.building().remove(&key);
                match built {
                    Ok(()) => {
                        tracing::info!(key = key.0, "built a golden snapshot in {} ms", begun.elapsed().as_millis());
                        ctx.templates.spares.refill(&ctx, key);
                    }
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "cannot build a golden snapshot; sandboxes boot instead");
                    }
                }
            }
        };
        ctx.spawn(task);
    }

    fn building(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash_artifacts(ctx: &Context) -> Result<String, StorageError> {
    let mut hasher = blake3::Hasher::new();
    for path in [&ctx.artifacts.kernel, &ctx.artifacts.initrd] {
        let bytes = fs::read(path).map_err(StorageError::io("read", path))?;
        hasher.update(blake3::hash(&bytes).as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Boots, settles, rehearses, freezes, publishes. Whatever fails, the VM is gone afterwards.
async fn build(ctx: &Arc<Context>, key: &Key, image: &LocalImage, resources: &Resources) -> Result<(), BootError> {
    let home = ctx.storage.templates().join(BUILDING);
    spares::discard(ctx, &home).await;
    let built = build_in(ctx, &home, image, resources).await;
    let result = match built {
        Ok(()) => {
            let (ctx, home, key) = (ctx.clone(), home.clone(), key.clone());
            blocking(move || publish(&ctx, &home, &key)).await.map_err(BootError::from)
        }
        Err(error) => Err(error),
    };
    if result.is_err() {
        spares::discard(ctx, &home).await;
    }
    result
}

async fn build_in(ctx: &Arc<Context>, home: &Path, image: &LocalImage, resources: &Resources) -> Result<(), BootError> {
    let (this, at, rootfs, wanted) = (ctx.clone(), home.to_owned(), image.rootfs.clone(), resources.clone());
    blocking(move || {
        this.faults.point("template: prepare")?;
        this.storage.check_free()?;
        boot::make_run_dir(&at.join(boot::RUN))?;
        // As small as a disk may be: a larger one grows after the restore.
        let size = belljar_api::limits::DISK_MIN_MB << 20;
        this.storage.clone_disk(&rootfs, &at.join(boot::DISK), size)?;
        frozen::blank_memory(&at, wanted.memory_mb)?;
        let file = at.join(RESOURCES);
        let text = serde_json::to_vec(&wanted).map_err(|error| StorageError::io("encode", &file)(error.into()))?;
        fs::write(&file, text).map_err(StorageError::io("write", &file))
    })
    .await?;
    let network = network::plug(ctx, home).await?;
    let init = image.runtime.init;
    let cmdline_extra = boot::command_line(init).to_owned();
    let spec = VmSpec { cmdline_extra, ..vm_spec(ctx, "template", home, resources, network) };
    let vm: Arc<dyn Vm> = Arc::from(ctx.driver.launch(&spec).await?);
    let (settle_timeout, timeout) = match init {
        Init::Agent => (SETTLE_TIMEOUT, BOOT_TIMEOUT),
        Init::Systemd => (SYSTEM_SETTLE_TIMEOUT, BOOT_TIMEOUT + SYSTEM_SETTLE_TIMEOUT),
    };
    let linked = linked(&*vm, None, timeout, |link| async move {
        guest::settle(&link, settle_timeout).await?;
        // What a first configuration reads and makes is in its memory then, for every sandbox.
        guest::configure(&link, &boot::rehearsal(ctx)).await?;
        if init == Init::Systemd {
            // Services run in there, and must not before they are a sandbox's.
            guest::freeze(&link, false).await?;
        }
        Ok(link)
    });
    let kept = async {
        let (link, session) = linked.await?;
        drop((link, session));
        come_to_rest(&*vm, ctx.driver.capabilities().takes_back_memory).await;
        vm.pause().await?;
        vm.save_devices(&home.join(frozen::DEVICES)).await?;
        Still::of(home, vm.clone()).finish(ctx, true).await?;
        Ok::<_, BootError>(())
    }
    .await;
    vm.kill().await?;
    let (this, home) = (ctx.clone(), home.to_owned());
    blocking(move || network::unplug(&this.network, &home)).await?;
    kept
}

/// Waits until a guest has nothing left to do, as far as that can be seen from outside: what is still to be done when it is frozen,
/// every sandbox would have to do first. `reports`: it tells the host which memory is free, two seconds after it became so.
async fn come_to_rest(vm: &dyn Vm, reports: bool) {
    let least = if reports { REST_REPORTING_WINDOWS } else { 1 };
    let mut before = processor_time(vm.pid());
    for window in 1..=REST_WINDOWS_MAX {
        // Nobody tells when there is nothing to tell.
        tokio::time::sleep(REST_WINDOW).await;
        let now = processor_time(vm.pid());
        let used = before.zip(now).map_or(Duration::ZERO, |(before, now)| now.saturating_sub(before));
        if window >= least && used <= REST_WINDOW / REST_SHARE {
            return;
        }
        before = now;
    }
    tracing::debug!("the guest of a golden snapshot does not come to rest");
}

/// Processor time that a process has used: `utime` and `stime` of `/proc/PID/stat`. `None`: it is gone.
fn processor_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11).map(str::parse::<u64>);
    let ticks = fields.next()?.ok()? + fields.next()?.ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// What the VM of a finished template has.
fn resources(dir: &Path) -> Result<Resources, StorageError> {
    let file = dir.join(RESOURCES);
    let text = fs::read(&file).map_err(StorageError::io("read", &file))?;
    serde_json::from_slice(&text).map_err(|error| StorageError::io("decode", &file)(error.into()))
}

/// Gives the finished directory its name, and removes those that were not used for the longest time.
fn publish(ctx: &Context, home: &Path, key: &Key) -> Result<(), StorageError> {
    let (shelf, place) = (ctx.storage.templates(), ctx.storage.templates().join(&key.0));
    ctx.faults.point("template: complete")?;
    crate::storage::remove_dir(&home.join(boot::RUN))?;
    let disk = home.join(frozen::DISK);
    fs::rename(home.join(boot::DISK), &disk).map_err(StorageError::io("rename a disk to", &disk))?;
    frozen::sync_all(home)?;
    ctx.faults.point("template: publish")?;
    crate::storage::remove_dir(&place)?;
    fs::rename(home, &place).map_err(StorageError::io("rename a template to", &place))?;
    frozen::sync_dir(&shelf)?;
    ctx.faults.point("template: drop the oldest")?;
    for old in beyond(list(&shelf)?, TEMPLATES_MAX) {
        crate::storage::remove_dir(&old)?;
    }
    Ok(())
}

/// Finished templates, with the time of their last use.
fn list(shelf: &Path) -> Result<Vec<(SystemTime, PathBuf)>, StorageError> {
    let io = |operation| StorageError::io(operation, shelf);
    let mut found = Vec::new();
    for entry in fs::read_dir(shelf).map_err(io("list"))? {
        let entry = entry.map_err(io("list"))?;
        if entry.file_name() != BUILDING {
            let used =
                entry.metadata().and_then(|meta| meta.modified()).map_err(io("read the age of a template in"))?;
            found.push((used, entry.path()));
        }
    }
    Ok(found)
}

/// Those that are too many, by their last use.
fn beyond(mut all: Vec<(SystemTime, PathBuf)>, keep: usize) -> Vec<PathBuf> {
    all.sort();
    let excess = all.len().saturating_sub(keep);
    all.into_iter().take(excess).map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_unused_for_longest_goes_first() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let all = vec![(at(3), "c".into()), (at(1), "a".into()), (at(2), "b".into())];
        assert_eq!(beyond(all.clone(), 2), vec![PathBuf::from("a")]);
        assert_eq!(beyond(all, 3), Vec::<PathBuf>::new());
    }
}
