//! A restored guest does not repeat a life: one test per hazard, each on every way of being restored.

use std::{
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::FileExt,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use belljar_tests::{Sandbox, World};
use serde_json::json;

/// Sandboxes that came to life in each way there is.
struct Family<'w> {
    /// Named; booted from the golden snapshot, as is `other`.
    golden: Sandbox<'w>,
    other: Sandbox<'w>,
    /// Made from a memory snapshot of `golden`.
    restored: [Sandbox<'w>; 2],
    /// Live copies of `golden`.
    copied: Vec<Sandbox<'w>>,
}

impl<'w> Family<'w> {
    fn all(&self) -> Vec<&Sandbox<'w>> {
        [&self.golden, &self.other].into_iter().chain(&self.restored).chain(&self.copied).collect()
    }
}

fn world() -> World {
    World::golden_with(&[("BELLJAR_RESIDENT_SECS", "0".to_owned())])
}

/// Makes a family; `before` is done in its ancestor, just before the others are made from it. At the end the ancestor has
/// slept on the disk and woken again.
fn family<'w>(world: &'w World, before: impl Fn(&Sandbox<'_>)) -> Family<'w> {
    let golden = world.create(&json!({"name": "ancestor", "timeout_secs": 0}));
    let other = world.create(&json!({"timeout_secs": 0}));
    before(&golden);
    let snapshot = world.snapshot(&golden.id, "memory");
    let restored = [(); 2].map(|()| world.create(&json!({"snapshot_id": snapshot["id"], "timeout_secs": 0})));
    let copied = world.copy(&golden.id, 2);
    world.suspend("ancestor");
    world.resume("ancestor");
    Family { golden, other, restored, copied }
}

#[track_caller]
fn all_differ(what: &str, values: Vec<String>) {
    let mut distinct = values.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), values.len(), "{what}: {values:?}");
}

#[test]
fn kernel_random_numbers_differ() {
    let world = world();
    let family = family(&world, |ancestor| drop(ancestor.sh("head -c 16 /dev/urandom | od -An -tx1")));
    let draw = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; \
                python3 -c 'import os, random; print(os.getrandom(16).hex(), random.random())'";
    all_differ("random numbers", family.all().iter().map(|it| it.sh(draw)).collect());
}

#[test]
fn the_wall_clock_is_right_within_50_ms() {
    let world = world();
    let family = family(&world, |_| ());
    world.suspend("ancestor");
    std::thread::sleep(Duration::from_secs(2));
    world.resume("ancestor");
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    for sandbox in family.all() {
        let before = now();
        let guest = Duration::from_nanos(sandbox.sh("date +%s%N").parse().unwrap());
        let after = now();
        let slack = Duration::from_millis(50);
        assert!(guest + slack >= before && guest <= after + slack, "{before:?} <= {guest:?} <= {after:?}");
    }
}

/// Notes every step back of the monotonic clock, and that it goes on.
const CLOCK: &str = "
import time
last, n = time.monotonic_ns(), 0
while True:
    now = time.monotonic_ns()
    if now < last:
        open('/workspace/backwards', 'a').write(f'{last} {now}\\n')
    last, n = now, n + 1
    if n % 50 == 0:
        open('/workspace/ticks', 'w').write(str(n))
    time.sleep(0.001)
";

#[test]
fn the_monotonic_clock_never_goes_backwards() {
    let world = world();
    let family = family(&world, |ancestor| {
        ancestor.start(&json!({"command": "python3", "args": ["-c", CLOCK]}));
        ancestor.sh("while ! test -e /workspace/ticks; do sleep 0.05; done");
    });
    for sandbox in family.all().into_iter().filter(|it| it.id != family.other.id) {
        let before = sandbox.sh("cat /workspace/ticks");
        assert_ne!(sandbox.sh("sleep 1; cat /workspace/ticks"), before, "the process stands still");
        assert_eq!(sandbox.sh("cat /workspace/backwards 2>/dev/null; true"), "");
    }
}

#[test]
fn names_and_tokens_are_fresh_on_a_fork_and_stay_on_resume() {
    let world = world();
    let who = "cat /etc/machine-id; hostname; cat /run/belljar/identity-token";
    let before = std::cell::RefCell::new(String::new());
    let family = family(&world, |ancestor| drop(before.replace(ancestor.sh(who))));
    assert_eq!(family.golden.sh(who), *before.borrow(), "resume changed it");
    for (n, word) in ["machine-id", "hostname", "identity token"].into_iter().enumerate() {
        let line = |it: &&Sandbox<'_>| it.sh(who).lines().nth(n).unwrap_or_default().to_owned();
        let lines: Vec<String> = family.all().iter().map(line).collect();
        assert!(lines.iter().all(|line| !line.is_empty()), "{word}: {lines:?}");
        all_differ(word, lines);
    }
}

#[test]
fn addresses_differ_and_the_network_works() {
    let world = world();
    let family = family(&world, |_| ());
    let mac = "cat /sys/class/net/e*/address";
    all_differ("MAC", family.all().iter().map(|it| it.sh(mac)).collect());
    let port = world.address().rsplit(':').next().unwrap();
    for sandbox in family.all() {
        let answer = sandbox.sh(&format!("curl -s -m 10 http://10.0.2.2:{port}/healthz"));
        assert!(answer.contains("healthy"), "{answer}");
    }
}

/// Connects, says so, and notes how its wait for an answer ends.
const TALK: &str = "
import socket, sys
s = socket.create_connection(('10.0.2.2', int(sys.argv[1])))
s.sendall(b'x')
open('/workspace/connected', 'w').write('yes')
try:
    got = s.recv(1)
    end = f'got {got}'
except OSError as error:
    end = f'error {error.errno}'
open('/workspace/end', 'w').write(end)
";

#[test]
fn sockets_that_outlived_their_peer_get_an_error() {
    let world = world();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let family = family(&world, |ancestor| {
        ancestor.start(&json!({"command": "python3", "args": ["-c", TALK, port.to_string()]}));
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0]).unwrap();
        ancestor.sh("while ! test -e /workspace/connected; do sleep 0.05; done");
        // Kept open for as long as the test runs: it is the guest's end that has to notice.
        std::mem::forget(stream);
    });
    for sandbox in family.all().into_iter().filter(|it| it.id != family.other.id) {
        let end =
            sandbox.sh("for i in $(seq 100); do test -e /workspace/end && break; sleep 0.1; done; cat /workspace/end");
        assert!(end.starts_with("error"), "{end}");
    }
}

/// Whether a VM process's memory holds `secret`.
fn holds(world: &World, id: &str, secret: &str) -> bool {
    let pid = world.vm_pid(id).expect("its VM process");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let regions = maps.lines().filter(|line| line.contains(" rw-p ")).filter_map(|line| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    });
    // It searches a gigabyte faster than a test build of ours would.
    let mut grep = Command::new("grep").args(["-aqF", secret]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = grep.stdin.take().unwrap();
    let mut buffer = vec![0; 4 << 20];
    'regions: for (start, end) in regions {
        let mut at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap().min(buffer.len());
            // What cannot be read is no memory of the guest's.
            let Ok(read @ 1..) = memory.read_at(&mut buffer[..want], at) else { break };
            // It stops reading when it has found something.
            if input.write_all(&buffer[..read]).is_err() {
                break 'regions;
            }
            at += read as u64;
        }
    }
    drop(input);
    grep.wait().unwrap().success()
}

#[test]
fn no_secret_of_one_sandbox_is_in_another() {
    let world = world();
    let secret = "s3cr3t-of-the-first-9c41f0";
    let first = world.create(&json!({"timeout_secs": 0}));
    first.start(
        &json!({"command": "sh", "args": ["-c", "echo $SECRET > /dev/shm/x; sleep 1000"], "env": {"SECRET": secret}}),
    );
    first.sh("while ! test -s /dev/shm/x; do sleep 0.05; done");
    assert!(holds(&world, &first.id, secret), "the search itself finds nothing");
    let second = world.create(&json!({"timeout_secs": 0}));
    first.delete();
    let third = world.create(&json!({"timeout_secs": 0}));
    for sandbox in [&second, &third] {
        sandbox.sh("true");
        assert!(!holds(&world, &sandbox.id, secret), "another sandbox's secret");
    }
}

/// Writes down who it is, over and over, as programs do that remember what they saw at their start.
const WITNESS: &str =
    "while :; do echo $(hostname) $(cat /run/belljar/identity-token) >> /workspace/seen; sleep 0.05; done";

#[test]
fn no_process_runs_before_the_guest_knows_who_it_is() {
    let world = world();
    let family = family(&world, |ancestor| {
        ancestor.start(&json!({"command": "sh", "args": ["-c", WITNESS]}));
        ancestor.sh("while ! test -s /workspace/seen; do sleep 0.05; done");
    });
    for fork in family.restored.iter().chain(&family.copied) {
        let host = fork.sh("hostname");
        fork.sh("sleep 0.5");
        let seen = fork.sh("cat /workspace/seen");
        let own = seen.lines().position(|line| line.starts_with(&host)).expect("it went on");
        // One line may have been begun with the old name and ended with the new token.
        let late = seen.lines().skip(own).find(|line| !line.starts_with(&host));
        assert_eq!(late, None, "it was somebody else again");
    }
}
