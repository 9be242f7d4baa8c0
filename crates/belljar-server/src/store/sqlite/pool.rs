//! Pools: rows in and out, and the transactions over them and their sandboxes.

use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use super::{
    super::{Committed, PoolChange, StoreError},
    int,
    rows::{apply, many},
    uint,
};
use crate::{
    life::{self, Ending, Membership, SandboxRow},
    limits::POOLS_MAX,
    pool::PoolRow,
};

const COLUMNS: &str = "id, namespace, spec, max_containers, warm_containers, created_at, updated_at";

fn read(row: &Row<'_>) -> Result<PoolRow, StoreError> {
    let id: String = row.get(0)?;
    let spec: String = row.get(2)?;
    let spec = serde_json::from_str(&spec)
        .map_err(|error| StoreError::Failed(format!("pool {id}: its spec cannot be read: {error}")))?;
    Ok(PoolRow {
        namespace: row.get(1)?,
        spec,
        max_containers: row.get(3)?,
        warm_containers: row.get(4)?,
        created_at: row.get(5)?,
        updated_at: row.get(6)?,
        id,
    })
}

fn save(db: &Connection, changes: &mut Vec<Committed>, row: &PoolRow) -> Result<(), StoreError> {
    let spec = serde_json::to_string(&row.spec).map_err(|error| StoreError::Failed(error.to_string()))?;
    db.prepare_cached(
        "INSERT INTO pools (id, namespace, spec, max_containers, warm_containers, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE SET spec = ?3, max_containers = ?4, warm_containers = ?5, updated_at = ?7",
    )?
    .execute(params![
        row.id,
        row.namespace,
        spec,
        row.max_containers,
        row.warm_containers,
        row.created_at,
        row.updated_at,
    ])?;
    changes.push(Committed::Pool { id: row.id.clone() });
    Ok(())
}

fn query(db: &Connection, rest: &str, values: impl rusqlite::Params) -> Result<Vec<PoolRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM pools WHERE {rest}"))?;
    let rows = query.query_map(values, |row| Ok(read(row)))?;
    rows.map(|row| row.map_err(StoreError::from).and_then(|row| row)).collect()
}

/// The pool with this id.
pub(super) fn get(db: &Connection, id: &str) -> Result<Option<PoolRow>, StoreError> {
    Ok(query(db, "id = ?1", params![id])?.pop())
}

/// Pools of a namespace, or all of them, oldest first.
pub(super) fn list(db: &Connection, namespace: Option<&str>) -> Result<Vec<PoolRow>, StoreError> {
    query(db, "?1 IS NULL OR namespace = ?1 ORDER BY created_at, id", params![namespace])
}

pub(super) fn create(db: &Connection, changes: &mut Vec<Committed>, row: &PoolRow) -> Result<(), StoreError> {
    let count: i64 = db.query_row("SELECT count(*) FROM pools", [], |row| row.get(0))?;
    if count >= int(POOLS_MAX) {
        return Err(StoreError::TooMany { what: "pools", max: POOLS_MAX });
    }
    save(db, changes, row)
}

/// Replaces what a pool is.
pub(super) fn change(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
    change: PoolChange,
) -> Result<Option<PoolRow>, StoreError> {
    let Some(row) = get(db, id)? else { return Ok(None) };
    let row = PoolRow {
        spec: change.spec,
        max_containers: change.max_containers,
        warm_containers: change.warm_containers,
        updated_at: change.at,
        ..row
    };
    save(db, changes, &row)?;
    Ok(Some(row))
}

/// Live sandboxes of a pool, oldest first.
fn members(db: &Connection, id: &str) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
    many(db, "pool_id = ?1 AND phase <> 'ended' ORDER BY created_at, id", params![id])
}

/// Removes a pool and ends its warm sandboxes; whether there was one.
pub(super) fn delete(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
    ending: &Ending,
) -> Result<bool, StoreError> {
    let members = members(db, id)?;
    if members.iter().any(|row| !row.is_unclaimed()) {
        return Err(StoreError::PoolInUse(id.to_owned()));
    }
    if db.execute("DELETE FROM pools WHERE id = ?1", params![id])? == 0 {
        return Ok(false);
    }
    for row in members {
        if let Some(step) = life::terminate(SandboxRow::clone(&row), ending.clone()) {
            apply(db, changes, step)?;
        }
    }
    changes.push(Committed::Pool { id: id.to_owned() });
    Ok(true)
}

/// Hands out the oldest warm sandbox that runs, or else the oldest that boots; `None` when there is none.
pub(super) fn claim(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
) -> Result<Option<Arc<SandboxRow>>, StoreError> {
    let Some(pool) = get(db, id)? else { return Err(StoreError::NoPool(id.to_owned())) };
    let spec = pool.warm_spec();
    let mut warm = members(db, id)?;
    warm.retain(|row| row.is_unclaimed() && row.spec == spec);
    let Some(row) = warm.iter().find(|row| row.is_running()).or(warm.first()) else { return Ok(None) };
    let claimed = life::claim(SandboxRow::clone(row), pool.spec.timeout_secs);
    claimed.map(|step| apply(db, changes, step)).transpose()
}

/// Refuses one more sandbox in a pool that is full, or is not there any more.
pub(super) fn check_room(db: &Connection, member: &Membership) -> Result<(), StoreError> {
    let id = member.pool_id.as_str();
    let Some(pool) = get(db, id)? else { return Err(StoreError::NoPool(id.to_owned())) };
    let sql = "SELECT count(*) FROM sandboxes WHERE pool_id = ?1 AND phase <> 'ended'";
    let live: i64 = db.prepare_cached(sql)?.query_row(params![id], |row| row.get(0))?;
    match pool.max_containers {
        Some(max) if uint(live) >= u64::from(max) => Err(StoreError::PoolFull { id: id.to_owned(), max }),
        _ => Ok(()),
    }
}
