//! SSH keys. Each belongs to the API key that added it, and goes with it.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    super::{Committed, SshKeyRow, StoreError},
    int,
};
use crate::limits::SSH_KEYS_MAX;

const COLUMNS: &str = "id, api_key_id, name, key_type, fingerprint, public_key, created_at, last_used_at";

fn read(row: &Row<'_>) -> rusqlite::Result<SshKeyRow> {
    Ok(SshKeyRow {
        id: row.get(0)?,
        api_key_id: row.get(1)?,
        name: row.get(2)?,
        key_type: row.get(3)?,
        fingerprint: row.get(4)?,
        public_key: row.get(5)?,
        created_at: row.get(6)?,
        last_used_at: row.get(7)?,
    })
}

pub(super) fn all(db: &Connection) -> Result<Vec<SshKeyRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM ssh_keys ORDER BY created_at, id"))?;
    Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
}

pub(super) fn create(db: &Connection, changes: &mut Vec<Committed>, key: SshKeyRow) -> Result<(), StoreError> {
    let count: i64 = db.query_row("SELECT count(*) FROM ssh_keys", [], |row| row.get(0))?;
    if count >= int(SSH_KEYS_MAX) {
        return Err(StoreError::TooMany { what: "SSH keys", max: SSH_KEYS_MAX });
    }
    let known = db.query_row("SELECT name FROM ssh_keys WHERE fingerprint = ?1", [&key.fingerprint], |row| row.get(0));
    if let Some(name) = known.optional()? {
        return Err(StoreError::SshKeyKnown { name });
    }
    let owned: bool =
        db.query_row("SELECT count(*) > 0 FROM api_keys WHERE id = ?1", [&key.api_key_id], |row| row.get(0))?;
    if !owned {
        return Err(StoreError::KeyGone);
    }
    db.execute(
        &format!("INSERT INTO ssh_keys ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"),
        params![
            key.id,
            key.api_key_id,
            key.name,
            key.key_type,
            key.fingerprint,
            key.public_key,
            key.created_at,
            key.last_used_at
        ],
    )?;
    changes.push(Committed::SshKeyAdded(key));
    Ok(())
}

pub(super) fn delete(db: &Connection, changes: &mut Vec<Committed>, id: String) -> Result<bool, StoreError> {
    if db.execute("DELETE FROM ssh_keys WHERE id = ?1", params![id])? == 0 {
        return Ok(false);
    }
    changes.push(Committed::SshKeyRemoved { id });
    Ok(true)
}

/// Removes those of an API key that is being removed.
pub(super) fn delete_of(db: &Connection, changes: &mut Vec<Committed>, api_key_id: &str) -> Result<(), StoreError> {
    let mut query = db.prepare_cached("DELETE FROM ssh_keys WHERE api_key_id = ?1 RETURNING id")?;
    let ids = query.query_map([api_key_id], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    changes.extend(ids.into_iter().map(|id| Committed::SshKeyRemoved { id }));
    Ok(())
}

pub(super) fn touch(db: &Connection, id: &str, at: i64) -> Result<(), StoreError> {
    db.execute("UPDATE ssh_keys SET last_used_at = ?2 WHERE id = ?1", params![id, at])?;
    Ok(())
}
