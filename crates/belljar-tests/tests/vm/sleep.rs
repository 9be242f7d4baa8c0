//! Sleep and wake.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime},
};

use belljar_tests::{Sandbox, World, wait_while};
use serde_json::{Value, json};

/// Counts in memory, in a file and in a pipe, and checks at each step that the last one was what it should have been.
const WORKLOAD: &str = r#"
import hashlib, os, sys, time
size, n, state = 1 << 20, 0, hashlib.sha256(b"0").digest()
blob = bytearray(os.urandom(size))
while True:
    want = hashlib.sha256(blob).digest()
    path = f"/workspace/state.{n % 4}"
    with open(path, "wb") as out:
        out.write(want + bytes(blob))
    with open(path, "rb") as back:
        data = back.read()
    if data[:32] != hashlib.sha256(data[32:]).digest() or data[32:] != bytes(blob):
        open("/workspace/broken", "a").write(f"step {n}\n")
    offset = (n * 4099) % (size - 64)
    blob[offset:offset + 32] = want
    n += 1
    with open("/workspace/count.new", "w") as out:
        out.write(str(n))
    os.rename("/workspace/count.new", "/workspace/count")
    time.sleep(0.02)
"#;

fn settings(resident_secs: u64) -> [(&'static str, String); 1] {
    [("BELLJAR_RESIDENT_SECS", resident_secs.to_string())]
}

#[test]
fn a_named_sandbox_sleeps_and_wakes_with_its_memory() {
    // Once with the VM process kept, once from the disk.
    for resident in [60, 0] {
        let world = World::start_with(&settings(resident));
        let sandbox = world.create(&json!({"name": "box"}));
        let boot_id = sandbox.boot_id();
        sandbox.sh("echo on the disk > /workspace/a; echo in memory > /dev/shm/b");
        let counter = sandbox.start(&json!({"command": "sh", "args": ["-c",
            "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done"]}));
        world.suspend(&sandbox.id);
        if resident == 0 {
            wait_while(|| !world.vm_pids().is_empty());
        }
        // Again is no error.
        world.suspend("box");
        world.resume("box");
        world.resume("box");
        assert_eq!(sandbox.boot_id(), boot_id, "resident {resident}");
        assert_eq!(sandbox.sh("cat /workspace/a /dev/shm/b"), "on the disk\nin memory");
        let before = sandbox.sh("cat /tmp/count");
        assert_ne!(sandbox.sh("sleep 0.5; cat /tmp/count"), before, "the process stands still");
        let info = sandbox.http().get(&format!("/api/v1/processes/{}", counter["pid"])).json;
        assert_eq!(info["status"], "running", "{info}");
        sandbox.delete();
        world.wait_until_clean();
    }
}

#[test]
fn a_sandbox_that_wakes_shares_what_it_never_changed() {
    let none_ready = [("BELLJAR_SPARES", "0".to_owned())];
    let world = World::golden_with(&[settings(0), none_ready].concat());
    let sandbox = world.create(&json!({"name": "box"}));
    if world.info(&sandbox.id).json["runtime"] == "cloud-hypervisor" {
        sandbox.delete();
        return;
    }
    let golden = fs::metadata(world.entries("templates").remove(0).join("memory")).unwrap().ino().to_string();
    let shares = || {
        let maps = fs::read_to_string(format!("/proc/{}/maps", world.vm_pid(&sandbox.id).unwrap())).unwrap();
        maps.lines().any(|line| line.split_whitespace().nth(4) == Some(golden.as_str()))
    };
    let sleep = || {
        world.suspend("box");
        wait_while(|| !world.vm_pids().is_empty());
    };
    assert!(shares(), "it does not begin with the golden snapshot");
    for round in 0..3 {
        sandbox.sh(&format!("echo {round} > /dev/shm/{round}"));
        sleep();
        assert_eq!(sandbox.sh("cd /dev/shm; cat *").lines().count(), round + 1);
        assert!(shares(), "round {round}");
    }
    // More than is copied at a wake.
    let sum = sandbox.sh("head -c 50000000 /dev/urandom > /dev/shm/many; sha256sum < /dev/shm/many");
    for _ in 0..2 {
        sleep();
        assert_eq!(sandbox.sh("sha256sum < /dev/shm/many"), sum);
        assert!(!shares());
    }
    sandbox.delete();
}

#[test]
fn a_hundred_sleeps_lose_nothing() {
    let world = World::start_with(&settings(3600));
    let sandbox = world.create(&json!({"name": "worker", "timeout_secs": 0}));
    let boot_id = sandbox.boot_id();
    sandbox.http().put("/api/v1/files?path=/workspace/work.py", WORKLOAD.as_bytes());
    let work = sandbox.start(&json!({"command": "python3", "args": ["/workspace/work.py"]}));
    sandbox.sh("until test -e /workspace/count; do sleep 0.1; done");
    let mut last = 0;
    for cycle in 0..100 {
        world.suspend("worker");
        if cycle % 2 == 0 {
            // Without its VM process it can only wake from what is on the disk.
            for pid in world.vm_pids() {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
            }
        }
        world.resume("worker");
        if cycle % 10 == 9 {
            let count: u64 = sandbox.sh("sleep 0.2; cat /workspace/count").parse().unwrap();
            assert!(count > last, "cycle {cycle}: the workload stands still at {count}");
            last = count;
            assert_eq!(sandbox.sh("cat /workspace/broken 2>/dev/null; true"), "", "cycle {cycle}");
        }
    }
    assert_eq!(sandbox.boot_id(), boot_id);
    let info = sandbox.http().get(&format!("/api/v1/processes/{}", work["pid"])).json;
    assert_eq!(info["status"], "running", "{info}");
    sandbox.delete();
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// When the node began to put a sandbox to sleep, each time that it did, as its log tells: how long that takes then, and
/// when a client of the public API sees it, is the machine's business.
fn sleeps(world: &World, sandbox: &Sandbox<'_>) -> Vec<Duration> {
    let page = world.http().get(&format!("/sandboxes/{}/logs?body=suspended%20in", sandbox.id)).json;
    let began = |line: &Value| {
        let took = line["body"].as_str()?.strip_prefix("suspended in ")?.strip_suffix(" ms")?.parse().ok()?;
        Some(Duration::from_nanos(line["timestamp"].as_u64()?) - Duration::from_millis(took))
    };
    page["logs"].as_array().unwrap().iter().map(|line| began(line).unwrap_or_else(|| panic!("{line}"))).collect()
}

/// From when to when it took to use a sandbox.
fn time(last_use: impl FnOnce()) -> (Duration, Duration) {
    let began = now();
    last_use();
    (began, now())
}

/// A sandbox was used for the last time: it has to sleep `timeout` seconds later, to the second.
#[track_caller]
fn check_idle(world: &World, sandbox: &Sandbox<'_>, (began, ended): (Duration, Duration), timeout: u64) {
    let timeout = Duration::from_secs(timeout);
    let at = loop {
        if let Some(at) = sleeps(world, sandbox).into_iter().find(|at| *at > began) {
            break at;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(at >= began + timeout, "it sleeps {:?} too early\n{}", began + timeout - at, world.log());
    // The connection of the last request is kept for half a second, and that counts.
    let late = at.saturating_sub(ended + timeout);
    assert!(late < Duration::from_secs(1), "it sleeps {late:?} late\n{}", world.log());
    while world.info(&sandbox.id).json["status"] != "suspended" {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn set_timeout(world: &World, sandbox: &Sandbox<'_>, seconds: u64) {
    let body = json!({"timeout_secs": seconds}).to_string();
    let answer = world.http().json("PATCH", &format!("/sandboxes/{}", sandbox.id), &body);
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn an_idle_named_sandbox_sleeps_after_its_timeout_to_the_second_and_a_request_wakes_it() {
    let world = World::start_with(&settings(0));
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 3}));
    let boot_id = sandbox.boot_id();
    // Once after a boot, once after a wake.
    for _ in 0..2 {
        let used = time(|| assert_eq!(sandbox.boot_id(), boot_id, "a request wakes it"));
        assert_eq!(world.info("box").json["status"], "running");
        check_idle(&world, &sandbox, used, 3);
    }
    // A new timeout counts from the last use, too.
    set_timeout(&world, &sandbox, 600);
    let used = time(|| drop(sandbox.sh("true")));
    std::thread::sleep(Duration::from_secs(2));
    set_timeout(&world, &sandbox, 4);
    check_idle(&world, &sandbox, used, 4);
    sandbox.delete();
}

#[test]
fn a_live_stream_keeps_it_awake_and_the_time_counts_from_its_end() {
    let world = World::start_with(&settings(0));
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 2}));
    let process =
        sandbox.start(&json!({"command": "sh", "args": ["-c", "while ! test -e /tmp/end; do sleep 0.05; done"]}));
    let used = std::thread::scope(|scope| {
        let stream = scope.spawn(|| sandbox.follow(&process["pid"].to_string()));
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(sleeps(&world, &sandbox), [Duration::ZERO; 0], "a live stream keeps it awake");
        time(|| {
            sandbox.sh("touch /tmp/end");
            stream.join().unwrap();
        })
    });
    check_idle(&world, &sandbox, used, 2);
    sandbox.delete();
}

#[test]
fn many_clients_that_wake_it_share_one_resume() {
    let world = World::start_with(&settings(0));
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0}));
    let boot_id = sandbox.boot_id();
    world.suspend("box");
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| sandbox.boot_id())).collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), boot_id);
        }
    });
    assert_eq!(world.vm_pids().len(), 1, "it was resumed more than once");
    sandbox.delete();
}

#[test]
fn a_sandbox_that_is_not_to_be_woken_is_not() {
    let world = World::start_with(&settings(0));
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0, "auto_resume": false}));
    world.suspend("box");
    let answer = sandbox.http().get("/api/v1/health");
    assert_eq!((answer.status, answer.code()), (503, "SANDBOX_AUTO_RESUME_DISABLED"), "{answer:?}");
    assert_eq!(world.info("box").json["status"], "suspended");
    world.resume("box");
    sandbox.sh("true");
    sandbox.delete();
}

#[test]
fn only_named_sandboxes_sleep() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    let answer = world.order(&sandbox.id, "suspend");
    assert_eq!(answer.status, 400, "{answer:?}");
    let answer = world.http().json("PATCH", &format!("/sandboxes/{}", sandbox.id), r#"{"name": "late"}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    world.suspend(&sandbox.id);
    assert_eq!(world.order("nobody", "suspend").status, 404);
    sandbox.delete();
    assert_eq!(world.order(&sandbox.id, "resume").status, 400);
}

#[test]
fn a_connection_whose_client_is_gone_does_not_keep_it_awake() {
    let world = World::start_with(&settings(0));
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 3}));
    // A client that asked for an endless answer, got its beginning, and went away without a word.
    let mut stream = TcpStream::connect(world.address()).unwrap();
    let process = sandbox.start(&json!({"command": "sleep", "args": ["1000"]}));
    write!(
        stream,
        "GET /api/v1/processes/{}/output/follow HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
         x-tensorlake-sandbox-id: {}\r\n\r\n",
        process["pid"],
        world.address(),
        world.key(),
        sandbox.id
    )
    .unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(sleeps(&world, &sandbox), [Duration::ZERO; 0], "a live stream keeps it awake");
    check_idle(&world, &sandbox, time(|| drop(stream)), 3);
    sandbox.delete();
}
