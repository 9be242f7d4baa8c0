//! Tests of [`super`]: named cases, then random histories.

use std::collections::VecDeque;

use belljar_api::{
    node::{Command, Report, SandboxReport},
    sandbox::Gpus,
    snapshot::SnapshotType,
};
use proptest::prelude::*;

use super::*;
use crate::testing::{
    node_state::{State, Work},
    rows::{self, ending, placed},
};

fn row() -> SandboxRow {
    rows::row("id", Phase::Waiting)
}

fn named(phase: Phase) -> SandboxRow {
    SandboxRow { name: Some("box".into()), ..rows::row("id", phase) }
}

fn told(generation: u64, state: NodeState) -> SandboxReport {
    SandboxReport { sandbox_id: "id".into(), generation, state, trouble: None }
}

fn trouble(generation: u64, state: NodeState) -> SandboxReport {
    SandboxReport { trouble: Some("no space".into()), ..told(generation, state) }
}

fn ended() -> NodeState {
    NodeState::Terminated { reason: TerminationReason::VmmExited, detail: "d".into(), at: 7 }
}

#[track_caller]
fn check(step: Option<Step>, expected: &str) -> SandboxRow {
    let step = step.expect("a change");
    let phase = match &step.row.phase {
        Phase::Waiting => "waiting".to_owned(),
        Phase::Placed { reported, asked, .. } => {
            let asked = asked.map(|asked| format!(", asked {:?}", asked.wish)).unwrap_or_default();
            format!("{reported:?}{asked}")
        }
        Phase::Ended { held, ending, .. } => format!("ended {:?} held={held}", ending.reason),
    };
    let sent = match &step.send {
        None => "nothing".to_owned(),
        Some((node, Op::Create { .. })) => format!("create to {node}"),
        Some((node, Op::Update { .. })) => format!("update to {node}"),
        Some((node, Op::Terminate { reason })) => format!("terminate {reason:?} to {node}"),
        Some((node, Op::Suspend)) => format!("suspend to {node}"),
        Some((node, Op::Resume)) => format!("resume to {node}"),
        Some((node, Op::Rollback { snapshot_id })) => format!("rollback {snapshot_id} to {node}"),
        Some((node, op)) => format!("{op:?} to {node}"),
    };
    assert_eq!(format!("{phase}; {sent}; generation {}", step.row.generation), expected);
    step.row
}

#[test]
fn a_life_from_start_to_end() {
    let placed = check(place(row(), "n"), "Unreported; create to n; generation 1");
    assert_eq!(place(placed.clone(), "n"), None);
    let starting =
        check(report(placed, "n", &told(1, NodeState::Starting), 5, false), "Starting; nothing; generation 1");
    let running =
        check(report(starting, "n", &told(1, NodeState::Running), 6, false), "Running; nothing; generation 1");
    assert_eq!(running.started_at, Some(6));
    assert_eq!(report(running.clone(), "n", &told(1, NodeState::Running), 7, false), None);
    let named = Change { name: Some("x".into()), ..Change::default() };
    let running = check(change(running, &named), "Running; update to n; generation 2");
    let ports = Change { exposed_ports: Some(vec![1]), ..Change::default() };
    let running = check(change(running, &ports), "Running; nothing; generation 2");
    let gone = check(
        terminate(running, ending(TerminationReason::User)),
        "ended User held=true; terminate User to n; generation 3",
    );
    assert_eq!(terminate(gone.clone(), ending(TerminationReason::Timeout)), None);
    assert_eq!(report(gone.clone(), "n", &told(2, NodeState::Running), 7, false), None);
    let free = check(
        report(gone, "n", &told(3, ended()), 8, false),
        "ended User held=false; terminate User to n; generation 4",
    );
    assert_eq!(report(free.clone(), "n", &told(4, ended()), 8, false), None, "the two keep each other busy");
    check(
        report(free.clone(), "n", &told(4, ended()), 8, true),
        "ended User held=false; terminate User to n; generation 5",
    );
    check(
        report(free, "n", &told(1, NodeState::Running), 8, true),
        "ended User held=true; terminate User to n; generation 5",
    );
}

#[test]
fn ends_that_come_from_elsewhere() {
    let placed = place(row(), "n").expect("placed").row;
    check(
        report(placed.clone(), "n", &told(1, ended()), 8, false),
        "ended VmmExited held=false; terminate VmmExited to n; generation 2",
    );
    check(lost(placed.clone(), 8), "ended NodeLost held=false; nothing; generation 1");
    check(
        refused(placed.clone(), ending(TerminationReason::ConfigurationError)),
        "ended ConfigurationError held=false; nothing; generation 1",
    );
    check(terminate(row(), ending(TerminationReason::Cancelled)), "ended Cancelled held=false; nothing; generation 0");
    let gone = terminate(placed.clone(), ending(TerminationReason::User)).expect("ended").row;
    check(lost(gone, 8), "ended User held=false; nothing; generation 2");
    assert_eq!(lost(row(), 8), None);
    // A node that has what is elsewhere gives it up; the generation is newer than what it has.
    check(
        report(placed, "other", &told(5, NodeState::Running), 8, false),
        "Unreported; terminate NodeLost to other; generation 6",
    );
}

fn suspend(row: SandboxRow) -> Result<Option<Step>, Refusal> {
    order(row, &Order::Suspend)
}

fn resume(row: SandboxRow) -> Result<Option<Step>, Refusal> {
    order(row, &Order::Resume)
}

fn rollback(row: SandboxRow) -> Result<Option<Step>, Refusal> {
    order(row, &Order::Rollback { snapshot_id: "s".into() })
}

#[test]
fn a_night_and_a_morning() {
    let row = SandboxRow { started_at: Some(1), ..named(placed(Reported::Running)) };
    let row = check(suspend(row).expect("may"), "Running, asked Suspend; suspend to n; generation 1");
    assert_eq!((row.stage(), row.held_by()), (Some(Reported::Suspending), Some("n")));
    assert_eq!((suspend(row.clone()), resume(row.clone())), (Ok(None), Err(Refusal::Suspending)));
    // What the node said before it had the command changes nothing.
    assert_eq!(report(row.clone(), "n", &told(0, NodeState::Running), 5, false), None);
    let row = check(report(row, "n", &told(1, NodeState::Suspending), 5, false), "Suspending; nothing; generation 1");
    let row = check(report(row, "n", &told(1, NodeState::Suspended), 5, false), "Suspended; nothing; generation 1");
    assert_eq!((row.held_by(), suspend(row.clone())), (None, Ok(None)));
    let row = check(resume(row).expect("may"), "Suspended, asked Resume; resume to n; generation 2");
    assert_eq!((row.stage(), row.held_by()), (Some(Reported::Resuming), Some("n")));
    assert_eq!((resume(row.clone()), suspend(row.clone())), (Ok(None), Err(Refusal::Resuming)));
    assert_eq!(report(row.clone(), "n", &told(1, NodeState::Suspended), 5, false), None);
    let row = check(report(row, "n", &told(2, NodeState::Running), 5, false), "Running; nothing; generation 2");
    assert_eq!(resume(row.clone()), Ok(None));
    // The node does both by itself, too.
    let row = check(report(row, "n", &told(2, NodeState::Suspended), 5, false), "Suspended; nothing; generation 2");
    check(report(row, "n", &told(2, NodeState::Resuming), 5, false), "Resuming; nothing; generation 2");
}

#[test]
fn what_did_not_happen_has_words() {
    let row = suspend(named(placed(Reported::Running))).expect("may").expect("step").row;
    let row = check(report(row, "n", &trouble(1, NodeState::Running), 5, false), "Running; nothing; generation 1");
    assert_eq!(row.trouble.as_deref(), Some("no space"));
    let row = suspend(row).expect("may").expect("step").row;
    assert_eq!(row.trouble, None, "the words are of an older attempt");
    let row = check(declined(row, 2, "refused".into()), "Running; nothing; generation 2");
    assert_eq!(row.trouble.as_deref(), Some("refused"));
    // A PATCH that came after does not answer the suspend.
    let row = suspend(row).expect("may").expect("step").row;
    let row = change(row, &Change { timeout_secs: Some(1), ..Change::default() }).expect("step").row;
    let row = check(report(row, "n", &told(3, NodeState::Suspended), 5, false), "Suspended; nothing; generation 4");
    let longer = Change { timeout_secs: Some(2), ..Change::default() };
    check(change(row, &longer), "Suspended; update to n; generation 5");
}

#[test]
fn who_may_sleep_and_when() {
    let ephemeral = |reported| rows::row("id", placed(reported));
    assert_eq!(suspend(ephemeral(Reported::Running)), Err(Refusal::Ephemeral));
    let claimed = |claimed| SandboxRow {
        pool: Some(Membership { pool_id: "p".into(), claimed }),
        ..ephemeral(Reported::Running)
    };
    assert_eq!(suspend(claimed(false)), Err(Refusal::Ephemeral));
    assert!(matches!(suspend(claimed(true)), Ok(Some(_))));
    let name = Change { name: Some("x".into()), ..Change::default() };
    let step = change(ephemeral(Reported::Running), &name).expect("step");
    assert!(matches!(&step.send, Some((_, Op::Update { settings })) if settings.suspends));
    assert!(matches!(suspend(step.row), Ok(Some(_))));
    for (phase, refusal) in [
        (Phase::Waiting, Refusal::Pending),
        (placed(Reported::Unreported), Refusal::Pending),
        (placed(Reported::Starting), Refusal::Pending),
        (rows::ended(true), Refusal::Ended),
    ] {
        for order in [suspend, resume, rollback] {
            assert_eq!(order(named(phase.clone())), Err(refusal), "{phase:?}");
        }
    }
}

#[test]
fn a_rollback_wakes() {
    for reported in [Reported::Running, Reported::Suspended] {
        let row = rows::row("id", placed(reported));
        let row =
            check(rollback(row).expect("may"), &format!("{reported:?}, asked Rollback; rollback s to n; generation 1"));
        assert_eq!((row.stage(), row.held_by()), (Some(Reported::Resuming), Some("n")));
        assert_eq!(rollback(row.clone()), Err(Refusal::Resuming));
        check(report(row, "n", &told(1, NodeState::Running), 5, false), "Running; nothing; generation 1");
    }
}

#[test]
fn copies_have_all_but_the_name() {
    let mut source = SandboxRow { generation: 4, ..named(placed(Reported::Running)) };
    source.spec.auto_resume = false;
    source.spec.internal = true;
    source.pool = Some(Membership { pool_id: "p".into(), claimed: true });
    let (step, copies) = copy(source.clone(), &["a".into(), "b".into()], 50).expect("may");
    assert_eq!((step.row.stage(), step.row.generation), (Some(Reported::Running), 5));
    let Some((node, Op::Copy { copies: sent })) = &step.send else { panic!("no command") };
    assert_eq!((node.as_str(), sent.len()), ("n", 2));
    for (row, sent) in copies.iter().zip(sent) {
        assert_eq!((&row.id, row.generation), (&sent.sandbox_id, sent.generation));
        assert_eq!((row.held_by(), row.is_up(), row.created_at), (Some("n"), false, 50));
        assert!(!row.suspends() && row.spec.auto_resume && row.spec.image == source.spec.image);
        assert!(!row.spec.internal, "whoever copies it has the copy");
        assert_eq!(sent.spec, row.sandbox_spec());
    }
    let told = SandboxReport { sandbox_id: "a".into(), ..told(1, NodeState::Running) };
    check(report(copies[0].clone(), "n", &told, 60, false), "Running; nothing; generation 1");
}

#[test]
fn what_has_gpus_stays_awake_and_alone() {
    let mut row = SandboxRow { name: Some("x".into()), ..rows::row("s", placed(Reported::Running)) };
    row.spec.resources.gpu_configs = vec![Gpus { count: 1, model: "H100".into() }];
    assert!(!row.settings().suspends, "an idle one ends");
    assert_eq!(suspend(row.clone()), Err(Refusal::Gpus));
    assert_eq!(copy(row.clone(), &["a".into()], 1).err(), Some(Refusal::Gpus));
    assert_eq!(snapshot(row.clone(), "s", SnapshotType::Memory).err(), Some(Refusal::Gpus));
    assert!(snapshot(row, "s", SnapshotType::Filesystem).is_ok());
}

#[test]
fn what_does_not_run_is_neither_copied_nor_taken() {
    for (phase, refusal) in [
        (Phase::Waiting, Refusal::Pending),
        (placed(Reported::Starting), Refusal::Pending),
        (placed(Reported::Suspending), Refusal::Suspending),
        (placed(Reported::Suspended), Refusal::Suspended),
        (placed(Reported::Resuming), Refusal::Resuming),
        (rows::ended(false), Refusal::Ended),
    ] {
        let row = named(phase);
        assert_eq!(copy(row.clone(), &["a".into()], 1).err(), Some(refusal));
        let taken = snapshot(row, "s", SnapshotType::Memory).expect_err("refused");
        assert!(taken == refusal || taken.to_string().starts_with("Cannot snapshot"), "{taken}");
    }
}

#[test]
fn one_is_claimed_once() {
    let member =
        |phase| SandboxRow { pool: Some(Membership { pool_id: "p".into(), claimed: false }), ..rows::row("id", phase) };
    let row = check(claim(member(placed(Reported::Running)), 30), "Running; update to n; generation 1");
    assert!(row.suspends() && !row.is_unclaimed() && row.spec.timeout_secs == 30);
    assert_eq!(claim(row, 30), None);
    check(claim(member(Phase::Waiting), 30), "waiting; nothing; generation 0");
    assert_eq!((claim(member(rows::ended(true)), 30), claim(row_of_nobody(), 30)), (None, None));
}

fn row_of_nobody() -> SandboxRow {
    rows::row("id", placed(Reported::Running))
}

/// A row, its node, and what is on the way between them.
struct World {
    row: SandboxRow,
    node: State,
    commands: VecDeque<Command>,
    reports: VecDeque<SandboxReport>,
}

impl World {
    fn new(work: Work) -> Self {
        let node = State { work, ..State::default() };
        let mut world = Self { row: named(Phase::Waiting), node, commands: VecDeque::new(), reports: VecDeque::new() };
        world.user(|row| place(row, "n"));
        world
    }

    fn user(&mut self, act: impl FnOnce(SandboxRow) -> Option<Step>) {
        let Some(step) = act(self.row.clone()) else { return };
        self.row = step.row;
        if let Some((_, op)) = step.send {
            let (sandbox_id, generation) = (self.row.id.clone(), self.row.generation);
            self.commands.push_back(Command { seq: 0, sandbox_id, generation, op });
        }
    }

    /// The node takes the next command.
    fn deliver(&mut self) {
        let told = self.commands.pop_front().map(|command| self.node.apply(&command));
        for report in told.into_iter().flatten() {
            self.tells(report);
        }
    }

    fn tells(&mut self, report: Report) {
        if let Report::Sandbox(report) = report {
            self.reports.push_back(report);
        }
    }

    /// The row takes the next report.
    fn hear(&mut self) {
        if let Some(told) = self.reports.pop_front()
            && let Some(step) = report(self.row.clone(), "n", &told, 5, false)
        {
            assert_eq!(step.send, None);
            self.row = step.row;
        }
    }

    fn node_says(&self) -> Option<Reported> {
        let Report::Sandbox(told) = self.node.account().into_iter().next()? else { return None };
        Reported::of(&told.state)
    }

    /// The node moves by itself.
    fn node_moves(&mut self, from: NodeState, to: NodeState) {
        if self.node_says() == Reported::of(&from) {
            let report = self.node.set("id", to);
            self.tells(report);
        }
    }
}

const ALIVE: [NodeState; 5] =
    [NodeState::Starting, NodeState::Running, NodeState::Suspending, NodeState::Suspended, NodeState::Resuming];

proptest! {
    #[test]
    fn a_history_never_revives_and_never_goes_back(
        events in prop::collection::vec((0u8..19, any::<bool>(), 0u64..9), 1..60),
        has_name in any::<bool>(),
    ) {
        let mut row = if has_name { named(Phase::Waiting) } else { row() };
        for (event, resync, generation) in events {
            let said = |state: &NodeState| report(row.clone(), "n", &told(generation, state.clone()), 5, resync);
            let step = match event {
                0 => place(row.clone(), "n"),
                1 => terminate(row.clone(), ending(TerminationReason::User)),
                2 => said(&ended()),
                3 => lost(row.clone(), 5),
                4 => refused(row.clone(), ending(TerminationReason::ConfigurationError)),
                5 => change(row.clone(), &Change { timeout_secs: Some(generation), ..Change::default() }),
                6 => suspend(row.clone()).ok().flatten(),
                7 => resume(row.clone()).ok().flatten(),
                8 => rollback(row.clone()).ok().flatten(),
                9 => declined(row.clone(), generation, "no".into()),
                10 => snapshot(row.clone(), "s", SnapshotType::Memory).ok(),
                11 => copy(row.clone(), &["c".into()], 5).ok().map(|(step, _)| step),
                12 => claim(row.clone(), 9),
                other => said(&ALIVE[usize::from(other) % ALIVE.len()]),
            };
            let Some(step) = step else { continue };
            prop_assert!(step.row.generation >= row.generation);
            prop_assert!(step.send.is_none() || step.row.generation > row.generation);
            if let Some(before) = row.ending() {
                prop_assert_eq!(step.row.ending(), Some(before), "an end is final");
            }
            let sent_home = step.send.as_ref().is_none_or(|(node, _)| node == "n");
            prop_assert!(sent_home);
            let sleeps = step.row.stage() == Some(Reported::Suspended);
            prop_assert!(!(sleeps && step.row.held_by().is_some()), "one that sleeps takes memory");
            let awake = step.row.stage().is_some() && !sleeps;
            prop_assert!(!awake || step.row.held_by() == Some("n"), "one that is awake takes none");
            row = step.row;
        }
    }

    /// Commands and reports travel at their own speed, and the node also moves by itself; when all have arrived, both
    /// sides say the same.
    #[test]
    fn both_sides_agree_in_the_end(events in prop::collection::vec(0u8..14, 1..80), works in any::<bool>()) {
        let work = if works { Work::Do } else { Work::Fail("no space") };
        let mut world = World::new(work);
        for event in events {
            match event {
                0 => world.user(|row| suspend(row).ok().flatten()),
                1 => world.user(|row| resume(row).ok().flatten()),
                2 => world.user(|row| rollback(row).ok().flatten()),
                3 => world.user(|row| snapshot(row, "s", SnapshotType::Memory).ok()),
                4 => {
                    let timeout_secs = Some(world.row.spec.timeout_secs + 1);
                    world.user(|row| change(row, &Change { timeout_secs, ..Change::default() }));
                }
                5 => world.node_moves(NodeState::Running, NodeState::Suspended),
                6 => world.node_moves(NodeState::Suspended, NodeState::Running),
                7..=9 => world.deliver(),
                _ => world.hear(),
            }
        }
        while !(world.commands.is_empty() && world.reports.is_empty()) {
            world.deliver();
            world.hear();
        }
        let Phase::Placed { reported, asked, .. } = &world.row.phase else { panic!("it ended") };
        prop_assert_eq!(asked, &None);
        prop_assert_eq!(Some(*reported), world.node_says());
    }

    #[test]
    fn late_and_repeated_reports_change_nothing(
        which in 0usize..3, before in 0usize..5, late in 0usize..5, generation in 1u64..9,
    ) {
        let reported = Reported::of(&ALIVE[before]).expect("alive");
        let ordered = SandboxRow { generation, ..named(placed(reported)) };
        let ordered = [suspend, resume, rollback][which](ordered).ok().flatten();
        if let Some(Step { row, .. }) = ordered {
            let stage = row.stage();
            let after = report(row, "n", &told(generation, ALIVE[late].clone()), 5, false);
            prop_assert!(after.is_none_or(|step| step.row.stage() == stage && step.send.is_none()));
        }
        let said = told(generation, ALIVE[late].clone());
        let row = SandboxRow { generation, ..named(placed(reported)) };
        let row = report(row.clone(), "n", &said, 5, false).map_or(row, |step| step.row);
        prop_assert_eq!(report(row, "n", &said, 5, false), None, "it was told twice");
    }
}
