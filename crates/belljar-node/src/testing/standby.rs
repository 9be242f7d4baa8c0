//! VM processes that wait for a guest.

use std::sync::atomic::Ordering;

use tokio::time::sleep;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A node with a process that waits, and a sandbox that sleeps on the disk.
async fn asleep() -> (Fixture, String) {
    let it = Fixture::with(Options { resident: Duration::ZERO, ..Options::default() }).await;
    it.world.prepares.store(true, Ordering::SeqCst);
    let id = it.run(named(0)).await;
    it.machine(&id).write(3, 33);
    it.suspend(&id).await;
    sleep(SECOND).await;
    it.resume(&id).await;
    assert_eq!(it.world.taken.load(Ordering::SeqCst), 0, "there was none yet");
    it.suspend(&id).await;
    settled().await;
    assert_eq!(waiting(&it), 1);
    (it, id)
}

async fn settled() {
    sleep(SECOND * 100).await;
}

fn waiting(it: &Fixture) -> usize {
    let ahead = it.world.ahead.lock().expect("ahead").len();
    assert_eq!(names(&it.ctx.storage.spares()).len(), ahead);
    ahead
}

#[tokio::test(start_paused = true)]
async fn what_goes_on_takes_a_process_that_waits() {
    let (it, id) = asleep().await;
    let taken = || it.world.taken.load(Ordering::SeqCst);
    it.resume(&id).await;
    assert_eq!((taken(), waiting(&it)), (1, 0));
    assert_eq!(it.contents(&id).0.get(&3), Some(&33));
    settled().await;
    assert_eq!(waiting(&it), 1, "another took its place");
    // What boots needs none of them, and another kind has none yet.
    let mut other = named(0);
    other.resources.memory_mb += 1024;
    let other = it.run(other).await;
    it.suspend(&other).await;
    sleep(SECOND).await;
    it.resume(&other).await;
    assert_eq!(taken(), 1);
    settled().await;
    assert_eq!(waiting(&it), 2);
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_does_not_outlive_the_node() {
    let (it, id) = asleep().await;
    let it = it.restart().await;
    settled().await;
    assert_eq!(waiting(&it), 0, "nothing went on since");
    it.resume(&id).await;
    assert_eq!(it.contents(&id).0.get(&3), Some(&33));
    it.finish().await;
}

/// Wakes with a failure at every step: it sleeps on, or wakes; nothing is lost or left.
#[tokio::test(start_paused = true)]
async fn a_failure_at_any_step_leaves_a_sandbox_that_can_be_woken() {
    for (node, transient) in [(true, true), (true, false), (false, true), (false, false)] {
        for at in 1.. {
            let (it, id) = asleep().await;
            let faults = if node { &it.ctx.faults } else { &it.world.faults };
            faults.arm(Some(at), transient);
            let woken = it.ctx.registry.get(&id).expect("known").wake().await;
            sleep(SECOND * 10).await;
            let passed = faults.passed();
            faults.arm(None, false);
            match woken {
                Ok(()) => assert_eq!(it.report(&id).state, NodeState::Running, "{passed:?}"),
                Err(_) => it.resume(&id).await,
            }
            assert_eq!(it.contents(&id).0.get(&3), Some(&33), "{passed:?}");
            settled().await;
            assert!(waiting(&it) <= 1, "{passed:?}");
            it.forget(&id).await;
            it.finish().await;
            if passed.len() < at {
                break;
            }
        }
    }
}
