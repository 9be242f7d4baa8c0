//! Sandboxes: rows in and out, and the transactions over them.

use std::{collections::HashSet, sync::Arc};

use belljar_api::{
    node::{Command, NodeHello, NodeState, Op, SandboxReport},
    sandbox::TerminationReason,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    super::{Committed, Page, Reservation, Start, StoreError},
    int, outbox, uint,
};
use crate::{
    life::{self, Change, Ending, Phase, Reported, SandboxRow, Step},
    limits::LIVE_SANDBOXES_MAX,
};

const COLUMNS: &str = "id, namespace, name, spec, generation, phase, node_id, held, reason, detail, created_at, \
                       started_at, terminated_at";

fn read(row: &Row<'_>) -> Result<SandboxRow, StoreError> {
    let id: String = row.get(0)?;
    let damaged = |what: &str| StoreError::Failed(format!("sandbox {id}: {what}"));
    let spec: String = row.get(3)?;
    let spec = serde_json::from_str(&spec).map_err(|error| damaged(&format!("its spec cannot be read: {error}")))?;
    let phase: String = row.get(5)?;
    let node_id: Option<String> = row.get(6)?;
    let placed = |reported| {
        let node_id = node_id.clone().ok_or_else(|| damaged("it is placed on no node"))?;
        Ok::<_, StoreError>(Phase::Placed { node_id, reported })
    };
    let phase = match phase.as_str() {
        "waiting" => Phase::Waiting,
        "unreported" => placed(Reported::Unreported)?,
        "starting" => placed(Reported::Starting)?,
        "running" => placed(Reported::Running)?,
        "ended" => {
            let reason: String = row.get(8)?;
            let reason = serde_json::from_value::<TerminationReason>(serde_json::Value::String(reason))
                .map_err(|error| damaged(&format!("its reason cannot be read: {error}")))?;
            let ending = Ending { reason, detail: row.get(9)?, at: row.get(12)? };
            Phase::Ended { node_id: node_id.clone(), held: row.get(7)?, ending }
        }
        other => return Err(damaged(&format!("its phase is {other:?}"))),
    };
    Ok(SandboxRow {
        namespace: row.get(1)?,
        name: row.get(2)?,
        spec,
        generation: uint(row.get(4)?),
        phase,
        created_at: row.get(10)?,
        started_at: row.get(11)?,
        id,
    })
}

fn save(db: &Connection, row: &SandboxRow) -> Result<(), StoreError> {
    let spec = serde_json::to_string(&row.spec).map_err(|error| StoreError::Failed(error.to_string()))?;
    let phase = match &row.phase {
        Phase::Waiting => "waiting",
        Phase::Placed { reported: Reported::Unreported, .. } => "unreported",
        Phase::Placed { reported: Reported::Starting, .. } => "starting",
        Phase::Placed { reported: Reported::Running, .. } => "running",
        Phase::Ended { .. } => "ended",
    };
    let ending = row.ending();
    let saved = db
        .prepare_cached(
            "INSERT INTO sandboxes (id, namespace, name, spec, memory_mb, generation, phase, node_id, held, reason,
                 detail, created_at, started_at, terminated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT (id) DO UPDATE SET name = ?3, spec = ?4, memory_mb = ?5, generation = ?6, phase = ?7,
                 node_id = ?8, held = ?9, reason = ?10, detail = ?11, started_at = ?13, terminated_at = ?14",
        )?
        .execute(params![
            row.id,
            row.namespace,
            row.name,
            spec,
            int(row.spec.resources.memory_mb),
            int(row.generation),
            phase,
            row.node_id(),
            row.held_by().is_some(),
            ending.map(|e| crate::visible::wire_word(e.reason)),
            ending.map(|e| e.detail.as_str()),
            row.created_at,
            row.started_at,
            ending.map(|e| e.at),
        ]);
    match saved {
        Ok(_) => Ok(()),
        // The one unique index beside the id, which is random, is that of the live names.
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
            Err(StoreError::NameInUse(row.name.clone().unwrap_or_default()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Saves a step with its command.
fn apply(db: &Connection, changes: &mut Vec<Committed>, step: Step) -> Result<Arc<SandboxRow>, StoreError> {
    save(db, &step.row)?;
    let row = Arc::new(step.row);
    changes.push(Committed::Sandbox(Arc::clone(&row)));
    if let Some((node_id, op)) = step.send {
        outbox::add(db, changes, node_id, &row.id, row.generation, &op)?;
    }
    Ok(row)
}

fn one(db: &Connection, rest: &str, values: impl rusqlite::Params) -> Result<Option<SandboxRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM sandboxes WHERE {rest}"))?;
    query.query_row(values, |row| Ok(read(row))).optional()?.transpose()
}

fn many(db: &Connection, rest: &str, values: impl rusqlite::Params) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM sandboxes WHERE {rest}"))?;
    let rows = query.query_map(values, |row| Ok(read(row).map(Arc::new)))?;
    rows.map(|row| row.map_err(StoreError::from).and_then(|row| row)).collect()
}

pub(super) fn load(db: &Connection, id: &str) -> Result<Option<SandboxRow>, StoreError> {
    one(db, "id = ?1", params![id])
}

pub(super) fn named(db: &Connection, namespace: &str, name: &str) -> Result<Option<Arc<SandboxRow>>, StoreError> {
    Ok(one(db, "namespace = ?1 AND name = ?2 AND phase <> 'ended'", params![namespace, name])?.map(Arc::new))
}

pub(super) fn held(db: &Connection) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
    many(db, "phase <> 'ended' OR held = 1 ORDER BY created_at, id", [])
}

pub(super) fn live(db: &Connection, namespace: &str, page: &Page) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
    let (at, id) = page.from.as_ref().map_or((i64::MIN, ""), |from| (from.at, from.id.as_str()));
    let rest = "namespace = ?1 AND phase <> 'ended' AND (created_at, id) > (?2, ?3) ORDER BY created_at, id LIMIT ?4";
    many(db, rest, params![namespace, at, id, limit(page)])
}

pub(super) fn ended(db: &Connection, namespace: &str, page: &Page) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
    let base = "namespace = ?1 AND phase = 'ended'";
    match (&page.from, page.backward) {
        (None, _) => {
            let rest = format!("{base} ORDER BY terminated_at DESC, id DESC LIMIT ?2");
            many(db, &rest, params![namespace, limit(page)])
        }
        (Some(from), false) => {
            let rest =
                format!("{base} AND (terminated_at, id) < (?2, ?3) ORDER BY terminated_at DESC, id DESC LIMIT ?4");
            many(db, &rest, params![namespace, from.at, from.id, limit(page)])
        }
        (Some(from), true) => {
            let rest = format!("{base} AND (terminated_at, id) > (?2, ?3) ORDER BY terminated_at, id LIMIT ?4");
            let mut rows = many(db, &rest, params![namespace, from.at, from.id, limit(page)])?;
            rows.reverse();
            Ok(rows)
        }
    }
}

fn limit(page: &Page) -> i64 {
    i64::try_from(page.limit).unwrap_or(i64::MAX)
}

/// Whether the node's memory suffices for one more.
fn fits(db: &Connection, on: &Reservation, memory_mb: u64) -> Result<bool, StoreError> {
    let mut query =
        db.prepare_cached("SELECT coalesce(sum(memory_mb), 0) FROM sandboxes WHERE node_id = ?1 AND held = 1")?;
    let used: i64 = query.query_row(params![on.node_id], |row| row.get(0))?;
    Ok(uint(used) + memory_mb <= on.capacity_mb)
}

pub(super) fn create(
    db: &Connection,
    changes: &mut Vec<Committed>,
    row: SandboxRow,
    start: Start,
) -> Result<Arc<SandboxRow>, StoreError> {
    let live: i64 =
        db.prepare_cached("SELECT count(*) FROM sandboxes WHERE phase <> 'ended'")?.query_row([], |row| row.get(0))?;
    if live >= int(LIVE_SANDBOXES_MAX) {
        return Err(StoreError::TooMany { what: "live sandboxes", max: LIVE_SANDBOXES_MAX });
    }
    let step = match start {
        Start::Place(on) if fits(db, &on, row.spec.resources.memory_mb)? => life::place(row.clone(), &on.node_id),
        Start::Place(_) | Start::Wait => None,
        Start::End(ending) => life::terminate(row.clone(), ending),
    };
    apply(db, changes, step.unwrap_or(Step { row, send: None }))
}

pub(super) fn place(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
    on: &Reservation,
) -> Result<Option<Arc<SandboxRow>>, StoreError> {
    let Some(row) = load(db, id)? else { return Ok(None) };
    if !fits(db, on, row.spec.resources.memory_mb)? {
        return Ok(None);
    }
    life::place(row, &on.node_id).map(|step| apply(db, changes, step)).transpose()
}

pub(super) fn change(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
    change: &Change,
) -> Result<Option<Arc<SandboxRow>>, StoreError> {
    let Some(row) = load(db, id)? else { return Ok(None) };
    life::change(row, change).map(|step| apply(db, changes, step)).transpose()
}

pub(super) fn terminate(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
    ending: Ending,
) -> Result<Option<Arc<SandboxRow>>, StoreError> {
    let Some(row) = load(db, id)? else { return Ok(None) };
    match life::terminate(row.clone(), ending) {
        Some(step) => apply(db, changes, step).map(Some),
        None => Ok(Some(Arc::new(row))),
    }
}

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
    reports: &[SandboxReport],
    at: i64,
) -> Result<(), StoreError> {
    outbox::save_node(db, hello, at)?;
    let told: HashSet<&str> = reports.iter().map(|report| report.sandbox_id.as_str()).collect();
    for one in reports {
        report(db, changes, &hello.node_id, one, at, true)?;
    }
    for row in many(db, "node_id = ?1 AND held = 1", params![hello.node_id])? {
        if told.contains(row.id.as_str()) || outbox::has(db, &row.id)? {
            continue;
        }
        if let Some(step) = life::lost(SandboxRow::clone(&row), at) {
            apply(db, changes, step)?;
        }
    }
    Ok(())
}

pub(super) fn refuse(
    db: &Connection,
    changes: &mut Vec<Committed>,
    node_id: &str,
    command: &Command,
    ending: Ending,
) -> Result<(), StoreError> {
    outbox::remove(db, node_id, command.seq)?;
    if !matches!(command.op, Op::Create { .. }) {
        return Ok(());
    }
    if let Some(step) = load(db, &command.sandbox_id)?.and_then(|row| life::refused(row, ending)) {
        apply(db, changes, step)?;
    }
    Ok(())
}
