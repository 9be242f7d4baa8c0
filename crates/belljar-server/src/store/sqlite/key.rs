//! API keys.

use rusqlite::{Connection, params};

use super::{
    super::{Committed, KeyRow, StoreError},
    int, ssh_key,
};
use crate::limits::KEYS_MAX;

pub(super) fn all(db: &Connection) -> Result<Vec<KeyRow>, StoreError> {
    let mut query = db.prepare_cached("SELECT id, name, hash, created_at FROM api_keys ORDER BY created_at, id")?;
    let rows = query.query_map([], |row| {
        Ok(KeyRow { id: row.get(0)?, name: row.get(1)?, hash: row.get(2)?, created_at: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn count(db: &Connection) -> Result<i64, StoreError> {
    Ok(db.query_row("SELECT count(*) FROM api_keys", [], |row| row.get(0))?)
}

pub(super) fn create(db: &Connection, changes: &mut Vec<Committed>, key: KeyRow) -> Result<(), StoreError> {
    if count(db)? >= int(KEYS_MAX) {
        return Err(StoreError::TooMany { what: "API keys", max: KEYS_MAX });
    }
    db.execute(
        "INSERT INTO api_keys (id, name, hash, created_at) VALUES (?1, ?2, ?3, ?4)",
        params![key.id, key.name, key.hash, key.created_at],
    )?;
    changes.push(Committed::KeyAdded(key));
    Ok(())
}

pub(super) fn delete(db: &Connection, changes: &mut Vec<Committed>, id: String) -> Result<bool, StoreError> {
    ssh_key::delete_of(db, changes, &id)?;
    if db.execute("DELETE FROM api_keys WHERE id = ?1", params![id])? == 0 {
        return Ok(false);
    }
    if count(db)? == 0 {
        return Err(StoreError::LastKey);
    }
    changes.push(Committed::KeyRemoved { id });
    Ok(true)
}
