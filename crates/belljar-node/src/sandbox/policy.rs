//! What a command changes, decided from the record alone: no clock, no I/O.

use belljar_api::{
    node::{Command, NodeState, Op, Settings},
    sandbox::TerminationReason,
    snapshot::SnapshotType,
};

use crate::record::Record;

/// What to do with a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decision {
    /// Older than what is known: changes nothing, and the sender is told so.
    Stale,
    /// Known already, or of no effect any more.
    Nothing,
    /// Take the settings over.
    Update(Settings),
    /// Begin the end.
    End(TerminationReason),
    /// It has ended and the server knows: forget it.
    Forget,
    /// Put it to sleep.
    Suspend,
    /// Wake it.
    Resume,
    /// Take a snapshot.
    Snapshot(String, SnapshotType),
    /// Make copies; where they are made is told beside the command.
    Copy,
    /// Put it back to a snapshot of its own.
    Rollback(String),
    /// It cannot be done as the sandbox stands, for this reason.
    Refuse(&'static str),
}

pub(super) fn decide(record: &Record, command: &Command) -> Decision {
    let terminated = matches!(record.state, NodeState::Terminated { .. });
    if command.generation < record.generation {
        return Decision::Stale;
    }
    if let (Op::Terminate { .. }, true) = (&command.op, terminated) {
        return Decision::Forget;
    }
    // Every command has a generation of its own: the same one again is the same command again.
    let again = command.generation == record.generation;
    if again || record.ending.is_some() || terminated {
        return match &command.op {
            // Somebody waits to hear of it, and whoever took it before may have ended then. A known one is not begun twice.
            Op::Snapshot { snapshot_id, kind } => Decision::Snapshot(snapshot_id.clone(), *kind),
            _ => Decision::Nothing,
        };
    }
    let asleep = matches!(record.state, NodeState::Suspended);
    match &command.op {
        Op::Create { .. } | Op::DeleteSnapshot => Decision::Nothing,
        Op::Update { settings } => Decision::Update(settings.clone()),
        Op::Terminate { reason } => Decision::End(*reason),
        Op::Suspend if !record.spec.settings.suspends => {
            Decision::Refuse("it has no name: only named sandboxes are put to sleep")
        }
        Op::Suspend => Decision::Suspend,
        Op::Resume => Decision::Resume,
        Op::Snapshot { snapshot_id, kind } => Decision::Snapshot(snapshot_id.clone(), *kind),
        Op::Copy { .. } if asleep => Decision::Refuse("it is asleep: resume it, then copy it"),
        Op::Copy { .. } => Decision::Copy,
        Op::Rollback { snapshot_id } => Decision::Rollback(snapshot_id.clone()),
    }
}

#[cfg(test)]
mod tests {
    use belljar_api::{
        node::{Origin, SandboxSpec},
        sandbox::{NetworkConfig, ResourcesRequest},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::record::Ending;

    fn settings(timeout_secs: u64) -> Settings {
        Settings { name: None, suspends: false, auto_resume: true, timeout_secs, network: NetworkConfig::default() }
    }

    fn spec() -> SandboxSpec {
        SandboxSpec {
            namespace: "default".into(),
            image: "i".into(),
            resources: ResourcesRequest::default().resolve().expect("defaults"),
            entrypoint: None,
            secrets: Vec::new(),
            settings: settings(600),
        }
    }

    fn command(generation: u64, op: Op) -> Command {
        Command { seq: 1, sandbox_id: "s".into(), generation, op }
    }

    /// What the task does with a decision, as far as the record shows it.
    fn apply(record: &mut Record, command: &Command) -> Decision {
        let decision = decide(record, command);
        match &decision {
            Decision::Update(settings) => record.spec.settings = settings.clone(),
            Decision::End(reason) => record.ending = Some(Ending::new(*reason, "")),
            Decision::Suspend => record.state = NodeState::Suspended,
            Decision::Resume | Decision::Rollback(_) => record.state = NodeState::Running,
            Decision::Snapshot(id, _) => record.last_snapshot = Some(id.clone()),
            Decision::Refuse(why) => record.trouble = Some((*why).to_owned()),
            Decision::Stale | Decision::Nothing | Decision::Forget | Decision::Copy => {}
        }
        if decision != Decision::Stale {
            record.generation = command.generation;
        }
        decision
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0_u64..1000, any::<bool>())
                .prop_map(|(timeout, suspends)| Op::Update { settings: Settings { suspends, ..settings(timeout) } }),
            4 => Just(Op::Suspend),
            4 => Just(Op::Resume),
            2 => "[a-c]".prop_map(|snapshot_id| Op::Snapshot { snapshot_id, kind: SnapshotType::Memory }),
            2 => "[a-c]".prop_map(|snapshot_id| Op::Rollback { snapshot_id }),
            2 => Just(Op::Copy { copies: Vec::new() }),
            1 => Just(Op::Create { spec: spec(), origin: Origin::Image }),
            1 => Just(Op::Terminate { reason: TerminationReason::User }),
        ]
    }

    proptest! {
        /// Whatever is repeated or comes late, the record stands as if every command had come once and in order, and
        /// nothing is done twice but a snapshot, which has an identity of its own.
        #[test]
        fn repeated_and_late_commands_change_nothing(
            ops in prop::collection::vec(any_op(), 1..20),
            replays in prop::collection::vec((0_usize..20, 0_usize..20), 0..40),
        ) {
            let commands: Vec<_> = ops.iter().zip(2..).map(|(op, generation)| command(generation, op.clone())).collect();
            let mut once = Record::new("s".into(), 1, spec(), Origin::Image);
            let mut often = once.clone();
            for command in &commands {
                apply(&mut once, command);
            }
            for (at, command) in commands.iter().enumerate() {
                apply(&mut often, command);
                for (_, earlier) in replays.iter().filter(|(when, _)| *when == at) {
                    let command = &commands[(*earlier).min(at)];
                    let again = apply(&mut often, command);
                    let is_same = match &command.op {
                        Op::Snapshot { snapshot_id, kind } => again == Decision::Snapshot(snapshot_id.clone(), *kind),
                        _ => false,
                    };
                    prop_assert!(is_same || matches!(again, Decision::Stale | Decision::Nothing), "{again:?}");
                }
            }
            prop_assert_eq!(once, often);
        }

        /// An unnamed sandbox is never put to sleep, a sleeping one never copied, an ended one left alone.
        #[test]
        fn what_cannot_be_is_refused(op in any_op(), suspends in any::<bool>(), asleep in any::<bool>(), ends in any::<bool>()) {
            let mut record = Record::new("s".into(), 1, spec(), Origin::Image);
            record.spec.settings.suspends = suspends;
            record.state = if asleep { NodeState::Suspended } else { NodeState::Running };
            record.ending = ends.then(|| Ending::new(TerminationReason::User, ""));
            let decision = decide(&record, &command(2, op.clone()));
            match (&op, ends) {
                (Op::Snapshot { .. }, _) => prop_assert!(matches!(decision, Decision::Snapshot(..))),
                (_, true) => prop_assert_eq!(decision, Decision::Nothing),
                (Op::Suspend, _) => prop_assert_eq!(decision == Decision::Suspend, suspends),
                (Op::Copy { .. }, _) => prop_assert_eq!(decision == Decision::Copy, !asleep),
                _ => prop_assert!(!matches!(decision, Decision::Refuse(_) | Decision::Stale)),
            }
        }
    }

    /// The record knows the command, and the process that was to carry it out has ended: the server still waits for it.
    #[test]
    fn a_snapshot_whose_command_comes_again_is_taken() {
        let mut record = Record::new("s".into(), 1, spec(), Origin::Image);
        let take = command(2, Op::Snapshot { snapshot_id: "a".into(), kind: SnapshotType::Memory });
        let taken = Decision::Snapshot("a".into(), SnapshotType::Memory);
        assert_eq!(apply(&mut record, &take), taken);
        assert_eq!(apply(&mut record, &take), taken);
        record.generation = 3;
        assert_eq!(decide(&record, &take), Decision::Stale);
    }

    #[test]
    fn an_ended_sandbox_is_forgotten_only_on_the_servers_word() {
        let mut record = Record::new("s".into(), 1, spec(), Origin::Image);
        let terminate = Op::Terminate { reason: TerminationReason::User };
        assert_eq!(apply(&mut record, &command(2, terminate.clone())), Decision::End(TerminationReason::User));
        assert_eq!(apply(&mut record, &command(2, terminate.clone())), Decision::Nothing);
        record.state = NodeState::Terminated { reason: TerminationReason::User, detail: String::new(), at: 0 };
        assert_eq!(decide(&record, &command(3, Op::Update { settings: settings(1) })), Decision::Nothing);
        assert_eq!(decide(&record, &command(3, terminate)), Decision::Forget);
    }
}
