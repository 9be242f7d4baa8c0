//! Falling asleep and waking.

use belljar_vmm::VmExit;
use tokio::time::{Instant, sleep};

use super::*;
use crate::{limits::PAGE, sandbox::NotAwake};

const SECOND: Duration = Duration::from_secs(1);

/// A fixture that gives the memory of what sleeps back at once.
async fn forgetful() -> Fixture {
    Fixture::with(Options { resident: Duration::ZERO, ..Options::default() }).await
}

/// Sleeps and wakes once, by command; content and identity stay, the life is a new one exactly when the memory was
/// written and read back.
async fn check_round(resident: bool) {
    let it = if resident { Fixture::new().await } else { forgetful().await };
    let id = it.run(named(0)).await;
    it.machine(&id).write(7, 77);
    let (before, first, machine) = (it.contents(&id), it.machine(&id).last_configured(), it.machine(&id).token);
    it.suspend(&id).await;
    assert_eq!(names(&it.ctx.storage.sandbox(&id).join("sleep")), ["base", "changes", "devices", "disk", "memory"]);
    sleep(SECOND).await;
    assert_eq!(it.find_machine(&id).is_some(), resident, "a VM process is kept for a while, and no longer");
    it.resume(&id).await;
    let second = it.machine(&id).last_configured();
    assert_eq!(it.contents(&id), before);
    assert_eq!(it.machine(&id).token == machine, resident);
    assert_eq!(second.life == first.life, resident, "restored memory lives another life");
    assert_eq!((&second.sandbox_id, &second.identity_token), (&first.sandbox_id, &first.identity_token));
    assert_eq!((&second.mac, &second.hostname), (&first.mac, &first.hostname));
    assert_eq!(names(&it.ctx.storage.sandbox(&id)), ["disk.ext4", "memory", "record.json", "run"]);
    it.machine(&id).write(8, 88);
    it.forget(&id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_command_puts_it_to_sleep_and_another_wakes_it() {
    check_round(true).await;
    check_round(false).await;
}

#[tokio::test(start_paused = true)]
async fn it_falls_asleep_to_the_second_when_nobody_uses_it() {
    let it = Fixture::new().await;
    let id = it.run(named(60)).await;
    let begun = Instant::now();
    let guard = it.ctx.registry.get(&id).expect("known").activity.enter();
    sleep(SECOND * 100).await;
    drop(guard);
    it.wait(&id, |state| *state == NodeState::Suspended).await;
    assert_eq!(begun.elapsed().as_secs(), 160);
    it.resume(&id).await;
    let settings = Settings { timeout_secs: 5, ..named(0).settings };
    let begun = Instant::now();
    it.command(&id, Op::Update { settings }).await;
    it.wait(&id, |state| *state == NodeState::Suspended).await;
    assert_eq!(begun.elapsed().as_secs(), 5, "the timeout may change at any time");
    it.forget(&id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn an_unnamed_sandbox_ends_instead_of_sleeping() {
    let it = Fixture::new().await;
    let id = it.run(spec(true, 5)).await;
    let generation = it.command(&id, Op::Suspend).await;
    let report = it.verdict(&id, generation).await;
    assert_eq!(report.state, NodeState::Running);
    assert!(report.trouble.expect("words").contains("no name"));
    let state = it.wait(&id, |state| *state != NodeState::Running).await;
    assert!(matches!(state, NodeState::Terminated { reason: TerminationReason::Timeout, .. }), "{state:?}");
    it.forget(&id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn few_changes_are_put_into_memory_and_many_are_not() {
    let it = forgetful().await;
    let id = it.run(named(0)).await;
    let many = crate::limits::CHANGES_MAX / PAGE as u64 + 1;
    for (written, put) in [(10, true), (many, false), (20, true)] {
        (0..written).for_each(|page| it.machine(&id).poke(page, 1 + page + written));
        let before = it.contents(&id);
        it.suspend(&id).await;
        sleep(SECOND).await;
        it.world.faults.arm(None, false);
        it.resume(&id).await;
        assert_eq!(it.contents(&id), before);
        assert_eq!(it.world.faults.passed().contains(&"driver: changes"), put, "{written} pages");
    }
    it.forget(&id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn many_wakers_share_one_wake() {
    for it in [Fixture::new().await, forgetful().await] {
        let id = it.run(named(0)).await;
        it.suspend(&id).await;
        sleep(SECOND).await;
        it.world.faults.arm(None, false);
        let handle = it.ctx.registry.get(&id).expect("known");
        let wakers = (0..50).map(|_| handle.wake());
        let answers = futures_util::future::join_all(wakers).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert_eq!(it.report(&id).state, NodeState::Running);
        let passed = it.world.faults.passed();
        assert_eq!(passed.iter().filter(|step| **step == "driver: resume").count(), 1, "{passed:?}");
        it.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_wake_that_fails_is_told_to_everybody_who_waits() {
    let it = forgetful().await;
    let id = it.run(named(0)).await;
    it.suspend(&id).await;
    sleep(SECOND).await;
    it.world.faults.arm(Some(2), false);
    let handle = it.ctx.registry.get(&id).expect("known");
    let begun = Instant::now();
    let answers = futures_util::future::join_all((0..5).map(|_| handle.wake())).await;
    let failed =
        |answer: &Result<(), NotAwake>| matches!(answer, Err(NotAwake::Failed(why)) if why.contains("driver: launch"));
    assert!(answers.iter().all(failed), "{answers:?}");
    assert!(begun.elapsed() < SECOND);
    let report = it.report(&id);
    assert_eq!(report.state, NodeState::Suspended);
    assert!(report.trouble.expect("words").contains("driver: launch"));
    it.world.faults.arm(None, false);
    assert_eq!(handle.wake().await, Ok(()));
    let report = it.report(&id);
    assert_eq!((report.state, report.trouble), (NodeState::Running, None), "what is over is no trouble");
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn only_a_command_wakes_what_is_not_to_be_woken() {
    let it = Fixture::new().await;
    let mut spec = named(0);
    spec.settings.auto_resume = false;
    let id = it.run(spec).await;
    it.suspend(&id).await;
    let handle = it.ctx.registry.get(&id).expect("known");
    assert_eq!(handle.wake().await, Err(NotAwake::Disabled));
    assert_eq!(it.report(&id).state, NodeState::Suspended);
    it.resume(&id).await;
    assert_eq!(handle.wake().await, Ok(()), "it is awake");
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn settings_that_change_in_its_sleep_hold_when_it_wakes() {
    for it in [Fixture::new().await, forgetful().await] {
        let id = it.run(named(0)).await;
        it.suspend(&id).await;
        sleep(SECOND).await;
        let mut settings = Settings { timeout_secs: 5, name: Some("other".into()), ..named(0).settings };
        settings.network.allow_internet_access = false;
        let generation = it.command(&id, Op::Update { settings }).await;
        let report = it.report(&id);
        assert_eq!((report.state, report.generation), (NodeState::Suspended, generation));
        it.resume(&id).await;
        let machine = it.machine(&id);
        assert!(!machine.state().network);
        assert_eq!(machine.last_configured().hostname, "other");
        let begun = Instant::now();
        it.wait(&id, |state| *state == NodeState::Suspended).await;
        assert_eq!(begun.elapsed().as_secs(), 5);
        it.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn memory_that_is_short_is_given_back() {
    let it = Fixture::new().await;
    let id = it.run(named(0)).await;
    it.machine(&id).write(3, 33);
    let before = it.contents(&id);
    it.suspend(&id).await;
    sleep(SECOND).await;
    assert!(it.find_machine(&id).is_some());
    // The first try fails.
    it.world.faults.arm(Some(1), true);
    it.ctx.registry.release();
    sleep(SECOND).await;
    assert!(it.find_machine(&id).is_none());
    it.resume(&id).await;
    assert_eq!(it.contents(&id), before);
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_dies_in_its_sleep_is_not_missed() {
    let it = Fixture::new().await;
    let id = it.run(named(0)).await;
    it.machine(&id).write(3, 33);
    let before = it.contents(&id);
    for exit in [VmExit::GuestReset, VmExit::Process { code: None, signal: Some(9) }] {
        it.suspend(&id).await;
        it.machine(&id).end(exit);
        sleep(SECOND).await;
        it.resume(&id).await;
        assert_eq!(it.contents(&id), before);
    }
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn every_state_can_be_ended() {
    for moment in ["starting", "suspending", "suspended", "given back", "resuming"] {
        let it = Fixture::new().await;
        let id = new_id();
        it.send(&id, 1, Op::Create { spec: named(0), origin: Origin::Image }).await;
        if moment != "starting" {
            it.wait(&id, |state| *state == NodeState::Running).await;
            it.command(&id, Op::Suspend).await;
            it.wait(&id, |state| *state == NodeState::Suspending).await;
        }
        if ["suspended", "given back", "resuming"].contains(&moment) {
            it.wait(&id, |state| *state == NodeState::Suspended).await;
        }
        if ["given back", "resuming"].contains(&moment) {
            sleep(SECOND * 31).await;
            assert!(it.find_machine(&id).is_none());
        }
        if moment == "resuming" {
            it.command(&id, Op::Resume).await;
            it.wait(&id, |state| *state == NodeState::Resuming).await;
        }
        it.forget(&id).await;
        it.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn commands_that_come_again_or_late_change_nothing() {
    let it = Fixture::new().await;
    let id = it.run(named(0)).await;
    it.suspend(&id).await;
    let generation = it.report(&id).generation;
    it.resume(&id).await;
    assert!(!it.send(&id, generation, Op::Suspend).await.applied, "an older one is stale");
    let resumed = it.report(&id).generation;
    assert!(it.send(&id, resumed, Op::Suspend).await.applied, "the same one is the same");
    sleep(SECOND).await;
    assert_eq!(it.report(&id).state, NodeState::Running);
    // In vain, but not unanswered.
    it.resume(&id).await;
    it.suspend(&id).await;
    it.suspend(&id).await;
    it.finish().await;
}

/// What is asked while it cannot be done is done later, and told only then.
#[tokio::test(start_paused = true)]
async fn commands_that_come_too_early_wait() {
    let it = forgetful().await;
    let id = new_id();
    it.send(&id, 1, Op::Create { spec: named(0), origin: Origin::Image }).await;
    it.command(&id, Op::Suspend).await;
    let report = it.report(&id);
    assert_eq!((report.state, report.generation), (NodeState::Starting, 1), "it is not told before it shows");
    it.suspend(&id).await;
    it.command(&id, Op::Resume).await;
    it.wait(&id, |state| *state == NodeState::Resuming).await;
    it.suspend(&id).await;
    it.command(&id, Op::Suspend).await;
    it.resume(&id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_come_to_rest_stays_awake() {
    let it = Fixture::new().await;
    let id = it.run(named(0)).await;
    it.world.faults.arm(Some(1), true);
    let generation = it.command(&id, Op::Suspend).await;
    let report = it.verdict(&id, generation).await;
    assert_eq!((report.state, report.generation), (NodeState::Running, generation));
    assert!(report.trouble.expect("words").contains("does not come to rest"));
    assert!(it.machine(&id).runs_users());
    assert_eq!(names(&it.ctx.storage.sandbox(&id)), ["disk.ext4", "memory", "record.json", "run"]);
    it.suspend(&id).await;
    it.resume(&id).await;
    // One that says nothing at all any more has to end, within bounds.
    *it.world.guest.lock().expect("guest") = Guest::Hangs;
    it.command(&id, Op::Suspend).await;
    let state = it.wait(&id, |state| matches!(state, NodeState::Terminated { .. })).await;
    assert!(matches!(state, NodeState::Terminated { reason: TerminationReason::GuestUnresponsive, .. }), "{state:?}");
    it.forget(&id).await;
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn its_log_is_collected_whatever_becomes_of_the_link() {
    let it = Fixture::new().await;
    let id = it.run(named(0)).await;
    let path = crate::logs::file::path(&it.ctx.storage.logs(), &id);
    let logged = |words: &str| fs::read_to_string(&path).expect("a log").contains(words);
    it.machine(&id).say("at first");
    sleep(SECOND).await;
    assert!(logged("at first"));
    // The guest does not go on at once, so the link is made anew.
    it.ctx.faults.arm(Some(6), true);
    it.world.faults.arm(Some(3), true);
    it.command(&id, Op::Suspend).await;
    sleep(SECOND).await;
    assert_eq!(it.ctx.faults.passed().get(5), Some(&"freeze: keep"));
    assert_eq!(it.world.faults.passed()[2..5], ["driver: resume", "driver: resume", "driver: link"]);
    assert_eq!(it.report(&id).state, NodeState::Running);
    it.machine(&id).say("after a failure");
    sleep(SECOND).await;
    assert!(logged("after a failure"));
    it.suspend(&id).await;
    it.resume(&id).await;
    it.machine(&id).say("after a sleep");
    sleep(SECOND).await;
    assert!(logged("after a sleep"));
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_node_keeps_the_policy() {
    let it = Fixture::new().await;
    let id = it.run(spec(false, 0)).await;
    // The old node was killed before it said so.
    it.machine(&id).state().network = true;
    let it = it.restart().await;
    sleep(SECOND).await;
    assert_eq!(it.report(&id).state, NodeState::Running);
    assert!(!it.machine(&id).state().network);
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_node_lets_the_sleeping_sleep() {
    let it = Fixture::new().await;
    let id = it.run(named(0)).await;
    it.machine(&id).write(3, 33);
    let before = it.contents(&id);
    it.suspend(&id).await;
    let generation = it.report(&id).generation;
    let it = it.restart().await;
    sleep(SECOND).await;
    assert!(it.find_machine(&id).is_none(), "nobody was told that it runs");
    let report = it.report(&id);
    assert_eq!((report.state, report.generation), (NodeState::Suspended, generation));
    it.resume(&id).await;
    assert_eq!(it.contents(&id), before);
    it.finish().await;
}
