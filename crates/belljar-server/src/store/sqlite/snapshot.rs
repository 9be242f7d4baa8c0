//! Snapshots: rows in and out, and the transactions over them.

use std::collections::HashSet;

use belljar_api::{
    node::{Op, SnapshotReport},
    snapshot::SnapshotType,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    super::{Committed, NewSnapshot, Page, StoreError},
    int, outbox,
    rows::{apply, load},
    sandbox::{limit, of_interest},
    uint,
};
use crate::{
    life::{self, Refusal},
    limits::SNAPSHOTS_MAX,
    snapshot::{self, Outcome, SnapshotRow, Standing},
};

const COLUMNS: &str = "id, namespace, sandbox_id, node_id, kind, status, error, size_bytes, rootfs_disk_bytes, spec, \
                       parent_id, created_at";
/// Generation of what is sent about a snapshot: it has no other command than its deletion.
const GENERATION: u64 = 1;

fn read(row: &Row<'_>) -> Result<SnapshotRow, StoreError> {
    let id: String = row.get(0)?;
    let damaged = |what: &str| StoreError::Failed(format!("snapshot {id}: {what}"));
    let spec: String = row.get(9)?;
    let spec = serde_json::from_str(&spec).map_err(|error| damaged(&format!("its spec cannot be read: {error}")))?;
    let kind = match row.get::<_, String>(4)?.as_str() {
        "filesystem" => SnapshotType::Filesystem,
        "memory" => SnapshotType::Memory,
        other => return Err(damaged(&format!("its kind is {other:?}"))),
    };
    let number = |column| Ok::<_, StoreError>(uint(row.get::<_, Option<i64>>(column)?.unwrap_or(0)));
    let standing = match row.get::<_, String>(5)?.as_str() {
        "in_progress" => Standing::InProgress,
        "completed" => Standing::Completed { size_bytes: number(7)?, rootfs_disk_bytes: number(8)? },
        "failed" => Standing::Failed { error: row.get::<_, Option<String>>(6)?.unwrap_or_default() },
        "deleting" => Standing::Deleting,
        other => return Err(damaged(&format!("its status is {other:?}"))),
    };
    Ok(SnapshotRow {
        namespace: row.get(1)?,
        sandbox_id: row.get(2)?,
        node_id: row.get(3)?,
        kind,
        standing,
        spec,
        parent_id: row.get(10)?,
        created_at: row.get(11)?,
        id,
    })
}

fn save(db: &Connection, changes: &mut Vec<Committed>, row: SnapshotRow) -> Result<SnapshotRow, StoreError> {
    let spec = serde_json::to_string(&row.spec).map_err(|error| StoreError::Failed(error.to_string()))?;
    let kind = match row.kind {
        SnapshotType::Filesystem => "filesystem",
        SnapshotType::Memory => "memory",
    };
    let (status, error, sizes) = match &row.standing {
        Standing::InProgress => ("in_progress", None, None),
        Standing::Completed { size_bytes, rootfs_disk_bytes } => {
            ("completed", None, Some((int(*size_bytes), int(*rootfs_disk_bytes))))
        }
        Standing::Failed { error } => ("failed", Some(error.as_str()), None),
        Standing::Deleting => ("deleting", None, None),
    };
    db.prepare_cached(
        "INSERT INTO snapshots (id, namespace, sandbox_id, node_id, kind, status, error, size_bytes,
             rootfs_disk_bytes, spec, parent_id, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT (id) DO UPDATE SET status = ?6, error = ?7, size_bytes = ?8, rootfs_disk_bytes = ?9",
    )?
    .execute(params![
        row.id,
        row.namespace,
        row.sandbox_id,
        row.node_id,
        kind,
        status,
        error,
        sizes.map(|(size, _)| size),
        sizes.map(|(_, disk)| disk),
        spec,
        row.parent_id,
        row.created_at,
    ])?;
    changes.push(Committed::Snapshots);
    Ok(row)
}

fn many(db: &Connection, rest: &str, values: impl rusqlite::Params) -> Result<Vec<SnapshotRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM snapshots WHERE {rest}"))?;
    let rows = query.query_map(values, |row| Ok(read(row)))?;
    rows.map(|row| row.map_err(StoreError::from).and_then(|row| row)).collect()
}

/// The snapshot with this id.
pub(super) fn get(db: &Connection, id: &str) -> Result<Option<SnapshotRow>, StoreError> {
    Ok(many(db, "id = ?1", params![id])?.pop())
}

/// Newest first: of one sandbox, whatever that is, or of all.
pub(super) fn list(
    db: &Connection,
    namespace: &str,
    sandbox_id: Option<&str>,
    page: &Page,
) -> Result<Vec<SnapshotRow>, StoreError> {
    let (at, id) = page.from.as_ref().map_or((i64::MAX, "~"), |from| (from.at, from.id.as_str()));
    match sandbox_id {
        Some(sandbox) => {
            let rest = "namespace = ?1 AND sandbox_id = ?5 AND (created_at, id) < (?2, ?3)
                        ORDER BY created_at DESC, id DESC LIMIT ?4";
            many(db, rest, params![namespace, at, id, limit(page), sandbox])
        }
        None => {
            let rest = format!(
                "namespace = ?1 AND {} AND (created_at, id) < (?2, ?3) ORDER BY created_at DESC, id DESC LIMIT ?4",
                of_interest(page)
            );
            many(db, &rest, params![namespace, at, id, limit(page)])
        }
    }
}

/// Takes one: the row and its command.
pub(super) fn take(
    db: &Connection,
    changes: &mut Vec<Committed>,
    new: NewSnapshot,
) -> Result<Option<SnapshotRow>, StoreError> {
    let Some(source) = load(db, &new.sandbox_id)? else { return Ok(None) };
    let count: i64 = db.prepare_cached("SELECT count(*) FROM snapshots")?.query_row([], |row| row.get(0))?;
    if count >= int(SNAPSHOTS_MAX) {
        return Err(StoreError::TooMany { what: "snapshots", max: SNAPSHOTS_MAX });
    }
    let step = life::snapshot(source, &new.id, new.kind).map_err(StoreError::Refused)?;
    let mut query = db.prepare_cached(
        "SELECT status, id FROM snapshots WHERE sandbox_id = ?1 AND status IN ('in_progress', 'completed')
         ORDER BY created_at DESC, id DESC LIMIT 1",
    )?;
    let last = query
        .query_row(params![new.sandbox_id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    if last.as_ref().is_some_and(|(status, _)| status == "in_progress") {
        return Err(StoreError::Refused(Refusal::Snapshotting));
    }
    let source = apply(db, changes, step)?;
    let row = SnapshotRow {
        id: new.id,
        namespace: source.namespace.clone(),
        sandbox_id: source.id.clone(),
        node_id: source.node_id().unwrap_or_default().to_owned(),
        kind: new.kind,
        standing: Standing::InProgress,
        spec: source.spec.clone(),
        parent_id: last.map(|(_, id)| id).or_else(|| source.snapshot_id().map(str::to_owned)),
        created_at: new.at,
    };
    save(db, changes, row).map(Some)
}

/// Begins to delete one; again is no error. `None` when there is none.
pub(super) fn delete(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
) -> Result<Option<SnapshotRow>, StoreError> {
    let Some(row) = get(db, id)? else { return Ok(None) };
    if row.standing == Standing::Deleting {
        return Ok(Some(row));
    }
    outbox::add(db, changes, row.node_id.clone(), id, GENERATION, &Op::DeleteSnapshot)?;
    save(db, changes, SnapshotRow { standing: Standing::Deleting, ..row }).map(Some)
}

fn conclude(
    db: &Connection,
    changes: &mut Vec<Committed>,
    row: SnapshotRow,
    outcome: Outcome,
) -> Result<(), StoreError> {
    match outcome {
        Outcome::Same => Ok(()),
        Outcome::Changed(standing) => save(db, changes, SnapshotRow { standing, ..row }).map(drop),
        Outcome::Gone => remove(db, changes, &row.id),
    }
}

fn remove(db: &Connection, changes: &mut Vec<Committed>, id: &str) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM snapshots WHERE id = ?1")?.execute(params![id])?;
    changes.push(Committed::Snapshots);
    Ok(())
}

/// Takes over what a node says about one.
pub(super) fn report(
    db: &Connection,
    changes: &mut Vec<Committed>,
    node_id: &str,
    report: &SnapshotReport,
    resync: bool,
) -> Result<(), StoreError> {
    let id = report.snapshot_id.as_str();
    let row = get(db, id)?.filter(|row| row.node_id == node_id);
    let gone = report.state == belljar_api::node::SnapshotState::Deleted;
    // Nobody can reach what no row knows; and a deletion that a node has not heard of is sent once more.
    let unwanted = row.as_ref().is_none_or(|row| resync && row.standing == Standing::Deleting);
    if unwanted && !gone && !outbox::has(db, id)? {
        outbox::add(db, changes, node_id.to_owned(), id, GENERATION, &Op::DeleteSnapshot)?;
    }
    let Some(row) = row else { return Ok(()) };
    let outcome = snapshot::report(&row, &report.state);
    conclude(db, changes, row, outcome)
}

/// Takes over a node's full account.
pub(super) fn sync(
    db: &Connection,
    changes: &mut Vec<Committed>,
    node_id: &str,
    reports: &[SnapshotReport],
) -> Result<(), StoreError> {
    let told: HashSet<&str> = reports.iter().map(|report| report.snapshot_id.as_str()).collect();
    for one in reports {
        report(db, changes, node_id, one, true)?;
    }
    for row in many(db, "node_id = ?1", params![node_id])? {
        if told.contains(row.id.as_str()) || outbox::has(db, &row.id)? || outbox::names(db, &row.sandbox_id, &row.id)? {
            continue;
        }
        let outcome = snapshot::lost(&row);
        conclude(db, changes, row, outcome)?;
    }
    Ok(())
}

/// Its node refused to take it, for good.
pub(super) fn refused(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
    words: String,
) -> Result<(), StoreError> {
    let Some(row) = get(db, id)?.filter(|row| row.standing == Standing::InProgress) else { return Ok(()) };
    save(db, changes, SnapshotRow { standing: Standing::Failed { error: words }, ..row }).map(drop)
}

/// Its node refused to delete it: it does not know it.
pub(super) fn forget(db: &Connection, changes: &mut Vec<Committed>, id: &str) -> Result<(), StoreError> {
    let deleting = get(db, id)?.is_some_and(|row| row.standing == Standing::Deleting);
    if deleting { remove(db, changes, id) } else { Ok(()) }
}
