//! With a shell script in the agent's place: it speaks the same start protocol.

use super::*;
use crate::child::start_time;
use crate::{DiskLimits, NetworkSpec};
use std::os::unix::fs::PermissionsExt;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(script: &str) -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(this.run_dir()).unwrap();
        std::fs::set_permissions(this.run_dir(), PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(this.agent(), format!("#!/bin/bash\n{script}\n")).unwrap();
        std::fs::set_permissions(this.agent(), PermissionsExt::from_mode(0o755)).unwrap();
        this
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn agent(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn driver(&self) -> ProcessDriver {
        ProcessDriver::new(self.agent()).with_launch_limit(Duration::from_millis(500))
    }

    fn spec(&self) -> VmSpec {
        VmSpec {
            id: "test".into(),
            run_dir: self.run_dir(),
            kernel: PathBuf::new(),
            initrd: None,
            disk: None,
            cmdline_extra: String::new(),
            vcpus: 1,
            memory_mib: 64,
            memory: None,
            devices: None,
            changes: None,
            disk_limits: DiskLimits::default(),
            hidden_features: crate::HiddenFeatures::default(),
            passed_through: Vec::new(),
            network: NetworkSpec::None,
            jail: None,
        }
    }

    fn assert_clean(&self) {
        assert_eq!(std::fs::read_dir(self.run_dir()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn life_of_a_hosted_vm() {
    let world = World::new(
        "[ \"$*\" = \"--hosted --listen link.sock --root $PWD/root\" ] || exit 9\necho hello >&2\necho ready\nexec sleep 1000",
    );
    let vm = world.driver().launch(&world.spec()).await.unwrap();
    let pid = vm.pid();
    assert_eq!(vm.console().await.unwrap(), b"hello\n");
    assert!(matches!(world.driver().launch(&world.spec()).await, Err(VmmError::Occupied { .. })));
    drop(vm);
    let vm = world.driver().adopt(&world.run_dir()).await.unwrap().unwrap();
    assert!(vm.pid() == pid && start_time(pid).is_some() && vm.memory().unwrap().files > 0);
    assert_eq!(vm.console().await.unwrap(), b"hello\n");
    assert!(vm.set_network(true).await.is_ok() && vm.set_network(false).await.is_err());
    vm.kill().await.unwrap();
    assert_eq!(vm.wait().await, VmExit::Process { code: None, signal: Some(9) });
    world.assert_clean();
    assert!(world.driver().adopt(&world.run_dir()).await.unwrap().is_none());
}

#[tokio::test]
async fn kill_ends_all_it_started() {
    // A child, a grandchild in a session of its own, and one that keeps forking.
    let world = World::new(
        "sleep 1000 & echo $! >root/a\nsetsid sh -c 'sleep 1000 & echo $! >root/b; touch root/done; wait' &\n\
         while :; do sleep 0.01; done &\necho $! >root/c\nuntil [ -e root/done ]; do :; done\necho ready\nwait",
    );
    let vm = world.driver().launch(&world.spec()).await.unwrap();
    let pids: Vec<i32> = ["a", "b", "c"]
        .map(|name| std::fs::read_to_string(world.run_dir().join("root").join(name)).unwrap().trim().parse().unwrap())
        .to_vec();
    assert!(pids.iter().all(|pid| start_time(pid.unsigned_abs()).is_some()));
    let watched: Vec<_> = pids.iter().map(|pid| Process::watch(*pid).unwrap()).collect();
    vm.kill().await.unwrap();
    for process in watched {
        process.ended().await;
    }
    world.assert_clean();
}

#[tokio::test]
async fn failing_launches_leave_nothing() {
    let check = async |script: &str, expected: &str| {
        let world = World::new(script);
        let error = world.driver().launch(&world.spec()).await.err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
        world.assert_clean();
    };
    check("echo broken >&2; exit 3", "it said: broken").await;
    check("echo 'hello world'; exec sleep 1000", "before the VM was ready").await;
    check("exec sleep 1000", "was not ready within 0.5 s").await;
    let world = World::new("");
    let none = ProcessDriver::new("/nonexistent/agent".into());
    assert!(matches!(none.launch(&world.spec()).await, Err(VmmError::Spawn { .. })));
    world.assert_clean();
}
