//! Boots that fail and guests that misbehave: each ends in `terminated` with a reason, and leaves nothing.

use belljar_vmm::VmExit;

use super::*;

/// A sandbox whose guest does `guest` ends for `reason`, with `words` in the detail.
async fn check_guest(guest: Guest, reason: TerminationReason, words: &str) {
    let it = Fixture::new().await;
    *it.world.guest.lock().expect("guest") = guest;
    let (id, state) = it.create(spec(true, 0)).await;
    let NodeState::Terminated { reason: got, detail, .. } = state else { panic!("{guest:?}: {state:?}") };
    assert_eq!(got, reason, "{guest:?}: {detail}");
    assert!(detail.contains(words), "{guest:?}: {detail}");
    it.forget(&id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn guests_that_misbehave_at_boot_end_with_a_reason() {
    use TerminationReason::StartupFailedInternalError as Failed;
    check_guest(Guest::RefusesConfiguration, Failed, "500").await;
    check_guest(Guest::SpeaksAnotherProtocol, Failed, "protocol 3").await;
    check_guest(Guest::HangsUp, Failed, "did not answer").await;
    check_guest(Guest::Hangs, Failed, "did not answer").await;
    check_guest(Guest::PowersOff, Failed, "powered off").await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_sends_garbage_at_boot_ends() {
    let it = Fixture::new().await;
    *it.world.guest.lock().expect("guest") = Guest::SendsGarbage;
    let id = new_id();
    it.send(&id, 1, Op::Create { spec: spec(true, 0), origin: Origin::Image }).await;
    // Garbage is skipped while the handshake waits; the user need not wait for its timeout.
    it.forget(&id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_at_any_step_of_the_boot_leaves_nothing() {
    for transient in [true, false] {
        for at in 1.. {
            let it = Fixture::new().await;
            it.world.faults.arm(Some(at), transient);
            let id = new_id();
            it.send(&id, 1, Op::Create { spec: spec(false, 0), origin: Origin::Image }).await;
            // Where nothing can be undone either, it does not count as ended before it can.
            tokio::time::sleep(Duration::from_secs(10)).await;
            let passed = it.world.faults.passed();
            it.world.faults.arm(None, false);
            let state = it.wait(&id, |state| *state != NodeState::Starting).await;
            if state == NodeState::Running {
                assert!(passed.len() < at, "a failure at {passed:?} went unnoticed");
                assert!(!it.machine(&id).state().network);
                it.forget(&id).await;
                it.finish().await;
                break;
            }
            it.forget(&id).await;
            it.finish().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_cannot_be_killed_at_once_is_killed_later() {
    let it = Fixture::new().await;
    let id = it.run(spec(true, 0)).await;
    it.world.faults.arm(Some(2), true);
    it.forget(&id).await;
    assert_eq!(it.world.faults.passed(), ["driver: adopt", "driver: kill", "driver: adopt", "driver: kill"]);
    assert!(it.world.alive().is_empty(), "the second try has to kill it");
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_running_sandbox_ends_with_its_vm() {
    for (exit, reason) in [
        (VmExit::GuestReset, TerminationReason::GuestShutdown),
        (VmExit::OutOfMemory, TerminationReason::OutOfMemory),
        (VmExit::Process { code: None, signal: Some(9) }, TerminationReason::VmmExited),
    ] {
        let it = Fixture::new().await;
        let id = it.run(spec(true, 0)).await;
        it.machine(&id).end(exit);
        let state = it.wait(&id, |state| *state != NodeState::Running).await;
        assert!(matches!(state, NodeState::Terminated { reason: got, .. } if got == reason), "{state:?}");
        it.forget(&id).await;
        it.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_node_finds_the_sandboxes_of_the_old_one() {
    let it = Fixture::new().await;
    let (kept, lost) = (it.run(spec(true, 0)).await, it.run(spec(true, 0)).await);
    it.machine(&kept).write(7, 77);
    let (before, life) = (it.contents(&kept), it.machine(&kept).last_configured().life);
    let gone = it.machine(&lost);
    let ctx = it.ctx.clone();
    crate::stop(&ctx, Shutdown::KeepSandboxes).await.expect("it stops");
    gone.end(VmExit::Process { code: None, signal: Some(9) });
    let it = it.restart().await;
    assert_eq!(it.wait(&kept, |state| *state == NodeState::Running).await, NodeState::Running);
    it.reported(&kept, |_| it.machine(&kept).state().configured.len() == 2).await;
    let again = it.machine(&kept).last_configured();
    assert_eq!((it.contents(&kept), again.life), (before, life), "the same life goes on");
    let state = it.wait(&lost, |state| matches!(state, NodeState::Terminated { .. })).await;
    assert!(matches!(state, NodeState::Terminated { reason: TerminationReason::VmmExited, .. }), "{state:?}");
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_changes_during_the_boot_holds_before_it_is_told_to_run() {
    let it = Fixture::new().await;
    let id = new_id();
    it.send(&id, 1, Op::Create { spec: spec(true, 0), origin: Origin::Image }).await;
    let generation = it.command(&id, Op::Update { settings: spec(false, 0).settings }).await;
    it.wait(&id, |state| *state == NodeState::Running).await;
    assert!(!it.machine(&id).state().network, "it may not reach the network");
    assert_eq!(it.report(&id).generation, generation);
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_told_when_it_holds() {
    let it = Fixture::new().await;
    let id = it.run(spec(true, 0)).await;
    for allowed in [false, true, false] {
        let generation = it.command(&id, Op::Update { settings: spec(allowed, 0).settings }).await;
        it.ctx.registry.get(&id).expect("known").has_done(generation).await;
        assert_eq!(it.machine(&id).state().network, allowed);
    }
    it.forget(&id).await;
    it.finish().await;
}
