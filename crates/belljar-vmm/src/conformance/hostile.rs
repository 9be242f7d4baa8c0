//! Harm, by guests and by the host: whatever a guest does to its devices, its VM ends with a reason or goes on, the host is
//! clean afterwards, and a neighbour notices nothing; and what breaks off leaves nothing half done.

use super::saved::{Saved, WRITE_PLACE, saved};
use super::{IDLE, RESET, World, is_running, with_each};
use crate::child::Process;
use crate::driver::{VmExit, VmSpec};
use crate::error::VmmError;
use rustix::process::{Pid, Signal, kill_process};
use std::time::Duration;

/// How often such a guest writes to a port and to memory, before it resets.
const WRITES: u32 = 4000;

/// A guest that does not end has perhaps stopped its own processor, which is its right.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where VM programs put registers, 64 KiB each: virtio over MMIO (Firecracker, QEMU), PCI devices (Cloud Hypervisor),
/// interrupt controllers, timers.
const REGISTERS: [u32; 8] =
    [0xc000_0000, 0xd000_0000, 0xe000_0000, 0xe800_0000, 0xfeb0_0000, 0xfec0_0000, 0xfed0_0000, 0xfee0_0000];

/// Writes pseudo-random values to pseudo-random ports and registers.
fn wild(seed: u32) -> Vec<u8> {
    // imul eax, eax, 1103515245; add eax, 12345
    let next = [0x69, 0xc0, 0x6d, 0x4e, 0xc6, 0x41, 0x05, 0x39, 0x30, 0x00, 0x00];
    let port = [
        0x89, 0xc2, // mov edx, eax
        0xc1, 0xea, 0x10, // shr edx, 16
        0xa9, 0x00, 0x10, 0x00, 0x00, // test eax, 0x1000
        0x74, 0x03, // jz byte
        0xef, // out dx, eax
        0xeb, 0x01, // jmp done
        0xee, // byte: out dx, al
    ];
    let register = [
        0x89, 0xc1, // done: mov ecx, eax
        0xc1, 0xe9, 0x1d, // shr ecx, 29
        0x8b, 0x0c, 0x8d, 0, 0, 0, 0, // mov ecx, [ecx * 4 + REGISTERS]
        0x89, 0xc7, // mov edi, eax
        0xc1, 0xef, 0x0c, // shr edi, 12
        0x81, 0xe7, 0xfc, 0xff, 0x00, 0x00, // and edi, 0xfffc
        0x01, 0xf9, // add ecx, edi
    ];
    let access = [
        0x89, 0x01, // mov [ecx], eax
        0x8b, 0x19, // mov ebx, [ecx]
        0x4d, // dec ebp
    ];
    let body = [&next[..], &port, &register, &next, &access].concat();
    // jnz, to the start of the body.
    let back = i32::try_from(body.len() + 6).unwrap();
    let mut code = vec![0xb8]; // mov eax, seed
    code.extend(seed.to_le_bytes());
    code.push(0xbd); // mov ebp, WRITES
    code.extend(WRITES.to_le_bytes());
    let start = code.len();
    code.extend(&body);
    code.extend([0x0f, 0x85]);
    code.extend((-back).to_le_bytes());
    code.extend(RESET);
    // The code is at 1 MiB; the table comes behind it.
    let table = 0x10_0000 + u32::try_from(code.len()).unwrap();
    let at = start + next.len() + port.len() + 2 + 3 + 3;
    code[at..at + 4].copy_from_slice(&table.to_le_bytes());
    code.extend(REGISTERS.iter().flat_map(|base| base.to_le_bytes()));
    code
}

#[tokio::test]
async fn wild_values_in_every_register_harm_nobody_else() {
    with_each(async |driver, world| {
        let other = World::new();
        let neighbour = VmSpec { run_dir: other.run_dir(), disk: Some(other.path("disk")), ..world.spec(&IDLE) };
        let neighbour = driver.launch(&neighbour).await.unwrap();
        for seed in 1..=6 {
            let vm = driver.launch(&world.spec(&wild(seed))).await.unwrap();
            match tokio::time::timeout(PATIENCE, vm.wait()).await {
                Ok(exit) => println!("seed {seed}: {exit}"),
                Err(_) => assert!(is_running(vm.pid()), "seed {seed}: it ended and nobody was told"),
            }
            // Whatever it wrote in its last moments is only bytes.
            vm.console().await.unwrap();
            vm.kill().await.unwrap();
            world.assert_clean();
            assert!(is_running(neighbour.pid()) && !neighbour.is_paused().await.unwrap(), "seed {seed}");
        }
        neighbour.kill().await.unwrap();
        other.assert_clean();
    })
    .await;
}

/// Its process answers nobody any more, as one that a guest has led astray.
#[tokio::test]
async fn a_vm_that_hangs_can_be_ended() {
    with_each(async |driver, world| {
        let vm = driver.launch(&world.spec(&IDLE)).await.unwrap();
        let pid = vm.pid();
        drop(vm);
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::STOP).unwrap();
        driver.end(&world.run_dir()).await.unwrap();
        assert!(!is_running(pid));
        world.assert_clean();
        // Where nothing is any more that is fine.
        driver.end(&world.run_dir()).await.unwrap();
    })
    .await;
}

/// Its process dies at any moment of saving: there is a whole state, or none and an error.
#[tokio::test]
async fn a_vm_that_dies_while_it_is_saved_is_told() {
    with_each(async |driver, world| {
        let Saved { spec, .. } = saved(driver, world, WRITE_PLACE).await;
        for millis in [0, 1, 2, 4, 8, 16] {
            let vm = driver.launch(&spec).await.unwrap();
            let process = Process::watch(vm.pid().cast_signed()).unwrap();
            let to = world.path(&format!("devices-at-{millis}"));
            let (result, ()) = tokio::join!(vm.save_devices(&to), async {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                process.send_kill().unwrap();
            });
            assert!(matches!(vm.wait().await, VmExit::Process { .. }));
            vm.kill().await.unwrap();
            world.assert_clean();
            assert_eq!(result.is_ok(), to.exists(), "{millis} ms: {result:?}");
            if result.is_ok() {
                let again = driver.launch(&VmSpec { devices: Some(to), ..spec.clone() }).await.unwrap();
                again.kill().await.unwrap();
            }
        }
    })
    .await;
}

/// The host's disk is full: no state, an error, and the guest goes on.
#[tokio::test]
async fn a_state_that_does_not_fit_leaves_nothing() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    if !rustix::process::geteuid().is_root() {
        return;
    }
    with_each(async |driver, world| {
        let Saved { spec, .. } = saved(driver, world, WRITE_PLACE).await;
        let small = world.path("small-disk");
        std::fs::create_dir(&small).unwrap();
        mount("tmpfs", &small, "tmpfs", MountFlags::empty(), Some(c"size=8k")).unwrap();
        let vm = driver.launch(&spec).await.unwrap();
        let error = vm.save_devices(&small.join("devices")).await;
        let left = std::fs::read_dir(&small).unwrap().count();
        unmount(&small, UnmountFlags::empty()).unwrap();
        assert!(matches!(error, Err(VmmError::Save { .. })) && left == 0, "{error:?}, {left} files");
        vm.resume().await.unwrap();
        assert!(!vm.is_paused().await.unwrap());
        vm.kill().await.unwrap();
    })
    .await;
}
