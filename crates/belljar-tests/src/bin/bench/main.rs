//! `cargo xtask bench`: figures of the whole system, each beside the floor it is compared with, taken in one run.
//!
//! Without a word: sandboxes that boot, requests, files. With `sleep`: golden snapshots, sleep, snapshots and copies.
//! With `net`: the ways into a sandbox and out of it. With `driver`: a VM program on KVM beside itself alone. With `image`: an
//! import beside other programs that do the same. Prints a table, and the same as one line of JSON. It judges nothing:
//! machines are noisy; ratios within a run hold.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report")]

mod alone;
mod bare;
mod driver;
mod image;
mod memory;
mod net;
mod restore;
mod sleep;
mod table;

use std::{
    fs::File,
    process::ExitCode,
    time::{Duration, Instant},
};

use belljar_tests::{Sandbox, World};
use serde_json::{Value, json};

use self::table::{Samples, Table};

/// How often each figure is taken; a boot takes about a second, an API call a millisecond.
const BOOTS: usize = 10;
const CALLS: usize = 200;
const RUNS: usize = 200;
const FILE_MIB: u64 = 256;
/// Long enough for a timer of a few seconds to show.
const IDLE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let mut table = Table::default();
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => run(&mut table),
        ["net"] => net::run(&mut table, None),
        ["net", part @ ("in" | "guest" | "out")] => net::run(&mut table, Some(part)),
        ["sleep"] => sleep::run(&mut table),
        ["driver"] => driver::run(&mut table),
        ["image"] => image::run(&mut table),
        other => {
            let hint = "`cargo xtask bench`, or `net`, `net in`, `net guest`, `net out`, `sleep`, `driver` or `image` behind it";
            eprintln!("error: there is no benchmark {:?}\nhint: {hint}", other.join(" "));
            return ExitCode::FAILURE;
        }
    }
    println!("{table}");
    println!("{}", table.json());
    ExitCode::SUCCESS
}

/// What the whole system does with sandboxes that boot.
fn run(table: &mut Table) {
    let world = World::start();
    idle(&world, table);
    cold_create(&world, table);
    let sandbox = world.create(&json!({"timeout_secs": 0}));
    run_true(&sandbox, table);
    files(&world, &sandbox, table);
    memory::report(&world, table);
    sandbox.delete();
    create_without_waiting(&world, table);
}

fn progress(what: &str) {
    eprintln!("bench: {what}");
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let result = work();
    (result, begun.elapsed())
}

/// What the server costs while nobody uses it.
fn idle(world: &World, table: &mut Table) {
    progress("idle server");
    // What the start itself woke has settled by then.
    std::thread::sleep(Duration::from_secs(2));
    let pid = world.server_pid();
    let per_second = memory::wake_ups(pid, IDLE) / IDLE.as_secs_f64();
    table.value("up, no sandboxes: resident", memory::resident_mib(pid), "MiB", "<= 64");
    table.value("up, no sandboxes: wake-ups", per_second, "/s", "<= 2");
}

/// A create that waits, and a bare QEMU that boots the same kernel and disk, in turn.
fn cold_create(world: &World, table: &mut Table) {
    let bare = bare::Bare::new();
    let (mut creates, mut boots) = (Samples::default(), Samples::default());
    for n in 0..=BOOTS {
        progress(&format!("cold create and bare boot {n} of {BOOTS}"));
        let floor = bare.boot();
        let (sandbox, took) = timed(|| world.create(&json!({})));
        sandbox.delete();
        // The first of each fills caches.
        if n > 0 {
            boots.add(floor);
            creates.add(took);
        }
    }
    let ratio = creates.p50() / boots.p50();
    table.samples("bare QEMU boot to its first process", &boots, "floor");
    table.samples("cold create -> running", &creates, &format!("{ratio:.2} x floor, <= 1.6"));
}

fn run_true(sandbox: &Sandbox<'_>, table: &mut Table) {
    progress("run of true");
    let (mut runs, mut health) = (Samples::default(), Samples::default());
    let http = sandbox.http();
    for _ in 0..RUNS {
        health.add(timed(|| assert_eq!(http.get("/api/v1/health").status, 200)).1);
        runs.add(timed(|| assert_eq!(sandbox.run_request(&json!({"command": "true"})).end["exit_code"], 0)).1);
    }
    table.samples("GET health, client to guest and back", &health, "floor");
    table.samples("run of true, client to client", &runs, "p50 <= 25 ms");
}

/// One large file each way, and what the processes on its way grow by.
fn files(world: &World, sandbox: &Sandbox<'_>, table: &mut Table) {
    progress("files");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("blob");
    let file = File::create(&path).expect("a file");
    let mut source = std::io::Read::take(File::open("/dev/urandom").expect("urandom"), FILE_MIB << 20);
    std::io::copy(&mut source, &mut { file }).expect("random bytes");
    let before = memory::Watch::start(world, sandbox);
    let rate = |took: Duration| FILE_MIB as f64 * 1.048_576 / took.as_secs_f64();
    let url = "/api/v1/files?path=/tmp/blob";
    let (put, took_put) = timed(|| sandbox.http().put(url, File::open(&path).expect("the file")));
    assert_eq!(put.status, 204, "{put:?}");
    let (get, took_get) = timed(|| sandbox.http().get(url));
    assert_eq!(get.bytes.len() as u64, FILE_MIB << 20);
    table.value("file of 256 MiB to the guest", rate(took_put), "MB/s", ">= 50");
    table.value("file of 256 MiB from the guest", rate(took_get), "MB/s", ">= 50");
    for (process, grown) in before.grown(world, sandbox) {
        table.value(&format!("growth of {process} by it (peak)"), grown, "MiB", "<= 32");
    }
}

/// Creates that do not wait. Last, because what they begin is still under way when they answer.
fn create_without_waiting(world: &World, table: &mut Table) {
    progress("wait:false creates");
    let http = world.http();
    let mut calls = Samples::default();
    // Larger than the node: they are accepted, and wait for memory, so that no boot disturbs the figure.
    let filler = json!({"wait": false, "resources": {"cpus": 2, "memory_mb": 16384}});
    let mut ids = Vec::new();
    for n in 0..CALLS + 10 {
        let (answer, took) = timed(|| http.post("/sandboxes", &filler));
        assert_eq!(answer.status, 202, "{answer:?}");
        ids.push(answer.json["sandbox_id"].as_str().map(str::to_owned));
        if n >= 10 {
            calls.add(took);
        }
    }
    let mut gets = Samples::default();
    for _ in 0..CALLS {
        gets.add(timed(|| assert_ne!(http.get("/healthz").json, Value::Null)).1);
    }
    for id in ids.into_iter().rev().flatten() {
        assert_eq!(http.delete(&format!("/sandboxes/{id}")).status, 200);
    }
    table.samples("GET /healthz", &gets, "floor");
    table.samples("POST create with wait:false", &calls, "p50 <= 5 ms, p99 <= 20 ms");
}
