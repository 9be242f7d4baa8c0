//! What is QEMU's own about saving and restoring, with a real one where it is installed. What every driver does is in
//! [`crate::conformance`].

use super::tests::{driver, driver_of};
use super::*;
use crate::NetworkSpec;
use crate::conformance::World;
use crate::conformance::saved::{Image, Saved, WRITE_PLACE, obey, saved};

#[tokio::test]
async fn what_qemu_itself_refuses_is_told() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let Saved { spec: good, .. } = saved(&driver, &world, WRITE_PLACE).await;
    let state = std::fs::read(good.devices.as_ref().unwrap()).unwrap();
    let check = async |spec: VmSpec, expected: &str| {
        let error = driver.launch(&spec).await.err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
        world.assert_clean();
    };
    let card = NetworkSpec::User { restrict: true };
    check(VmSpec { network: card, ..good.clone() }, "a disk and a network card of its own process").await;
    std::fs::write(world.path("short"), &state[..state.len() / 2]).unwrap();
    check(VmSpec { devices: Some(world.path("short")), ..good.clone() }, "cut short").await;

    // Nothing wrong that we could see.
    let name = state.windows(10).position(|window| window == b"virtio-rng").unwrap();
    let mut odd = state;
    odd[name] = b'X';
    std::fs::write(world.path("odd"), state::renewed(&odd)).unwrap();
    check(VmSpec { devices: Some(world.path("odd")), ..good }, "Xirtio-rng").await;
}

#[tokio::test]
async fn what_cannot_be_saved_is_told() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let to = world.path("devices");
    let vm = driver.launch(&world.spec(&obey(WRITE_PLACE))).await.unwrap();
    vm.pause().await.unwrap();
    assert!(matches!(vm.save_devices(&to).await, Err(VmmError::NoMemoryFile { .. })));
    assert!(matches!(vm.copy_dirty(Vec::new()), Err(VmmError::NoMemoryFile { .. })));
    vm.kill().await.unwrap();

    let image = Image::new(&world, "memory");
    let vm = driver.launch(&VmSpec { memory: Some(image.0), ..world.spec(&obey(WRITE_PLACE)) }).await.unwrap();
    vm.pause().await.unwrap();
    drop(vm);
    // A QEMU that does not start any more.
    let broken = driver_of(world.script("echo gone >&2; exit 3"));
    let vm = broken.adopt(&world.run_dir()).await.unwrap().unwrap();
    let error = vm.save_devices(&world.path("other")).await.unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    assert!(!world.path("other").exists());
    vm.kill().await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn qemu_that_is_killed_while_it_saves() {
    let Some(driver) = driver() else { return };
    let world = World::new();
    let Saved { spec, .. } = saved(&driver, &world, WRITE_PLACE).await;
    let vm = driver.launch(&spec).await.unwrap();
    // It waits for a reader, who never comes.
    let fifo = spec.run_dir.join(crate::run_dir::DEVICES);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let to = world.path("devices-2");
    let process = Process::watch(vm.pid().cast_signed()).unwrap();
    let (saved, ()) = tokio::join!(vm.save_devices(&to), async {
        while !waits_in_open(vm.pid()) {
            tokio::task::yield_now().await;
        }
        process.kill().await.unwrap();
    });
    assert!(matches!(saved, Err(VmmError::Monitor { .. })), "{saved:?}");
    assert!(!to.exists());
    vm.kill().await.unwrap();
    world.assert_clean();
}

/// Whether its main thread is inside of the system call `openat`.
fn waits_in_open(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|call| call.starts_with("257 "))
}
