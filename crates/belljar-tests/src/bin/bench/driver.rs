//! What our way costs where KVM works: each figure beside the VM program alone ([`Alone`]), in one run.
//!
//! `BELLJAR_DRIVER` says which program; `cargo xtask bench driver` takes each one that is there, in the emulated machine.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use belljar_tests::{Sandbox, World};
use belljar_vmm::MemoryUse;
use serde_json::json;

use crate::{
    alone::{Alone, ByHand, MEMORY_MIB, Program},
    memory::{processor_percent, proportional_mib, resident_mib},
    progress,
    restore::Frozen,
    sleep::spares_ready,
    table::{Samples, Table},
};

/// How often each figure is taken; a restore there takes about a second.
const ROUNDS: usize = 8;
/// VMs of one golden snapshot at once.
const MANY: usize = 20;
/// What the end of one thing leaves to do is not part of the next: VMs end, networks are made ahead.
const REST: Duration = Duration::from_secs(3);
/// How long they are watched while nobody uses them.
const IDLE: Duration = Duration::from_secs(10);

/// The VM program of a driver, alone.
fn alone(driver: &str) -> Box<dyn Alone> {
    match driver {
        "firecracker" => Box::new(ByHand::new(Program::Firecracker)),
        "cloud-hypervisor" => Box::new(ByHand::new(Program::CloudHypervisor)),
        "qemu-kvm" => Box::new(Frozen::on_kvm()),
        other => panic!("BELLJAR_DRIVER is {other:?}; it has to be firecracker, cloud-hypervisor or qemu-kvm"),
    }
}

/// With a VM kept ready, and without.
pub(crate) fn run(table: &mut Table) {
    let driver = std::env::var("BELLJAR_DRIVER").expect("BELLJAR_DRIVER names the driver: firecracker");
    progress(&format!("{driver} alone: boot and freeze"));
    let alone = alone(&driver);
    let [mut restore, mut with_curl, mut freeze, mut thaw] = std::array::from_fn(|_| Samples::default());
    let ready = World::golden_with(&[("BELLJAR_RESIDENT_SECS", "0".to_owned()), ("BELLJAR_SPARES", "1".to_owned())]);
    let mut kept = Life::default();
    let mut cold = Life::default();
    rounds(&ready, 1, &mut kept, || ());
    drop(ready);
    let world = World::golden_with(&[
        ("BELLJAR_RESIDENT_SECS", "0".to_owned()),
        ("BELLJAR_SPARES", "0".to_owned()),
        // More than the emulated machine has: they have most of it in common.
        ("BELLJAR_MEMORY_MB", (2 * MANY as u64 * MEMORY_MIB).to_string()),
    ]);
    rounds(&world, 0, &mut cold, || {
        restore.add(alone.restore());
        alone.restore_with_curl().into_iter().for_each(|took| with_curl.add(took));
        let [frozen, thawed] = alone.freeze_and_thaw();
        freeze.add(frozen);
        thaw.add(thawed);
    });
    table.samples(&format!("{driver} alone: load and resume, to first answer"), &restore, "floor");
    // The limit of a create is said of the program as somebody at a shell drives it.
    let limit = match with_curl.is_empty() {
        true => ", <= 1.5".to_owned(),
        false => {
            table.samples("the same, its API called with curl", &with_curl, "floor with curl");
            format!("; {:.2} x with curl, <= 1.5", cold.created.p50() / with_curl.p50())
        }
    };
    table.samples("the same: pause, and all of its memory to a file", &freeze, "floor");
    table.samples("the same: load and resume of what that wrote, to first answer", &thaw, "floor");
    let both = thaw.p50() + freeze.p50();
    let row = |table: &mut Table, name: &str, samples: &Samples, floor: f64, limit: &str| {
        table.samples(name, samples, &format!("{:.2} x floor{limit}", samples.p50() / floor));
    };
    row(table, "create from golden -> running", &cold.created, restore.p50(), &limit);
    row(table, "create from golden -> first run answered", &cold.answered, restore.p50(), "");
    row(table, "with a VM kept ready -> running", &kept.created, restore.p50(), "");
    row(table, "with a VM kept ready -> first run answered", &kept.answered, restore.p50(), "");
    row(table, "suspend acknowledged, memory in files", &cold.suspended, freeze.p50(), ", <= 1.5");
    row(table, "resume from disk -> first answer", &cold.resumed, thaw.p50(), ", <= 1.5");
    row(table, "copy, to its first answer", &cold.copied, both, " (both of those), <= 1.5");
    // Where files are in memory, its own would be missing for the many.
    drop(alone);
    memory(table, &world);
}

/// What is done to a sandbox, and how long it takes.
#[derive(Default)]
struct Life {
    created: Samples,
    answered: Samples,
    suspended: Samples,
    resumed: Samples,
    copied: Samples,
}

/// Each round once through all of it, `between` in between, so that what slows the machine down slows both.
fn rounds(world: &World, spares: usize, life: &mut Life, mut between: impl FnMut()) {
    for round in 0..=ROUNDS {
        progress(&format!("with {spares} kept ready: {round} of {ROUNDS}"));
        between();
        spares_ready(world, spares);
        let mut one = Life::default();
        live(world, &mut one);
        // The first fills caches.
        if round > 0 {
            life.take(one);
        }
    }
}

fn live(world: &World, life: &mut Life) {
    let begin = || {
        sleep(REST);
        Instant::now()
    };
    let begun = begin();
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0}));
    life.created.add(begun.elapsed());
    sandbox.sh("true");
    life.answered.add(begun.elapsed());
    let begun = begin();
    let copy = world.copy("box", 1).remove(0);
    health(&copy);
    life.copied.add(begun.elapsed());
    copy.delete();
    let begun = begin();
    world.suspend("box");
    life.suspended.add(begun.elapsed());
    let begun = begin();
    health(&sandbox);
    life.resumed.add(begun.elapsed());
    sandbox.delete();
    world.wait_until_clean();
}

fn health(sandbox: &Sandbox<'_>) {
    assert_eq!(sandbox.http().get("/api/v1/health").status, 200);
}

impl Life {
    fn take(&mut self, other: Self) {
        self.created.take(other.created);
        self.answered.take(other.answered);
        self.suspended.take(other.suspended);
        self.resumed.take(other.resumed);
        self.copied.take(other.copied);
    }
}

/// What one VM process has beyond its guest's memory, and what many from one golden snapshot have together.
fn memory(table: &mut Table, world: &World) {
    let mut sandboxes = Vec::new();
    for number in 1..=MANY {
        let idle = processor_percent(&world.vm_pids(), Duration::from_secs(2));
        let begun = Instant::now();
        let sandbox = world.create(&json!({"timeout_secs": 0}));
        sandbox.sh("true");
        progress(&format!("many: {number} of {MANY}, {:?}; those before, idle: {idle:.0} %", begun.elapsed()));
        sandboxes.push(sandbox);
    }
    let pids = world.vm_pids();
    assert_eq!(pids.len(), MANY);
    let own = pids.iter().map(|pid| {
        let memory = MemoryUse::of(u32::try_from(*pid).expect("a pid"), MEMORY_MIB).expect("the process's memory");
        memory.overhead() as f64 / f64::from(1 << 20)
    });
    let mean = |total: f64| total / MANY as f64;
    table.value("VM process beyond guest memory", mean(own.sum()), "MiB", "<= 5 + 2 (Firecracker)");
    let resident = pids.iter().map(|pid| resident_mib(*pid)).sum();
    let proportional = pids.iter().map(|pid| proportional_mib(*pid)).sum();
    table.value("each of 20 from one golden: resident", mean(resident), "MiB", "reported");
    table.value("each of 20 from one golden: proportional", mean(proportional), "MiB", "reported");
    table.value("20 idle: of one processor", processor_percent(&pids, IDLE), "%", "reported");
    sandboxes.iter().for_each(|sandbox| drop(sandbox.delete()));
}
