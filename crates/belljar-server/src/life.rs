//! A sandbox as the store keeps it, and every way in which it may change.
//!
//! ```text
//!  Waiting --place--> Placed{Unreported} --report--> Placed{Starting} --report--> Placed{Running}
//!     |                     |                             |                          |
//!     |                     \-----------------------------+--------------------------/
//!  terminate                                  terminate, report(Terminated), lost
//!     v                                                   v
//!  Ended{held: false} <---------------------------- Ended{held: true}   (held: until the node says it is gone)
//! ```
//!
//! Every function here is pure: it takes a row and returns the next one with the command that the node must get. The
//! store applies a step in one transaction. Nothing here reads a clock, a lock or the store.

use belljar_api::{
    node::{NodeState, Op, SandboxReport, SandboxSpec, Settings},
    sandbox::{NetworkConfig, Resources, TerminationReason},
};
use serde::{Deserialize, Serialize};

/// One sandbox.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SandboxRow {
    /// See [`belljar_api::id`].
    pub(crate) id: String,
    /// Namespace.
    pub(crate) namespace: String,
    /// Unique per namespace among those that have not ended.
    pub(crate) name: Option<String>,
    /// What was asked for.
    pub(crate) spec: Spec,
    /// Counts the commands issued for it; the node ignores older ones.
    pub(crate) generation: u64,
    /// Where it stands.
    pub(crate) phase: Phase,
    /// Milliseconds since the epoch.
    pub(crate) created_at: i64,
    /// Milliseconds since the epoch of the first `Running` report.
    pub(crate) started_at: Option<i64>,
}

/// What was asked for; kept as JSON, so fields are only ever added, with a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Image name as asked for.
    pub(crate) image: String,
    /// Cpus, memory, disk.
    pub(crate) resources: Resources,
    /// Program that starts with it.
    pub(crate) entrypoint: Option<Vec<String>>,
    /// Idle seconds; 0 is none.
    pub(crate) timeout_secs: u64,
    /// Network policy; `None` is the default one.
    pub(crate) network: Option<NetworkConfig>,
    /// Whether exposed ports answer without a key.
    pub(crate) allow_unauthenticated_access: bool,
    /// Guest ports routed from outside.
    pub(crate) exposed_ports: Vec<u16>,
    /// Whether a proxied request wakes it.
    pub(crate) auto_resume: bool,
    /// Give up when not running after this many seconds.
    pub(crate) max_pending_secs: Option<u64>,
}

/// Where a sandbox stands, as far as the store knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No node has it yet.
    Waiting,
    /// A node has it, or will when it has taken the command from the outbox.
    Placed {
        /// The node.
        node_id: String,
        /// What the node said last.
        reported: Reported,
    },
    /// It ended for good.
    Ended {
        /// The node that had it.
        node_id: Option<String>,
        /// The node has not said yet that it is gone: its memory still counts.
        held: bool,
        /// Why and when.
        ending: Ending,
    },
}

/// What the node said last about a sandbox that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reported {
    /// Nothing yet.
    Unreported,
    /// It boots.
    Starting,
    /// Its agent answers.
    Running,
}

/// Why and when a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Why.
    pub(crate) reason: TerminationReason,
    /// More words, for people; may be empty.
    pub(crate) detail: String,
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
}

/// A changed row, and what to tell which node about it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    /// The row to save.
    pub(crate) row: SandboxRow,
    /// The command for the outbox, with its node; its generation is the row's.
    pub(crate) send: Option<(String, Op)>,
}

/// What a PATCH changes; `None` keeps.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Change {
    /// New name.
    pub(crate) name: Option<String>,
    /// New idle timeout, seconds.
    pub(crate) timeout_secs: Option<u64>,
    /// New flag.
    pub(crate) allow_unauthenticated_access: Option<bool>,
    /// New list.
    pub(crate) exposed_ports: Option<Vec<u16>>,
    /// New flag.
    pub(crate) auto_resume: Option<bool>,
    /// New policy; `Some(None)` is the default one.
    pub(crate) network: Option<Option<NetworkConfig>>,
}

impl SandboxRow {
    /// The node that runs it or ran it.
    pub(crate) fn node_id(&self) -> Option<&str> {
        match &self.phase {
            Phase::Waiting => None,
            Phase::Placed { node_id, .. } => Some(node_id),
            Phase::Ended { node_id, .. } => node_id.as_deref(),
        }
    }

    /// The node whose memory it takes.
    pub(crate) fn held_by(&self) -> Option<&str> {
        match &self.phase {
            Phase::Waiting | Phase::Ended { held: false, .. } => None,
            Phase::Placed { node_id, .. } => Some(node_id),
            Phase::Ended { node_id, held: true, .. } => node_id.as_deref(),
        }
    }

    /// How it ended, when it did.
    pub(crate) fn ending(&self) -> Option<&Ending> {
        match &self.phase {
            Phase::Waiting | Phase::Placed { .. } => None,
            Phase::Ended { ending, .. } => Some(ending),
        }
    }

    /// Whether its agent answered.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Placed { reported: Reported::Running, .. })
    }

    fn settings(&self) -> Settings {
        Settings {
            name: self.name.clone(),
            timeout_secs: self.spec.timeout_secs,
            network: self.spec.network.clone().unwrap_or_default(),
        }
    }

    fn sending(mut self, node_id: String, op: Op) -> Step {
        self.generation += 1;
        Step { row: self, send: Some((node_id, op)) }
    }
}

/// Gives a waiting sandbox to a node; `None` when it does not wait (any more).
pub(crate) fn place(mut row: SandboxRow, node_id: &str) -> Option<Step> {
    if row.phase != Phase::Waiting {
        return None;
    }
    row.phase = Phase::Placed { node_id: node_id.to_owned(), reported: Reported::Unreported };
    let spec = SandboxSpec {
        namespace: row.namespace.clone(),
        image: row.spec.image.clone(),
        resources: row.spec.resources,
        entrypoint: row.spec.entrypoint.clone(),
        settings: row.settings(),
    };
    Some(row.sending(node_id.to_owned(), Op::Create { spec }))
}

/// Takes over a PATCH; `None` when it has ended.
pub(crate) fn change(mut row: SandboxRow, change: &Change) -> Option<Step> {
    let before = row.settings();
    if let Some(name) = &change.name {
        row.name = Some(name.clone());
    }
    let spec = &mut row.spec;
    spec.timeout_secs = change.timeout_secs.unwrap_or(spec.timeout_secs);
    spec.allow_unauthenticated_access =
        change.allow_unauthenticated_access.unwrap_or(spec.allow_unauthenticated_access);
    spec.auto_resume = change.auto_resume.unwrap_or(spec.auto_resume);
    if let Some(ports) = &change.exposed_ports {
        spec.exposed_ports.clone_from(ports);
    }
    if let Some(network) = &change.network {
        spec.network.clone_from(network);
    }
    match row.phase.clone() {
        Phase::Ended { .. } => None,
        Phase::Waiting => Some(Step { row, send: None }),
        Phase::Placed { node_id, .. } => {
            let settings = row.settings();
            if settings == before {
                return Some(Step { row, send: None });
            }
            Some(row.sending(node_id, Op::Update { settings }))
        }
    }
}

/// Ends it on our side; `None` when it has ended already.
pub(crate) fn terminate(mut row: SandboxRow, ending: Ending) -> Option<Step> {
    match row.phase.clone() {
        Phase::Ended { .. } => None,
        Phase::Waiting => {
            row.phase = Phase::Ended { node_id: None, held: false, ending };
            Some(Step { row, send: None })
        }
        Phase::Placed { node_id, .. } => {
            let reason = ending.reason;
            row.phase = Phase::Ended { node_id: Some(node_id.clone()), held: true, ending };
            Some(row.sending(node_id, Op::Terminate { reason }))
        }
    }
}

/// Ends it because its node refused to make it: nothing is held, nothing is sent.
pub(crate) fn refused(mut row: SandboxRow, ending: Ending) -> Option<Step> {
    let Phase::Placed { node_id, .. } = row.phase.clone() else { return None };
    row.phase = Phase::Ended { node_id: Some(node_id), held: false, ending };
    Some(Step { row, send: None })
}

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
    match (row.phase.clone(), &report.state) {
        (Phase::Placed { node_id, .. }, NodeState::Terminated { reason, detail, at }) => {
            let ending = Ending { reason: *reason, detail: detail.clone(), at: *at };
            row.phase = Phase::Ended { node_id: Some(node_id.clone()), held: false, ending };
            Some(row.sending(node_id, Op::Terminate { reason: *reason }))
        }
        (Phase::Ended { node_id, held, ending }, NodeState::Terminated { .. }) => {
            if !held && !resync {
                return None;
            }
            let reason = ending.reason;
            row.phase = Phase::Ended { node_id, held: false, ending };
            Some(row.sending(from.to_owned(), Op::Terminate { reason }))
        }
        // Its `Terminate` is in the outbox; a row that nothing holds any more gets another one.
        (Phase::Ended { held: true, .. }, NodeState::Starting | NodeState::Running) => None,
        (Phase::Ended { node_id, held: false, ending }, NodeState::Starting | NodeState::Running) => {
            let reason = ending.reason;
            row.phase = Phase::Ended { node_id, held: true, ending };
            Some(row.sending(from.to_owned(), Op::Terminate { reason }))
        }
        (Phase::Placed { node_id, .. }, NodeState::Starting) => {
            row.phase = Phase::Placed { node_id, reported: Reported::Starting };
            (row != before).then_some(Step { row, send: None })
        }
        (Phase::Placed { node_id, .. }, NodeState::Running) => {
            row.phase = Phase::Placed { node_id, reported: Reported::Running };
            row.started_at.get_or_insert(at);
            (row != before).then_some(Step { row, send: None })
        }
        (Phase::Waiting, NodeState::Starting | NodeState::Running | NodeState::Terminated { .. }) => None,
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

#[cfg(test)]
#[path = "life_test.rs"]
mod tests;
