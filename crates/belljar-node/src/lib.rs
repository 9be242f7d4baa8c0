//! The node: runs the sandboxes of one host.
//!
//! It owns the host's part of every sandbox ([`sandbox`]), their disks ([`storage`]), logs ([`logs`]) and links to the
//! guests, and dials out to a server ([`uplink`]) that tells it what to run. It is not the server: it knows no users,
//! keys, quotas or other nodes, and has no database; what it must remember lies in each sandbox's own directory.
//! VMs are processes of their own: they outlive the node, and the next one finds them again.
//!
//! Called by the `belljar` binary (`up`).

mod account;
mod calm;
mod config;
mod driver;
mod egress;
mod fault;
mod gpus;
mod guest;
mod idle;
mod images;
mod jails;
mod limits;
mod logs;
mod network;
mod pressure;
mod program;
mod record;
mod registry;
mod sandbox;
mod snapshots;
mod standby;
pub mod storage;
mod templates;
#[cfg(test)]
mod testing;
mod uplink;
pub mod vault;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use belljar_api::{node::Capacity, sandbox::TerminationReason};
use belljar_vmm::{Driver, DriverKind};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use belljar_vmm::{CpuFeature, DiskLimits, HiddenFeatures, jail};

use self::{
    calm::Calm,
    egress::credentials::Safe,
    fault::Faults,
    gpus::Gpus,
    idle::ConnectionSlots,
    images::{Images, Imports},
    network::{Network, Owner},
    record::Ending,
    registry::Registry,
    snapshots::Snapshots,
    standby::Standby,
    storage::Storage,
    templates::Templates,
    vault::Vault,
};
pub use self::{
    config::{Artifacts, NodeConfig, ServerSetting},
    driver::{DriverError, DriverSetting, Machine},
    gpus::{GpuError, GpuSetting, check as check_gpus},
    jails::{JailError, JailOptions, JailSetting, open as open_jail},
    network::{NetworkError, NetworkLimits, NetworkOptions, NetworkSetting, probe as probe_network},
    program::ProgramError,
};

/// How a node stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shutdown {
    /// It does not.
    #[default]
    No,
    /// The VMs go on; the next node finds them again.
    KeepSandboxes,
    /// Every sandbox ends first.
    EndSandboxes,
}

/// A node that cannot start or stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file or directory of the node failed.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A kernel or initramfs is missing.
    #[error("{what} {path} is missing or not readable; make it with `cargo xtask {task}`")]
    Artifact {
        /// `kernel` or `initramfs`.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What makes it.
        task: &'static str,
    },
    /// The data directory.
    #[error(transparent)]
    Storage(#[from] storage::StorageError),
    /// The store of snapshots.
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    /// No driver works here.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// No jails for VM processes.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// No networks for sandboxes.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// GPUs that cannot be had.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// What every part of the node shares.
pub(crate) struct Context {
    pub(crate) node_id: String,
    pub(crate) node_token: String,
    pub(crate) server: ServerSetting,
    pub(crate) capacity: Capacity,
    pub(crate) storage: Storage,
    pub(crate) images: Images,
    /// Imports for builds over the API.
    pub(crate) imports: Imports,
    pub(crate) driver: Box<dyn Driver>,
    pub(crate) artifacts: Artifacts,
    /// What VM processes are locked in.
    pub(crate) jail: Option<jail::Jail>,
    /// Whether guests have a network card, and are told of a network.
    pub(crate) has_network: bool,
    /// What their cards are connected to.
    pub(crate) network: Network,
    /// Secrets, as the server has told them.
    pub(crate) safe: Arc<Safe>,
    /// Snapshots that are kept, written, or failed.
    pub(crate) snapshots: Snapshots,
    /// Golden snapshots and VMs kept ready.
    pub(crate) templates: Templates,
    /// VM processes that wait for a guest.
    pub(crate) standby: Standby,
    /// How long the memory of a sleeping sandbox is held for a quick wake.
    pub(crate) resident: Duration,
    /// How much of their disks' speed sandboxes may have, each.
    pub(crate) disk_limits: DiskLimits,
    /// Features of the processor that guests are not told of.
    pub(crate) hidden_features: HiddenFeatures,
    /// What sandboxes can have for themselves.
    pub(crate) gpus: Gpus,
    /// Where tests make things fail.
    pub(crate) faults: Faults,
    /// Whom what is made ahead waits for.
    pub(crate) calm: Calm,
    /// Boots at once: more only slow each other down.
    pub(crate) boot_slots: Semaphore,
    pub(crate) connections: ConnectionSlots,
    pub(crate) registry: Registry,
    /// Tasks that use the node's files.
    pub(crate) tasks: TaskTracker,
    /// Stops them where they are, for a node that goes and leaves its VMs.
    pub(crate) leaving: CancellationToken,
}

impl Context {
    /// Runs something beside everything else until it is done or the node leaves; a leaving node waits for the file work
    /// in it.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let work = self.leaving.clone().run_until_cancelled_owned(work);
        self.tasks.spawn(FILE_WORK.scope(TaskTracker::new(), async move {
            work.await;
            file_work_done().await;
        }));
    }

    pub(crate) fn forget(&self, id: &str) {
        self.registry.forget(id);
    }
}

/// Runs a node until `shutdown` says otherwise.
pub async fn run(config: NodeConfig, shutdown: watch::Receiver<Shutdown>) -> Result<(), NodeError> {
    let driver = driver::open(&config)?;
    run_with(config, driver, shutdown).await
}

async fn run_with(
    config: NodeConfig,
    driver: Box<dyn Driver>,
    mut shutdown: watch::Receiver<Shutdown>,
) -> Result<(), NodeError> {
    let storage = Storage::open(&config.data_dir, &config.storage)?;
    let ctx = Arc::new(open(config, driver, storage)?);
    start(&ctx).await?;
    let mode = tokio::select! {
        () = uplink::run(ctx.clone()) => Shutdown::No,
        // A dropped sender means that the program is going away: the VMs are not ours to end.
        mode = shutdown.wait_for(|mode| *mode != Shutdown::No) => mode.map_or(Shutdown::KeepSandboxes, |mode| *mode),
    };
    stop(&ctx, mode).await?;
    Ok(())
}

/// Takes up what an earlier node process left, and begins to serve.
async fn start(ctx: &Arc<Context>) -> Result<(), NodeError> {
    // Before anything can make new ones: what there is now belongs to nobody.
    ctx.templates.sweep(ctx).await;
    network::sweep(&ctx.network, &ctx.storage.sandboxes())?;
    network::refill(ctx);
    ctx.registry.load(ctx)?;
    let this = ctx.clone();
    let swept = blocking(move || {
        let alive = |id: &str| this.registry.get(id).is_some();
        logs::file::sweep(&this.storage.logs(), alive).and_then(|()| this.images.sweep(&this.storage))
    });
    if let Err(error) = swept.await {
        tracing::warn!(%error, "cannot remove what is no longer needed");
    }
    ctx.spawn(pressure::run(ctx.clone()));
    // After the sweep: it brings an image in.
    let this = ctx.clone();
    ctx.spawn(async move { this.templates.start(&this).await });
    Ok(())
}

async fn stop(ctx: &Arc<Context>, mode: Shutdown) -> Result<(), NodeError> {
    if mode == Shutdown::EndSandboxes {
        ctx.registry.end_all(&Ending::new(TerminationReason::User, "the node was shut down")).await;
    }
    ctx.leaving.cancel();
    ctx.tasks.close();
    ctx.tasks.wait().await;
    // Nobody makes any more of them now.
    ctx.templates.sweep(ctx).await;
    network::close(&ctx.network)?;
    if mode == Shutdown::EndSandboxes {
        ctx.storage.close()?;
    }
    Ok(())
}

fn open(config: NodeConfig, driver: Box<dyn Driver>, storage: Storage) -> Result<Context, NodeError> {
    let is_vm = driver.kind() != DriverKind::Process;
    if is_vm {
        check_artifact("kernel", &config.artifacts.kernel, "kernel")?;
        check_artifact("initramfs", &config.artifacts.initrd, "guest")?;
    }
    let jail = if is_vm { jails::open(&config.jail, &config.data_dir)? } else { None };
    if is_vm && jail.is_none() {
        tracing::warn!("VM processes are not jailed: a guest that breaks out of its VM has all rights of this user");
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_mb = config.memory_mb.map_or_else(host_memory, Ok)?;
    let gpus = Gpus::open(&config.gpus)?;
    if !config.gpus.is_empty() && !driver.capabilities().passes_through {
        return Err(GpuError::Driver(driver.kind()).into());
    }
    #[expect(clippy::cast_precision_loss, reason = "no host has 2^52 cpus")]
    let capacity = Capacity { cpus: cpus as f64, memory_mb, gpus: gpus.capacity() };
    let registry = Registry::new();
    let vault = Vault::open(storage.root())?;
    let snapshots = Snapshots::new(vault, registry.changes());
    let node_id = node_id(&config.data_dir)?;
    let node_id_file = node_id_file(&config.data_dir);
    let node_id_file =
        std::path::absolute(&node_id_file).map_err(|source| NodeError::Io { path: node_id_file, source })?;
    let owner = Owner { node_id: node_id.clone(), node_id_file };
    let network = Network::open(config.network, driver.capabilities(), owner)?;
    let has_network = network.is_enforced() || driver.capabilities().user_network;
    Ok(Context {
        node_id,
        node_token: config.node_token,
        server: config.server,
        capacity,
        storage,
        images: Images::new(config.image_store),
        imports: Imports::new(),
        driver,
        artifacts: config.artifacts,
        jail,
        has_network,
        network,
        safe: Arc::default(),
        calm: Calm::default(),
        boot_slots: Semaphore::new(cpus.max(2)),
        connections: Arc::new(Semaphore::new(limits::CONNECTIONS_MAX)),
        registry,
        snapshots,
        templates: Templates::new(config.templates, config.spares),
        standby: Standby::default(),
        resident: config.resident,
        disk_limits: config.disk_limits,
        hidden_features: config.hidden_features,
        gpus,
        faults: Faults::default(),
        tasks: TaskTracker::new(),
        leaving: CancellationToken::new(),
    })
}

fn check_artifact(what: &'static str, path: &Path, task: &'static str) -> Result<(), NodeError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() > 0 => Ok(()),
        _ => Err(NodeError::Artifact { what, path: path.to_owned(), task }),
    }
}

/// The node's stable id, made on its first start.
fn node_id_file(data_dir: &Path) -> PathBuf {
    data_dir.join("node-id")
}

fn node_id(data_dir: &Path) -> Result<String, NodeError> {
    let path = node_id_file(data_dir);
    let failed = |source| NodeError::Io { path: path.clone(), source };
    match fs::read_to_string(&path) {
        Ok(text) if belljar_api::id::is_id(text.trim()) => Ok(text.trim().to_owned()),
        Ok(_) => Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it holds no node id"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = belljar_api::id::new_id();
            fs::write(&path, &id).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The host's memory less a gigabyte, MiB.
fn host_memory() -> Result<u64, NodeError> {
    let path = PathBuf::from("/proc/meminfo");
    let text = fs::read_to_string(&path).map_err(|source| NodeError::Io { path: path.clone(), source })?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let kib = kib.ok_or_else(|| NodeError::Io {
        path,
        source: io::Error::new(io::ErrorKind::InvalidData, "it has no MemTotal"),
    })?;
    Ok((kib / 1024).saturating_sub(1024))
}

tokio::task_local! {
    /// File work of one task of the node: it goes on although whoever waited for it has given up.
    static FILE_WORK: TaskTracker;
}

/// Waits until no file work of this task is under way, also of what was given up in the middle.
pub(crate) async fn file_work_done() {
    if let Ok(tracker) = FILE_WORK.try_with(TaskTracker::clone) {
        tracker.close();
        tracker.wait().await;
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Runs file work on a thread that may wait. A panic in there is a bug of ours; it must not be taken for success.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let running = match FILE_WORK.try_with(TaskTracker::clone) {
        Ok(tracker) => tracker.spawn_blocking(work),
        Err(_) => tokio::task::spawn_blocking(work),
    };
    match running.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the runtime is going away, and we with it.
            Err(_) => std::future::pending().await,
        },
    }
}
