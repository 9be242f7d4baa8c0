//! A host that is short of memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use belljar_tests::World;
use serde_json::json;

/// What the crowd may have, bytes: enough for a shell and a `cat`.
const LIMIT: u64 = 6 << 20;
/// What it reads over and over, MiB: far more than it may have.
const FILE_MIB: u64 = 48;
/// When it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process in a memory cgroup of its own that is too small for it: all it does is wait for memory, and the kernel counts
/// that as the whole machine's pressure. No other process loses any.
struct Crowd {
    cgroup: PathBuf,
    process: Option<Child>,
}

impl Crowd {
    /// Makes the cgroup, or tells what this machine lacks.
    fn new() -> Result<Self, String> {
        if fs::OpenOptions::new().write(true).open("/proc/pressure/memory").is_err() {
            return Err("the kernel tells no memory pressure (/proc/pressure/memory)".to_owned());
        }
        // Version 1 of cgroups, then version 2.
        let known = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (root, limit) in known {
            let cgroup = Path::new(root).join(format!("belljar-crowd-{}", std::process::id()));
            let made = Path::new(root).join("cgroup.procs").exists() && fs::create_dir(&cgroup).is_ok();
            if made {
                let crowd = Self { cgroup, process: None };
                if fs::write(crowd.cgroup.join(limit), LIMIT.to_string()).is_ok() {
                    return Ok(crowd);
                }
            }
        }
        Err("there is no memory cgroup that this user may make (/sys/fs/cgroup)".to_owned())
    }

    /// Reads a file in `dir`, which has to be on a disk, until it is dropped or out of patience.
    fn press(&mut self, dir: &Path) {
        // What it writes itself counts as its own.
        let script = format!(
            "echo $$ > '{}/cgroup.procs' && head -c {FILE_MIB}M /dev/zero > '{file}' && while cat '{file}'; do :; done",
            self.cgroup.display(),
            file = dir.join("crowd").display(),
        );
        let mut command = Command::new("timeout");
        command.args([&PATIENCE.as_secs().to_string(), "sh", "-c", &script]);
        self.process = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Some(mut timeout) = self.process.take() {
            // It passes the signal on.
            let pid = nix::unistd::Pid::from_raw(timeout.id().try_into().unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = timeout.wait();
        }
        // What was in it may take a moment to be gone.
        let begun = Instant::now();
        while fs::remove_dir(&self.cgroup).is_err() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn sleeping_sandboxes_give_their_memory_back_when_it_is_short() {
    let mut crowd = match Crowd::new() {
        Ok(crowd) => crowd,
        Err(obstacle) => {
            return eprintln!("sleeping_sandboxes_give_their_memory_back_when_it_is_short is not run: {obstacle}");
        }
    };
    let world = World::start_with(&[("BELLJAR_RESIDENT_SECS", "3600".to_owned())]);
    let [sleeping, awake] = ["sleeping", "awake"].map(|name| world.create(&json!({"name": name, "timeout_secs": 0})));
    let boot_ids = [sleeping.boot_id(), awake.boot_id()];
    sleeping.sh("echo in memory > /dev/shm/a");
    world.suspend("sleeping");
    let kept = world.vm_pid(&sleeping.id).is_some();
    // The machine may be short of memory without our doing.
    assert!(kept || world.log().contains("memory is short"), "{}", world.log());
    // On a disk, as the temporary directory may not be.
    let disk = tempfile::Builder::new().prefix("belljar-e2e-").tempdir_in("/var/tmp").unwrap();
    let begun = Instant::now();
    crowd.press(disk.path());
    while world.vm_pid(&sleeping.id).is_some() {
        assert!(begun.elapsed() < PATIENCE, "its VM process is still there\n{}", world.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(crowd);
    assert!(world.log().contains("memory is short"), "{}", world.log());
    assert!(world.vm_pid(&awake.id).is_some(), "one that was awake had to end");
    assert_eq!(world.info("sleeping").json["status"], "suspended");
    assert_eq!([sleeping.boot_id(), awake.boot_id()], boot_ids);
    assert_eq!(sleeping.sh("cat /dev/shm/a"), "in memory");
    sleeping.delete();
    awake.delete();
    world.wait_until_clean();
}
