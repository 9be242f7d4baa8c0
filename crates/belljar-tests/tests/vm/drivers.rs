//! The whole system on whatever runs its VMs: what every driver must carry, in one life, so that it can also be run where
//! each VM takes its time. `BELLJAR_DRIVER` says which; without it, it is the one that this machine's `belljar up` picks.

use std::{thread, time::Duration};

use belljar_tests::{
    Sandbox, World,
    internet::{DNS, Internet, ONE},
    terminal::Terminal,
};
use belljar_vmm::MemoryUse;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

const SLEEPS: usize = 20;
const SNAPSHOTS: usize = 4;
const COPIES: usize = 10;
const STREAMS: usize = 8;
/// Bytes of a file.
const FILE: usize = 3 << 20;

#[test]
fn a_driver_carries_the_whole_system() {
    let _internet = Internet::enter();
    let world = World::golden_with(&[("BELLJAR_RESIDENT_SECS", "0".to_owned()), ("BELLJAR_RESOLVERS", DNS.to_owned())]);
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0}));
    let runtime = world.info("box").json["runtime"].clone();
    if let Ok(driver) = std::env::var("BELLJAR_DRIVER") {
        assert_eq!(runtime, driver);
    }
    println!("on {runtime}");
    reaches_out(&sandbox);
    streams_under_load(&sandbox);
    files(&sandbox);
    terminal(&world, &sandbox);
    freed_memory(&world, &sandbox, runtime == "firecracker");
    sleeps(&world, &sandbox);
    reaches_out(&sandbox);
    let restored = snapshots(&world, &sandbox);
    reaches_out(&restored);
    copies(&world, &sandbox);
    restart(&world, &sandbox);
    crash(&world, &sandbox, &restored);
    sandbox.delete();
    world.wait_until_clean();
}

/// It has an address of its own, resolves a name and is answered.
fn reaches_out(sandbox: &Sandbox<'_>) {
    let answer = sandbox.sh("timeout 10 bash -c 'read -r line < /dev/tcp/one.example/80; echo $line'");
    assert_eq!(answer, format!("this is {ONE}"), "{}", sandbox.id);
}

/// Many programs at once, each with more to say than fits into any buffer.
fn streams_under_load(sandbox: &Sandbox<'_>) {
    thread::scope(|scope| {
        let runs: Vec<_> =
            (0..STREAMS).map(|n| scope.spawn(move || sandbox.sh(&format!("seq 1 20000 | sed 's/^/{n}-/'")))).collect();
        for (n, run) in runs.into_iter().enumerate() {
            let expected: Vec<_> = (1..=20_000).map(|line| format!("{n}-{line}")).collect();
            assert!(run.join().unwrap() == expected.join("\n"), "stream {n} is not what was written");
        }
    });
}

fn files(sandbox: &Sandbox<'_>) {
    let bytes: Vec<u8> = (0..FILE).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    let put = sandbox.http().put("/api/v1/files?path=/workspace/file", std::io::Cursor::new(bytes.clone()));
    assert_eq!(put.status, 204, "{put:?}");
    let get = sandbox.http().get("/api/v1/files?path=/workspace/file");
    assert!(get.status == 200 && get.bytes == bytes, "{} {}", get.status, get.bytes.len());
}

fn terminal(world: &World, sandbox: &Sandbox<'_>) {
    let session = sandbox.http().post("/api/v1/pty", &json!({"command": "/bin/bash", "rows": 40, "cols": 100}));
    assert_eq!(session.status, 201, "{session:?}");
    let mut terminal = Terminal::attach(world, sandbox, &session.json);
    terminal.write("stty size; echo mark-$((1+1))\n");
    terminal.wait_for("40 100");
    terminal.wait_for("mark-2");
    terminal.write("exit 5\n");
    assert_eq!(terminal.wait(), 5);
}

/// What the guest frees is the host's again, where the driver takes it back, and what it keeps is whole after a sleep.
fn freed_memory(world: &World, sandbox: &Sandbox<'_>, takes_back: bool) {
    let pid = world.vm_pid(&sandbox.id).and_then(|pid| pid.try_into().ok()).expect("its VM process");
    let held = || MemoryUse::of(pid, 1024).expect("its memory").guest;
    sandbox.sh("cd /dev/shm; head -c 20M /dev/urandom > kept; sha256sum < kept > sum; head -c 300M /dev/zero > freed");
    let full = held();
    sandbox.sh("rm /dev/shm/freed");
    // The guest's kernel takes its time, and tells nobody.
    while takes_back && held() + (200 << 20) > full {
        thread::sleep(Duration::from_millis(100));
    }
    world.suspend("box");
    world.resume("box");
    sandbox.sh("cd /dev/shm; sha256sum < kept | cmp - sum && rm kept sum");
}

/// With memory, to the disk and back, again and again.
fn sleeps(world: &World, sandbox: &Sandbox<'_>) {
    let boot_id = sandbox.boot_id();
    for round in 0..SLEEPS {
        sandbox.sh(&format!("echo {round} | tee /dev/shm/memory > /workspace/disk"));
        world.suspend("box");
        world.resume("box");
        assert_eq!(sandbox.sh("cat /dev/shm/memory /workspace/disk"), format!("{round}\n{round}"));
    }
    assert_eq!(sandbox.boot_id(), boot_id);
}

/// A chain of them; each is what it was, whatever came after. Answers one that was restored.
fn snapshots<'w>(world: &'w World, sandbox: &Sandbox<'w>) -> Sandbox<'w> {
    let all: Vec<_> = (0..SNAPSHOTS)
        .map(|n| {
            sandbox.sh(&format!("echo {n} > /dev/shm/{n}; echo {n} > /workspace/{n}"));
            world.snapshot("box", "memory")
        })
        .collect();
    let restore = |n: usize| world.create(&json!({"snapshot_id": all[n]["id"], "timeout_secs": 0}));
    for n in 0..SNAPSHOTS - 1 {
        let restored = restore(n);
        let expected: Vec<_> = (0..=n).map(|n| n.to_string()).collect();
        for dir in ["/dev/shm", "/workspace"] {
            assert_eq!(restored.sh(&format!("cd {dir}; cat [0-9]")), expected.join("\n"), "{dir} of snapshot {n}");
        }
        restored.delete();
    }
    restore(SNAPSHOTS - 1)
}

/// All from one standstill, and none repeats the life of another.
fn copies(world: &World, sandbox: &Sandbox<'_>) {
    sandbox.sh("echo shared > /dev/shm/shared");
    let copies = world.copy("box", COPIES);
    let mut drawn: Vec<String> = copies
        .iter()
        .map(|copy| {
            assert_eq!(copy.sh("cat /dev/shm/shared"), "shared");
            reaches_out(copy);
            copy.sh("head -c 16 /dev/urandom | od -An -tx1; cat /etc/machine-id; hostname")
        })
        .collect();
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), COPIES, "{drawn:?}");
    for copy in &copies {
        copy.delete();
    }
}

fn restart(world: &World, sandbox: &Sandbox<'_>) {
    let (boot_id, vms) = (sandbox.boot_id(), world.vm_pid(&sandbox.id));
    world.kill_server();
    world.up();
    assert_eq!(sandbox.boot_id(), boot_id);
    assert!(vms.is_some() && world.vm_pid(&sandbox.id) == vms, "its VM was replaced");
}

/// One's VM process is killed; it says so, and the other goes on.
fn crash(world: &World, sandbox: &Sandbox<'_>, victim: &Sandbox<'_>) {
    let pid = world.vm_pid(&victim.id).expect("its VM process");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert_eq!(world.ended(&victim.id)["termination_reason"], "vmm_exited");
    assert_eq!(sandbox.sh("cat /dev/shm/shared"), "shared");
}
