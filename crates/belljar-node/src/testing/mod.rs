//! The node over a driver that is not there ([`driver`], [`machine`], [`guest`]): every way a sandbox can go, what is left
//! when a step fails, and what a new node makes of what a crash left.
//!
//! The clock stands still unless all wait for it, so seconds cost nothing and are exact.

mod aside;
mod boot;
mod copy;
mod crash;
mod driver;
mod fault;
mod guest;
mod image;
mod import;
mod machine;
mod model;
mod sleep;
mod snapshot;
mod standby;
mod template;
mod tunnel;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use belljar_api::{
    id::new_id,
    node::{Command, CommandAck, NodeState, Op, Origin, SandboxReport, SandboxSpec, Settings},
    sandbox::{NetworkConfig, ResourcesRequest, TerminationReason},
};

use self::{
    driver::{FakeDriver, Guest, World},
    machine::{Contents, Machine},
};
use crate::{Artifacts, Context, DriverSetting, NodeConfig, Shutdown, storage::Storage};

/// How long a test waits, by its own clock, for what has to happen.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What the node under test has.
#[derive(Debug, Clone, Copy)]
struct Options {
    templates: bool,
    spares: usize,
    resident: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { templates: false, spares: 0, resident: Duration::from_secs(30) }
    }
}

/// A node with one image, and the world around it.
struct Fixture {
    dir: Arc<tempfile::TempDir>,
    world: Arc<World>,
    ctx: Arc<Context>,
    options: Options,
    generations: AtomicU64,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let dir = Arc::new(directory());
        let path = dir.path();
        for file in ["vmlinux", "initrd"] {
            fs::write(path.join(file), "x").expect("a file");
        }
        let rootfs = path.join("rootfs");
        let file = fs::File::create(&rootfs).expect("a file");
        file.set_len(1 << 20).expect("a size");
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x53, 0xEF], 1080).expect("a magic");
        let images = belljar_image::Store::open(&path.join("store")).expect("a store");
        images.import(belljar_image::DEFAULT_IMAGE, &rootfs, Default::default()).expect("an image");
        Self::open(dir, World::new(), options).await
    }

    /// A node on what is in the directory.
    async fn open(dir: Arc<tempfile::TempDir>, world: Arc<World>, options: Options) -> Self {
        let path = dir.path();
        let config = NodeConfig {
            network: crate::NetworkOptions { kind: crate::NetworkSetting::User, ..Default::default() },
            data_dir: path.join("data"),
            server: crate::ServerSetting::Address(String::new()),
            node_token: String::new(),
            artifacts: Artifacts { kernel: path.join("vmlinux"), initrd: path.join("initrd") },
            image_store: path.join("store"),
            driver: DriverSetting::Auto,
            vmm_dir: None,
            disk_limits: crate::DiskLimits::default(),
            hidden_features: crate::HiddenFeatures::default(),
            gpus: Vec::new(),
            jail: crate::JailOptions { kind: crate::JailSetting::Off, launcher: Vec::new() },
            templates: options.templates,
            spares: options.spares,
            resident: options.resident,
            memory_mb: Some(4096),
            storage: Default::default(),
        };
        // Outside the test's own tree no volume can be made or left mounted.
        let storage = Storage::plain(&config.data_dir).expect("storage");
        let ctx = Arc::new(crate::open(config, Box::new(FakeDriver(world.clone())), storage).expect("a node"));
        crate::start(&ctx).await.expect("it starts");
        Self { dir, world, ctx, options, generations: AtomicU64::new(2) }
    }

    /// The node goes, the VMs stay, and a new node comes.
    async fn restart(self) -> Self {
        let Self { dir, world, ctx, options, generations } = self;
        crate::stop(&ctx, Shutdown::KeepSandboxes).await.expect("it stops");
        drop(ctx);
        Self { generations, ..Self::open(dir, world, options).await }
    }

    /// The node ends with all sandboxes; nothing may be left, and no guest may have seen what it must not see.
    async fn finish(self) {
        crate::stop(&self.ctx, Shutdown::EndSandboxes).await.expect("it stops");
        assert!(self.world.alive().is_empty(), "a VM is left");
        assert!(self.world.ahead.lock().expect("ahead").is_empty(), "a process that waits is left");
        for shelf in [self.ctx.storage.passing(), self.ctx.storage.spares()] {
            assert_eq!(names(&shelf), Vec::<String>::new(), "in {}", shelf.display());
        }
        assert!(!names(&self.ctx.storage.templates()).contains(&".building".to_owned()));
        let complaints = self.world.complaints.lock().expect("complaints").clone();
        assert_eq!(complaints, Vec::<String>::new());
    }

    fn generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::SeqCst)
    }

    async fn send(&self, id: &str, generation: u64, op: Op) -> CommandAck {
        let command = Command { seq: generation, sandbox_id: id.to_owned(), generation, op };
        self.ctx.registry.apply(&self.ctx, command).await.expect("the command is taken")
    }

    /// Sends a command, and gives back its generation.
    async fn command(&self, id: &str, op: Op) -> u64 {
        let generation = self.generation();
        self.send(id, generation, op).await;
        generation
    }

    /// Makes a sandbox and waits until it runs or has ended.
    async fn create(&self, spec: SandboxSpec) -> (String, NodeState) {
        let id = new_id();
        self.send(&id, 1, Op::Create { spec, origin: Origin::Image }).await;
        let state = self.wait(&id, |state| *state != NodeState::Starting).await;
        (id, state)
    }

    /// Makes a sandbox that runs.
    async fn run(&self, spec: SandboxSpec) -> String {
        let (id, state) = self.create(spec).await;
        assert_eq!(state, NodeState::Running);
        id
    }

    fn report(&self, id: &str) -> SandboxReport {
        self.ctx.registry.get(id).expect("the sandbox is known").view.borrow().report.clone()
    }

    async fn reported(&self, id: &str, wanted: impl Fn(&SandboxReport) -> bool) -> SandboxReport {
        let mut view = self.ctx.registry.get(id).expect("the sandbox is known").view;
        let found = tokio::time::timeout(PATIENCE, view.wait_for(|view| wanted(&view.report))).await;
        match found {
            Ok(view) => view.expect("its task lives").report.clone(),
            Err(_) => panic!("it does not come: {:?}", self.report(id)),
        }
    }

    async fn wait(&self, id: &str, wanted: impl Fn(&NodeState) -> bool) -> NodeState {
        self.reported(id, |report| wanted(&report.state)).await.state
    }

    /// What the server hears first of a command with this generation that changes where the sandbox stands.
    async fn verdict(&self, id: &str, generation: u64) -> SandboxReport {
        let under_way =
            |state: &NodeState| matches!(state, NodeState::Suspending | NodeState::Resuming | NodeState::Starting);
        self.reported(id, |report| report.generation >= generation && !under_way(&report.state)).await
    }

    /// Suspends it by command; it must sleep then.
    async fn suspend(&self, id: &str) {
        let generation = self.command(id, Op::Suspend).await;
        let report = self.verdict(id, generation).await;
        assert_eq!((report.state, report.trouble), (NodeState::Suspended, None));
    }

    /// Resumes it by command; it must run then.
    async fn resume(&self, id: &str) {
        let generation = self.command(id, Op::Resume).await;
        let report = self.verdict(id, generation).await;
        assert_eq!((report.state, report.trouble), (NodeState::Running, None));
    }

    /// The machine of a sandbox, if it has one that lives.
    fn find_machine(&self, id: &str) -> Option<Arc<Machine>> {
        let machine = self.world.find(&self.ctx.storage.sandbox(id).join(crate::sandbox::boot::RUN));
        machine.filter(|machine| machine.has_process())
    }

    fn machine(&self, id: &str) -> Arc<Machine> {
        self.find_machine(id).expect("it has a machine")
    }

    fn contents(&self, id: &str) -> (Contents, Contents) {
        self.machine(id).contents()
    }

    /// Ends and forgets the sandbox; nothing of it may be left but its log.
    async fn forget(&self, id: &str) {
        if !self.ctx.registry.get(id).expect("the sandbox is known").view.borrow().is_terminated() {
            self.command(id, Op::Terminate { reason: TerminationReason::User }).await;
        }
        self.wait(id, |state| matches!(state, NodeState::Terminated { .. })).await;
        assert_eq!(names(&self.ctx.storage.sandbox(id)), ["record.json"]);
        self.command(id, Op::Terminate { reason: TerminationReason::User }).await;
        assert!(!self.ctx.storage.sandbox(id).exists());
    }
}

/// In memory, where that is possible: thousands of records are made durable here.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

fn spec(allow_internet_access: bool, timeout_secs: u64) -> SandboxSpec {
    let network = NetworkConfig { allow_internet_access, ..NetworkConfig::default() };
    SandboxSpec {
        namespace: "default".into(),
        image: belljar_image::DEFAULT_IMAGE.into(),
        resources: ResourcesRequest::default().resolve().expect("defaults"),
        entrypoint: None,
        secrets: Vec::new(),
        settings: Settings { name: None, suspends: false, auto_resume: true, timeout_secs, network },
    }
}

/// One that sleeps.
fn named(timeout_secs: u64) -> SandboxSpec {
    let mut spec = spec(true, timeout_secs);
    spec.settings.name = Some("box".into());
    spec.settings.suspends = true;
    spec
}
