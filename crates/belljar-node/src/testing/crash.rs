//! The node is killed at each step of each operation, and another one starts on what is there then.

use std::sync::Mutex;

use belljar_api::node::SnapshotState;
use tokio::time::sleep;

use super::{
    aside::Aside,
    fault::{Operation, Scene},
    *,
};
use crate::sandbox::boot::RUN;

const SECOND: Duration = Duration::from_secs(1);

/// What there was when the node was killed.
struct Crash {
    aside: Aside,
    step: &'static str,
    /// What the server had been told.
    told: Vec<SandboxReport>,
}

/// Runs `work` to its end; what there is at step `at` of it comes back.
async fn crash_at(it: &Fixture, of_node: bool, at: usize, work: impl Future<Output = ()>) -> Option<Crash> {
    let crash = Arc::new(Mutex::new(None));
    let faults = if of_node { &it.ctx.faults } else { &it.world.faults };
    faults.arm(None, false);
    let (ctx, world, dir, found) = (it.ctx.clone(), it.world.clone(), it.dir.clone(), crash.clone());
    faults.watch(Some(Box::new(move |number, step| {
        if number == at {
            let told = ctx.registry.views().into_iter().map(|view| view.report).collect();
            let aside = Aside::take(dir.path(), &world);
            *found.lock().expect("crash") = Some(Crash { aside, step, told });
        }
    })));
    work.await;
    faults.watch(None);
    crash.lock().expect("crash").take()
}

/// A sandbox of a crashed node: where it stands, what it holds, and that the same command again changes nothing.
async fn check_scene(operation: Operation, scene: &Scene, crash: &Crash, generation: u64, snapshot_id: &str) {
    let it = &scene.it;
    let words = || format!("{operation:?} crashed at {:?} and stands as {:?}", crash.step, it.report(&scene.id));
    let told = crash.told.iter().find(|report| report.sandbox_id == scene.id).expect("it was there");
    let now = it.report(&scene.id);
    assert!(now.generation >= told.generation, "{}", words());
    let rolls_back = matches!(operation, Operation::Rollback | Operation::RollbackAsleep);
    match (&told.state, &now.state) {
        (_, NodeState::Suspended | NodeState::Running) if rolls_back => {}
        (NodeState::Suspended, state) => assert_eq!(*state, NodeState::Suspended, "{}", words()),
        (NodeState::Running, state) => assert_eq!(*state, NodeState::Running, "{}", words()),
        (_, NodeState::Suspended | NodeState::Running) => {}
        _ => panic!("{}", words()),
    }
    if now.generation >= generation {
        it.send(&scene.id, generation, scene.op(operation, snapshot_id)).await;
        sleep(SECOND * 10).await;
        assert_eq!(it.report(&scene.id).state, now.state, "the same command again: {}", words());
    }
    if now.state == NodeState::Suspended {
        assert!(it.find_machine(&scene.id).is_none(), "{}", words());
        it.resume(&scene.id).await;
    }
    assert!(it.machine(&scene.id).runs_users(), "{}", words());
    let contents = it.contents(&scene.id);
    let back = rolls_back && contents == scene.snapshot_contents;
    assert!(back || contents == scene.contents, "{}", words());
    if operation == Operation::Snapshot
        && let Some(report) = it.ctx.snapshots.report(snapshot_id)
    {
        assert!(matches!(report.state, SnapshotState::Completed { .. }), "{report:?}: {}", words());
        let (id, _) = it.restore(snapshot_id, belljar_api::snapshot::SnapshotType::Memory).await;
        assert_eq!(it.contents(&id), scene.contents, "{}", words());
        it.forget(&id).await;
    }
    if operation == Operation::Copy {
        for copy in scene.copies.iter().filter(|copy| it.ctx.registry.get(&copy.sandbox_id).is_some()) {
            let id = &copy.sandbox_id;
            let told = crash.told.iter().find(|report| report.sandbox_id == *id).map(|report| &report.state);
            match it.report(id).state {
                NodeState::Running => assert_eq!(it.contents(id), scene.contents, "{}", words()),
                NodeState::Terminated { .. } if told != Some(&NodeState::Running) => {}
                other => panic!("{other:?}: {}", words()),
            }
            it.forget(id).await;
        }
    }
}

async fn check(operation: Operation) {
    for of_node in [true, false] {
        for at in 1.. {
            let scene = Scene::before(operation).await;
            let (snapshot_id, generation) = (new_id(), scene.it.generation());
            let op = scene.op(operation, &snapshot_id);
            let work = async {
                scene.it.send(&scene.id, generation, op).await;
                sleep(SECOND * 100).await;
            };
            let crash = crash_at(&scene.it, of_node, at, work).await;
            let Scene { it, id, contents, snapshot, snapshot_contents, copies } = scene;
            let options = it.options;
            it.finish().await;
            let Some(crash) = crash else {
                assert!(at > 1, "{operation:?} has no steps");
                break;
            };
            let it = Fixture::open(crash.aside.dir.clone(), crash.aside.world.clone(), options).await;
            it.generations.store(generation + 1, Ordering::SeqCst);
            sleep(SECOND * 100).await;
            let scene = Scene { it, id, contents, snapshot, snapshot_contents, copies };
            check_scene(operation, &scene, &crash, generation, &snapshot_id).await;
            scene.check_again(operation).await;
            scene.it.forget(&scene.id).await;
            scene.it.finish().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn killed_while_a_sandbox_falls_asleep() {
    check(Operation::Suspend).await;
}

#[tokio::test(start_paused = true)]
async fn killed_while_a_sandbox_wakes() {
    check(Operation::WakeResident).await;
    check(Operation::WakeFromDisk).await;
}

#[tokio::test(start_paused = true)]
async fn killed_while_a_snapshot_is_taken() {
    check(Operation::Snapshot).await;
}

#[tokio::test(start_paused = true)]
async fn killed_while_copies_are_made() {
    check(Operation::Copy).await;
}

#[tokio::test(start_paused = true)]
async fn killed_while_a_sandbox_is_rolled_back() {
    check(Operation::Rollback).await;
    check(Operation::RollbackAsleep).await;
}

/// A sandbox that is being made is made by the next node, whichever way it came about; templates and spares are whole or
/// made anew.
#[tokio::test(start_paused = true)]
async fn killed_while_a_sandbox_is_made() {
    for spares in [0, 1] {
        for of_node in [true, false] {
            for at in 1.. {
                let options = Options { templates: true, spares, ..Options::default() };
                let it = Fixture::with(options).await;
                let (first, second) = (new_id(), new_id());
                let work = async {
                    for id in [&first, &second] {
                        it.send(id, 1, Op::Create { spec: spec(true, 0), origin: Origin::Image }).await;
                        sleep(SECOND * 100).await;
                    }
                };
                let crash = crash_at(&it, of_node, at, work).await;
                it.finish().await;
                let Some(crash) = crash else { break };
                let it = Fixture::open(crash.aside.dir.clone(), crash.aside.world.clone(), options).await;
                sleep(SECOND * 100).await;
                for id in [&first, &second].into_iter().filter(|id| it.ctx.registry.get(id).is_some()) {
                    assert_eq!(it.report(id).state, NodeState::Running, "crashed at {}", crash.step);
                    assert!(it.machine(id).runs_users());
                    it.forget(id).await;
                }
                let id = it.run(spec(true, 0)).await;
                assert!(it.machine(&id).state().guest.settled, "there is a template; crashed at {}", crash.step);
                sleep(SECOND * 100).await;
                assert_eq!((names(&it.ctx.storage.spares()).len(), it.world.alive().len()), (spares, 1 + spares));
                it.forget(&id).await;
                it.finish().await;
            }
        }
    }
}

/// A node is killed while a sandbox ends: it has ended, whatever was still there.
#[tokio::test(start_paused = true)]
async fn killed_while_a_sandbox_ends() {
    for of_node in [true, false] {
        for at in 1.. {
            let it = Fixture::new().await;
            let id = it.run(named(0)).await;
            let work = async {
                it.command(&id, Op::Terminate { reason: TerminationReason::User }).await;
                sleep(SECOND * 10).await;
            };
            let crash = crash_at(&it, of_node, at, work).await;
            it.finish().await;
            let Some(crash) = crash else { break };
            let it = Fixture::open(crash.aside.dir.clone(), crash.aside.world.clone(), Options::default()).await;
            it.generations.store(50, Ordering::SeqCst);
            if crash.step == "command: record" {
                // It was not taken, so it comes again.
                it.command(&id, Op::Terminate { reason: TerminationReason::User }).await;
            }
            let state = it.wait(&id, |state| matches!(state, NodeState::Terminated { .. })).await;
            assert!(matches!(state, NodeState::Terminated { reason: TerminationReason::User, .. }), "{state:?}");
            assert!(!it.ctx.storage.sandbox(&id).join(RUN).exists());
            it.forget(&id).await;
            it.finish().await;
        }
    }
}
