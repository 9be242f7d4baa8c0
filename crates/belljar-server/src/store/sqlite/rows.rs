//! Sandbox rows in and out of the database.

use std::sync::Arc;

use belljar_api::{node::Origin, sandbox::TerminationReason};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    super::{Committed, StoreError},
    int, outbox, uint,
};
use crate::life::{Asked, Ending, Membership, Phase, Reported, SandboxRow, Step, Wish};

const COLUMNS: &str = "id, namespace, name, spec, generation, phase, node_id, held, reason, detail, created_at, \
                       started_at, terminated_at, origin, home, pool_id, claimed, asked, asked_generation, trouble";

/// The stored word of what a node reported.
const STAGES: [(Reported, &str); 6] = [
    (Reported::Unreported, "unreported"),
    (Reported::Starting, "starting"),
    (Reported::Running, "running"),
    (Reported::Suspending, "suspending"),
    (Reported::Suspended, "suspended"),
    (Reported::Resuming, "resuming"),
];

/// The stored word of what a node was asked.
const WISHES: [(Wish, &str); 3] = [(Wish::Suspend, "suspend"), (Wish::Resume, "resume"), (Wish::Rollback, "rollback")];

fn word<T: PartialEq>(words: &[(T, &'static str)], value: &T) -> Option<&'static str> {
    words.iter().find(|(known, _)| known == value).map(|(_, word)| *word)
}

fn value<T: Copy>(words: &[(T, &'static str)], text: &str) -> Option<T> {
    words.iter().find(|(_, word)| *word == text).map(|(value, _)| *value)
}

fn read(row: &Row<'_>) -> Result<SandboxRow, StoreError> {
    let id: String = row.get(0)?;
    let damaged = |what: &str| StoreError::Failed(format!("sandbox {id}: {what}"));
    let spec: String = row.get(3)?;
    let spec = serde_json::from_str(&spec).map_err(|error| damaged(&format!("its spec cannot be read: {error}")))?;
    let origin: String = row.get(13)?;
    let origin: Origin =
        serde_json::from_str(&origin).map_err(|error| damaged(&format!("its origin cannot be read: {error}")))?;
    let pool_id: Option<String> = row.get(15)?;
    let claimed: bool = row.get(16)?;
    Ok(SandboxRow {
        namespace: row.get(1)?,
        name: row.get(2)?,
        spec,
        origin,
        home: row.get(14)?,
        pool: pool_id.map(|pool_id| Membership { pool_id, claimed }),
        generation: uint(row.get(4)?),
        phase: read_phase(row, &damaged)?,
        trouble: row.get(19)?,
        created_at: row.get(10)?,
        started_at: row.get(11)?,
        id,
    })
}

fn read_phase(row: &Row<'_>, damaged: &dyn Fn(&str) -> StoreError) -> Result<Phase, StoreError> {
    let phase: String = row.get(5)?;
    let node_id: Option<String> = row.get(6)?;
    match phase.as_str() {
        "waiting" => Ok(Phase::Waiting),
        "ended" => {
            let reason: String = row.get(8)?;
            let reason = serde_json::from_value::<TerminationReason>(serde_json::Value::String(reason))
                .map_err(|error| damaged(&format!("its reason cannot be read: {error}")))?;
            let ending = Ending { reason, detail: row.get(9)?, at: row.get(12)? };
            Ok(Phase::Ended { node_id, held: row.get(7)?, ending })
        }
        other => {
            let reported = value(&STAGES, other).ok_or_else(|| damaged(&format!("its phase is {other:?}")))?;
            let node_id = node_id.ok_or_else(|| damaged("it is placed on no node"))?;
            let asked = row.get::<_, Option<String>>(17)?.and_then(|text| value(&WISHES, &text));
            let generation = uint(row.get::<_, Option<i64>>(18)?.unwrap_or(0));
            let asked = asked.map(|wish| Asked { wish, generation });
            Ok(Phase::Placed { node_id, reported, asked })
        }
    }
}

fn save(db: &Connection, row: &SandboxRow) -> Result<(), StoreError> {
    let text = |error: serde_json::Error| StoreError::Failed(error.to_string());
    let spec = serde_json::to_string(&row.spec).map_err(text)?;
    let origin = serde_json::to_string(&row.origin).map_err(text)?;
    let (phase, asked) = match &row.phase {
        Phase::Waiting => (Some("waiting"), None),
        Phase::Placed { reported, asked, .. } => (word(&STAGES, reported), *asked),
        Phase::Ended { .. } => (Some("ended"), None),
    };
    let ending = row.ending();
    let saved = db
        .prepare_cached(
            "INSERT INTO sandboxes (id, namespace, name, spec, memory_mb, generation, phase, node_id, held, reason,
                 detail, created_at, started_at, terminated_at, origin, home, pool_id, claimed, asked,
                 asked_generation, trouble)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)
             ON CONFLICT (id) DO UPDATE SET name = ?3, spec = ?4, memory_mb = ?5, generation = ?6, phase = ?7,
                 node_id = ?8, held = ?9, reason = ?10, detail = ?11, started_at = ?13, terminated_at = ?14,
                 claimed = ?18, asked = ?19, asked_generation = ?20, trouble = ?21",
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
            origin,
            row.home,
            row.pool.as_ref().map(|pool| pool.pool_id.as_str()),
            row.pool.as_ref().is_some_and(|pool| pool.claimed),
            asked.and_then(|asked| word(&WISHES, &asked.wish)),
            asked.map(|asked| int(asked.generation)),
            row.trouble,
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
pub(super) fn apply(db: &Connection, changes: &mut Vec<Committed>, step: Step) -> Result<Arc<SandboxRow>, StoreError> {
    save(db, &step.row)?;
    let row = Arc::new(step.row);
    changes.push(Committed::Sandbox(Arc::clone(&row)));
    if let Some((node_id, op)) = step.send {
        outbox::add(db, changes, node_id, &row.id, row.generation, &op)?;
    }
    Ok(row)
}

/// The row that a condition names.
pub(super) fn one(
    db: &Connection,
    rest: &str,
    values: impl rusqlite::Params,
) -> Result<Option<SandboxRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM sandboxes WHERE {rest}"))?;
    query.query_row(values, |row| Ok(read(row))).optional()?.transpose()
}

/// The rows that a condition names.
pub(super) fn many(
    db: &Connection,
    rest: &str,
    values: impl rusqlite::Params,
) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM sandboxes WHERE {rest}"))?;
    let rows = query.query_map(values, |row| Ok(read(row).map(Arc::new)))?;
    rows.map(|row| row.map_err(StoreError::from).and_then(|row| row)).collect()
}

/// The row with this id.
pub(super) fn load(db: &Connection, id: &str) -> Result<Option<SandboxRow>, StoreError> {
    one(db, "id = ?1", params![id])
}
