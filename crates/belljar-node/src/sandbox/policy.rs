//! What a command changes, decided from the record alone: no clock, no I/O.

use belljar_api::{
    node::{Command, NodeState, Op, Settings},
    sandbox::TerminationReason,
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
}

pub(super) fn decide(record: &Record, command: &Command) -> Decision {
    if command.generation < record.generation {
        return Decision::Stale;
    }
    let terminated = matches!(record.state, NodeState::Terminated { .. });
    match &command.op {
        Op::Create { .. } => Decision::Nothing,
        Op::Update { .. } if record.ending.is_some() || terminated => Decision::Nothing,
        Op::Update { settings } => Decision::Update(settings.clone()),
        Op::Terminate { .. } if terminated => Decision::Forget,
        Op::Terminate { .. } if record.ending.is_some() => Decision::Nothing,
        Op::Terminate { reason } => Decision::End(*reason),
    }
}

#[cfg(test)]
mod tests {
    use belljar_api::{
        node::SandboxSpec,
        sandbox::{NetworkConfig, ResourcesRequest},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::record::Ending;

    fn settings(timeout_secs: u64) -> Settings {
        Settings { name: None, timeout_secs, network: NetworkConfig::default() }
    }

    fn spec() -> SandboxSpec {
        SandboxSpec {
            namespace: "default".into(),
            image: "i".into(),
            resources: ResourcesRequest::default().resolve().expect("defaults"),
            entrypoint: None,
            settings: settings(600),
        }
    }

    fn command(generation: u64, op: Op) -> Command {
        Command { seq: 1, sandbox_id: "s".into(), generation, op }
    }

    fn apply(record: &mut Record, command: &Command) -> Decision {
        let decision = decide(record, command);
        match &decision {
            Decision::Update(settings) => record.spec.settings = settings.clone(),
            Decision::End(reason) => record.ending = Some(Ending::new(*reason, "")),
            Decision::Stale | Decision::Nothing | Decision::Forget => {}
        }
        if decision != Decision::Stale {
            record.generation = command.generation;
        }
        decision
    }

    proptest! {
        /// Whatever is repeated or comes late, the record stands as if every command had come once and in order.
        #[test]
        fn repeated_and_late_commands_change_nothing(
            ops in prop::collection::vec((0_u64..1000, prop::bool::weighted(0.1)), 1..20),
            replays in prop::collection::vec((0_usize..20, 0_usize..20), 0..40),
        ) {
            let commands: Vec<_> = ops.iter().zip(2..).map(|((timeout, end), generation)| {
                let op = if *end {
                    Op::Terminate { reason: TerminationReason::User }
                } else {
                    Op::Update { settings: settings(*timeout) }
                };
                command(generation, op)
            }).collect();
            let mut once = Record::new("s".into(), 1, spec());
            for command in &commands {
                apply(&mut once, command);
            }
            let mut often = Record::new("s".into(), 1, spec());
            for (at, command) in commands.iter().enumerate() {
                apply(&mut often, command);
                for (_, earlier) in replays.iter().filter(|(when, _)| *when == at) {
                    apply(&mut often, &commands[(*earlier).min(at)]);
                }
            }
            prop_assert_eq!(once, often);
        }
    }

    #[test]
    fn an_ended_sandbox_is_forgotten_only_on_the_servers_word() {
        let mut record = Record::new("s".into(), 1, spec());
        let terminate = Op::Terminate { reason: TerminationReason::User };
        assert_eq!(apply(&mut record, &command(2, terminate.clone())), Decision::End(TerminationReason::User));
        assert_eq!(apply(&mut record, &command(2, terminate.clone())), Decision::Nothing);
        record.state = NodeState::Terminated { reason: TerminationReason::User, detail: String::new(), at: 0 };
        assert_eq!(decide(&record, &command(3, Op::Update { settings: settings(1) })), Decision::Nothing);
        assert_eq!(decide(&record, &command(3, terminate)), Decision::Forget);
    }
}
