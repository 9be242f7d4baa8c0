//! Snapshots that are taken, restored, deleted; rollback.

use belljar_api::{node::SnapshotState, snapshot::SnapshotType};
use tokio::time::sleep;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

impl Fixture {
    /// Takes a snapshot and waits until it is complete or has failed.
    pub(super) async fn snapshot(&self, source: &str, kind: SnapshotType) -> (String, SnapshotState) {
        let snapshot_id = new_id();
        self.command(source, Op::Snapshot { snapshot_id: snapshot_id.clone(), kind }).await;
        let state = self.snapshot_state(&snapshot_id).await;
        (snapshot_id, state)
    }

    pub(super) async fn snapshot_state(&self, id: &str) -> SnapshotState {
        let mut changes = self.ctx.registry.watch().1;
        loop {
            match self.ctx.snapshots.report(id).map(|report| report.state) {
                Some(SnapshotState::InProgress) | None => {}
                Some(state) => return state,
            }
            tokio::time::timeout(PATIENCE, changes.recv())
                .await
                .expect("news of the snapshot")
                .expect("the node lives");
        }
    }

    /// Takes a snapshot that has to succeed.
    pub(super) async fn snapped(&self, source: &str, kind: SnapshotType) -> String {
        let (id, state) = self.snapshot(source, kind).await;
        assert!(matches!(state, SnapshotState::Completed { .. }), "{state:?}");
        id
    }

    /// Makes a sandbox of a snapshot, and waits until it runs or has ended.
    pub(super) async fn restore(&self, snapshot_id: &str, kind: SnapshotType) -> (String, NodeState) {
        let id = new_id();
        let origin = Origin::Snapshot { snapshot_id: snapshot_id.to_owned(), kind };
        self.send(&id, 1, Op::Create { spec: named(0), origin }).await;
        let state = self.wait(&id, |state| *state != NodeState::Starting).await;
        (id, state)
    }

    async fn delete_snapshot(&self, id: &str) {
        self.send(id, 1, Op::DeleteSnapshot).await;
    }

    async fn rollback(&self, id: &str, snapshot_id: &str) -> SandboxReport {
        let generation = self.command(id, Op::Rollback { snapshot_id: snapshot_id.to_owned() }).await;
        self.verdict(id, generation).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_memory_snapshot_brings_everything_back_as_often_as_wanted() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    it.machine(&source).write(7, 77);
    let (before, told) = (it.contents(&source), it.machine(&source).last_configured());
    let snapshot = it.snapped(&source, SnapshotType::Memory).await;
    assert!(it.machine(&source).runs_users());
    assert_eq!(it.machine(&source).last_configured().life, told.life, "the source goes on");
    it.machine(&source).write(8, 88);
    it.forget(&source).await;
    let mut lives = vec![told.life];
    for _ in 0..3 {
        let (id, state) = it.restore(&snapshot, SnapshotType::Memory).await;
        assert_eq!(state, NodeState::Running);
        assert_eq!(it.contents(&id), before);
        let other = it.machine(&id).last_configured();
        assert!(!lives.contains(&other.life) && other.identity_token != told.identity_token && other.mac != told.mac);
        lives.push(other.life);
        it.machine(&id).write(9, 99);
    }
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_filesystem_snapshot_brings_the_disk_back_and_boots() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    it.machine(&source).write(7, 77);
    let before = it.contents(&source);
    let snapshot = it.snapped(&source, SnapshotType::Filesystem).await;
    assert!(it.machine(&source).runs_users());
    let (id, state) = it.restore(&snapshot, SnapshotType::Filesystem).await;
    assert_eq!(state, NodeState::Running);
    let (memory, disk) = it.contents(&id);
    assert_eq!(disk, before.1);
    assert_eq!(memory.get(&7), None);
    let state = it.rollback(&source, &snapshot).await;
    assert!(state.trouble.expect("words").contains("not a memory snapshot"));
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_needs_neither_its_parent_nor_its_child() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    let mut taken = Vec::new();
    for number in 1..4 {
        it.machine(&source).write(number, 11 * number);
        let id = it.snapped(&source, SnapshotType::Memory).await;
        taken.push((id, it.contents(&source)));
    }
    it.delete_snapshot(&taken[1].0).await;
    sleep(SECOND).await;
    for (snapshot, contents) in [&taken[0], &taken[2]] {
        let (id, _) = it.restore(snapshot, SnapshotType::Memory).await;
        assert_eq!(it.contents(&id), *contents);
    }
    let (_, state) = it.restore(&taken[1].0, SnapshotType::Memory).await;
    let NodeState::Terminated { detail, .. } = state else { panic!("{state:?}") };
    assert!(detail.contains("no snapshot"), "{detail}");
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_deleted_while_it_is_written_goes_when_it_is() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    let snapshot_id = new_id();
    it.command(&source, Op::Snapshot { snapshot_id: snapshot_id.clone(), kind: SnapshotType::Memory }).await;
    assert_eq!(it.ctx.snapshots.report(&snapshot_id).map(|it| it.state), Some(SnapshotState::InProgress));
    it.delete_snapshot(&snapshot_id).await;
    assert_eq!(it.snapshot_state(&snapshot_id).await, SnapshotState::Deleted);
    assert_eq!(it.ctx.snapshots.report(&snapshot_id), None, "that is told once");
    assert_eq!(it.ctx.snapshots.vault.ids(), Vec::<String>::new());
    it.delete_snapshot(&snapshot_id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn what_does_not_run_is_not_snapshotted_and_that_is_told() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    let kept = it.snapped(&source, SnapshotType::Memory).await;
    it.suspend(&source).await;
    let (_, state) = it.snapshot(&source, SnapshotType::Memory).await;
    assert!(matches!(state, SnapshotState::Failed { ref error } if error.contains("asleep")), "{state:?}");
    it.command(&source, Op::Terminate { reason: TerminationReason::User }).await;
    it.wait(&source, |state| matches!(state, NodeState::Terminated { .. })).await;
    let (failed, state) = it.snapshot(&source, SnapshotType::Memory).await;
    assert!(matches!(state, SnapshotState::Failed { ref error } if error.contains("ended")), "{state:?}");
    let (_, state) = it.snapshot(&new_id(), SnapshotType::Memory).await;
    assert!(matches!(state, SnapshotState::Failed { ref error } if error.contains("not on this node")), "{state:?}");
    // The same command again does not spoil what is complete.
    it.forget(&source).await;
    it.send(&source, 99, Op::Snapshot { snapshot_id: kept.clone(), kind: SnapshotType::Memory }).await;
    assert!(matches!(it.snapshot_state(&kept).await, SnapshotState::Completed { .. }));
    it.delete_snapshot(&failed).await;
    assert_eq!(it.snapshot_state(&failed).await, SnapshotState::Deleted);
    it.finish().await;
}

/// Puts a sandbox back while it runs, sleeps with its VM, or sleeps without.
async fn check_rollback(resident: Duration, asleep: bool) {
    let it = Fixture::with(Options { resident, ..Options::default() }).await;
    let id = it.run(named(0)).await;
    it.machine(&id).write(7, 77);
    let (before, first) = (it.contents(&id), it.machine(&id).last_configured());
    let snapshot = it.snapped(&id, SnapshotType::Memory).await;
    let mut lives = vec![first.life];
    for _ in 0..2 {
        it.machine(&id).write(7, 78);
        it.machine(&id).write(8, 88);
        if asleep {
            it.suspend(&id).await;
            sleep(SECOND).await;
        }
        let report = it.rollback(&id, &snapshot).await;
        assert_eq!((report.state, report.trouble), (NodeState::Running, None));
        assert_eq!(it.contents(&id), before);
        let again = it.machine(&id).last_configured();
        assert!(!lives.contains(&again.life), "it is another life");
        lives.push(again.life);
        assert_eq!((again.sandbox_id, again.identity_token), (first.sandbox_id.clone(), first.identity_token.clone()));
        sleep(SECOND).await;
        assert_eq!(it.world.alive().len(), 1);
        assert_eq!(names(&it.ctx.storage.sandbox(&id)), ["disk.ext4", "memory", "record.json", "run"]);
    }
    it.forget(&id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_goes_back_to_a_snapshot_of_its_own() {
    for resident in [Duration::ZERO, SECOND * 30] {
        check_rollback(resident, false).await;
        check_rollback(resident, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_snapshot_is_refused() {
    let it = Fixture::new().await;
    let (id, other) = (it.run(named(0)).await, it.run(named(0)).await);
    let snapshot = it.snapped(&other, SnapshotType::Memory).await;
    it.machine(&id).write(7, 77);
    let before = it.contents(&id);
    for snapshot in [snapshot, new_id()] {
        let report = it.rollback(&id, &snapshot).await;
        assert_eq!(report.state, NodeState::Running);
        assert!(report.trouble.expect("words").contains("snapshot"));
        assert_eq!(it.contents(&id), before);
        it.suspend(&id).await;
        let report = it.rollback(&id, &snapshot).await;
        assert_eq!(report.state, NodeState::Suspended);
        assert!(report.trouble.expect("words").contains("snapshot"));
        it.resume(&id).await;
        assert_eq!(it.contents(&id), before);
    }
    it.finish().await;
}
