//! What nodes say about a sandbox: see [`super`].

use belljar_api::{
    node::{NodeState, Op, SandboxReport},
    sandbox::TerminationReason,
};

use super::{Ending, Phase, Reported, SandboxRow, Step};

/// Takes over what a node says; `None` when it changes nothing.
///
/// `resync` is set for the full account that opens a node connection: a node that then still tells an ended sandbox
/// has not seen our last `Terminate`, so it is sent once more. Outside of it, `Terminate` answers only the report
/// that frees the sandbox, so that the two sides cannot keep each other busy.
pub(crate) fn report(mut row: SandboxRow, from: &str, report: &SandboxReport, at: i64, resync: bool) -> Option<Step> {
    if row.node_id() != Some(from) {
        // The row is elsewhere: what this node has is a left-over.
        row.generation = row.generation.max(report.generation);
        return Some(row.sending(from.to_owned(), Op::Terminate { reason: TerminationReason::NodeLost }));
    }
    let before = row.clone();
    // A node ahead of us means that the store was restored from an older copy; later commands must still count.
    row.generation = row.generation.max(report.generation);
    match (row.phase.clone(), &report.state, Reported::of(&report.state)) {
        (Phase::Placed { node_id, .. }, NodeState::Terminated { reason, detail, at }, _) => {
            let ending = Ending { reason: *reason, detail: detail.clone(), at: *at };
            row.phase = Phase::Ended { node_id: Some(node_id.clone()), held: false, ending };
            Some(row.sending(node_id, Op::Terminate { reason: *reason }))
        }
        (Phase::Ended { node_id, held, ending }, _, None) => {
            if !held && !resync {
                return None;
            }
            let reason = ending.reason;
            row.phase = Phase::Ended { node_id, held: false, ending };
            Some(row.sending(from.to_owned(), Op::Terminate { reason }))
        }
        // Its `Terminate` is in the outbox; a row that nothing holds any more gets another one.
        (Phase::Ended { held: true, .. }, _, Some(_)) => None,
        (Phase::Ended { node_id, held: false, ending }, _, Some(_)) => {
            let reason = ending.reason;
            row.phase = Phase::Ended { node_id, held: true, ending };
            Some(row.sending(from.to_owned(), Op::Terminate { reason }))
        }
        (Phase::Placed { node_id, asked, .. }, _, Some(reported)) => {
            // What was asked stands until the node has taken it: what it said before that is no answer.
            let asked = asked.filter(|asked| asked.generation > report.generation);
            if asked.is_none() {
                row.trouble.clone_from(&report.trouble);
            }
            if reported == Reported::Running {
                row.started_at.get_or_insert(at);
            }
            row.phase = Phase::Placed { node_id, reported, asked };
            (row != before).then_some(Step { row, send: None })
        }
        // A row without a node is no node's: it left above.
        (Phase::Waiting, _, _) | (Phase::Placed { .. }, _, None) => None,
    }
}

/// Its node told all it has, and this was not in it; `None` when that changes nothing.
pub(crate) fn lost(mut row: SandboxRow, at: i64) -> Option<Step> {
    match row.phase.clone() {
        Phase::Waiting | Phase::Ended { held: false, .. } => None,
        Phase::Ended { node_id, held: true, ending } => {
            row.phase = Phase::Ended { node_id, held: false, ending };
            Some(Step { row, send: None })
        }
        Phase::Placed { node_id, .. } => {
            let detail = format!("node {node_id} no longer has this sandbox");
            let ending = Ending { reason: TerminationReason::NodeLost, detail, at };
            row.phase = Phase::Ended { node_id: Some(node_id), held: false, ending };
            Some(Step { row, send: None })
        }
    }
}

/// Ends it because its node refused to make it: nothing is held, nothing is sent.
pub(crate) fn refused(mut row: SandboxRow, ending: Ending) -> Option<Step> {
    row.phase = match row.phase.clone() {
        Phase::Placed { node_id, .. } => Phase::Ended { node_id: Some(node_id), held: false, ending },
        Phase::Ended { node_id, held: true, ending } => Phase::Ended { node_id, held: false, ending },
        Phase::Waiting | Phase::Ended { held: false, .. } => return None,
    };
    Some(Step { row, send: None })
}

/// Its node refused to do what was asked, for good: it stands as it was reported, and the words say why.
pub(crate) fn declined(mut row: SandboxRow, generation: u64, words: String) -> Option<Step> {
    let Phase::Placed { node_id, reported, asked } = row.phase.clone() else { return None };
    let asked = asked.filter(|asked| asked.generation != generation);
    row.trouble = Some(words);
    row.phase = Phase::Placed { node_id, reported, asked };
    Some(Step { row, send: None })
}
