//! What came from what: the live sandboxes, the snapshots, and the ended sandboxes that these came from.

use std::{collections::HashSet, sync::Arc};

use belljar_api::node::Origin;
use rusqlite::Connection;

use super::{
    super::{Family, Page, StoreError},
    rows::load,
    sandbox, snapshot,
};
use crate::life::SandboxRow;

/// The family of a namespace.
pub(super) fn of(db: &Connection, namespace: &str, internal: bool) -> Result<Family, StoreError> {
    let all = Page { limit: usize::MAX, internal, ..Page::default() };
    let mut sandboxes = sandbox::live(db, namespace, &all)?;
    let snapshots = snapshot::list(db, namespace, None, &all)?;
    let mut known: HashSet<String> = sandboxes.iter().map(|row| row.id.clone()).collect();
    let mut wanted: Vec<String> = snapshots.iter().map(|row| row.sandbox_id.clone()).collect();
    wanted.extend(sandboxes.iter().filter_map(|row| source(row)));
    while let Some(id) = wanted.pop() {
        if !known.insert(id.clone()) {
            continue;
        }
        if let Some(row) = load(db, &id)? {
            wanted.extend(source(&row));
            sandboxes.push(Arc::new(row));
        }
    }
    Ok(Family { sandboxes, snapshots })
}

/// The sandbox that one is a copy of.
fn source(row: &SandboxRow) -> Option<String> {
    match &row.origin {
        Origin::Copy { sandbox_id } => Some(sandbox_id.clone()),
        Origin::Image | Origin::Snapshot { .. } => None,
    }
}
