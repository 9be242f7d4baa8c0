//! Lifecycle against a real QEMU, where one is installed; its guest is a few instructions or none at all.

use super::*;
use crate::probe;
use crate::{NetworkSpec, VmmError};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use tokio::io::AsyncReadExt;

/// A directory with everything a launch needs.
pub(super) struct World {
    dir: tempfile::TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(this.run_dir()).unwrap();
        std::fs::set_permissions(this.run_dir(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(this.path("disk"), vec![0; 1 << 20]).unwrap();
        this
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Deeper than a socket's address is long.
    pub(super) fn run_dir(&self) -> PathBuf {
        let deep = self.path(&"d".repeat(120));
        if !deep.exists() {
            std::fs::create_dir(&deep).unwrap();
        }
        deep.join("run")
    }

    /// An executable shell script.
    pub(super) fn script(&self, text: &str) -> PathBuf {
        let path = self.path("script");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A VM whose kernel is the given machine code.
    pub(super) fn spec(&self, code: &[u8]) -> VmSpec {
        std::fs::write(self.path("kernel"), kernel(code)).unwrap();
        VmSpec {
            id: "test".into(),
            run_dir: self.run_dir(),
            kernel: self.path("kernel"),
            initrd: None,
            disk: Some(self.path("disk")),
            cmdline_extra: String::new(),
            vcpus: 1,
            memory_mib: 64,
            memory: None,
            devices: None,
            network: NetworkSpec::User { restrict: true },
        }
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.run_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Nothing in the run directory, and no process that works in it.
    pub(super) fn assert_clean(&self) {
        assert_eq!(self.files(), Vec::<String>::new());
        let here = self.run_dir();
        let users: Vec<_> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|process| std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == here))
            .collect();
        assert_eq!(users, Vec::<PathBuf>::new());
    }
}

/// An ELF file with a PVH entry (32-bit protected mode) at 1 MiB.
fn kernel(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE: u64 = 12 + 4 + 8;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    // Executable, x86-64, entry, one program header table.
    put(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [ADDRESS, 64, 0] {
        put(&word.to_le_bytes());
    }
    put(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    let length = code.len() as u64;
    for (kind, offset, address, size) in [(1_u32, HEADERS + NOTE, ADDRESS, length), (4, HEADERS, 0, NOTE)] {
        put(&kind.to_le_bytes());
        put(&7_u32.to_le_bytes());
        for word in [offset, address, address, size, size, 4] {
            put(&word.to_le_bytes());
        }
    }
    // The note: name size, value size, XEN_ELFNOTE_PHYS32_ENTRY, "Xen", the entry.
    for word in [4_u32, 8, 18] {
        put(&word.to_le_bytes());
    }
    put(b"Xen\0");
    put(&ADDRESS.to_le_bytes());
    put(code);
    elf
}

/// `hlt` for ever.
const IDLE: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// Loads an empty interrupt table and traps: a triple fault, as the kernel's `reboot=t` does.
/// `push 0; push 0; lidt [esp]; ud2`
const RESET: [u8; 10] = [0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];

/// Writes a text to the serial port and then runs `after`.
fn print(text: &str, after: &[u8]) -> Vec<u8> {
    // mov dx, 0x3f8
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        // mov al, byte; out dx, al
        code.extend([0xb0, byte, 0xee]);
    }
    code.extend(after);
    code
}

/// With QEMU 9 or newer; without it there is nothing to test here.
pub(super) fn driver() -> Option<QemuDriver> {
    let program = probe::qemu(Path::new("qemu-system-x86_64")).ok()?;
    Some(QemuDriver::new(QemuConfig::new(program, Accelerator::Tcg)))
}

pub(super) fn driver_of(path: PathBuf) -> QemuDriver {
    let program = QemuProgram { path, version: "0".into() };
    let mut config = QemuConfig::new(program, Accelerator::Tcg);
    config.launch_limit = Duration::from_millis(200);
    QemuDriver::new(config)
}

fn is_running(pid: u32) -> bool {
    crate::child::start_time(pid).is_some()
}

#[tokio::test]
async fn life_of_a_vm() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let vm = driver.launch(&world.spec(&IDLE)).await.unwrap();
    assert_eq!(world.files(), ["link.sock", "qmp.sock", "vm.json"]);
    let link = vm.connect_link().await.unwrap();
    assert!(is_running(vm.pid()) && vm.console().await.unwrap().is_empty());
    let memory = vm.memory().unwrap();
    assert!(memory.guest < 64 << 20 && memory.files > 1 << 20 && memory.heap > 1 << 20, "{memory:?}");

    for connected in [false, false, true] {
        vm.set_network(connected).await.unwrap();
    }

    let second = driver.launch(&world.spec(&IDLE)).await.err().unwrap();
    assert!(matches!(second, VmmError::Occupied { pid, .. } if pid == vm.pid()), "{second}");

    let (exit, killed) = tokio::join!(vm.wait(), vm.kill());
    killed.unwrap();
    assert_eq!(exit, VmExit::Process { code: None, signal: Some(9) });
    assert_eq!(vm.wait().await, exit);
    vm.kill().await.unwrap();
    assert!(vm.console().await.unwrap().is_empty() && vm.connect_link().await.is_err() && vm.memory().is_err());
    world.assert_clean();
    let mut link = link;
    assert_eq!(link.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn guest_that_resets_is_kept_for_questions() {
    let Some(driver) = driver() else { return };
    let check = async |text: &str, expected: VmExit| {
        let world = World::new();
        let vm = driver.launch(&world.spec(&print(text, &RESET))).await.unwrap();
        assert_eq!(vm.wait().await, expected);
        assert!(is_running(vm.pid()));
        for _ in 0..2 {
            assert_eq!(vm.console().await.unwrap(), text.as_bytes());
        }
        vm.kill().await.unwrap();
        assert_eq!(vm.wait().await, expected);
        world.assert_clean();
    };
    check("bye\r\n", VmExit::GuestReset).await;
    check("Kernel panic - not syncing: no init\r\n", VmExit::GuestPanic { message: "no init".into() }).await;
}

#[tokio::test]
async fn console_keeps_the_end_of_a_flood() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    // 70 KiB of text, then a reset; the ring holds the last 64 KiB.
    let line = "0123456789abcdef\n".repeat(4096);
    let vm = driver.launch(&world.spec(&print(&line, &RESET))).await.unwrap();
    assert_eq!(vm.wait().await, VmExit::GuestReset);
    let console = vm.console().await.unwrap();
    assert_eq!(console, &line.as_bytes()[line.len() - crate::limits::CONSOLE_BYTES..]);
    vm.kill().await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn dropped_vm_lives_on_and_is_adopted() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let vm = driver.launch(&world.spec(&IDLE)).await.unwrap();
    let pid = vm.pid();
    drop(vm);
    for _ in 0..2 {
        let vm = driver.adopt(&world.run_dir()).await.unwrap().unwrap();
        assert!(vm.pid() == pid && is_running(pid));
        vm.connect_link().await.unwrap();
    }
    let vm = driver.adopt(&world.run_dir()).await.unwrap().unwrap();
    vm.kill().await.unwrap();
    world.assert_clean();
    assert!(driver.adopt(&world.run_dir()).await.unwrap().is_none());
}

#[tokio::test]
async fn adoption_after_the_guest_reset_tells_it() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let vm = driver.launch(&world.spec(&print("x", &RESET))).await.unwrap();
    assert_eq!(vm.wait().await, VmExit::GuestReset);
    assert_eq!(vm.console().await.unwrap(), b"x");
    drop(vm);
    let vm = driver.adopt(&world.run_dir()).await.unwrap().unwrap();
    assert_eq!(vm.wait().await, VmExit::GuestReset);
    assert_eq!(vm.console().await.unwrap(), b"x");
    vm.kill().await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn adoption_of_a_dead_vm_cleans_up() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let vm = driver.launch(&VmSpec { network: NetworkSpec::None, ..world.spec(&IDLE) }).await.unwrap();
    assert!(matches!(vm.set_network(true).await, Err(VmmError::Monitor { .. })));
    let killed = Process::watch(vm.pid().cast_signed()).unwrap();
    killed.kill().await.unwrap();
    assert!(matches!(vm.wait().await, VmExit::Process { .. }));
    drop(vm);
    assert!(!world.files().is_empty());
    assert!(driver.adopt(&world.run_dir()).await.unwrap().is_none());
    world.assert_clean();
}

/// A record that names a living process which is not the VM: its number was used again.
#[tokio::test]
async fn reused_process_id_is_neither_adopted_nor_killed() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let dir = RunDir::open(&world.run_dir()).unwrap();
    let guest = Guest { memory_mib: 64, ..Guest::default() };
    dir.write_record(&Record::of("x", other.id(), driver.kind(), "0", guest).unwrap()).unwrap();
    let path = world.run_dir().join("vm.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let start = crate::child::start_time(other.id()).unwrap().to_string();
    std::fs::write(&path, text.replace(&start, "1")).unwrap();
    assert!(driver.adopt(&world.run_dir()).await.unwrap().is_none());
    assert!(is_running(other.id()));
    world.assert_clean();
    other.kill().unwrap();
    other.wait().unwrap();
}

/// The launcher died after starting QEMU and before writing the record, or the record was damaged.
#[tokio::test]
async fn unrecorded_vm_is_ended() {
    let Some(driver) = driver() else { return };
    for damage in [None, Some("{"), Some(""), Some(r#"{"version": 2}"#)] {
        let world = World::new();
        let vm = driver.launch(&world.spec(&IDLE)).await.unwrap();
        let process = Process::watch(vm.pid().cast_signed()).unwrap();
        drop(vm);
        let record = world.run_dir().join("vm.json");
        match damage {
            Some(text) => std::fs::write(&record, text).unwrap(),
            None => std::fs::remove_file(&record).unwrap(),
        }
        assert!(driver.adopt(&world.run_dir()).await.unwrap().is_none());
        process.ended().await;
        world.assert_clean();
    }
}

#[tokio::test]
async fn failing_launches_leave_nothing() {
    let check = async |driver: &QemuDriver, world: &World, spec: &VmSpec, expected: &str| {
        let error = driver.launch(spec).await.err().unwrap();
        assert!(error.to_string().contains(expected), "{error:?}");
        world.assert_clean();
    };
    let world = World::new();
    let good = world.spec(&IDLE);
    let missing = driver_of(world.path("missing"));
    check(&missing, &world, &VmSpec { vcpus: 0, ..good.clone() }, "vcpus").await;
    check(&missing, &world, &VmSpec { kernel: world.path("x"), ..good.clone() }, "cannot open the kernel").await;
    check(&missing, &world, &VmSpec { disk: Some(world.path("x")), ..good.clone() }, "cannot open the disk").await;
    check(&missing, &world, &VmSpec { disk: Some(world.run_dir()), ..good.clone() }, "cannot open the disk").await;
    check(&missing, &world, &VmSpec { run_dir: world.path("x"), ..good.clone() }, "run directory").await;
    check(&missing, &world, &VmSpec { run_dir: "/usr".into(), ..good.clone() }, "chmod 700").await;
    check(&missing, &world, &good, "is it installed").await;
    check(&driver_of(world.script("echo no such option >&2; exit 3")), &world, &good, "no such option").await;
    check(&driver_of(world.script("exec sleep 1000")), &world, &good, "was not ready within 0.2 s").await;

    // In the way of the record: found only once the process runs.
    std::fs::create_dir_all(world.run_dir().join("vm.json.new/x")).unwrap();
    let sleeping = driver_of(world.script("exec sleep 1000"));
    let error = sleeping.launch(&good).await.err().unwrap();
    assert!(matches!(error, VmmError::RunDir { .. }), "{error:?}");
    std::fs::remove_dir_all(world.run_dir().join("vm.json.new")).unwrap();
    world.assert_clean();

    // The caller gives up while the process starts.
    tokio::time::timeout(Duration::from_millis(50), sleeping.launch(&good)).await.err().unwrap();
    while !std::fs::read_dir("/proc")
        .unwrap()
        .all(|entry| std::fs::read_link(entry.unwrap().path().join("cwd")).map_or(true, |cwd| cwd != world.run_dir()))
    {
        tokio::task::yield_now().await;
    }
    world.assert_clean();
}

#[tokio::test]
async fn real_qemu_explains_its_refusals() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let good = world.spec(&IDLE);
    std::fs::write(world.path("bad"), "not a kernel").unwrap();
    let error = driver.launch(&VmSpec { kernel: world.path("bad"), ..good.clone() }).await.err().unwrap();
    assert!(matches!(error, VmmError::EndedEarly { .. }), "{error:?}");
    world.assert_clean();

    // Two VMs on one disk.
    let vm = driver.launch(&good).await.unwrap();
    let other = World::new();
    let error = driver.launch(&VmSpec { run_dir: other.run_dir(), ..good.clone() }).await.err().unwrap();
    assert!(error.to_string().contains("lock"), "{error:?}");
    other.assert_clean();
    vm.kill().await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn nothing_of_ours_is_inherited() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let leak = rustix::io::fcntl_dupfd_cloexec(std::fs::File::open("/etc/hostname").unwrap(), 50).unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let vm = driver.launch(&world.spec(&IDLE)).await.unwrap();
    let proc = PathBuf::from(format!("/proc/{}", vm.pid()));
    let open =
        std::fs::read_dir(proc.join("fd")).unwrap().map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap());
    assert!(!open.collect::<Vec<_>>().contains(&PathBuf::from("/etc/hostname")));
    let environment = std::fs::read(proc.join("environ")).unwrap();
    assert!(environment.split(|byte| *byte == 0).all(|line| line.is_empty() || line.starts_with(b"PATH=")));
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, vm.pid().to_string());
    vm.kill().await.unwrap();
}
