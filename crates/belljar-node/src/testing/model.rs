//! Random sequences of everything that can be done to sandboxes, against a model that knows only contents.

use belljar_api::{
    node::{CopySpec, SnapshotState},
    snapshot::SnapshotType,
};
use belljar_vmm::VmExit;
use proptest::prelude::*;
use tokio::time::sleep;

use super::*;

/// Sandboxes that live at once.
const BOXES_MAX: usize = 4;

/// Numbers choose among what there is.
#[derive(Debug, Clone, Copy)]
enum Act {
    Create,
    Suspend(usize),
    Resume(usize),
    Wake(usize),
    WriteMemory(usize, u64, u64),
    WriteDisk(usize, u64, u64),
    Snapshot(usize, bool),
    DeleteSnapshot(usize),
    Restore(usize),
    Copy(usize, usize),
    Rollback(usize, usize),
    KillVm(usize),
    Restart,
    Pass(u64),
    Terminate(usize),
}

fn acts() -> impl Strategy<Value = Act> {
    let (which, page, number) = (0..64_usize, 0..12_u64, 1..1000_u64);
    prop_oneof![
        2 => Just(Act::Create),
        4 => which.clone().prop_map(Act::Suspend),
        3 => which.clone().prop_map(Act::Resume),
        3 => which.clone().prop_map(Act::Wake),
        6 => (which.clone(), page.clone(), number.clone()).prop_map(|(it, page, number)| Act::WriteMemory(it, page, number)),
        4 => (which.clone(), page, number).prop_map(|(it, block, number)| Act::WriteDisk(it, block, number)),
        3 => (which.clone(), any::<bool>()).prop_map(|(it, memory)| Act::Snapshot(it, memory)),
        1 => which.clone().prop_map(Act::DeleteSnapshot),
        2 => which.clone().prop_map(Act::Restore),
        2 => (which.clone(), 1..3_usize).prop_map(|(it, number)| Act::Copy(it, number)),
        3 => (which.clone(), which.clone()).prop_map(|(it, snapshot)| Act::Rollback(it, snapshot)),
        1 => which.clone().prop_map(Act::KillVm),
        2 => Just(Act::Restart),
        2 => (1..60_u64).prop_map(Act::Pass),
        1 => which.prop_map(Act::Terminate),
    ]
}

struct Sandbox {
    id: String,
    awake: bool,
    contents: (Contents, Contents),
}

struct Kept {
    id: String,
    kind: SnapshotType,
    source: String,
    contents: (Contents, Contents),
}

struct Model {
    it: Option<Fixture>,
    boxes: Vec<Sandbox>,
    kept: Vec<Kept>,
}

impl Model {
    fn it(&self) -> &Fixture {
        self.it.as_ref().expect("a node")
    }

    fn pick(&self, number: usize) -> Option<usize> {
        (!self.boxes.is_empty()).then(|| number % self.boxes.len())
    }

    fn pick_awake(&self, number: usize) -> Option<usize> {
        self.pick(number).filter(|at| self.boxes[*at].awake)
    }

    fn add(&mut self, id: String, contents: (Contents, Contents)) {
        self.boxes.push(Sandbox { id, awake: true, contents });
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Create => self.create().await,
            Act::Suspend(n) => self.sleep_or_wake(n, false).await,
            Act::Resume(n) => self.sleep_or_wake(n, true).await,
            Act::Wake(n) => {
                let Some(at) = self.pick(n) else { return };
                let handle = self.it().ctx.registry.get(&self.boxes[at].id).expect("known");
                assert_eq!(handle.wake().await, Ok(()));
                self.boxes[at].awake = true;
            }
            Act::WriteMemory(n, page, number) => {
                let Some(at) = self.pick_awake(n) else { return };
                self.it().machine(&self.boxes[at].id).poke(page, number);
                self.boxes[at].contents.0.insert(page, number);
            }
            Act::WriteDisk(n, block, number) => {
                let Some(at) = self.pick_awake(n) else { return };
                self.it().machine(&self.boxes[at].id).write_disk(block, number);
                self.boxes[at].contents.1.insert(block, number);
            }
            Act::Snapshot(n, memory) => self.snapshot(n, memory).await,
            Act::DeleteSnapshot(n) => {
                if !self.kept.is_empty() {
                    let kept = self.kept.remove(n % self.kept.len());
                    self.it().send(&kept.id, 1, Op::DeleteSnapshot).await;
                }
            }
            Act::Restore(n) => self.restore(n).await,
            Act::Copy(n, number) => self.copy(n, number).await,
            Act::Rollback(n, snapshot) => self.rollback(n, snapshot).await,
            Act::KillVm(n) => self.kill(n).await,
            Act::Restart => {
                let it = self.it.take().expect("a node");
                self.it = Some(it.restart().await);
                for sandbox in self.boxes.iter().filter(|sandbox| sandbox.awake) {
                    // It answers when it was configured anew.
                    let handle = self.it().ctx.registry.get(&sandbox.id).expect("known");
                    assert_eq!(handle.wake().await, Ok(()));
                }
            }
            Act::Pass(seconds) => sleep(Duration::from_secs(seconds)).await,
            Act::Terminate(n) => {
                let Some(at) = self.pick(n) else { return };
                let sandbox = self.boxes.remove(at);
                self.it().forget(&sandbox.id).await;
            }
        }
    }

    async fn create(&mut self) {
        if self.boxes.len() < BOXES_MAX {
            let id = self.it().run(named(0)).await;
            let contents = self.it().contents(&id);
            self.add(id, contents);
        }
    }

    async fn sleep_or_wake(&mut self, n: usize, awake: bool) {
        let Some(at) = self.pick(n) else { return };
        let id = &self.boxes[at].id;
        if awake {
            self.it().resume(id).await
        } else {
            self.it().suspend(id).await
        }
        self.boxes[at].awake = awake;
    }

    async fn snapshot(&mut self, n: usize, memory: bool) {
        let Some(at) = self.pick(n) else { return };
        let kind = if memory { SnapshotType::Memory } else { SnapshotType::Filesystem };
        let (id, state) = self.it().snapshot(&self.boxes[at].id, kind).await;
        let sandbox = &self.boxes[at];
        assert_eq!(matches!(state, SnapshotState::Completed { .. }), sandbox.awake, "{state:?}");
        if sandbox.awake {
            let (source, contents) = (sandbox.id.clone(), sandbox.contents.clone());
            self.kept.push(Kept { id, kind, source, contents });
        }
    }

    async fn restore(&mut self, n: usize) {
        if self.kept.is_empty() || self.boxes.len() >= BOXES_MAX {
            return;
        }
        let kept = &self.kept[n % self.kept.len()];
        let (id, state) = self.it().restore(&kept.id, kept.kind).await;
        assert_eq!(state, NodeState::Running);
        let mut contents = kept.contents.clone();
        if kept.kind == SnapshotType::Filesystem {
            contents.0 = self.it().contents(&id).0;
        }
        self.add(id, contents);
    }

    async fn copy(&mut self, n: usize, number: usize) {
        let Some(at) = self.pick(n).filter(|_| self.boxes.len() < BOXES_MAX) else { return };
        let copies: Vec<_> =
            (0..number).map(|_| CopySpec { sandbox_id: new_id(), generation: 1, spec: named(0) }).collect();
        self.it().command(&self.boxes[at].id, Op::Copy { copies: copies.clone() }).await;
        for copy in copies {
            let state = self.it().wait(&copy.sandbox_id, |state| *state != NodeState::Starting).await;
            assert_eq!(state == NodeState::Running, self.boxes[at].awake, "{state:?}");
            if self.boxes[at].awake {
                let contents = self.boxes[at].contents.clone();
                self.add(copy.sandbox_id, contents);
            } else {
                self.it().forget(&copy.sandbox_id).await;
            }
        }
    }

    async fn rollback(&mut self, n: usize, snapshot: usize) {
        let (Some(at), false) = (self.pick(n), self.kept.is_empty()) else { return };
        let kept = &self.kept[snapshot % self.kept.len()];
        let own = kept.source == self.boxes[at].id && kept.kind == SnapshotType::Memory;
        let (snapshot_id, contents) = (kept.id.clone(), kept.contents.clone());
        let generation = self.it().command(&self.boxes[at].id, Op::Rollback { snapshot_id }).await;
        let report = self.it().verdict(&self.boxes[at].id, generation).await;
        assert_eq!(report.trouble.is_none(), own, "{report:?}");
        if own {
            assert_eq!(report.state, NodeState::Running);
            self.boxes[at].contents = contents;
            self.boxes[at].awake = true;
        }
    }

    async fn kill(&mut self, n: usize) {
        let Some(at) = self.pick(n) else { return };
        let id = self.boxes[at].id.clone();
        let Some(machine) = self.it().find_machine(&id) else { return };
        machine.end(VmExit::Process { code: None, signal: Some(9) });
        if self.boxes[at].awake {
            self.it().wait(&id, |state| matches!(state, NodeState::Terminated { .. })).await;
            self.it().forget(&id).await;
            self.boxes.remove(at);
        }
    }

    fn check(&self) {
        for sandbox in &self.boxes {
            let state = self.it().report(&sandbox.id).state;
            if sandbox.awake {
                assert_eq!(state, NodeState::Running);
                assert_eq!(self.it().contents(&sandbox.id), sandbox.contents);
            } else {
                assert_eq!(state, NodeState::Suspended);
            }
        }
    }
}

async fn run(acts: Vec<Act>, options: Options) {
    let mut model = Model { it: Some(Fixture::with(options).await), boxes: Vec::new(), kept: Vec::new() };
    model.create().await;
    for act in acts {
        model.act(act).await;
        model.check();
    }
    for at in 0..model.boxes.len() {
        model.act(Act::Wake(at)).await;
        model.check();
    }
    while !model.boxes.is_empty() {
        model.act(Act::Terminate(0)).await;
    }
    // What was put away is removed in the background.
    sleep(Duration::from_secs(1)).await;
    model.it.take().expect("a node").finish().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_is_done_in_whatever_order_contents_are_right(
        acts in prop::collection::vec(acts(), 1..40),
        templates in any::<bool>(),
        spares in 0..2_usize,
        resident in 0..60_u64,
    ) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        let options = Options { templates, spares, resident: Duration::from_secs(resident) };
        runtime.block_on(run(acts, options));
    }
}
