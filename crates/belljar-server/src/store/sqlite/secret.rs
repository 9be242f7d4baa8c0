//! Secrets, sealed, and the authority.

use rusqlite::{Connection, OptionalExtension, Row, params, types::Type};

use belljar_api::{limits::SECRETS_MAX, secret::DEFAULT_HEADER};

use super::{
    super::{AuthorityRow, SecretChange, SecretRow, StoreError},
    int,
};

const COLUMNS: &str = "id, name, sealed, placeholder, hosts, headers, created_at, updated_at";

fn read(row: &Row<'_>) -> rusqlite::Result<SecretRow> {
    let list = |column: usize| {
        let text: String = row.get(column)?;
        serde_json::from_str(&text)
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into()))
    };
    Ok(SecretRow {
        id: row.get(0)?,
        name: row.get(1)?,
        sealed: row.get(2)?,
        placeholder: row.get(3)?,
        hosts: list(4)?,
        headers: list(5)?,
        created_at: row.get(6)?,
        updated_at: row.get(7)?,
    })
}

pub(super) fn all(db: &Connection) -> Result<Vec<SecretRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM secrets ORDER BY name"))?;
    Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
}

fn named(db: &Connection, name: &str) -> Result<Option<SecretRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM secrets WHERE name = ?1");
    Ok(db.query_row(&sql, [name], read).optional()?)
}

pub(super) fn put(db: &Connection, changes: Vec<SecretChange>) -> Result<Vec<SecretRow>, StoreError> {
    let mut rows = Vec::new();
    for change in changes {
        let row = match (named(db, &change.name)?, change.sealed) {
            (Some(row), sealed) => SecretRow {
                sealed: sealed.unwrap_or(row.sealed),
                hosts: change.hosts.unwrap_or(row.hosts),
                headers: change.headers.unwrap_or(row.headers),
                updated_at: change.at,
                ..row
            },
            (None, Some(sealed)) => SecretRow {
                id: change.new_id,
                name: change.name,
                sealed,
                placeholder: change.new_placeholder,
                hosts: change.hosts.unwrap_or_default(),
                headers: change.headers.unwrap_or_else(|| vec![DEFAULT_HEADER.to_owned()]),
                created_at: change.at,
                updated_at: change.at,
            },
            (None, None) => return Err(StoreError::NoValue(change.name)),
        };
        save(db, &row)?;
        rows.push(row);
    }
    let count: i64 = db.query_row("SELECT count(*) FROM secrets", [], |row| row.get(0))?;
    let max = SECRETS_MAX as u64;
    if count > int(max) {
        return Err(StoreError::TooMany { what: "secrets", max });
    }
    Ok(rows)
}

fn save(db: &Connection, row: &SecretRow) -> Result<(), StoreError> {
    let json = |list: &[String]| serde_json::to_string(list).map_err(|error| StoreError::Failed(error.to_string()));
    db.execute(
        &format!("INSERT OR REPLACE INTO secrets ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"),
        params![
            row.id,
            row.name,
            row.sealed,
            row.placeholder,
            json(&row.hosts)?,
            json(&row.headers)?,
            row.created_at,
            row.updated_at
        ],
    )?;
    Ok(())
}

pub(super) fn delete(db: &Connection, reference: &str) -> Result<bool, StoreError> {
    Ok(db.execute("DELETE FROM secrets WHERE id = ?1 OR name = ?1", [reference])? > 0)
}

pub(super) fn authority(db: &Connection) -> Result<Option<AuthorityRow>, StoreError> {
    let read = |row: &Row<'_>| Ok(AuthorityRow { certificate: row.get(0)?, sealed_key: row.get(1)? });
    Ok(db.query_row("SELECT certificate, sealed_key FROM authority", [], read).optional()?)
}

pub(super) fn save_authority(db: &Connection, row: &AuthorityRow) -> Result<(), StoreError> {
    db.execute(
        "INSERT OR IGNORE INTO authority (one, certificate, sealed_key) VALUES (1, ?1, ?2)",
        params![row.certificate, row.sealed_key],
    )?;
    Ok(())
}
