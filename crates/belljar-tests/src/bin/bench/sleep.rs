//! Golden snapshots, sleep and wake, snapshots, copies.

use std::{
    io::{BufRead, BufReader},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use belljar_tests::{Sandbox, World, wait_while};
use serde_json::json;

use crate::{
    alone::Alone,
    memory::proportional_mib,
    progress,
    restore::Frozen,
    table::{Samples, Table},
    timed,
};

const CREATES: usize = 20;
const SLEEPS: usize = 15;
const COPIES: usize = 10;
const BURST: usize = 20;
/// Dirties 100 MiB of guest memory, new bytes each time.
const DIRTY: &str = "head -c 104857600 /dev/urandom > /dev/shm/blob";
/// Says so every millisecond or two, so that a standstill shows as a gap.
const TICKS: &str = "import sys,time\nwhile True:\n print(1, flush=True)\n time.sleep(0.001)";

pub(crate) fn run(table: &mut Table) {
    let floor = creates(table);
    sleeps(table);
    forks(table);
    burst(table, floor);
}

pub(crate) fn spares_ready(world: &World, wanted: usize) {
    wait_while(|| world.entries("spares").len() < wanted || world.vm_pids().len() < wanted);
    // The last one is being restored when its process shows.
    std::thread::sleep(Duration::from_millis(300));
}

/// Creates that take a VM that is ready, creates that restore one, and QEMU alone, in turn. Gives the processor time of
/// one bare restore.
fn creates(table: &mut Table) -> Duration {
    progress("bare restore, and creates from the golden snapshot");
    let bare = Frozen::new();
    let ready = World::golden_with(&[]);
    let (mut floor, mut running, mut answered) = (Samples::default(), Samples::default(), Samples::default());
    let before = children_cpu();
    for n in 0..=CREATES {
        let took = bare.restore();
        spares_ready(&ready, 2);
        let begun = Instant::now();
        let sandbox = ready.create(&json!({}));
        let created = begun.elapsed();
        sandbox.sh("true");
        let first = begun.elapsed();
        // The first of each fills caches.
        if n > 0 {
            floor.add(took);
            running.add(created);
            answered.add(first);
        }
        sandbox.delete();
        ready.wait_until_clean();
    }
    let cpu = (children_cpu() - before) / u32::try_from(CREATES + 1).expect("small");
    drop(ready);
    let cold = World::golden_with(&[("BELLJAR_SPARES", "0".to_owned())]);
    let (mut restored, mut restored_answered) = (Samples::default(), Samples::default());
    for n in 0..=CREATES {
        let begun = Instant::now();
        let sandbox = cold.create(&json!({}));
        let created = begun.elapsed();
        sandbox.sh("true");
        let first = begun.elapsed();
        if n > 0 {
            restored.add(created);
            restored_answered.add(first);
        }
        sandbox.delete();
        cold.wait_until_clean();
    }
    let ratio = |samples: &Samples| samples.p50() / floor.p50();
    table.samples("bare QEMU copy-on-write restore to first answer", &floor, "floor");
    table.samples("create from golden -> running", &running, &format!("<= 100; {:.2} x floor, <= 2", ratio(&running)));
    table.samples(
        "create from golden -> first run answered",
        &answered,
        &format!("<= 140; {:.2} x floor", ratio(&answered)),
    );
    table.samples(
        "the same without a VM kept ready -> running",
        &restored,
        &format!("{:.2} x floor", ratio(&restored)),
    );
    table.samples("the same without a VM kept ready -> first run", &restored_answered, "reported");
    cpu
}

/// Processor time of ended children: the bare QEMUs.
fn children_cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).expect("rusage");
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0))
    };
    of(usage.user_time()) + of(usage.system_time())
}

fn health(sandbox: &Sandbox<'_>) {
    assert_eq!(sandbox.http().get("/api/v1/health").status, 200);
}

fn sleeps(table: &mut Table) {
    progress("sleep and wake");
    let world = World::golden_with(&[("BELLJAR_RESIDENT_SECS", "3600".to_owned()), ("BELLJAR_SPARES", "0".to_owned())]);
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0}));
    let mut resident = Samples::default();
    for _ in 0..SLEEPS {
        world.suspend("box");
        resident.add(timed(|| health(&sandbox)).1);
    }
    table.samples("resume, paused in RAM -> first answer", &resident, "p50 <= 15 ms");
    sandbox.delete();
    drop(world);
    let world = World::golden_with(&[("BELLJAR_RESIDENT_SECS", "0".to_owned()), ("BELLJAR_SPARES", "0".to_owned())]);
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0}));
    let (mut disk, mut freed) = (Samples::default(), Samples::default());
    for _ in 0..SLEEPS {
        sandbox.sh(DIRTY);
        let ((), took) = timed(|| {
            world.suspend("box");
            while !world.vm_pids().is_empty() {
                std::thread::yield_now();
            }
        });
        freed.add(took);
        disk.add(timed(|| health(&sandbox)).1);
    }
    table.samples("resume, from disk -> first answer", &disk, "p50 <= 150 ms");
    table.samples("suspend acknowledged and memory freed, 100 MiB dirty", &freed, "p50 <= 400 ms");
    sandbox.delete();
}

/// Watches a sandbox's ticks from outside: the longest gap while `work` runs.
fn longest_gap(sandbox: &Sandbox<'_>, work: impl FnOnce()) -> Duration {
    let process = sandbox.start(&json!({"command": "python3", "args": ["-c", TICKS]}));
    let http = sandbox.http();
    let path = format!("/api/v1/processes/{}/output/follow", process["pid"]);
    let response = http.send("GET", &path, ureq::SendBody::none());
    let (longest, begun, done) =
        (Arc::new(Mutex::new(Duration::ZERO)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let reader = {
        let (longest, begun, done) = (longest.clone(), begun.clone(), done.clone());
        std::thread::spawn(move || {
            let mut last = Instant::now();
            for _ in BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok) {
                let gap = last.elapsed();
                last = Instant::now();
                if begun.load(Ordering::SeqCst) {
                    let mut longest = longest.lock().expect("the longest");
                    *longest = gap.max(*longest);
                }
                if done.load(Ordering::SeqCst) {
                    return;
                }
            }
        })
    };
    std::thread::sleep(Duration::from_millis(500));
    begun.store(true, Ordering::SeqCst);
    work();
    std::thread::sleep(Duration::from_millis(300));
    done.store(true, Ordering::SeqCst);
    reader.join().expect("the reader");
    sandbox.http().delete(&format!("/api/v1/processes/{}", process["pid"]));
    Arc::into_inner(longest).and_then(|longest| longest.into_inner().ok()).expect("the reader has ended")
}

fn forks(table: &mut Table) {
    progress("copies");
    let world = World::golden_with(&[("BELLJAR_SPARES", "0".to_owned())]);
    let sandbox = world.create(&json!({"timeout_secs": 0}));
    let (mut pause, mut quiet) = (Samples::default(), Samples::default());
    for _ in 0..7 {
        quiet.add(longest_gap(&sandbox, || std::thread::sleep(Duration::from_millis(500))));
        sandbox.sh(DIRTY);
        pause.add(longest_gap(&sandbox, || {
            world.copy(&sandbox.id, 1).remove(0).delete();
        }));
    }
    table.samples("longest gap seen from outside, nothing going on", &quiet, "floor of the two below");
    table.samples("pause of the source in a live copy, 100 MiB dirty", &pause, "p50 <= 120 ms");
    let proportional = || world.vm_pids().into_iter().map(proportional_mib).sum::<f64>();
    let before = proportional();
    let (copies, took) = timed(|| {
        let copies = world.copy(&sandbox.id, COPIES);
        std::thread::scope(|scope| {
            for copy in &copies {
                scope.spawn(|| health(copy));
            }
        });
        copies
    });
    let each = (proportional() - before) / COPIES as f64;
    table.value("10 copies, all answering", took.as_secs_f64() * 1000.0, "ms", "<= 1500");
    table.value("marginal proportional-set size of a copy", each, "MiB", "<= 30");
    for copy in copies {
        copy.delete();
    }
    progress("snapshots");
    world.snapshot(&sandbox.id, "memory");
    let (mut stored, mut pause) = (Vec::new(), Samples::default());
    for _ in 0..5 {
        sandbox.sh("head -c 10485760 /dev/urandom > /dev/shm/more");
        let mut size = 0.0;
        pause.add(longest_gap(&sandbox, || {
            let info = world.snapshot(&sandbox.id, "memory");
            size = info["size_bytes"].as_f64().expect("a size") / f64::from(1 << 20);
        }));
        stored.push(size);
    }
    stored.sort_by(f64::total_cmp);
    table.value("next snapshot, 10 MiB changed: stores", stored[stored.len() / 2], "MiB", "<= 15");
    table.samples("next snapshot, 10 MiB changed: pause", &pause, "p50 <= 60 ms");
    sandbox.delete();
}

fn burst(table: &mut Table, cpu: Duration) {
    progress("burst");
    let world = World::golden_with(&[]);
    spares_ready(&world, 2);
    let ((), took) = timed(|| {
        std::thread::scope(|scope| {
            for _ in 0..BURST {
                scope.spawn(|| world.create(&json!({})).sh("true"));
            }
        });
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let floor = cpu.as_secs_f64() * 1000.0 * BURST as f64 / cores as f64;
    table.value("20 bare restores, by processor time alone", floor, "ms", "floor");
    table.value("20 creates at once -> all answered a run", took.as_secs_f64() * 1000.0, "ms", "reported");
}
