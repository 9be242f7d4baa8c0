//! Commands that a node has not taken yet, and the nodes themselves.

use belljar_api::node::{Command, NodeHello, Op};
use rusqlite::{Connection, params};

use super::{
    super::{Committed, NodeRow, StoreError},
    int, uint,
};

/// Adds a command.
pub(super) fn add(
    db: &Connection,
    changes: &mut Vec<Committed>,
    node_id: String,
    sandbox_id: &str,
    generation: u64,
    op: &Op,
) -> Result<(), StoreError> {
    let op = serde_json::to_string(op).map_err(|error| StoreError::Failed(error.to_string()))?;
    db.prepare_cached("INSERT INTO outbox (node_id, sandbox_id, generation, op) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![node_id, sandbox_id, int(generation), op])?;
    changes.push(Committed::Outbox { node_id });
    Ok(())
}

/// The oldest commands for a node.
pub(super) fn next(db: &Connection, node_id: &str, limit: usize) -> Result<Vec<Command>, StoreError> {
    let mut query = db.prepare_cached(
        "SELECT seq, sandbox_id, generation, op FROM outbox WHERE node_id = ?1 ORDER BY seq LIMIT ?2",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = query.query_map(params![node_id, limit], |row| {
        Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get::<_, i64>(2)?, row.get::<_, String>(3)?))
    })?;
    rows.map(|row| {
        let (seq, sandbox_id, generation, op) = row?;
        let op = serde_json::from_str(&op)
            .map_err(|error| StoreError::Failed(format!("command {seq} cannot be read: {error}")))?;
        Ok(Command { seq: uint(seq), sandbox_id, generation: uint(generation), op })
    })
    .collect()
}

/// Removes a command.
pub(super) fn remove(db: &Connection, node_id: &str, seq: u64) -> Result<(), StoreError> {
    db.prepare_cached("DELETE FROM outbox WHERE node_id = ?1 AND seq = ?2")?.execute(params![node_id, int(seq)])?;
    Ok(())
}

/// Whether a command for this sandbox is on its way.
pub(super) fn has(db: &Connection, sandbox_id: &str) -> Result<bool, StoreError> {
    let mut query = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM outbox WHERE sandbox_id = ?1)")?;
    Ok(query.query_row(params![sandbox_id], |row| row.get(0))?)
}

/// Whether a command for this sandbox is on its way that names this id, which is random text.
pub(super) fn names(db: &Connection, sandbox_id: &str, id: &str) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM outbox WHERE sandbox_id = ?1 AND instr(op, ?2) > 0)";
    Ok(db.prepare_cached(sql)?.query_row(params![sandbox_id, id], |row| row.get(0))?)
}

/// Remembers a node that said hello.
pub(super) fn save_node(db: &Connection, hello: &NodeHello, at: i64) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO nodes (id, driver, version, seen_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (id) DO UPDATE SET driver = ?2, version = ?3, seen_at = ?4",
        params![hello.node_id, hello.driver, hello.version, at],
    )?;
    Ok(())
}

/// Every node that ever said hello.
pub(super) fn nodes(db: &Connection) -> Result<Vec<NodeRow>, StoreError> {
    let mut query = db.prepare_cached("SELECT id, driver, version, seen_at FROM nodes ORDER BY id")?;
    let rows = query.query_map([], |row| {
        Ok(NodeRow { id: row.get(0)?, driver: row.get(1)?, version: row.get(2)?, seen_at: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
