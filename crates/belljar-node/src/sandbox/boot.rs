//! From nothing to an agent that answers: disk, VM, link, configuration. And all the way back.
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
    guest::{Configure, GuestNetwork},
    image::RuntimeConfig,
    node::SandboxSpec,
    sandbox::TerminationReason,
};
use belljar_link::{ConnectOptions, Connector, LinkError};
use belljar_vmm::{NetworkSpec, Vm, VmExit, VmSpec, VmmError};

use tokio_util::task::AbortOnDropHandle;

use crate::{
    Context,
    guest::{self, GuestError},
    images::{self, LocalImage, NodeImageError},
    limits::{BOOT_TIMEOUT, CONSOLE_QUOTE},
    logs::file::now_ns,
    record::Ending,
    storage::StorageError,
};

/// A VM whose agent answers.
pub(super) struct Booted {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) link: Connector,
    /// The task that moves the link's bytes; it ends with the reason, and dies with this handle.
    pub(super) session: AbortOnDropHandle<LinkError>,
}

/// A boot that failed, at one of its steps.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Image(#[from] NodeImageError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the VM did not start: {0}")]
    Vmm(#[from] VmmError),
    #[error("the guest's agent did not answer: {0}")]
    Link(#[from] LinkError),
    #[error("the guest refused its configuration: {0}")]
    Guest(#[from] GuestError),
    #[error("the guest ended while it booted ({exit}); its console: {console}")]
    Exited { exit: VmExit, console: String },
    #[error("the guest's agent did not answer within {after:?}; its console: {console}")]
    Timeout { after: Duration, console: String },
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
            Self::Image(_) | Self::Storage(_) | Self::Vmm(_) | Self::Link(_) | Self::Guest(_) => {
                TerminationReason::StartupFailedInternalError
            }
            Self::Exited { .. } | Self::Timeout { .. } => TerminationReason::StartupFailedInternalError,
        };
        Ending::new(reason, chain(self))
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

/// What a boot needs to know.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) ctx: Arc<Context>,
    pub(super) id: String,
    pub(super) dir: PathBuf,
    pub(super) spec: SandboxSpec,
}

impl Plan {
    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Makes the disk and starts the VM, then waits until the agent is configured.
    pub(super) async fn boot(self) -> Result<Booted, BootError> {
        // The semaphore is never closed; without a permit the boot is merely not throttled.
        let _slot = self.ctx.boot_slots.acquire().await;
        let image = self.ctx.images.ensure(&self.spec.image, &self.ctx.storage).await?;
        let disk = self.make_disk(&image).await?;
        let resources = self.spec.resources;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cpus is validated to 0.25..=1024")]
        let vcpus = resources.cpus.ceil() as u32;
        let vm_spec = VmSpec {
            id: self.id.clone(),
            run_dir: self.run_dir(),
            kernel: self.ctx.artifacts.kernel.clone(),
            initrd: Some(self.ctx.artifacts.initrd.clone()),
            disk: Some(disk),
            cmdline_extra: String::new(),
            vcpus,
            memory_mib: resources.memory_mb,
            network: NetworkSpec::User { restrict: false },
        };
        let vm: Arc<dyn Vm> = Arc::from(self.ctx.driver.launch(&vm_spec).await?);
        if !self.spec.settings.network.allow_internet_access {
            // No user process runs before the guest is configured, so nothing can leave before this.
            vm.set_network(false).await?;
        }
        self.attach(vm, &image.runtime, BOOT_TIMEOUT).await
    }

    /// Connects to the agent of a VM that runs, and configures it; harmless when that was done before.
    pub(super) async fn attach(
        &self,
        vm: Arc<dyn Vm>,
        runtime: &RuntimeConfig,
        timeout: Duration,
    ) -> Result<Booted, BootError> {
        let connect = async {
            let io = vm.connect_link().await?;
            let (link, session) = belljar_link::connect(io, ConnectOptions { timeout }).await?;
            let session = AbortOnDropHandle::new(tokio::spawn(session));
            guest::configure(&link, &self.configuration(runtime)).await?;
            Ok::<_, BootError>((link, session))
        };
        let result = tokio::select! {
            biased;
            exit = vm.wait() => Err(BootError::Exited { exit, console: console(&*vm).await }),
            result = tokio::time::timeout(timeout, connect) => match result {
                Ok(Err(BootError::Link(_))) | Err(_) => {
                    Err(BootError::Timeout { after: timeout, console: console(&*vm).await })
                }
                Ok(result) => result,
            },
        };
        result.map(|(link, session)| Booted { vm, link, session })
    }

    /// Reaches the VM that an earlier node process started; `None` when it is gone.
    pub(super) async fn adopt(self) -> Result<Option<Booted>, BootError> {
        let run_dir = self.run_dir();
        if !run_dir.exists() {
            return Ok(None);
        }
        let Some(vm) = self.ctx.driver.adopt(&run_dir).await? else { return Ok(None) };
        let runtime = self.ctx.images.find_runtime(&self.spec.image).unwrap_or_default();
        self.attach(Arc::from(vm), &runtime, BOOT_TIMEOUT).await.map(Some)
    }

    async fn make_disk(&self, image: &LocalImage) -> Result<PathBuf, BootError> {
        let (ctx, run_dir, disk) = (self.ctx.clone(), self.run_dir(), self.dir.join("disk.ext4"));
        let (rootfs, size) = (image.rootfs.clone(), self.spec.resources.disk_mb << 20);
        let made = disk.clone();
        let work = tokio::task::spawn_blocking(move || {
            ctx.storage.check_free()?;
            let io = |source| StorageError::Io { operation: "create", path: run_dir.clone(), source };
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&run_dir).map_err(io)?;
            ctx.storage.clone_disk(&rootfs, &made, size)
        });
        // A panic in there is a bug of ours; it must not be taken for success.
        work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        Ok(disk)
    }

    fn configuration(&self, runtime: &RuntimeConfig) -> Configure {
        let network = self.ctx.user_network.then(|| GuestNetwork {
            address: "10.0.2.15".into(),
            prefix: 24,
            gateway: "10.0.2.2".into(),
            dns: "10.0.2.3".into(),
        });
        let entropy: [u8; 32] = rand::random();
        Configure {
            sandbox_id: self.id.clone(),
            hostname: self.spec.settings.name.clone().unwrap_or_else(|| self.id.clone()),
            runtime: runtime.clone(),
            entrypoint: self.spec.entrypoint.clone(),
            network,
            wall_clock_ns: now_ns(),
            entropy: entropy.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// The end of the guest's console, for an error message; control characters are shown as spaces.
async fn console(vm: &dyn Vm) -> String {
    let bytes = vm.console().await.unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(CONSOLE_QUOTE)..];
    let text: String = String::from_utf8_lossy(tail).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match text.trim() {
        "" => "(empty)".to_owned(),
        text => text.to_owned(),
    }
}

/// Removes the VM and every file of the sandbox but its record; whatever is not there is fine.
pub(super) async fn undo(ctx: &Context, dir: &Path) -> Result<(), BootError> {
    let run_dir = dir.join("run");
    // A boot that failed before it made the directory has started nothing.
    if run_dir.exists()
        && let Some(vm) = ctx.driver.adopt(&run_dir).await?
    {
        vm.kill().await?;
    }
    let dir = dir.to_owned();
    let work = tokio::task::spawn_blocking(move || remove_all_but_record(&dir));
    Ok(work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
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
