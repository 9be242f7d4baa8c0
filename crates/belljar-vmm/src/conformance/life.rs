//! From the start of a VM to its end.

use super::{IDLE, RESET, World, is_running, print, with_each};
use crate::child::Process;
use crate::driver::{NetworkSpec, VmExit, VmSpec};
use crate::error::VmmError;
use crate::run_dir::{Guest, Record, RunDir};
use std::path::{Path, PathBuf};

#[tokio::test]
async fn a_vm_lives_until_it_is_killed() {
    with_each(async |driver, world| {
        let vm = driver.launch(&world.spec(&IDLE)).await.unwrap();
        assert!(is_running(vm.pid()) && !vm.is_paused().await.unwrap() && vm.console().await.unwrap().is_empty());
        let memory = vm.memory().unwrap();
        assert!(memory.guest < 64 << 20 && memory.files > 0 && memory.heap > 0, "{memory:?}");

        let second = driver.launch(&world.spec(&IDLE)).await.err().unwrap();
        assert!(matches!(second, VmmError::Occupied { pid, .. } if pid == vm.pid()), "{second}");

        let (exit, killed) = tokio::join!(vm.wait(), vm.kill());
        killed.unwrap();
        assert_eq!(exit, VmExit::Process { code: None, signal: Some(9) });
        assert_eq!(vm.wait().await, exit);
        vm.kill().await.unwrap();
        assert!(vm.console().await.unwrap().is_empty() && vm.connect_link().await.is_err() && vm.memory().is_err());
        assert!(vm.pause().await.is_err() && vm.copy_dirty(Vec::new()).is_err() && vm.is_paused().await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_resets_says_why() {
    with_each(async |driver, world| {
        for (text, expected) in [
            ("bye\r\n", VmExit::GuestReset),
            ("Kernel panic - not syncing: no init\r\n", VmExit::GuestPanic { message: "no init".into() }),
        ] {
            let vm = driver.launch(&world.spec(&print(text, &RESET))).await.unwrap();
            assert_eq!(vm.wait().await, expected);
            for _ in 0..2 {
                assert_eq!(vm.console().await.unwrap(), text.as_bytes());
            }
            vm.kill().await.unwrap();
            assert_eq!(vm.wait().await, expected);
            world.assert_clean();
        }
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_flood_on_the_console_is_kept() {
    with_each(async |driver, world| {
        let line = "0123456789abcdef\n".repeat(4096);
        let vm = driver.launch(&world.spec(&print(&line, &RESET))).await.unwrap();
        assert_eq!(vm.wait().await, VmExit::GuestReset);
        let console = vm.console().await.unwrap();
        assert_eq!(console.len(), crate::limits::CONSOLE_BYTES);
        assert!(line.as_bytes().ends_with(&console));
        vm.kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_vm_outlives_its_launcher_and_is_adopted() {
    with_each(async |driver, world| {
        let vm = driver.launch(&world.spec(&print("hello", &IDLE))).await.unwrap();
        let pid = vm.pid();
        while vm.console().await.unwrap() != b"hello" {
            tokio::task::yield_now().await;
        }
        drop(vm);
        for _ in 0..3 {
            let vm = driver.adopt(&world.run_dir()).await.unwrap().unwrap();
            assert!(vm.pid() == pid && is_running(pid) && !vm.is_paused().await.unwrap());
            assert_eq!(vm.console().await.unwrap(), b"hello");
        }
        let vm = driver.adopt(&world.run_dir()).await.unwrap().unwrap();
        vm.kill().await.unwrap();
        world.assert_clean();
        assert!(driver.adopt(&world.run_dir()).await.unwrap().is_none());
    })
    .await;
}

/// The launcher came back when it was over: it learns that the guest is gone, one way or the other.
#[tokio::test]
async fn adoption_after_the_end_says_so() {
    with_each(async |driver, world| {
        let vm = driver.launch(&world.spec(&print("x", &RESET))).await.unwrap();
        assert_eq!(vm.wait().await, VmExit::GuestReset);
        drop(vm);
        if let Some(vm) = driver.adopt(&world.run_dir()).await.unwrap() {
            assert_eq!(vm.wait().await, VmExit::GuestReset);
            assert_eq!(vm.console().await.unwrap(), b"x");
            vm.kill().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn adoption_of_a_dead_vm_cleans_up() {
    with_each(async |driver, world| {
        let vm = driver.launch(&world.spec(&IDLE)).await.unwrap();
        let killed = Process::watch(vm.pid().cast_signed()).unwrap();
        killed.kill().await.unwrap();
        assert!(matches!(vm.wait().await, VmExit::Process { .. }));
        drop(vm);
        assert!(!world.files().is_empty());
        assert!(driver.adopt(&world.run_dir()).await.unwrap().is_none());
    })
    .await;
}

/// A record that names a living process which is not the VM: its number was used again.
#[tokio::test]
async fn a_reused_process_id_is_neither_adopted_nor_killed() {
    with_each(async |driver, world| {
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
        other.kill().unwrap();
        other.wait().unwrap();
    })
    .await;
}

/// The launcher died after starting the process and before writing the record, or the record was damaged.
#[tokio::test]
async fn a_vm_without_a_record_is_ended() {
    with_each(async |driver, world| {
        for damage in [None, Some("{"), Some(""), Some(r#"{"version": 2}"#)] {
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
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_started_is_refused_and_leaves_nothing() {
    with_each(async |driver, world| {
        let good = world.spec(&IDLE);
        let check = async |spec: VmSpec, expected: &str| {
            let error = driver.launch(&spec).await.err().unwrap();
            assert!(format!("{error:?} {error}").contains(expected), "{error:?}");
            world.assert_clean();
        };
        std::fs::write(world.path("bad"), "not a kernel").unwrap();
        check(VmSpec { vcpus: 0, ..good.clone() }, "vcpus").await;
        check(VmSpec { id: "a b".into(), ..good.clone() }, "id").await;
        check(VmSpec { kernel: world.path("x"), ..good.clone() }, "cannot open the kernel").await;
        check(VmSpec { kernel: world.path("bad"), ..good.clone() }, "").await;
        check(VmSpec { disk: Some(world.path("x")), ..good.clone() }, "cannot open the disk").await;
        check(VmSpec { disk: Some(world.run_dir()), ..good.clone() }, "cannot open the disk").await;
        check(VmSpec { run_dir: world.path("x"), ..good.clone() }, "run directory").await;
        check(VmSpec { run_dir: "/usr".into(), ..good.clone() }, "chmod 700").await;

        let vm = driver.launch(&good).await.unwrap();
        let other = World::new();
        let error = driver.launch(&VmSpec { run_dir: other.run_dir(), ..good.clone() }).await.err().unwrap();
        assert!(format!("{error:?}").contains("lock") || error.to_string().contains("lock"), "{error:?}");
        other.assert_clean();
        vm.kill().await.unwrap();
        // It is free again.
        driver.launch(&good).await.unwrap().kill().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn nothing_of_ours_is_inherited() {
    with_each(async |driver, world| {
        let leak = rustix::io::fcntl_dupfd_cloexec(std::fs::File::open("/etc/hostname").unwrap(), 50).unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let spec = VmSpec { network: NetworkSpec::None, ..world.spec(&IDLE) };
        let vm = driver.launch(&spec).await.unwrap();
        check_inheritance(vm.pid());
        vm.kill().await.unwrap();
    })
    .await;
}

fn check_inheritance(pid: u32) {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    // The process opens and closes files of its own meanwhile; what it has inherited stays.
    let open =
        std::fs::read_dir(proc.join("fd")).unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    assert!(!open.collect::<Vec<_>>().iter().any(|path| path == Path::new("/etc/hostname")));
    let environment = std::fs::read(proc.join("environ")).unwrap();
    assert!(environment.split(|byte| *byte == 0).all(|line| line.is_empty() || line.starts_with(b"PATH=")));
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string());
}
