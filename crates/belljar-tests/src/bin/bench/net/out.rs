//! The way out of a sandbox: what its network adds to a create, a change of its policy, and what its packets pay for the
//! namespace, the rules and the way through the host, beside the bare tap.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
    path::Path,
    process::Command,
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use belljar_tests::{
    Sandbox, World,
    internet::{self, A_LOT, DNS, Internet, ONE},
};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::{
    progress,
    sleep::spares_ready,
    table::{Samples, Table},
    timed,
};

const CREATES: usize = 20;
const SWAPS: usize = 40;
/// Entries of a policy.
const RULES: usize = 100;
/// Times that a large transfer is measured; the best counts.
const TRANSFERS: usize = 3;
/// Where the servers on the tap itself listen: echo, and a lot.
const PORTS: [u16; 2] = [9007, 9019];
const TAP: &str = "10.0.2.2";

/// Sends a byte and waits for its answer, 500 times, milliseconds each; then takes all that another port says, MB/s.
const MEASURE: &str = r#"
import json, socket, sys, time
host, echo, much = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
s = socket.create_connection((host, echo))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
if echo == 80:
    while not s.recv(64).endswith(b"\n"): pass
trips = []
for n in range(600):
    begun = time.perf_counter()
    s.sendall(b"x")
    assert s.recv(16) == b"x"
    if n >= 100: trips.append((time.perf_counter() - begun) * 1000)
s = socket.create_connection((host, much))
buffer, total, begun = bytearray(1 << 18), 0, time.perf_counter()
while True:
    count = s.recv_into(buffer)
    if not count: break
    total += count
print(json.dumps({"trips": trips, "bytes": total, "rate": total / 1e6 / (time.perf_counter() - begun)}))
"#;

pub(super) fn run(table: &mut Table) {
    // It enters namespaces, and does not come back.
    let measured = thread::scope(|scope| scope.spawn(|| measure(table)).join());
    measured.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn measure(table: &mut Table) {
    if !nix::unistd::geteuid().is_root() {
        return progress("the way out is not measured: network namespaces need root");
    }
    // It lives with this thread.
    let _internet = Internet::enter();
    creates(table);
    let world = World::start_with(&settings("namespaces"));
    let sandbox = world.create(&json!({"timeout_secs": 0}));
    packets(&world, &sandbox, table);
    swaps(&world, &sandbox, table);
    sandbox.delete();
}

/// Of a world of real guests whose networks are of this kind.
fn settings(kind: &str) -> Vec<(&'static str, String)> {
    [("BELLJAR_DRIVER", "auto"), ("BELLJAR_NETWORK", kind), ("BELLJAR_RESOLVERS", DNS)]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec()
}

/// Creates that take a VM that is ready, with a network of their own and with QEMU's, in turn.
fn creates(table: &mut Table) {
    let with = World::golden_with(&settings("namespaces"));
    let without = World::golden_with(&settings("user"));
    let create = |world: &World| {
        spares_ready(world, 2);
        let (sandbox, took) = timed(|| world.create(&json!({})));
        sandbox.delete();
        world.wait_until_clean();
        took
    };
    let (mut plain, mut full) = (Samples::default(), Samples::default());
    for n in 0..=CREATES {
        progress(&format!("create without and with a network {n} of {CREATES}"));
        let (a, b) = (create(&without), create(&with));
        // The first of each fills caches.
        if n > 0 {
            plain.add(a);
            full.add(b);
        }
    }
    let more = full.p50() - plain.p50();
    table.samples("create from golden, user-mode network", &plain, "floor");
    table.samples("create from golden, namespace + tap + rules", &full, &format!("floor + {more:.2} ms, <= 5 ms"));
}

/// The same guest, to a server on the tap itself and to one outside: the difference is rules, namespace and host.
fn packets(world: &World, sandbox: &Sandbox<'_>, table: &mut Table) {
    serve_on_tap(world, sandbox);
    let (mut tap, mut out) = (Vec::new(), Vec::new());
    let mut best = [0.0_f64; 2];
    for n in 0..TRANSFERS {
        progress(&format!("packets to the tap and outside {n} of {TRANSFERS}"));
        for (which, host, ports, trips) in [(0, TAP, PORTS, &mut tap), (1, ONE, [80, 19], &mut out)] {
            let found = measure_from(sandbox, host, ports);
            assert_eq!(found["bytes"], json!(A_LOT), "not all came");
            best[which] = best[which].max(found["rate"].as_f64().expect("a rate"));
            let all = found["trips"].as_array().expect("trips").iter().filter_map(Value::as_f64);
            trips.extend(all.map(|trip| Duration::from_secs_f64(trip / 1000.0)));
        }
    }
    let (tap, out) = (Samples::of(tap), Samples::of(out));
    let more = out.p50() - tap.p50();
    table.samples("one byte there and back, bare tap", &tap, "floor");
    table.samples("one byte there and back, outside", &out, &format!("floor + {more:.2} ms"));
    let share = 100.0 * best[1] / best[0];
    table.value("64 MiB to the guest, bare tap", best[0], "MB/s", "floor");
    table.value("64 MiB to the guest, from outside", best[1], "MB/s", &format!("{share:.0} % of the tap"));
}

fn measure_from(sandbox: &Sandbox<'_>, host: &str, [echo, much]: [u16; 2]) -> Value {
    let (echo, much) = (echo.to_string(), much.to_string());
    let ran = sandbox.run_request(&json!({"command": "python3", "args": ["-c", MEASURE, host, echo, much]}));
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// Servers in the sandbox's namespace, at its end of the tap, and a hole for them in its rules.
fn serve_on_tap(world: &World, sandbox: &Sandbox<'_>) {
    let note = fs::read(world.storage().join("sandboxes").join(&sandbox.id).join("network")).expect("its network");
    let note: Value = serde_json::from_slice(&note).expect("JSON");
    let path = format!("/run/belljar/netns/{}", note["number"]);
    let hole = format!("insert rule inet belljar input tcp dport {{ {}, {} }} accept", PORTS[0], PORTS[1]);
    let (ready, served) = channel();
    thread::spawn(move || {
        let namespace = File::open(Path::new(&path)).expect("its namespace");
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("entered");
        assert!(Command::new("nft").arg(hole).status().expect("nft starts").success());
        let listeners = PORTS.map(|port| TcpListener::bind((TAP, port)).expect("a port"));
        ready.send(()).expect("told");
        let [echo, much] = listeners;
        thread::spawn(move || serve(&echo, internet::echo));
        serve(&much, internet::say_a_lot);
    });
    served.recv().expect("the servers on the tap");
}

fn serve(listener: &TcpListener, answer: fn(TcpStream) -> std::io::Result<()>) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || answer(stream));
    }
}

/// A change of the policy, and one of something else, each until the sandbox has done it and answers the next question.
fn swaps(world: &World, sandbox: &Sandbox<'_>, table: &mut Table) {
    let (mut plain, mut swapped) = (Samples::default(), Samples::default());
    let path = format!("/sandboxes/{}", sandbox.id);
    let http = world.http();
    let patch = |body: Value| {
        let (answer, took) = timed(|| {
            let answer = http.json("PATCH", &path, &body.to_string());
            (answer, http.get(&format!("{path}/network")))
        });
        assert_eq!((answer.0.status, answer.1.status), (200, 200), "{answer:?}");
        took
    };
    for n in 0..=SWAPS {
        progress(&format!("change of the policy {n} of {SWAPS}"));
        let a = patch(json!({"timeout_secs": 100_000 + n}));
        let nets: Vec<_> = (0..RULES).map(|i| format!("45.{}.{i}.0/25", 80 + n % 2)).collect();
        let b = patch(json!({"network": {"allow_out": nets}}));
        if n > 0 {
            plain.add(a);
            swapped.add(b);
        }
    }
    let more = swapped.p50() - plain.p50();
    table.samples("PATCH of the timeout, and what has passed", &plain, "floor");
    table.samples(
        "PATCH to 100 other rules, and what has passed",
        &swapped,
        &format!("floor + {more:.2} ms, <= 20 ms"),
    );
}
