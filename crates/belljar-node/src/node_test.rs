//! The node with a VM driver that fails on demand and guests that misbehave on demand: every way a sandbox can go wrong
//! ends in `terminated` with a reason, and leaves nothing.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use belljar_api::{
    guest::{Configured, PROTOCOL},
    id::new_id,
    node::{Command, NodeState, Op, SandboxSpec, Settings},
    sandbox::{NetworkConfig, ResourcesRequest},
};
use belljar_vmm::{Accelerator, Capabilities, MemoryUse, NetworkSpec, Vm, VmExit, VmSpec, VmmError};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::*;

/// A step of a sandbox's life at which the driver can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Launch,
    Network,
    Link,
    Kill,
}

/// What the guest's end of the link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    Answers,
    RefusesConfiguration,
    SpeaksAnotherProtocol,
    SendsGarbage,
    HangsUp,
    PowersOff,
}

/// Everything the fake world knows.
struct World {
    guest: Guest,
    fail: Option<Step>,
    /// How often the step still fails; [`usize::MAX`] is always.
    failures: AtomicUsize,
    /// Run directories of VMs that live.
    alive: Mutex<HashSet<std::path::PathBuf>>,
    exit: watch::Sender<Option<VmExit>>,
}

impl World {
    fn step(&self, step: Step) -> Result<(), VmmError> {
        let fails = self.fail == Some(step)
            && self
                .failures
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
                    0 => None,
                    usize::MAX => Some(left),
                    left => Some(left - 1),
                })
                .is_ok();
        let source = io::Error::other(format!("{step:?} fails"));
        if fails { Err(VmmError::Link { path: "/fake".into(), source }) } else { Ok(()) }
    }
}

struct FakeDriver(Arc<World>);

struct FakeVm {
    world: Arc<World>,
    run_dir: std::path::PathBuf,
}

#[async_trait]
impl Driver for FakeDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Qemu { accel: Accelerator::Tcg }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolates: true,
            hardware: false,
            user_network: true,
            restricts_network: true,
            limits_resources: true,
            max_vcpus: 4,
            max_memory_mib: 1 << 20,
        }
    }

    fn version(&self) -> &str {
        "1"
    }

    async fn launch(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        self.0.step(Step::Launch)?;
        assert_eq!(spec.network, NetworkSpec::User { restrict: false });
        assert!(spec.disk.as_ref().expect("a disk").exists());
        let listener = UnixListener::bind(spec.run_dir.join("link")).expect("a socket");
        self.0.alive.lock().expect("lock").insert(spec.run_dir.clone());
        tokio::spawn(guest(self.0.clone(), listener));
        Ok(Box::new(FakeVm { world: self.0.clone(), run_dir: spec.run_dir.clone() }))
    }

    async fn adopt(&self, run_dir: &Path) -> Result<Option<Box<dyn Vm>>, VmmError> {
        let alive = self.0.alive.lock().expect("lock").contains(run_dir);
        Ok(alive.then(|| Box::new(FakeVm { world: self.0.clone(), run_dir: run_dir.to_owned() }) as Box<dyn Vm>))
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn pid(&self) -> u32 {
        1
    }

    async fn connect_link(&self) -> Result<UnixStream, VmmError> {
        self.world.step(Step::Link)?;
        let path = self.run_dir.join("link");
        UnixStream::connect(&path).await.map_err(|source| VmmError::Link { path, source })
    }

    async fn wait(&self) -> VmExit {
        let mut exit = self.world.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.expect("the world lives").clone();
        ended.expect("an exit")
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.world.step(Step::Kill)?;
        self.world.alive.lock().expect("lock").remove(&self.run_dir);
        Ok(())
    }

    async fn console(&self) -> Result<Vec<u8>, VmmError> {
        Ok(b"last\x1b words".to_vec())
    }

    async fn set_network(&self, _connected: bool) -> Result<(), VmmError> {
        self.world.step(Step::Network)
    }

    fn memory(&self) -> Result<MemoryUse, VmmError> {
        Ok(MemoryUse::default())
    }
}

/// The guest's end of the link, one connection after the other.
async fn guest(world: Arc<World>, listener: UnixListener) {
    while let Ok((mut io, _)) = listener.accept().await {
        match world.guest {
            Guest::HangsUp => drop(io),
            Guest::SendsGarbage => {
                let (mut reader, mut writer) = io.split();
                let noise: Vec<u8> = (0..64 * 1024_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
                let talk = async { while writer.write_all(&noise).await.is_ok() {} };
                let listen = async { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await };
                tokio::select! { () = talk => {}, _ = listen => {} }
            }
            Guest::PowersOff => {
                world.exit.send_replace(Some(VmExit::GuestShutdown));
                let _ = io.read(&mut [0]).await;
            }
            Guest::Answers | Guest::RefusesConfiguration | Guest::SpeaksAnotherProtocol => {
                let world = world.clone();
                tokio::spawn(async move { agent(&world, io).await });
            }
        }
    }
}

async fn agent(world: &World, io: UnixStream) {
    let (mut acceptor, session) = belljar_link::serve(io);
    let session = tokio::spawn(session);
    let (status, protocol) = match world.guest {
        Guest::RefusesConfiguration => (500, PROTOCOL),
        Guest::SpeaksAnotherProtocol => (200, PROTOCOL + 1),
        _ => (200, PROTOCOL),
    };
    while let Some(incoming) = acceptor.accept().await {
        let stream = incoming.accept();
        let router = axum::Router::new().route(
            "/v1/configure",
            axum::routing::post(move || async move {
                let body = Configured { protocol, version: "1".into(), boot_id: "b".into() };
                (http::StatusCode::from_u16(status).expect("a status"), axum::Json(body))
            }),
        );
        let service = hyper_util::service::TowerToHyperService::new(router);
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
    session.abort();
}

fn spec(allow_internet_access: bool, timeout_secs: u64) -> SandboxSpec {
    let network = NetworkConfig { allow_internet_access, ..NetworkConfig::default() };
    SandboxSpec {
        namespace: "default".into(),
        image: belljar_image::DEFAULT_IMAGE.into(),
        resources: ResourcesRequest::default().resolve().expect("defaults"),
        entrypoint: None,
        settings: Settings { name: None, timeout_secs, network },
    }
}

/// A node with one image.
struct Fixture {
    _dir: tempfile::TempDir,
    world: Arc<World>,
    ctx: Arc<Context>,
}

impl Fixture {
    fn new(guest: Guest, fail: Option<Step>, failures: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let world = Arc::new(World {
            guest,
            fail,
            failures: AtomicUsize::new(failures),
            alive: Mutex::default(),
            exit: watch::Sender::new(None),
        });
        let ctx = Self::open(dir.path(), &world);
        Self { _dir: dir, world, ctx }
    }

    fn open(dir: &Path, world: &Arc<World>) -> Arc<Context> {
        let (kernel, initrd, rootfs) = (dir.join("vmlinux"), dir.join("initrd"), dir.join("rootfs"));
        for file in [&kernel, &initrd] {
            fs::write(file, "x").expect("a file");
        }
        let mut bytes = vec![0; 1 << 20];
        bytes[1080..1082].copy_from_slice(&[0x53, 0xEF]);
        fs::write(&rootfs, bytes).expect("a file");
        let store = dir.join("store");
        let images = belljar_image::Store::open(&store).expect("a store");
        images.import(belljar_image::DEFAULT_IMAGE, &rootfs, Default::default()).expect("an image");
        // Outside the test's own tree no volume can be made or left mounted.
        let storage = Storage::plain(&dir.join("data")).expect("storage");
        Arc::new(Context {
            node_id: new_id(),
            node_token: String::new(),
            server_address: String::new(),
            capacity: Capacity { cpus: 2.0, memory_mb: 4096 },
            storage,
            images: Images::new(store),
            driver: Box::new(FakeDriver(world.clone())),
            artifacts: Artifacts { kernel, initrd },
            user_network: true,
            boot_slots: Semaphore::new(2),
            connections: Arc::new(Semaphore::new(10)),
            registry: Registry::new(),
            tasks: TaskTracker::new(),
            leaving: CancellationToken::new(),
        })
    }

    async fn command(&self, id: &str, generation: u64, op: Op) {
        let command = Command { seq: generation, sandbox_id: id.to_owned(), generation, op };
        self.ctx.registry.apply(&self.ctx, command).await.expect("the command is taken");
    }

    /// Makes a sandbox and waits until it runs or has ended.
    async fn create(&self, spec: SandboxSpec) -> (String, NodeState) {
        let id = new_id();
        self.command(&id, 1, Op::Create { spec }).await;
        let state = self.wait(&id, |state| *state != NodeState::Starting).await;
        (id, state)
    }

    async fn wait(&self, id: &str, wanted: impl Fn(&NodeState) -> bool) -> NodeState {
        let mut view = self.ctx.registry.get(id).expect("the sandbox is known").view;
        let view = view.wait_for(|view| wanted(&view.report.state)).await.expect("its task lives");
        view.report.state.clone()
    }

    /// Ends and forgets the sandbox; nothing of it may be left but its log.
    async fn forget(&self, id: &str) {
        if !self.ctx.registry.get(id).expect("the sandbox is known").view.borrow().is_terminated() {
            self.command(id, 90, Op::Terminate { reason: TerminationReason::User }).await;
        }
        self.wait(id, |state| matches!(state, NodeState::Terminated { .. })).await;
        let left: Vec<_> = fs::read_dir(self.ctx.storage.sandbox(id)).expect("a tombstone").collect();
        assert_eq!(left.len(), 1, "{left:?}");
        self.command(id, 91, Op::Terminate { reason: TerminationReason::User }).await;
        assert!(!self.ctx.storage.sandbox(id).exists());
        assert!(self.world.alive.lock().expect("lock").is_empty(), "a VM is left");
    }
}

/// A sandbox whose guest does `guest` ends for `reason`, with `words` in the detail.
async fn check_guest(guest: Guest, reason: TerminationReason, words: &str) {
    let it = Fixture::new(guest, None, 0);
    let (id, state) = it.create(spec(true, 0)).await;
    let NodeState::Terminated { reason: got, detail, .. } = state else { panic!("{guest:?}: {state:?}") };
    assert_eq!(got, reason, "{guest:?}: {detail}");
    assert!(detail.contains(words), "{guest:?}: {detail}");
    it.forget(&id).await;
}

#[tokio::test]
async fn guests_that_misbehave_at_boot_end_with_a_reason() {
    use TerminationReason::StartupFailedInternalError as Failed;
    check_guest(Guest::RefusesConfiguration, Failed, "500").await;
    check_guest(Guest::SpeaksAnotherProtocol, Failed, "protocol 2").await;
    check_guest(Guest::HangsUp, Failed, "did not answer").await;
    check_guest(Guest::PowersOff, Failed, "powered off").await;
}

#[tokio::test]
async fn a_guest_that_sends_garbage_at_boot_ends() {
    let it = Fixture::new(Guest::SendsGarbage, None, 0);
    let id = new_id();
    it.command(&id, 1, Op::Create { spec: spec(true, 0) }).await;
    // Garbage is skipped while the handshake waits; the user need not wait for its timeout.
    it.forget(&id).await;
}

#[tokio::test]
async fn a_failure_at_any_step_of_the_boot_leaves_nothing() {
    for step in [Step::Launch, Step::Network, Step::Link] {
        for failures in [1, usize::MAX] {
            let it = Fixture::new(Guest::Answers, Some(step), failures);
            let (id, state) = it.create(spec(false, 0)).await;
            let NodeState::Terminated { detail, .. } = state else { panic!("{step:?}: {state:?}") };
            assert!(detail.contains(&format!("{step:?} fails")), "{detail}");
            it.forget(&id).await;
        }
    }
}

#[tokio::test]
async fn a_vm_that_cannot_be_killed_at_once_is_killed_later() {
    let it = Fixture::new(Guest::Answers, Some(Step::Kill), 1);
    let (id, state) = it.create(spec(true, 0)).await;
    assert_eq!(state, NodeState::Running);
    it.command(&id, 2, Op::Terminate { reason: TerminationReason::User }).await;
    it.wait(&id, |state| matches!(state, NodeState::Terminated { .. })).await;
    assert_eq!(it.world.alive.lock().expect("lock").len(), 0, "the second try has to kill it");
}

#[tokio::test]
async fn a_running_sandbox_ends_with_its_vm() {
    for (exit, reason) in [
        (VmExit::GuestReset, TerminationReason::GuestShutdown),
        (VmExit::Process { code: None, signal: Some(9) }, TerminationReason::VmmExited),
    ] {
        let it = Fixture::new(Guest::Answers, None, 0);
        let (id, state) = it.create(spec(true, 0)).await;
        assert_eq!(state, NodeState::Running);
        it.world.exit.send_replace(Some(exit));
        let state = it.wait(&id, |state| *state != NodeState::Running).await;
        assert!(matches!(state, NodeState::Terminated { reason: got, .. } if got == reason), "{state:?}");
        it.forget(&id).await;
    }
}

#[tokio::test]
async fn an_idle_sandbox_ends_and_a_named_one_stays() {
    let it = Fixture::new(Guest::Answers, None, 0);
    let (idle, _) = it.create(spec(true, 1)).await;
    let mut named = spec(true, 1);
    named.settings.name = Some("box".into());
    let (named, _) = it.create(named).await;
    let state = it.wait(&idle, |state| *state != NodeState::Running).await;
    assert!(matches!(state, NodeState::Terminated { reason: TerminationReason::Timeout, .. }), "{state:?}");
    assert_eq!(it.wait(&named, |_| true).await, NodeState::Running);
    it.forget(&named).await;
}

#[tokio::test]
async fn a_new_node_finds_the_sandboxes_of_the_old_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = Fixture::new(Guest::Answers, None, 0);
    let (kept, _) = old.create(spec(true, 0)).await;
    let (lost, _) = old.create(spec(true, 0)).await;
    old.world.alive.lock().expect("lock").retain(|run_dir| run_dir.starts_with(old.ctx.storage.sandbox(&kept)));
    let ctx = Fixture::open(dir.path(), &old.world);
    let ctx = Arc::new(Context {
        storage: Storage::plain(&old._dir.path().join("data")).expect("storage"),
        ..Arc::into_inner(ctx).expect("ours")
    });
    ctx.registry.load(&ctx).expect("the records are read");
    let new = Fixture { _dir: dir, world: old.world.clone(), ctx };
    assert_eq!(new.wait(&kept, |state| *state == NodeState::Running).await, NodeState::Running);
    let state = new.wait(&lost, |state| matches!(state, NodeState::Terminated { .. })).await;
    assert!(matches!(state, NodeState::Terminated { reason: TerminationReason::VmmExited, .. }), "{state:?}");
}
