//! What nodes say, as transactions.

use std::collections::HashSet;

use belljar_api::{
    node::{Command, NodeHello, NodeState, Op, Origin, SandboxReport},
    sandbox::TerminationReason,
};
use rusqlite::{Connection, params};

use super::{
    super::{Account, Committed, StoreError},
    outbox,
    rows::{apply, load, many},
    snapshot,
};
use crate::life::{self, Ending, SandboxRow, Step};

pub(super) fn report(
    db: &Connection,
    changes: &mut Vec<Committed>,
    node_id: &str,
    report: &SandboxReport,
    at: i64,
    resync: bool,
) -> Result<(), StoreError> {
    let Some(row) = load(db, &report.sandbox_id)? else {
        // No row, so nobody can reach it or end it: the node gives it up. That it ended is answered only when it is
        // told anew, so that the two sides cannot keep each other busy.
        if resync || !matches!(report.state, NodeState::Terminated { .. }) {
            let op = Op::Terminate { reason: TerminationReason::NodeLost };
            outbox::add(db, changes, node_id.to_owned(), &report.sandbox_id, report.generation + 1, &op)?;
        }
        return Ok(());
    };
    let elsewhere = row.node_id() != Some(node_id);
    // Its `Terminate` is on the way already: a second one would only be noise.
    let on_the_way = resync && row.ending().is_some() && outbox::has(db, &row.id)?;
    let Some(step) = life::report(row, node_id, report, at, resync) else { return Ok(()) };
    match step {
        // A left-over on another node changes no row, only what is sent.
        Step { row, send: Some((to, op)) } if elsewhere => outbox::add(db, changes, to, &row.id, row.generation, &op),
        Step { row, .. } if on_the_way => apply(db, changes, Step { row, send: None }).map(drop),
        step => apply(db, changes, step).map(drop),
    }
}

pub(super) fn sync(
    db: &Connection,
    changes: &mut Vec<Committed>,
    hello: &NodeHello,
    account: &Account,
    at: i64,
) -> Result<(), StoreError> {
    outbox::save_node(db, hello, at)?;
    let told: HashSet<&str> = account.sandboxes.iter().map(|report| report.sandbox_id.as_str()).collect();
    for one in &account.sandboxes {
        report(db, changes, &hello.node_id, one, at, true)?;
    }
    for row in many(db, "node_id = ?1 AND (phase <> 'ended' OR held = 1)", params![hello.node_id])? {
        if told.contains(row.id.as_str()) || is_coming(db, &row)? {
            continue;
        }
        if let Some(step) = life::lost(SandboxRow::clone(&row), at) {
            apply(db, changes, step)?;
        }
    }
    snapshot::sync(db, changes, &hello.node_id, &account.snapshots)
}

/// Whether a command is on its way that is about this sandbox. A copy is made by a command to its source.
fn is_coming(db: &Connection, row: &SandboxRow) -> Result<bool, StoreError> {
    Ok(outbox::has(db, &row.id)?
        || match &row.origin {
            Origin::Copy { sandbox_id } => outbox::names(db, sandbox_id, &row.id)?,
            Origin::Image | Origin::Snapshot { .. } => false,
        })
}

pub(super) fn refuse(
    db: &Connection,
    changes: &mut Vec<Committed>,
    node_id: &str,
    command: &Command,
    ending: Ending,
) -> Result<(), StoreError> {
    outbox::remove(db, node_id, command.seq)?;
    let id = command.sandbox_id.as_str();
    match &command.op {
        Op::Create { .. } => with_row(db, changes, id, |row| life::refused(row, ending)),
        Op::Copy { copies } => {
            for copy in copies {
                with_row(db, changes, &copy.sandbox_id, |row| life::refused(row, ending.clone()))?;
            }
            Ok(())
        }
        Op::Suspend | Op::Resume | Op::Rollback { .. } => {
            with_row(db, changes, id, |row| life::declined(row, command.generation, ending.detail))
        }
        Op::Snapshot { snapshot_id, .. } => snapshot::refused(db, changes, snapshot_id, ending.detail),
        Op::DeleteSnapshot => snapshot::forget(db, changes, id),
        Op::Update { .. } | Op::Terminate { .. } => Ok(()),
    }
}

fn with_row(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
    next: impl FnOnce(SandboxRow) -> Option<Step>,
) -> Result<(), StoreError> {
    match load(db, id)?.and_then(next) {
        Some(step) => apply(db, changes, step).map(drop),
        None => Ok(()),
    }
}
