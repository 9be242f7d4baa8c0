//! Tests of [`super`]: named cases, then random histories.

use belljar_api::sandbox::Resources;
use proptest::prelude::*;

use super::*;

fn row() -> SandboxRow {
    let resources = Resources { cpus: 1.0, memory_mb: 1024, disk_mb: 10240, ephemeral_disk_mb: 10240 };
    let spec = Spec {
        image: "i".into(),
        resources,
        entrypoint: None,
        timeout_secs: 600,
        network: None,
        allow_unauthenticated_access: false,
        exposed_ports: Vec::new(),
        auto_resume: true,
        max_pending_secs: None,
    };
    let (id, namespace) = ("id".into(), "default".into());
    SandboxRow {
        id,
        namespace,
        name: None,
        spec,
        generation: 0,
        phase: Phase::Waiting,
        created_at: 1,
        started_at: None,
    }
}

fn ending(reason: TerminationReason) -> Ending {
    Ending { reason, detail: String::new(), at: 9 }
}

fn told(generation: u64, state: NodeState) -> SandboxReport {
    SandboxReport { sandbox_id: "id".into(), generation, state }
}

fn ended() -> NodeState {
    NodeState::Terminated { reason: TerminationReason::VmmExited, detail: "d".into(), at: 7 }
}

#[track_caller]
fn check(step: Option<Step>, expected: &str) -> SandboxRow {
    let step = step.expect("a change");
    let phase = match &step.row.phase {
        Phase::Waiting => "waiting".to_owned(),
        Phase::Placed { reported, .. } => format!("{reported:?}"),
        Phase::Ended { held, ending, .. } => format!("ended {:?} held={held}", ending.reason),
    };
    let sent = match &step.send {
        None => "nothing".to_owned(),
        Some((node, Op::Create { .. })) => format!("create to {node}"),
        Some((node, Op::Update { .. })) => format!("update to {node}"),
        Some((node, Op::Terminate { reason })) => format!("terminate {reason:?} to {node}"),
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

proptest! {
    #[test]
    fn a_history_never_revives_and_never_goes_back(
        events in prop::collection::vec((0u8..8, any::<bool>(), 0u64..9), 1..40),
    ) {
        let mut row = row();
        for (event, resync, generation) in events {
            let step = match event {
                0 => place(row.clone(), "n"),
                1 => terminate(row.clone(), ending(TerminationReason::User)),
                2 => report(row.clone(), "n", &told(generation, NodeState::Starting), 5, resync),
                3 => report(row.clone(), "n", &told(generation, NodeState::Running), 5, resync),
                4 => report(row.clone(), "n", &told(generation, ended()), 5, resync),
                5 => lost(row.clone(), 5),
                6 => refused(row.clone(), ending(TerminationReason::ConfigurationError)),
                _ => change(row.clone(), &Change { timeout_secs: Some(generation), ..Change::default() }),
            };
            let Some(step) = step else { continue };
            prop_assert!(step.row.generation >= row.generation);
            prop_assert!(step.send.is_none() || step.row.generation > row.generation);
            if let Some(before) = row.ending() {
                prop_assert_eq!(step.row.ending(), Some(before), "an end is final");
            }
            let sent_home = step.send.as_ref().is_none_or(|(node, _)| node == "n");
            prop_assert!(sent_home);
            row = step.row;
        }
    }
}
