//! Live copies.

use std::collections::HashSet;

use belljar_api::node::CopySpec;
use belljar_vmm::VmExit;
use tokio::time::sleep;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn copies(number: usize) -> Vec<CopySpec> {
    (0..number).map(|_| CopySpec { sandbox_id: new_id(), generation: 1, spec: spec(true, 0) }).collect()
}

/// Has copies made, and waits until each of them runs or has ended.
async fn copy(it: &Fixture, source: &str, copies: &[CopySpec]) -> Vec<NodeState> {
    it.command(source, Op::Copy { copies: copies.to_vec() }).await;
    let mut states = Vec::new();
    for copy in copies {
        states.push(it.wait(&copy.sandbox_id, |state| *state != NodeState::Starting).await);
    }
    states
}

fn all_run(states: &[NodeState]) -> bool {
    states.iter().all(|state| *state == NodeState::Running)
}

/// Checks that nobody stands still for copies any more.
async fn nothing_waits(it: &Fixture) {
    sleep(SECOND).await;
    assert_eq!(names(&it.ctx.storage.passing()), Vec::<String>::new());
}

/// As often as it likes: a link that the VM program ended is no fault of the guest's.
#[tokio::test(start_paused = true)]
async fn a_source_whose_link_ends_with_each_copy_goes_on() {
    let it = Fixture::new().await;
    it.world.saving_ends_link.store(true, Ordering::SeqCst);
    let source = it.run(named(0)).await;
    for _ in 0..10 {
        assert!(all_run(&copy(&it, &source, &copies(1)).await));
        let state = it.wait(&source, |state| *state == NodeState::Running).await;
        assert_eq!((state, it.report(&source).trouble), (NodeState::Running, None));
    }
    it.suspend(&source).await;
    it.resume(&source).await;
    assert!(it.machine(&source).runs_users());
}

#[tokio::test(start_paused = true)]
async fn copies_begin_where_their_source_stands_and_go_their_own_way() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    it.machine(&source).write(7, 77);
    let (before, told) = (it.contents(&source), it.machine(&source).last_configured());
    let copies = copies(10);
    assert!(all_run(&copy(&it, &source, &copies).await));
    assert_eq!(it.report(&source).state, NodeState::Running);
    assert!(it.machine(&source).runs_users());
    assert_eq!(it.machine(&source).last_configured().life, told.life, "the source goes on");
    nothing_waits(&it).await;
    for (number, copy) in (0..).zip(&copies) {
        assert_eq!(it.contents(&copy.sandbox_id), before);
        it.machine(&copy.sandbox_id).write(8, 100 + number);
    }
    it.machine(&source).write(8, 88);
    let mut seen: HashSet<_> = [(told.life, told.identity_token, told.mac, told.sandbox_id)].into();
    for (number, copy) in (0..).zip(&copies) {
        let id = &copy.sandbox_id;
        assert_eq!(it.contents(id).0.get(&8), Some(&(100 + number)));
        let told = it.machine(id).last_configured();
        assert_eq!((told.sandbox_id.as_str(), &told.hostname), (id.as_str(), id));
        assert!(seen.insert((told.life, told.identity_token, told.mac, told.sandbox_id)), "{seen:?}");
    }
    for copy in &copies {
        it.forget(&copy.sandbox_id).await;
    }
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_can_be_copied_and_outlives_its_source() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    it.machine(&source).write(1, 11);
    let mut chain = vec![source];
    for number in 2..5 {
        let next = copies(1);
        assert!(all_run(&copy(&it, chain.last().expect("one"), &next).await));
        it.machine(&next[0].sandbox_id).write(number, 11 * number);
        chain.push(next[0].sandbox_id.clone());
    }
    for id in &chain[..3] {
        it.forget(id).await;
    }
    let pages: Vec<_> = it.contents(&chain[3]).0.into_iter().filter(|(page, _)| *page > 0).collect();
    assert_eq!(pages, [(1, 11), (2, 22), (3, 33), (4, 44)]);
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn one_copy_that_fails_harms_no_other() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    let copies = copies(3);
    it.command(&source, Op::Copy { copies: copies.clone() }).await;
    // The second launch.
    while it.world.faults.passed().iter().filter(|step| **step == "driver: launch").count() < 2 {
        tokio::task::yield_now().await;
    }
    it.world.faults.arm(Some(1), true);
    let mut states = Vec::new();
    for copy in &copies {
        states.push(it.wait(&copy.sandbox_id, |state| *state != NodeState::Starting).await);
    }
    let failed: Vec<_> = states.iter().filter(|state| **state != NodeState::Running).collect();
    assert_eq!(failed.len(), 1, "{states:?}");
    assert!(matches!(failed[0], NodeState::Terminated { reason: TerminationReason::StartupFailedInternalError, .. }));
    nothing_waits(&it).await;
    for copy in &copies {
        it.forget(&copy.sandbox_id).await;
    }
    assert_eq!(it.report(&source).state, NodeState::Running);
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn copies_whose_source_is_not_awake_end_with_a_reason() {
    for moment in ["asleep", "ended", "unknown", "dies", "ends"] {
        let it = Fixture::new().await;
        let mut source = it.run(named(0)).await;
        let copies = copies(2);
        match moment {
            "asleep" => it.suspend(&source).await,
            "ended" => {
                it.command(&source, Op::Terminate { reason: TerminationReason::User }).await;
                it.wait(&source, |state| matches!(state, NodeState::Terminated { .. })).await;
            }
            "unknown" => source = new_id(),
            "dies" => it.machine(&source).end(VmExit::Process { code: None, signal: Some(9) }),
            _ => {
                it.command(&source, Op::Copy { copies: copies.clone() }).await;
                it.command(&source, Op::Terminate { reason: TerminationReason::User }).await;
            }
        }
        if moment != "ends" {
            copy(&it, &source, &copies).await;
        }
        for copy in &copies {
            let state = it.wait(&copy.sandbox_id, |state| *state != NodeState::Starting).await;
            match state {
                NodeState::Terminated { reason: TerminationReason::StartupFailedInternalError, detail, .. } => {
                    assert!(
                        detail.contains("source") || detail.contains("asleep") || detail.contains("ended"),
                        "{detail}"
                    );
                }
                // It was quick enough.
                NodeState::Running if moment == "ends" => {}
                other => panic!("{moment}: {other:?}"),
            }
        }
        nothing_waits(&it).await;
        it.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_copies_asked_for_again_are_made_once() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    let copies = copies(2);
    assert!(all_run(&copy(&it, &source, &copies).await));
    let generation = it.report(&source).generation;
    it.forget(&copies[0].sandbox_id).await;
    let machines = it.world.alive().len();
    it.send(&source, generation, Op::Copy { copies: copies.clone() }).await;
    sleep(SECOND).await;
    assert!(it.ctx.registry.get(&copies[0].sandbox_id).is_none(), "it has ended and was forgotten");
    assert_eq!(it.world.alive().len(), machines);
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn too_many_copies_are_refused() {
    let it = Fixture::new().await;
    let source = it.run(named(0)).await;
    let command = Command {
        seq: 9,
        sandbox_id: source.clone(),
        generation: 9,
        op: Op::Copy { copies: copies(crate::limits::COPIES_MAX + 1) },
    };
    assert!(it.ctx.registry.apply(&it.ctx, command).await.is_err());
    assert_eq!(it.ctx.registry.views().len(), 1);
    it.finish().await;
}
