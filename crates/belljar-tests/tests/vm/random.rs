//! Random sequences of everything that can be done to sandboxes, with real VMs, against a model that knows only numbers.
//!
//! Each run draws a sequence of its own; a failure shows it and its seed, and `BELLJAR_SEED` repeats it. With
//! `BELLJAR_SOAK_MINUTES` it goes on for that long.

use std::time::{Duration, Instant};

use belljar_tests::{Sandbox, World, wait_while};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// Steps of one sequence: they take about half a minute. A soak has as many and goes on.
const STEPS: usize = 40;
/// Sandboxes that live at once.
const BOXES_MAX: usize = 4;
/// Snapshots that are kept at once: in a machine whose disk is its memory, a soak's filled that until it stood still.
const KEPT_MAX: usize = 12;

/// Numbers choose among what there is.
#[derive(Debug, Clone, Copy)]
enum Act {
    Create(usize),
    Suspend(usize),
    Resume(usize),
    /// Wakes it by a request.
    Use(usize),
    Snapshot(usize, Kind),
    DeleteSnapshot(usize),
    Restore(usize),
    Copy(usize, usize),
    Rollback(usize, usize),
    KillVm(usize),
    KillServer,
    Delete(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Filesystem,
}

impl Act {
    fn random(rng: &mut StdRng) -> Self {
        let (it, other, times) = (rng.random_range(0..64), rng.random_range(0..64), rng.random_range(1..=2));
        match rng.random_range(0..30) {
            0..=1 => Self::Create(it),
            2..=7 => Self::Suspend(it),
            8..=9 => Self::Resume(it),
            10..=11 => Self::Use(it),
            12..=14 => Self::Snapshot(it, Kind::Memory),
            15 => Self::Snapshot(it, Kind::Filesystem),
            16 => Self::DeleteSnapshot(it),
            17..=19 => Self::Restore(it),
            20..=21 => Self::Copy(it, times),
            22..=24 => Self::Rollback(it, other),
            25..=26 => Self::KillVm(it),
            27..=28 => Self::KillServer,
            _ => Self::Delete(it),
        }
    }
}

/// What is told apart in a sandbox: `memory` is a file in memory, `held` a variable of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Contents {
    boot_id: String,
    disk: u64,
    memory: u64,
    held: u64,
}

/// Keeps the last number that it was told, and answers it.
const HOLDER: &str = "held=0; while :; do read word < /dev/shm/ask; [ -n \"$word\" ] && held=$word; \
                      echo $held > /dev/shm/answer; done";

struct Living<'w> {
    sandbox: Sandbox<'w>,
    awake: bool,
    contents: Contents,
}

impl<'w> Living<'w> {
    /// One in which nothing of ours is yet.
    fn begin(sandbox: Sandbox<'w>, fresh: u64) -> Self {
        sandbox.sh("mkfifo /dev/shm/ask /dev/shm/answer");
        sandbox.start(&json!({"command": "sh", "args": ["-c", HOLDER]}));
        let contents = Contents { boot_id: sandbox.boot_id(), disk: 0, memory: 0, held: 0 };
        let mut living = Self { sandbox, awake: true, contents };
        living.write(fresh);
        living
    }

    fn id(&self) -> &str {
        &self.sandbox.id
    }

    /// Writes numbers that were never there before.
    fn write(&mut self, fresh: u64) {
        let (disk, memory, held) = (fresh, fresh + 1, fresh + 2);
        let told = self.sandbox.sh(&format!(
            "echo {disk} > /workspace/disk; echo {memory} > /dev/shm/memory; echo {held} > /dev/shm/ask; \
             timeout 20 cat /dev/shm/answer"
        ));
        assert_eq!(told, held.to_string(), "the process does not take a number");
        self.contents = Contents { boot_id: self.contents.boot_id.clone(), disk, memory, held };
    }

    #[track_caller]
    fn check(&self, world: &World) {
        let status = world.info(self.id()).json["status"].clone();
        assert_eq!(status, if self.awake { "running" } else { "suspended" }, "{}", self.id());
        if !self.awake {
            return;
        }
        let Contents { boot_id, disk, memory, held } = &self.contents;
        let found = self.sandbox.sh("cat /proc/sys/kernel/random/boot_id /workspace/disk /dev/shm/memory; \
             timeout 20 sh -c 'echo > /dev/shm/ask; cat /dev/shm/answer'");
        assert_eq!(found, format!("{boot_id}\n{disk}\n{memory}\n{held}"), "{}", self.id());
    }
}

struct Kept {
    id: String,
    kind: Kind,
    source: String,
    contents: Contents,
}

struct Model<'w> {
    world: &'w World,
    boxes: Vec<Living<'w>>,
    kept: Vec<Kept>,
    /// The last number that was given out.
    last: u64,
}

impl<'w> Model<'w> {
    fn fresh(&mut self) -> u64 {
        self.last += 10;
        self.last
    }

    fn name(&mut self) -> String {
        format!("box{}", self.fresh())
    }

    /// Chooses a sandbox; where it is awake, what it holds becomes something that no other has.
    fn pick(&mut self, number: usize) -> usize {
        if self.boxes.is_empty() {
            self.create(number);
        }
        let (at, fresh) = (number % self.boxes.len(), self.fresh());
        if self.boxes[at].awake {
            self.boxes[at].write(fresh);
        }
        at
    }

    /// Deletes one where there are too many for another.
    fn make_room(&mut self, number: usize) {
        if self.boxes.len() >= BOXES_MAX {
            self.boxes.remove(number % self.boxes.len()).sandbox.delete();
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Create(n) => self.create(n),
            Act::Suspend(n) => {
                let at = self.pick(n);
                self.world.suspend(self.boxes[at].id());
                self.boxes[at].awake = false;
            }
            Act::Resume(n) => {
                let at = self.pick(n);
                self.world.resume(self.boxes[at].id());
                self.boxes[at].awake = true;
            }
            Act::Use(n) => {
                let at = self.pick(n);
                self.boxes[at].sandbox.sh("true");
                self.boxes[at].awake = true;
            }
            Act::Snapshot(n, kind) => self.snapshot(n, kind),
            Act::DeleteSnapshot(n) => {
                if !self.kept.is_empty() {
                    let kept = self.kept.remove(n % self.kept.len());
                    self.forget(&kept);
                }
            }
            Act::Restore(n) => self.restore(n),
            Act::Copy(n, times) => self.copy(n, times),
            Act::Rollback(n, snapshot) => self.rollback(n, snapshot),
            Act::KillVm(n) => self.kill_vm(n),
            Act::KillServer => {
                self.world.kill_server();
                self.world.up();
            }
            Act::Delete(n) => {
                let at = self.pick(n);
                self.boxes.remove(at).sandbox.delete();
            }
        }
    }

    fn create(&mut self, n: usize) {
        self.make_room(n);
        let (name, fresh) = (self.name(), self.fresh());
        let sandbox = self.world.create(&json!({"name": name, "timeout_secs": 0}));
        self.boxes.push(Living::begin(sandbox, fresh));
    }

    fn snapshot(&mut self, n: usize, kind: Kind) {
        if self.kept.len() >= KEPT_MAX {
            let oldest = self.kept.remove(0);
            self.forget(&oldest);
        }
        let at = self.pick(n);
        let word = if kind == Kind::Memory { "memory" } else { "filesystem" };
        let id = self.boxes[at].id().to_owned();
        self.wake_first(at, &format!("/sandboxes/{id}/snapshot"), &json!({"snapshot_type": word}));
        let snapshot = self.world.snapshot(&id, word);
        let contents = self.boxes[at].contents.clone();
        self.kept.push(Kept { id: snapshot["id"].as_str().expect("an id").to_owned(), kind, source: id, contents });
    }

    /// Wakes one that sleeps; what is asked is refused before.
    fn wake_first(&mut self, at: usize, path: &str, body: &Value) {
        if !self.boxes[at].awake {
            self.refused(path, body);
            self.boxes[at].check(self.world);
            self.world.resume(self.boxes[at].id());
            self.boxes[at].awake = true;
        }
    }

    /// Chooses a snapshot; takes one where there is none.
    fn pick_kept(&mut self, number: usize) -> usize {
        if self.kept.is_empty() {
            self.snapshot(number, Kind::Memory);
        }
        number % self.kept.len()
    }

    fn restore(&mut self, n: usize) {
        let kept = self.pick_kept(n);
        self.make_room(n);
        let (name, fresh) = (self.name(), self.fresh());
        let kept = &self.kept[kept];
        let sandbox = self.world.create(&json!({"snapshot_id": kept.id, "name": name}));
        let living = match kept.kind {
            Kind::Memory => Living { sandbox, awake: true, contents: kept.contents.clone() },
            Kind::Filesystem => {
                assert_ne!(sandbox.boot_id(), kept.contents.boot_id);
                let found = sandbox.sh("cat /workspace/disk; ls /dev/shm");
                assert_eq!(found, kept.contents.disk.to_string());
                Living::begin(sandbox, fresh)
            }
        };
        self.boxes.push(living);
    }

    fn copy(&mut self, n: usize, times: usize) {
        let at = self.pick(n);
        let id = self.boxes[at].id().to_owned();
        self.wake_first(at, &format!("/sandboxes/{id}/copy?times={times}"), &Value::Null);
        let contents = self.boxes[at].contents.clone();
        if self.boxes.len() >= BOXES_MAX {
            self.boxes.remove((at + 1) % BOXES_MAX).sandbox.delete();
        }
        let times = times.min(BOXES_MAX - self.boxes.len());
        for sandbox in self.world.copy(&id, times) {
            // Only what has a name is put to sleep.
            let name = json!({"name": self.name()}).to_string();
            let answer = self.world.http().json("PATCH", &format!("/sandboxes/{}", sandbox.id), &name);
            assert_eq!(answer.status, 200, "{answer:?}");
            self.boxes.push(Living { sandbox, awake: true, contents: contents.clone() });
        }
    }

    /// To a snapshot of its own where its source still lives, else to one that is not its own.
    fn rollback(&mut self, n: usize, snapshot: usize) {
        let kept = self.pick_kept(snapshot);
        let source = self.boxes.iter().position(|it| it.id() == self.kept[kept].source);
        let at = self.pick(source.unwrap_or(n));
        let (kept, living) = (&self.kept[kept], &mut self.boxes[at]);
        let path = format!("/sandboxes/{}/rollback?wait_ms=30000", living.sandbox.id);
        let body = json!({"snapshot_id": kept.id});
        if kept.kind == Kind::Memory && kept.source == living.sandbox.id {
            let answer = self.world.http().post(&path, &body);
            assert_eq!(answer.status, 200, "{answer:?}\n{}", self.world.log());
            (living.awake, living.contents) = (true, kept.contents.clone());
        } else {
            self.refused(&path, &body);
        }
    }

    /// What was awake ends; what sleeps does not need it.
    fn kill_vm(&mut self, n: usize) {
        let at = self.pick(n);
        let Some(pid) = self.world.vm_pid(self.boxes[at].id()) else {
            return assert!(!self.boxes[at].awake, "it runs without a VM");
        };
        // It may just be gone.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        if self.boxes[at].awake {
            let gone = self.boxes.remove(at);
            assert_eq!(self.world.ended(gone.id())["termination_reason"], "vmm_exited");
        }
    }

    #[track_caller]
    fn refused(&self, path: &str, body: &Value) {
        let answer = self.world.http().post(path, body);
        assert!((400..500).contains(&answer.status), "{path} {body}: {answer:?}");
    }

    fn forget(&self, kept: &Kept) {
        let answer = self.world.http().delete(&format!("/snapshots/{}", kept.id));
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    fn check(&self) {
        for living in &self.boxes {
            living.check(self.world);
        }
    }

    /// Looks once more into everything, sleeping or not, and removes it.
    fn finish(mut self) {
        for at in 0..self.boxes.len() {
            self.act(Act::Use(at));
        }
        self.check();
        for living in self.boxes.drain(..) {
            living.sandbox.delete();
        }
        self.kept.iter().for_each(|kept| self.forget(kept));
        self.world.wait_until_clean();
        wait_while(|| !self.world.entries("passing").is_empty());
    }
}

#[expect(clippy::print_stderr, reason = "how to repeat a failure")]
fn check(resident_secs: u64) {
    let seed = std::env::var("BELLJAR_SEED").ok();
    let seed = seed.map_or_else(rand::random, |text| text.parse().expect("BELLJAR_SEED is a number"));
    let mut rng = StdRng::seed_from_u64(seed);
    eprintln!("BELLJAR_SEED={seed}");
    let world = World::golden_with(&[("BELLJAR_RESIDENT_SECS", resident_secs.to_string())]);
    let mut model = Model { world: &world, boxes: Vec::new(), kept: Vec::new(), last: 0 };
    let (soak, started) = (soak(), Instant::now());
    for step in (0..).take_while(|step| *step < STEPS || started.elapsed() < soak) {
        let (act, begun) = (Act::random(&mut rng), Instant::now());
        eprint!("{step}: {act:?}");
        model.act(act);
        model.check();
        let awake = model.boxes.iter().filter(|it| it.awake).count();
        eprintln!(": {awake} of {} awake, {:?}", model.boxes.len(), begun.elapsed());
    }
    model.finish();
}

fn soak() -> Duration {
    let minutes = std::env::var("BELLJAR_SOAK_MINUTES").ok();
    Duration::from_mins(minutes.map_or(0, |text| text.parse().expect("BELLJAR_SOAK_MINUTES is a number")))
}

#[test]
fn whatever_is_done_in_whatever_order_contents_are_right_when_vms_are_kept() {
    check(3600);
}

#[test]
fn whatever_is_done_in_whatever_order_contents_are_right_when_vms_are_not_kept() {
    check(0);
}
