//! What is QEMU's own, with a real one where it is installed. What every driver does is in [`crate::conformance`].

use super::*;
use crate::conformance::{self, IDLE, RESET, World, is_running, print};
use crate::{NetworkSpec, VmmError};
use std::path::PathBuf;
use tokio::io::AsyncReadExt;

/// Without QEMU there is nothing to test here.
pub(super) fn driver() -> Option<QemuDriver> {
    conformance::qemu(Accelerator::Tcg)
}

pub(super) fn driver_of(path: PathBuf) -> QemuDriver {
    let program = Program { path, version: "0".into() };
    let mut config = QemuConfig::new(program, Accelerator::Tcg);
    config.launch_limit = Duration::from_millis(200);
    QemuDriver::new(config)
}

#[tokio::test]
async fn life_of_a_vm() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let spec = VmSpec { network: NetworkSpec::User { restrict: true }, ..world.spec(&IDLE) };
    let vm = driver.launch(&spec).await.unwrap();
    assert_eq!(world.files(), ["link.sock", "qmp.sock", "vm.json"]);
    let link = vm.connect_link().await.unwrap();
    assert!(is_running(vm.pid()) && vm.console().await.unwrap().is_empty());
    let memory = vm.memory().unwrap();
    assert!(memory.guest < 64 << 20 && memory.files > 1 << 20 && memory.heap > 1 << 20, "{memory:?}");

    for connected in [false, false, true] {
        vm.set_network(connected).await.unwrap();
    }

    vm.kill().await.unwrap();
    world.assert_clean();
    let mut link = link;
    assert_eq!(link.read(&mut [0]).await.unwrap_or(0), 0);
}

/// Its process stays, stopped, also for one who comes later.
#[tokio::test]
async fn a_guest_that_resets_is_kept_for_questions() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let mut vm = driver.launch(&world.spec(&print("x", &RESET))).await.unwrap();
    for _ in 0..2 {
        assert_eq!(vm.wait().await, VmExit::GuestReset);
        assert!(is_running(vm.pid()));
        assert_eq!(vm.console().await.unwrap(), b"x");
        drop(vm);
        vm = driver.adopt(&world.run_dir()).await.unwrap().unwrap();
    }
    vm.kill().await.unwrap();
    world.assert_clean();
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
