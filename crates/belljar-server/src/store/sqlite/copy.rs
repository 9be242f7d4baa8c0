//! Copies of a running sandbox, and the requests that asked for them under an idempotency key.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    super::{Committed, NewCopies, StoreError},
    int,
    rows::{apply, load},
    sandbox::{check_limit, free_mb},
};
use crate::{
    life::{self, SandboxRow, Step},
    limits::{COPY_REQUEST_TTL, COPY_REQUESTS_MAX},
};

/// Makes the copies, or returns those that the same request made before.
pub(super) fn copy(
    db: &Connection,
    changes: &mut Vec<Committed>,
    new: &NewCopies,
) -> Result<Option<Vec<Arc<SandboxRow>>>, StoreError> {
    let Some(source) = load(db, &new.source_id)? else { return Ok(None) };
    if let Some(key) = &new.key
        && let Some(copies) = made_before(db, &source.namespace, key, new)?
    {
        return Ok(Some(copies));
    }
    let (namespace, memory_mb) = (source.namespace.clone(), source.spec.resources.memory_mb);
    let (step, copies) = life::copy(source, &new.ids, new.at).map_err(StoreError::Refused)?;
    check_limit(db, copies.len())?;
    let node_id = step.row.node_id().unwrap_or_default().to_owned();
    let capacity_mb = new.capacity_mb.ok_or_else(|| StoreError::NodeAway(node_id.clone()))?;
    let free_mb = free_mb(db, &node_id, capacity_mb)?;
    let needed_mb = memory_mb.saturating_mul(u64::try_from(copies.len()).unwrap_or(u64::MAX));
    if needed_mb > free_mb {
        return Err(StoreError::NoRoom { needed_mb, free_mb });
    }
    if let Some(key) = &new.key {
        remember(db, &namespace, key, new)?;
    }
    // First the copies: whoever sees the command can find them.
    let rows = copies.into_iter().map(|row| apply(db, changes, Step { row, send: None })).collect::<Result<_, _>>()?;
    apply(db, changes, step)?;
    Ok(Some(rows))
}

/// What the same request made; another one under the same key is refused.
fn made_before(
    db: &Connection,
    namespace: &str,
    key: &str,
    new: &NewCopies,
) -> Result<Option<Vec<Arc<SandboxRow>>>, StoreError> {
    let ttl_ms = i64::try_from(COPY_REQUEST_TTL.as_millis()).unwrap_or(i64::MAX);
    db.prepare_cached("DELETE FROM copy_requests WHERE created_at <= ?1")?
        .execute(params![new.at.saturating_sub(ttl_ms)])?;
    let sql = "SELECT source_id, copies FROM copy_requests WHERE namespace = ?1 AND key = ?2";
    let found = db
        .prepare_cached(sql)?
        .query_row(params![namespace, key], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    let Some((source_id, copies)) = found else { return Ok(None) };
    let ids: Vec<String> = serde_json::from_str(&copies).map_err(|error| StoreError::Failed(error.to_string()))?;
    if source_id != new.source_id || ids.len() != new.ids.len() {
        return Err(StoreError::KeyReused);
    }
    let rows = ids.iter().filter_map(|id| load(db, id).transpose()).map(|row| row.map(Arc::new));
    rows.collect::<Result<_, _>>().map(Some)
}

fn remember(db: &Connection, namespace: &str, key: &str, new: &NewCopies) -> Result<(), StoreError> {
    let count: i64 = db.query_row("SELECT count(*) FROM copy_requests", [], |row| row.get(0))?;
    if count >= int(COPY_REQUESTS_MAX) {
        return Err(StoreError::TooMany { what: "copy requests of the last 24 hours", max: COPY_REQUESTS_MAX });
    }
    let copies = serde_json::to_string(&new.ids).map_err(|error| StoreError::Failed(error.to_string()))?;
    db.prepare_cached(
        "INSERT INTO copy_requests (namespace, key, source_id, copies, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![namespace, key, new.source_id, copies, new.at])?;
    Ok(())
}
