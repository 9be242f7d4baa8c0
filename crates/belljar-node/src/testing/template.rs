//! Golden snapshots and the VMs that are kept ready.

use std::time::SystemTime;

use belljar_vmm::VmExit;
use tokio::time::sleep;

use super::*;
use crate::limits::{SPARES_MAX, TEMPLATES_MAX};

const SECOND: Duration = Duration::from_secs(1);

/// A fixture with a template of the default image, and this many VMs ready.
async fn ready(spares: usize) -> Fixture {
    let it = Fixture::with(Options { templates: true, spares, ..Options::default() }).await;
    settled(&it).await;
    it
}

/// Waits until everything in the background is done.
async fn settled(it: &Fixture) {
    sleep(SECOND * 100).await;
    assert!(!names(&it.ctx.storage.templates()).contains(&".building".to_owned()));
}

fn templates(it: &Fixture) -> Vec<String> {
    names(&it.ctx.storage.templates())
}

fn spares(it: &Fixture) -> usize {
    names(&it.ctx.storage.spares()).len()
}

/// Makes a sandbox and tells whether it booted, was restored, or took over a VM.
async fn how(it: &Fixture, spec: SandboxSpec) -> (String, &'static str) {
    let tokens: Vec<u64> = it.world.alive().iter().map(|machine| machine.token).collect();
    let id = it.run(spec).await;
    let machine = it.machine(&id);
    let how = match (tokens.contains(&machine.token), machine.state().guest.settled) {
        (true, _) => "taken over",
        (false, true) => "restored",
        (false, false) => "booted",
    };
    (id, how)
}

#[tokio::test(start_paused = true)]
async fn the_first_boots_and_the_others_need_not() {
    let it = Fixture::with(Options { templates: true, spares: 1, ..Options::default() }).await;
    let (first, way) = how(&it, named(0)).await;
    assert_eq!(way, "booted", "nobody waits for a template");
    settled(&it).await;
    assert_eq!((templates(&it).len(), spares(&it)), (1, 1));
    let ((second, way), (third, other_way)) = tokio::join!(how(&it, named(0)), how(&it, named(0)));
    assert_eq!((way, other_way), ("taken over", "restored"), "there is no other one yet");
    settled(&it).await;
    assert_eq!(spares(&it), 1, "it was made again");
    let told: Vec<_> = [&first, &second, &third].map(|id| it.machine(id).last_configured()).into();
    for other in &told[1..] {
        assert_ne!(
            (other.life, &other.identity_token, &other.mac),
            (told[0].life, &told[0].identity_token, &told[0].mac)
        );
    }
    it.machine(&second).write(5, 55);
    assert_ne!(it.contents(&third), it.contents(&second));
    for id in [first, second, third] {
        it.suspend(&id).await;
        it.resume(&id).await;
        it.forget(&id).await;
    }
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_beyond_the_template_is_done_after_it() {
    let it = ready(1).await;
    let mut larger = spec(false, 0);
    larger.resources.disk_mb *= 2;
    let size = larger.resources.disk_mb << 20;
    let (first, second) = tokio::join!(how(&it, larger.clone()), how(&it, larger));
    for ((id, way), expected) in [(first, "taken over"), (second, "restored")] {
        assert_eq!(way, expected);
        let machine = it.machine(&id);
        assert_eq!(machine.state().disk_bytes, size);
        assert!(!machine.state().network);
    }
    let mut other = spec(true, 0);
    other.resources.memory_mb += 1024;
    assert_eq!(how(&it, other.clone()).await.1, "booted", "another kind of machine has a template of its own");
    settled(&it).await;
    assert_eq!(templates(&it).len(), 2);
    assert_eq!(how(&it, other).await.1, "taken over");
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_template_that_is_broken_is_replaced() {
    let it = ready(0).await;
    let key = templates(&it).remove(0);
    fs::write(it.ctx.storage.templates().join(&key).join("devices"), "?").expect("written");
    let (id, way) = how(&it, spec(true, 0)).await;
    assert_eq!((way, templates(&it)), ("booted", Vec::new()));
    assert_eq!(names(&it.ctx.storage.sandbox(&id)), ["disk.ext4", "memory", "record.json", "run"]);
    assert_eq!(how(&it, spec(true, 0)).await.1, "booted");
    settled(&it).await;
    assert_eq!(templates(&it), [key]);
    assert_eq!(how(&it, spec(true, 0)).await.1, "restored");
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_spare_that_died_is_no_harm() {
    let it = ready(2).await;
    it.world.alive().iter().for_each(|machine| machine.end(VmExit::Process { code: Some(1), signal: None }));
    assert_eq!(how(&it, spec(true, 0)).await.1, "restored");
    settled(&it).await;
    assert_eq!(spares(&it), 2);
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn the_template_that_nobody_used_for_longest_goes() {
    let it = ready(0).await;
    let shelf = it.ctx.storage.templates();
    let key = templates(&it).remove(0);
    for n in 0..TEMPLATES_MAX as u64 {
        let dir = shelf.join(format!("old-{n}"));
        fs::create_dir(&dir).expect("a directory");
        let used = SystemTime::now() - Duration::from_secs(3600 + n);
        fs::File::open(&dir).and_then(|dir| dir.set_modified(used)).expect("a time");
    }
    let mut other = spec(true, 0);
    other.resources.memory_mb += 1024;
    it.run(other).await;
    settled(&it).await;
    assert_eq!(templates(&it).len(), TEMPLATES_MAX);
    assert!(templates(&it).contains(&key) && !templates(&it).contains(&"old-7".to_owned()), "{:?}", templates(&it));
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn spares_are_bounded_and_those_asked_for_last_win() {
    let it = ready(3).await;
    let mut other = spec(true, 0);
    other.resources.memory_mb += 1024;
    it.run(other.clone()).await;
    settled(&it).await;
    assert!(spares(&it) <= SPARES_MAX, "{}", spares(&it));
    assert_eq!(how(&it, other).await.1, "taken over");
    settled(&it).await;
    assert!(it.world.alive().len() <= SPARES_MAX + 2);
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn spares_do_not_outlive_the_node() {
    let it = ready(2).await;
    let id = it.run(spec(true, 0)).await;
    settled(&it).await;
    let ctx = it.ctx.clone();
    crate::stop(&ctx, Shutdown::KeepSandboxes).await.expect("it stops");
    assert_eq!((it.world.alive().len(), spares(&it)), (1, 0));
    let it = it.restart().await;
    settled(&it).await;
    assert_eq!((it.report(&id).state, spares(&it)), (NodeState::Running, 2));
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_ends_while_it_takes_over_a_vm_leaves_none() {
    for wait in 0..30 {
        let it = ready(1).await;
        let id = new_id();
        let taken = it.send(&id, 1, Op::Create { spec: spec(true, 0), origin: Origin::Image });
        taken.await;
        for _ in 0..wait {
            tokio::task::yield_now().await;
        }
        it.forget(&id).await;
        settled(&it).await;
        assert_eq!((it.world.alive().len(), spares(&it)), (1, 1));
        it.finish().await;
    }
}

/// Builds with a failure at every step: the VM is gone, sandboxes boot, and the next one asks again.
#[tokio::test(start_paused = true)]
async fn a_failure_at_any_step_of_the_build_leaves_nothing() {
    for (node, transient) in [(true, true), (true, false), (false, true), (false, false)] {
        for at in 1.. {
            let it = Fixture::with(Options { templates: true, spares: 1, ..Options::default() }).await;
            let faults = if node { &it.ctx.faults } else { &it.world.faults };
            faults.arm(Some(at), transient);
            sleep(SECOND * 100).await;
            let reached = faults.passed().len() >= at;
            faults.arm(None, false);
            let id = it.run(named(0)).await;
            settled(&it).await;
            // What was half-made may have been in the way until now.
            it.run(named(0)).await;
            settled(&it).await;
            assert_eq!((templates(&it).len(), spares(&it)), (1, 1), "{at}");
            assert_eq!(how(&it, spec(true, 0)).await.1, "taken over");
            it.forget(&id).await;
            it.finish().await;
            if !reached {
                break;
            }
        }
    }
}

/// Takes over with a failure at every step: the sandbox comes about some other way, or ends with a reason.
#[tokio::test(start_paused = true)]
async fn a_failure_at_any_step_of_a_takeover_is_survived() {
    for (node, transient) in [(true, true), (true, false), (false, true), (false, false)] {
        for at in 1.. {
            let it = ready(1).await;
            let faults = if node { &it.ctx.faults } else { &it.world.faults };
            faults.arm(Some(at), transient);
            let id = new_id();
            it.send(&id, 1, Op::Create { spec: spec(true, 0), origin: Origin::Image }).await;
            sleep(SECOND * 10).await;
            let passed = faults.passed();
            faults.arm(None, false);
            let state = it.wait(&id, |state| *state != NodeState::Starting).await;
            if transient {
                assert_eq!(state, NodeState::Running, "{passed:?}");
            }
            settled(&it).await;
            it.run(spec(true, 0)).await;
            settled(&it).await;
            it.run(spec(true, 0)).await;
            settled(&it).await;
            assert_eq!((templates(&it).len(), spares(&it)), (1, 1), "{passed:?}");
            it.forget(&id).await;
            it.finish().await;
            if passed.len() < at {
                break;
            }
        }
    }
}
