//! From nothing, or from a standstill, to an agent that answers: disk, memory, VM, link, configuration. And all the way
//! back.
//!
//! Dropping the future in the middle is allowed at any await: everything it makes lies in the sandbox's directory, and
//! [`undo`] removes what is found there, however far the boot got.

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use belljar_api::{
    guest::{BOOT_SYSTEMD, Configure, GuestNetwork},
    image::{Init, RuntimeConfig},
    node::SandboxSpec,
    sandbox::{Resources, TerminationReason},
};
use belljar_link::{Connector, LinkError};
use belljar_vmm::{MemoryChanges, NetworkSpec, PciDevice, Vm, VmExit, VmSpec, VmmError};

use tokio_util::task::AbortOnDropHandle;

use super::{
    changes,
    frozen::{self, Steps},
    linked::{Linked, linked},
};
use crate::{
    Context, blocking, chain,
    guest::{self, GuestError},
    images::{self, NodeImageError},
    limits::{BOOT_TIMEOUT, RESTORE_TIMEOUT},
    logs::file::now_ns,
    network::{self, Gate, GateError, NetworkError},
    pressure,
    record::Ending,
    standby::Taken,
    storage::StorageError,
    templates::Claimed,
};

/// Disk of a sandbox, in its directory.
pub(crate) const DISK: &str = "disk.ext4";
/// Directory of its VM process.
pub(crate) const RUN: &str = "run";

/// A VM whose agent answers.
pub(super) struct Booted {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) link: Connector,
    /// The task that moves the link's bytes; it ends with the reason, and dies with this handle.
    pub(super) session: AbortOnDropHandle<LinkError>,
    /// What the guest was told of its image.
    pub(super) runtime: RuntimeConfig,
    /// Whether the VM was last told to have a network. Only where no rules hold.
    pub(super) network: bool,
    /// What watches over its network, where rules hold.
    pub(super) gate: Option<Gate>,
}

/// A boot that failed, at one of its steps.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Image(#[from] NodeImageError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("no network for it")]
    Network(#[from] NetworkError),
    #[error("the rules of its network cannot be held")]
    Gate(#[from] GateError),
    #[error("the VM did not start: {0}")]
    Vmm(#[from] VmmError),
    #[error("the guest's agent did not answer: {source}; its console: {console}")]
    Link { source: LinkError, console: String },
    #[error("the guest refused its configuration: {0}")]
    Guest(#[from] GuestError),
    #[error("the guest ended while it booted ({exit}); its console: {console}")]
    Exited { exit: VmExit, console: String },
    #[error("the guest's agent did not answer within {after:?}; its console: {console}")]
    Timeout { after: Duration, console: String },
    #[error(transparent)]
    Freeze(#[from] frozen::FreezeError),
    #[error("no GPUs for it: {0}")]
    Gpus(String),
    #[error("{0}")]
    Origin(String),
}

impl BootError {
    /// What the sandbox ends with.
    pub(super) fn ending(&self) -> Ending {
        let reason = match self {
            Self::Image(NodeImageError::Store(error)) if images::is_not_found(error) => {
                TerminationReason::ImageNotFound
            }
            Self::Image(NodeImageError::Storage(error)) | Self::Storage(error) if error.is_no_space() => {
                TerminationReason::NoSpace
            }
            Self::Image(_)
            | Self::Storage(_)
            | Self::Network(_)
            | Self::Gate(_)
            | Self::Vmm(_)
            | Self::Link { .. }
            | Self::Guest(_) => TerminationReason::StartupFailedInternalError,
            Self::Gpus(_) => TerminationReason::NoCapacity,
            Self::Exited { .. } | Self::Timeout { .. } | Self::Origin(_) | Self::Freeze(_) => {
                TerminationReason::StartupFailedInternalError
            }
        };
        Ending::new(reason, chain(self))
    }
}

/// What a sandbox begins with.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// Its image: from the golden snapshot where there is one, else by booting.
    Image,
    /// A standstill ([`frozen`]): it goes on from there.
    Still(PathBuf),
    /// A standstill of which only the disk counts: it boots from that.
    Disk(PathBuf),
}

/// What a guest goes on with beside its memory and disk.
#[derive(Debug, Clone)]
struct Saved {
    devices: PathBuf,
    changes: Option<MemoryChanges>,
}

/// How a VM begins.
#[derive(Debug, Clone)]
enum Begin {
    Boot(Init),
    Restore(Saved),
}

/// What a boot needs to know.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) ctx: Arc<Context>,
    pub(super) id: String,
    pub(super) dir: PathBuf,
    pub(super) spec: SandboxSpec,
    /// See [`Configure::life`].
    pub(super) life: u64,
    pub(super) identity_token: String,
    /// What its image says, when that is known already.
    pub(super) runtime: Option<RuntimeConfig>,
    /// Devices of the host that are its own.
    pub(super) passed_through: Vec<PciDevice>,
}

impl Plan {
    fn run_dir(&self) -> PathBuf {
        self.dir.join(RUN)
    }

    /// Makes disk and memory, starts the VM and waits until the agent is configured.
    pub(super) async fn start(&self, source: Source) -> Result<Booted, BootError> {
        let _starting = self.ctx.calm.disturb();
        // The semaphore is never closed; without a permit the boot is merely not throttled.
        let _slot = self.ctx.boot_slots.acquire().await;
        pressure::make_room(&self.ctx, self.spec.resources.memory_mb);
        match source {
            Source::Image => self.start_image().await,
            Source::Still(dir) => self.revive(&dir, self.runtime()?).await,
            Source::Disk(dir) => {
                let runtime = self.runtime()?;
                let disk = dir.join(frozen::DISK);
                self.boot(disk, runtime).await
            }
        }
    }

    /// What the image says; for one that is made from a standstill that is told with it.
    fn runtime(&self) -> Result<RuntimeConfig, BootError> {
        match &self.runtime {
            Some(runtime) => Ok(runtime.clone()),
            None => Ok(self.ctx.images.find_runtime(&self.spec.image).map_err(NodeImageError::from)?),
        }
    }

    async fn start_image(&self) -> Result<Booted, BootError> {
        let image = self.ctx.images.ensure(&self.spec.image, &self.ctx.storage).await?;
        if !self.passed_through.is_empty() {
            // A device is found by a kernel that boots.
            return self.boot(image.rootfs, image.runtime).await;
        }
        let Some(key) = self.ctx.templates.key(&self.ctx, &image, &self.spec.resources) else {
            return self.boot(image.rootfs, image.runtime).await;
        };
        if let Some(spare) = self.ctx.templates.claim(&self.ctx, &key) {
            match self.move_in(spare, &image.runtime).await {
                Ok(booted) => return Ok(booted),
                Err(error) => self.unusable(&error, "a VM that was kept ready").await?,
            }
        }
        let Some(template) = self.ctx.templates.find(&self.ctx, &key) else {
            self.ctx.templates.build_later(&self.ctx, key, image.clone(), self.spec.resources.clone());
            return self.boot(image.rootfs, image.runtime).await;
        };
        match self.revive(&template, image.runtime.clone()).await {
            Ok(booted) => Ok(booted),
            Err(error) => {
                self.unusable(&error, "a golden snapshot").await?;
                self.ctx.templates.discard(&self.ctx, &key);
                self.boot(image.rootfs, image.runtime).await
            }
        }
    }

    /// A short cut failed: says so, and makes room for the long way.
    async fn unusable(&self, error: &BootError, what: &str) -> Result<(), BootError> {
        tracing::warn!(sandbox = self.id, error = chain(error), "{what} cannot be used");
        undo(&self.ctx, &self.dir).await
    }

    /// Boots the kernel on a clone of `disk`.
    async fn boot(&self, disk: PathBuf, runtime: RuntimeConfig) -> Result<Booted, BootError> {
        let this = self.clone();
        let size = self.spec.resources.disk_mb << 20;
        blocking(move || {
            this.make_run_dir()?;
            this.ctx.faults.point("boot: disk")?;
            let to = this.dir.join(DISK);
            frozen::remove_file(&to)?;
            this.ctx.storage.clone_disk(&disk, &to, size)?;
            frozen::blank_memory(&this.dir, this.spec.resources.memory_mb)
        })
        .await?;
        let (vm, gate) = self.launch(Begin::Boot(runtime.init)).await?;
        self.attach(vm, gate, runtime, None, BOOT_TIMEOUT).await
    }

    /// Goes on from a standstill.
    pub(super) async fn revive(&self, still: &Path, runtime: RuntimeConfig) -> Result<Booted, BootError> {
        match self.try_to_revive(still, runtime.clone(), true).await {
            // Changes are a short cut.
            Err(error @ BootError::Vmm(VmmError::Changes { .. })) => {
                tracing::warn!(sandbox = self.id, error = chain(&error), "its memory is read from the disk instead");
                end_vm(&self.ctx, &self.dir).await?;
                self.try_to_revive(still, runtime, false).await
            }
            revived => revived,
        }
    }

    async fn try_to_revive(
        &self,
        still: &Path,
        runtime: RuntimeConfig,
        with_changes: bool,
    ) -> Result<Booted, BootError> {
        let mut steps = Steps::begin();
        let (this, from) = (self.clone(), still.to_owned());
        let changes = blocking(move || {
            this.make_run_dir()?;
            this.ctx.faults.point("revive: bring in")?;
            let changes = if with_changes { changes::open(&from)? } else { None };
            let memory = if changes.is_some() { changes::BASE } else { frozen::MEMORY };
            frozen::bring_in(&this.ctx.storage, &from, memory, &this.dir)?;
            Ok::<_, StorageError>(changes)
        })
        .await?;
        steps.done("files");
        let saved = Saved { devices: still.join(frozen::DEVICES), changes };
        let (vm, gate) = self.launch(Begin::Restore(saved)).await?;
        steps.done("network, VM process");
        let booted = self.go_on(vm, gate, runtime, None).await?;
        steps.done("agent");
        tracing::debug!(sandbox = self.id, "revived: {steps}");
        Ok(booted)
    }

    /// Takes over a VM that was kept ready. The run directory comes last: where it is, the rest is too. What stays where it
    /// was goes with `spare`.
    async fn move_in(&self, spare: Claimed, runtime: &RuntimeConfig) -> Result<Booted, BootError> {
        let mut steps = Steps::begin();
        let Claimed { home, link, vm } = spare;
        self.take_over(home.dir(), &[frozen::MEMORY, DISK, network::FILE, RUN], "spare: move in").await?;
        steps.done("files");
        let gate = self.open_gate().await?;
        self.connect_network(&*vm, gate.as_ref()).await?;
        steps.done("network");
        let booted = self.go_on(vm, gate, runtime.clone(), Some(link)).await?;
        steps.done("agent");
        tracing::debug!(sandbox = self.id, "moved in: {steps}");
        Ok(booted)
    }

    /// Lets a VM that stands still go on as this sandbox. `link`: where it has kept one.
    async fn go_on(
        &self,
        vm: Arc<dyn Vm>,
        gate: Option<Gate>,
        runtime: RuntimeConfig,
        link: Option<Linked>,
    ) -> Result<Booted, BootError> {
        let size = self.spec.resources.disk_mb << 20;
        let disk = self.dir.join(DISK);
        let have =
            blocking(move || std::fs::metadata(&disk).map_err(StorageError::io("read the size of", &disk))).await?;
        self.ctx.faults.point("revive: go on")?;
        vm.resume().await?;
        if have.len() < size {
            vm.grow_disk(size).await?;
        }
        self.attach(vm, gate, runtime, link, RESTORE_TIMEOUT).await
    }

    async fn open_gate(&self) -> Result<Option<Gate>, BootError> {
        let wanted = &self.spec.settings.network;
        Ok(Gate::open(&self.ctx, &self.dir, wanted, &self.spec.secrets, mac(&self.id)).await?)
    }

    async fn adopt_vm(&self) -> Result<Option<Arc<dyn Vm>>, BootError> {
        Ok(self.ctx.driver.adopt(&self.run_dir()).await?.map(Arc::from))
    }

    /// Gives a VM the network that its sandbox may have, whatever it has now. Where rules hold they do that.
    async fn connect_network(&self, vm: &dyn Vm, gate: Option<&Gate>) -> Result<(), BootError> {
        if gate.is_some() {
            return Ok(());
        }
        let wanted = self.spec.settings.network.allow_internet_access;
        // A driver that restricts none lets all of them in.
        if !wanted || self.ctx.driver.capabilities().restricts_network {
            vm.set_network(wanted).await?;
        }
        Ok(())
    }

    async fn launch(&self, begin: Begin) -> Result<(Arc<dyn Vm>, Option<Gate>), BootError> {
        if matches!(begin, Begin::Restore(_))
            && let Some(ready) = self.ctx.standby.take(&self.ctx, &self.spec.resources)
        {
            match self.launch_in(ready, begin.clone()).await {
                Ok(launched) => return Ok(launched),
                // They would not fit into another process either.
                Err(error @ BootError::Vmm(VmmError::Changes { .. })) => return Err(error),
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(sandbox = self.id, error, "a VM process that was kept ready cannot be used");
                    end_vm(&self.ctx, &self.dir).await?;
                }
            }
        }
        let network = network::plug(&self.ctx, &self.dir).await?;
        let vm_spec = self.vm_spec(begin, network);
        // Nothing passes before the rules are there.
        let (gate, vm) = tokio::join!(self.open_gate(), self.ctx.driver.launch(&vm_spec));
        self.launched(gate?, Arc::from(vm?)).await
    }

    /// The same, in a process that waits for a guest.
    async fn launch_in(&self, ready: Taken, begin: Begin) -> Result<(Arc<dyn Vm>, Option<Gate>), BootError> {
        let Taken { home, network, process } = ready;
        self.take_over(home.dir(), &[network::FILE, RUN], "standby: move in").await?;
        let vm_spec = self.vm_spec(begin, network);
        let (gate, vm) = tokio::join!(self.open_gate(), self.ctx.driver.launch_in(process, &vm_spec));
        self.launched(gate?, Arc::from(vm?)).await
    }

    fn vm_spec(&self, begin: Begin, network: NetworkSpec) -> VmSpec {
        let spec = vm_spec(&self.ctx, &self.id, &self.dir, &self.spec.resources, network);
        let spec = VmSpec { passed_through: self.passed_through.clone(), ..spec };
        match begin {
            Begin::Boot(init) => VmSpec { cmdline_extra: command_line(init).to_owned(), ..spec },
            Begin::Restore(saved) => VmSpec { devices: Some(saved.devices), changes: saved.changes, ..spec },
        }
    }

    async fn launched(&self, gate: Option<Gate>, vm: Arc<dyn Vm>) -> Result<(Arc<dyn Vm>, Option<Gate>), BootError> {
        if gate.is_none() && !self.spec.settings.network.allow_internet_access {
            // No user process runs before the guest is configured, so nothing can leave before this.
            vm.set_network(false).await?;
        }
        Ok((vm, gate))
    }

    /// Takes these parts over of what was made for nobody yet, in this order. A directory that is there is empty.
    async fn take_over(
        &self,
        from: &Path,
        names: &'static [&'static str],
        point: &'static str,
    ) -> Result<(), BootError> {
        let (this, from) = (self.clone(), from.to_owned());
        let done = blocking(move || {
            for &name in names {
                this.ctx.faults.point(point)?;
                let to = this.dir.join(name);
                match std::fs::rename(from.join(name), &to) {
                    // A user-mode network has nothing to be found by.
                    Err(error) if name == network::FILE && error.kind() == std::io::ErrorKind::NotFound => {}
                    moved => moved.map_err(StorageError::io("rename what was kept ready to", &to))?,
                }
            }
            crate::storage::remove_dir(&from)
        });
        Ok(done.await?)
    }

    fn make_run_dir(&self) -> Result<(), StorageError> {
        self.ctx.storage.check_free()?;
        make_run_dir(&self.run_dir())
    }

    /// Connects to the agent of a VM that runs, unless that has kept a link, and configures it; harmless when that was done
    /// before.
    pub(super) async fn attach(
        &self,
        vm: Arc<dyn Vm>,
        gate: Option<Gate>,
        runtime: RuntimeConfig,
        link: Option<Linked>,
        timeout: Duration,
    ) -> Result<Booted, BootError> {
        let (told, mut steps) = (&runtime, Steps::begin());
        let timed = &mut steps;
        let first = move |link: Connector| async move {
            timed.done("link");
            self.configure(&link, told).await?;
            timed.done("configuration");
            Ok(link)
        };
        let (link, session) = linked(&*vm, link, timeout, first).await?;
        tracing::debug!(sandbox = self.id, "attached: {steps}");
        let network = self.spec.settings.network.allow_internet_access;
        Ok(Booted { vm, link, session, runtime, network, gate })
    }

    /// Gives the guest its identity, fresh randomness and the time, and lets its processes go on.
    pub(super) async fn configure(&self, link: &Connector, runtime: &RuntimeConfig) -> Result<(), BootError> {
        guest::configure(link, &self.configuration(runtime)).await?;
        Ok(())
    }

    /// Reaches the VM that an earlier node process started; `None` when it is gone. One that was left at a standstill
    /// goes on.
    pub(super) async fn adopt(&self) -> Result<Option<Booted>, BootError> {
        let run_dir = self.run_dir();
        if !run_dir.exists() {
            return Ok(None);
        }
        let Some(vm) = self.adopt_vm().await? else { return Ok(None) };
        let runtime = self.runtime().unwrap_or_default();
        // How far the earlier process got is not known.
        let gate = self.open_gate().await?;
        self.connect_network(&*vm, gate.as_ref()).await?;
        if self.ctx.driver.capabilities().snapshots && vm.is_paused().await? {
            return self.go_on(vm, gate, runtime, None).await.map(Some);
        }
        self.attach(vm, gate, runtime, None, BOOT_TIMEOUT).await.map(Some)
    }

    /// What the image says, and a variable for each secret.
    fn with_placeholders(&self, runtime: &RuntimeConfig) -> RuntimeConfig {
        let mut runtime = runtime.clone();
        let secrets = self.spec.secrets.iter();
        runtime.env.extend(secrets.map(|secret| (secret.name.clone(), secret.placeholder.clone())));
        runtime
    }

    fn configuration(&self, runtime: &RuntimeConfig) -> Configure {
        let network = guest_network(&self.ctx);
        Configure {
            sandbox_id: self.id.clone(),
            life: self.life,
            rehearsal: false,
            identity_token: self.identity_token.clone(),
            mac: network.as_ref().map(|_| network::words(mac(&self.id))),
            hostname: self.spec.settings.name.clone().unwrap_or_else(|| self.id.clone()),
            runtime: self.with_placeholders(runtime),
            trust: (!self.spec.secrets.is_empty()).then(|| self.ctx.safe.certificate()).flatten(),
            entrypoint: self.spec.entrypoint.clone(),
            network,
            wall_clock_ns: now_ns(),
            entropy: fresh_entropy(),
        }
    }
}

/// What a VM that is kept ready practises with: a sandbox that never was.
pub(crate) fn rehearsal(ctx: &Context) -> Configure {
    let id = belljar_api::id::new_id();
    Configure {
        life: rand::random(),
        rehearsal: true,
        identity_token: String::new(),
        mac: Some(network::words(mac(&id))),
        hostname: id.clone(),
        sandbox_id: id,
        runtime: RuntimeConfig::default(),
        trust: None,
        entrypoint: None,
        network: guest_network(ctx),
        wall_clock_ns: now_ns(),
        entropy: fresh_entropy(),
    }
}

/// The same with every kind of network.
fn guest_network(ctx: &Context) -> Option<GuestNetwork> {
    ctx.has_network.then(|| GuestNetwork {
        address: network::GUEST.to_string(),
        prefix: network::PREFIX,
        gateway: network::GATEWAY.to_string(),
        dns: network::RESOLVER.to_string(),
        mtu: network::mtu(),
    })
}

fn fresh_entropy() -> String {
    let entropy: [u8; 32] = rand::random();
    entropy.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the VMM is told of a sandbox, or of a template.
pub(crate) fn vm_spec(ctx: &Context, id: &str, home: &Path, resources: &Resources, network: NetworkSpec) -> VmSpec {
    VmSpec {
        id: id.to_owned(),
        run_dir: home.join(RUN),
        kernel: ctx.artifacts.kernel.clone(),
        initrd: Some(ctx.artifacts.initrd.clone()),
        disk: Some(home.join(DISK)),
        cmdline_extra: String::new(),
        vcpus: vcpus(resources),
        memory_mib: resources.memory_mb,
        memory: Some(home.join(frozen::MEMORY)),
        devices: None,
        changes: None,
        disk_limits: ctx.disk_limits,
        hidden_features: ctx.hidden_features,
        passed_through: Vec::new(),
        network,
        jail: ctx.jail.clone(),
    }
}

/// What the kernel of a guest is told, beside what it always is. The one thing about a sandbox that has to be known before its agent
/// can be asked.
pub(crate) fn command_line(init: Init) -> &'static str {
    match init {
        Init::Agent => "",
        Init::Systemd => BOOT_SYSTEMD,
    }
}

/// Processors of a guest.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cpus is validated to 0.25..=1024")]
pub(crate) fn vcpus(resources: &Resources) -> u32 {
    resources.cpus.ceil() as u32
}

/// Makes the private directory that a VM's process has for itself.
pub(crate) fn make_run_dir(dir: &Path) -> Result<(), StorageError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(StorageError::io("create", dir))
}

/// A hardware address of a sandbox's own: locally administered, from the random part of its id.
fn mac(id: &str) -> [u8; 6] {
    let number = id.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(131).wrapping_add(u64::from(byte)));
    let [a, b, c, d, e, ..] = number.to_le_bytes();
    [2, a, b, c, d, e]
}

/// Ends the VM whose run directory lies in `dir`, if there is one, and removes its network.
pub(crate) async fn end_vm(ctx: &Arc<Context>, dir: &Path) -> Result<(), BootError> {
    let run_dir = dir.join(RUN);
    // A boot that failed before it made the directory has started nothing.
    if run_dir.exists() {
        ctx.driver.end(&run_dir).await?;
    }
    let (this, dir) = (ctx.clone(), dir.to_owned());
    Ok(blocking(move || network::unplug(&this.network, &dir)).await?)
}

/// Removes the VM and every file of the sandbox but its record; whatever is not there is fine.
pub(super) async fn undo(ctx: &Arc<Context>, dir: &Path) -> Result<(), BootError> {
    // What was given up in the middle must not come back.
    crate::file_work_done().await;
    end_vm(ctx, dir).await?;
    ctx.faults.point("undo: remove")?;
    let dir = dir.to_owned();
    Ok(blocking(move || remove_all_but_record(&dir)).await?)
}

fn remove_all_but_record(dir: &Path) -> Result<(), StorageError> {
    let io = |operation| {
        let path = dir.to_owned();
        move |source| StorageError::Io { operation, path, source }
    };
    for entry in std::fs::read_dir(dir).map_err(io("list"))? {
        let path = entry.map_err(io("list"))?.path();
        if path.file_name().is_some_and(|name| name == "record.json") {
            continue;
        }
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(|source| StorageError::Io { operation: "remove", path, source })?;
    }
    Ok(())
}
