//! What people ask of a sandbox: see [`super`].

use belljar_api::{
    node::{CopySpec, Op, Origin},
    sandbox::NetworkConfig,
    snapshot::SnapshotType,
};

use super::{Asked, Ending, Phase, Refusal, Reported, SandboxRow, Step, Wish};

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

/// What can be asked of a sandbox's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// Put it to sleep.
    Suspend,
    /// Wake it.
    Resume,
    /// Put it back to one of its own memory snapshots.
    Rollback {
        /// The snapshot.
        snapshot_id: String,
    },
}

/// Gives a waiting sandbox to a node; `None` when it does not wait (any more).
pub(crate) fn place(mut row: SandboxRow, node_id: &str) -> Option<Step> {
    if row.phase != Phase::Waiting {
        return None;
    }
    row.phase = Phase::Placed { node_id: node_id.to_owned(), reported: Reported::Unreported, asked: None };
    let op = Op::Create { spec: row.sandbox_spec(), origin: row.origin.clone() };
    Some(row.sending(node_id.to_owned(), op))
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

/// Asks for another state; `None` when it is there already, or on its way.
pub(crate) fn order(mut row: SandboxRow, order: &Order) -> Result<Option<Step>, Refusal> {
    let (node_id, reported) = match &row.phase {
        Phase::Waiting => return Err(Refusal::Pending),
        Phase::Ended { .. } => return Err(Refusal::Ended),
        Phase::Placed { node_id, reported, .. } => (node_id.clone(), *reported),
    };
    let stage = row.stage().unwrap_or(reported);
    if *order == Order::Suspend && !row.suspends() {
        return Err(if row.spec.has_gpus() { Refusal::Gpus } else { Refusal::Ephemeral });
    }
    let (wish, op) = match (order, stage) {
        (_, Reported::Unreported | Reported::Starting) => return Err(Refusal::Pending),
        (Order::Suspend, Reported::Suspending | Reported::Suspended) => return Ok(None),
        (Order::Resume, Reported::Running | Reported::Resuming) => return Ok(None),
        (Order::Resume | Order::Rollback { .. }, Reported::Suspending) => return Err(Refusal::Suspending),
        (Order::Suspend | Order::Rollback { .. }, Reported::Resuming) => return Err(Refusal::Resuming),
        (Order::Suspend, Reported::Running) => (Wish::Suspend, Op::Suspend),
        (Order::Resume, Reported::Suspended) => (Wish::Resume, Op::Resume),
        (Order::Rollback { snapshot_id }, Reported::Running | Reported::Suspended) => {
            (Wish::Rollback, Op::Rollback { snapshot_id: snapshot_id.clone() })
        }
    };
    let asked = Some(Asked { wish, generation: row.generation + 1 });
    row.phase = Phase::Placed { node_id: node_id.clone(), reported, asked };
    row.trouble = None;
    Ok(Some(row.sending(node_id, op)))
}

/// The node of a sandbox that runs, and nothing else is going on.
fn awake(row: &SandboxRow) -> Result<String, Refusal> {
    match (&row.phase, row.stage()) {
        (Phase::Placed { node_id, .. }, Some(Reported::Running)) => Ok(node_id.clone()),
        (Phase::Ended { .. }, _) => Err(Refusal::Ended),
        (Phase::Placed { .. }, Some(Reported::Suspending)) => Err(Refusal::Suspending),
        (Phase::Placed { .. }, Some(Reported::Suspended)) => Err(Refusal::Suspended),
        (Phase::Placed { .. }, Some(Reported::Resuming)) => Err(Refusal::Resuming),
        (Phase::Waiting | Phase::Placed { .. }, _) => Err(Refusal::Pending),
    }
}

/// Takes a snapshot of one that runs.
pub(crate) fn snapshot(row: SandboxRow, snapshot_id: &str, kind: SnapshotType) -> Result<Step, Refusal> {
    if kind == SnapshotType::Memory && row.spec.has_gpus() {
        return Err(Refusal::Gpus);
    }
    let node_id = awake(&row).map_err(|refusal| match refusal {
        Refusal::Ended => Refusal::SnapshotEnded,
        Refusal::Pending => Refusal::SnapshotPending,
        other => other,
    })?;
    Ok(row.sending(node_id, Op::Snapshot { snapshot_id: snapshot_id.to_owned(), kind }))
}

/// Copies one that runs: the step of the source, and the copies. A copy has no name, so it is ephemeral; it has the rest.
pub(crate) fn copy(row: SandboxRow, ids: &[String], at: i64) -> Result<(Step, Vec<SandboxRow>), Refusal> {
    if row.spec.has_gpus() {
        return Err(Refusal::Gpus);
    }
    let node_id = awake(&row)?;
    let copy = |id: &String| {
        let mut copy = SandboxRow {
            id: id.clone(),
            name: None,
            origin: Origin::Copy { sandbox_id: row.id.clone() },
            home: None,
            pool: None,
            generation: 1,
            phase: Phase::Placed { node_id: node_id.clone(), reported: Reported::Unreported, asked: None },
            trouble: None,
            created_at: at,
            started_at: None,
            ..row.clone()
        };
        copy.spec.auto_resume = true;
        copy.spec.max_pending_secs = None;
        copy.spec.internal = false;
        copy
    };
    let copies: Vec<_> = ids.iter().map(copy).collect();
    let specs = copies.iter().map(|copy| CopySpec {
        sandbox_id: copy.id.clone(),
        generation: copy.generation,
        spec: copy.sandbox_spec(),
    });
    let op = Op::Copy { copies: specs.collect() };
    Ok((row.sending(node_id, op), copies))
}

/// Hands out a warm sandbox of a pool: from now on it is somebody's, and sleeps when idle.
pub(crate) fn claim(mut row: SandboxRow, timeout_secs: u64) -> Option<Step> {
    let pool = row.pool.as_mut().filter(|pool| !pool.claimed)?;
    pool.claimed = true;
    row.spec.timeout_secs = timeout_secs;
    match row.phase.clone() {
        Phase::Ended { .. } => None,
        Phase::Waiting => Some(Step { row, send: None }),
        Phase::Placed { node_id, .. } => {
            let settings = row.settings();
            Some(row.sending(node_id, Op::Update { settings }))
        }
    }
}
