//! Every operation with a failure at each of its steps, once or from then on: nothing is lost, nothing is left, somebody is
//! told, and a later try works.

use belljar_api::{
    node::{CopySpec, SnapshotState},
    snapshot::SnapshotType,
};
use tokio::time::sleep;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// What is done while something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Suspend,
    WakeResident,
    WakeFromDisk,
    Snapshot,
    Copy,
    Rollback,
    RollbackAsleep,
}

/// A sandbox, what is in it, and what the operation needs.
pub(super) struct Scene {
    pub(super) it: Fixture,
    pub(super) id: String,
    pub(super) contents: (Contents, Contents),
    pub(super) snapshot: String,
    pub(super) snapshot_contents: (Contents, Contents),
    pub(super) copies: Vec<CopySpec>,
}

impl Scene {
    pub(super) async fn before(operation: Operation) -> Self {
        let resident = if operation == Operation::WakeFromDisk { Duration::ZERO } else { SECOND * 1000 };
        let it = Fixture::with(Options { resident, ..Options::default() }).await;
        let id = it.run(named(0)).await;
        it.machine(&id).write(7, 77);
        let (mut snapshot, mut snapshot_contents) = Default::default();
        if matches!(operation, Operation::Rollback | Operation::RollbackAsleep) {
            snapshot = it.snapped(&id, SnapshotType::Memory).await;
            snapshot_contents = it.contents(&id);
        }
        it.machine(&id).write(8, 88);
        let contents = it.contents(&id);
        if matches!(operation, Operation::WakeResident | Operation::WakeFromDisk | Operation::RollbackAsleep) {
            it.suspend(&id).await;
        }
        sleep(SECOND).await;
        let copies = (0..2).map(|_| CopySpec { sandbox_id: new_id(), generation: 1, spec: spec(true, 0) }).collect();
        Self { it, id, contents, snapshot, snapshot_contents, copies }
    }

    /// What is asked; `snapshot_id` is for a new one.
    pub(super) fn op(&self, operation: Operation, snapshot_id: &str) -> Op {
        match operation {
            Operation::Suspend => Op::Suspend,
            Operation::WakeResident | Operation::WakeFromDisk => Op::Resume,
            Operation::Snapshot => Op::Snapshot { snapshot_id: snapshot_id.to_owned(), kind: SnapshotType::Memory },
            Operation::Copy => Op::Copy { copies: self.copies.clone() },
            Operation::Rollback | Operation::RollbackAsleep => Op::Rollback { snapshot_id: self.snapshot.clone() },
        }
    }

    /// Asks for the operation and waits until it has come to something, as far as it can.
    async fn ask(&self, operation: Operation) -> Option<String> {
        let snapshot_id = new_id();
        let generation = self.it.generation();
        let op = self.op(operation, &snapshot_id);
        let command = Command { seq: generation, sandbox_id: self.id.clone(), generation, op };
        // One that is not taken has not happened.
        let taken = self.it.ctx.registry.apply(&self.it.ctx, command).await;
        // Long enough for the timeouts of a wake; by then all has settled, or waits for something to work again.
        sleep(SECOND * 200).await;
        taken.ok().map(|_| snapshot_id)
    }

    /// A command that was not taken changes nothing.
    async fn check_untouched(&self, operation: Operation) -> bool {
        let it = &self.it;
        if matches!(operation, Operation::WakeResident | Operation::WakeFromDisk | Operation::RollbackAsleep) {
            assert_eq!(it.report(&self.id).state, NodeState::Suspended);
            it.resume(&self.id).await;
        }
        assert_eq!(it.contents(&self.id), self.contents);
        for copy in self.copies.iter().filter(|copy| it.ctx.registry.get(&copy.sandbox_id).is_some()) {
            it.forget(&copy.sandbox_id).await;
        }
        true
    }

    /// What the sandbox has to hold, as it stands. One whose VM cannot be driven any more may have ended.
    async fn check(&self, operation: Operation, asked: &str, passed: &[&str], lasting: bool) -> bool {
        let (it, report) = (&self.it, self.it.report(&self.id));
        let words = || format!("{operation:?} failed at {:?} and stands as {report:?}", passed.last());
        let troubled = report.trouble.is_some();
        match report.state {
            NodeState::Terminated { .. } => {
                assert!(lasting && operation != Operation::WakeFromDisk, "{}", words());
                return false;
            }
            NodeState::Suspended => {
                let wakes = operation != Operation::Suspend;
                assert_eq!(troubled, wakes, "{}", words());
                it.resume(&self.id).await;
            }
            NodeState::Running => assert!(it.machine(&self.id).runs_users(), "{}", words()),
            ref other => panic!("{} {other:?}", words()),
        }
        let contents = it.contents(&self.id);
        match operation {
            // Either all of it or nothing.
            Operation::Rollback | Operation::RollbackAsleep => {
                let back = contents == self.snapshot_contents;
                assert!(back || contents == self.contents, "{}", words());
                assert!(back || troubled, "{}", words());
            }
            _ => assert_eq!(contents, self.contents, "{}", words()),
        }
        match operation {
            Operation::Snapshot => match it.snapshot_state(asked).await {
                SnapshotState::Completed { .. } => {
                    let (id, _) = it.restore(asked, SnapshotType::Memory).await;
                    assert_eq!(it.contents(&id), self.contents, "{}", words());
                    it.forget(&id).await;
                }
                SnapshotState::Failed { .. } => {}
                other => panic!("{} {other:?}", words()),
            },
            Operation::Copy => {
                for copy in &self.copies {
                    let state = it.wait(&copy.sandbox_id, |state| *state != NodeState::Starting).await;
                    if state == NodeState::Running {
                        assert_eq!(it.contents(&copy.sandbox_id), self.contents, "{}", words());
                    }
                    it.forget(&copy.sandbox_id).await;
                }
            }
            _ => {}
        }
        true
    }

    /// Everything works again: the same once more has to succeed.
    pub(super) async fn check_again(&self, operation: Operation) {
        let it = &self.it;
        it.machine(&self.id).write(9, 99);
        let contents = it.contents(&self.id);
        match operation {
            Operation::Snapshot => {
                let snapshot = it.snapped(&self.id, SnapshotType::Memory).await;
                let (id, _) = it.restore(&snapshot, SnapshotType::Memory).await;
                assert_eq!(it.contents(&id), contents);
            }
            Operation::Copy => {
                let copy = CopySpec { sandbox_id: new_id(), generation: 1, spec: spec(true, 0) };
                it.command(&self.id, Op::Copy { copies: vec![copy.clone()] }).await;
                it.wait(&copy.sandbox_id, |state| *state == NodeState::Running).await;
                assert_eq!(it.contents(&copy.sandbox_id), contents);
            }
            Operation::Rollback | Operation::RollbackAsleep => {
                if operation == Operation::RollbackAsleep {
                    it.suspend(&self.id).await;
                }
                let generation = it.command(&self.id, Op::Rollback { snapshot_id: self.snapshot.clone() }).await;
                let report = it.verdict(&self.id, generation).await;
                assert_eq!((report.state, report.trouble), (NodeState::Running, None));
                assert_eq!(it.contents(&self.id), self.snapshot_contents);
            }
            _ => {
                it.suspend(&self.id).await;
                it.resume(&self.id).await;
                assert_eq!(it.contents(&self.id), contents);
            }
        }
    }
}

/// Fails at every step of an operation: of the node, or of the driver and the guest.
async fn check(operation: Operation) {
    for (of_node, transient) in [(true, true), (true, false), (false, true), (false, false)] {
        for at in 1.. {
            let scene = Scene::before(operation).await;
            let it = &scene.it;
            let faults = if of_node { &it.ctx.faults } else { &it.world.faults };
            faults.arm(Some(at), transient);
            let asked = scene.ask(operation).await;
            let mut passed = faults.passed();
            faults.arm(None, false);
            let reached = passed.len() >= at;
            passed.truncate(at);
            sleep(SECOND * 100).await;
            let goes_on = match &asked {
                Some(asked) => scene.check(operation, asked, &passed, !transient && !of_node).await,
                None => scene.check_untouched(operation).await,
            };
            if goes_on {
                scene.check_again(operation).await;
            }
            it.forget(&scene.id).await;
            scene.it.finish().await;
            if !reached {
                assert!(at > 1, "{operation:?} has no steps");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspend_that_fails_anywhere() {
    check(Operation::Suspend).await;
}

#[tokio::test(start_paused = true)]
async fn a_quick_wake_that_fails_anywhere() {
    check(Operation::WakeResident).await;
}

#[tokio::test(start_paused = true)]
async fn a_wake_from_disk_that_fails_anywhere() {
    check(Operation::WakeFromDisk).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_fails_anywhere() {
    check(Operation::Snapshot).await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_fails_anywhere() {
    check(Operation::Copy).await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_fails_anywhere() {
    check(Operation::Rollback).await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_in_its_sleep_that_fails_anywhere() {
    check(Operation::RollbackAsleep).await;
}
