//! Sandboxes: the lists, and the transactions that people start.

use std::sync::Arc;

use belljar_api::sandbox::{Gpus, Resources};
use rusqlite::{Connection, params};

use super::{
    super::{Committed, Page, Reservation, Start, StoreError},
    pool,
    rows::{apply, load, many, one},
    uint,
};
use crate::{
    life::{self, Change, Ending, Order, SandboxRow, Step},
    limits::LIVE_SANDBOXES_MAX,
};

/// Which a list shows. Those that wait in a pool are nobody's business but the pool's.
fn visible(page: &Page) -> String {
    format!("(pool_id IS NULL OR claimed = 1) AND {}", of_interest(page))
}

/// Which sandboxes, or snapshots, are not the server's own.
pub(super) fn of_interest(page: &Page) -> &'static str {
    if page.internal { "TRUE" } else { "NOT coalesce(json_extract(spec, '$.internal'), FALSE)" }
}

pub(super) fn named(db: &Connection, namespace: &str, name: &str) -> Result<Option<Arc<SandboxRow>>, StoreError> {
    Ok(one(db, "namespace = ?1 AND name = ?2 AND phase <> 'ended'", params![namespace, name])?.map(Arc::new))
}

pub(super) fn held(db: &Connection) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
    many(db, "phase <> 'ended' OR held = 1 ORDER BY created_at, id", [])
}

pub(super) fn live(db: &Connection, namespace: &str, page: &Page) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
    let (at, id) = page.from.as_ref().map_or((i64::MIN, ""), |from| (from.at, from.id.as_str()));
    let rest = format!(
        "namespace = ?1 AND phase <> 'ended' AND {} AND (created_at, id) > (?2, ?3)
         ORDER BY created_at, id LIMIT ?4",
        visible(page)
    );
    many(db, &rest, params![namespace, at, id, limit(page)])
}

pub(super) fn ended(db: &Connection, namespace: &str, page: &Page) -> Result<Vec<Arc<SandboxRow>>, StoreError> {
    let base = format!("namespace = ?1 AND phase = 'ended' AND {}", visible(page));
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

pub(super) fn limit(page: &Page) -> i64 {
    i64::try_from(page.limit).unwrap_or(i64::MAX)
}

/// Memory that is free on a node which has so much in all.
pub(super) fn free_mb(db: &Connection, node_id: &str, capacity_mb: u64) -> Result<u64, StoreError> {
    let mut query =
        db.prepare_cached("SELECT coalesce(sum(memory_mb), 0) FROM sandboxes WHERE node_id = ?1 AND held = 1")?;
    let used: i64 = query.query_row(params![node_id], |row| row.get(0))?;
    Ok(capacity_mb.saturating_sub(uint(used)))
}

/// GPUs that sandboxes have on a node.
fn used_gpus(db: &Connection, node_id: &str) -> Result<Vec<Gpus>, StoreError> {
    let sql = "SELECT json_extract(gpus.value, '$.model'), sum(json_extract(gpus.value, '$.count'))
         FROM sandboxes, json_each(sandboxes.spec, '$.resources.gpu_configs') AS gpus
         WHERE node_id = ?1 AND held = 1 GROUP BY 1";
    let mut query = db.prepare_cached(sql)?;
    let rows = query.query_map(params![node_id], |row| Ok(Gpus { model: row.get(0)?, count: row.get(1)? }))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether what the node has suffices for one more.
fn fits(db: &Connection, on: &Reservation, wanted: &Resources) -> Result<bool, StoreError> {
    // Most want none, and need no look at what all the others have.
    let has_gpus = wanted.gpu_configs.is_empty()
        || Gpus::are_there(&wanted.gpu_configs, &on.capacity.gpus, &used_gpus(db, &on.node_id)?);
    Ok(has_gpus && wanted.memory_mb <= free_mb(db, &on.node_id, on.capacity.memory_mb)?)
}

/// Refuses so many more live sandboxes when there would be too many.
pub(super) fn check_limit(db: &Connection, more: usize) -> Result<(), StoreError> {
    let live: i64 =
        db.prepare_cached("SELECT count(*) FROM sandboxes WHERE phase <> 'ended'")?.query_row([], |row| row.get(0))?;
    let more = u64::try_from(more).unwrap_or(u64::MAX);
    if uint(live).saturating_add(more) > LIVE_SANDBOXES_MAX {
        return Err(StoreError::TooMany { what: "live sandboxes", max: LIVE_SANDBOXES_MAX });
    }
    Ok(())
}

pub(super) fn create(
    db: &Connection,
    changes: &mut Vec<Committed>,
    row: SandboxRow,
    start: Start,
) -> Result<Arc<SandboxRow>, StoreError> {
    check_limit(db, 1)?;
    if let Some(member) = &row.pool {
        pool::check_room(db, member)?;
    }
    let step = match start {
        Start::Place(on) if fits(db, &on, &row.spec.resources)? => life::place(row.clone(), &on.node_id),
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
    if !fits(db, on, &row.spec.resources)? {
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

/// Asks for another state. A sandbox that is there already, or on its way, comes back as it is.
pub(super) fn order(
    db: &Connection,
    changes: &mut Vec<Committed>,
    id: &str,
    order: &Order,
) -> Result<Option<Arc<SandboxRow>>, StoreError> {
    let Some(row) = load(db, id)? else { return Ok(None) };
    match life::order(row.clone(), order).map_err(StoreError::Refused)? {
        Some(step) => apply(db, changes, step).map(Some),
        None => Ok(Some(Arc::new(row))),
    }
}
