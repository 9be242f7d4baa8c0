//! Snapshots: take, find, list, delete, compare.

use std::time::Duration;

use belljar_api::{
    id::{is_id, new_id},
    snapshot::{SnapshotDiff, SnapshotType},
};

use super::{App, restore};
use crate::{
    clock::now_ms,
    error::ApiError,
    life::{Order, SandboxRow},
    snapshot::SnapshotRow,
    store::{NewSnapshot, StoreError},
};

impl App {
    /// Takes a snapshot of a running sandbox. It is in progress when this returns.
    pub(crate) async fn take_snapshot(&self, row: &SandboxRow, kind: SnapshotType) -> Result<SnapshotRow, ApiError> {
        let new = NewSnapshot { id: new_id(), sandbox_id: row.id.clone(), kind, at: now_ms() };
        let taken = self.store.take_snapshot(new).await?;
        taken.ok_or_else(|| ApiError::sandbox_not_found(&row.id))
    }

    /// The snapshot with this id.
    pub(crate) async fn find_snapshot(&self, namespace: &str, id: &str) -> Result<SnapshotRow, ApiError> {
        let found = if is_id(id) { self.store.snapshot(id).await? } else { None };
        found.filter(|row| row.namespace == namespace).ok_or_else(|| ApiError::snapshot_not_found(id))
    }

    /// The same, once it will not change by itself any more, or when the wait is over.
    pub(crate) async fn settled_snapshot(
        &self,
        namespace: &str,
        id: &str,
        wait: Duration,
    ) -> Result<SnapshotRow, ApiError> {
        let mut changes = self.live.snapshots.subscribe();
        let deadline = tokio::time::sleep(wait);
        tokio::pin!(deadline);
        loop {
            changes.mark_unchanged();
            let row = self.find_snapshot(namespace, id).await?;
            if row.is_settled() {
                return Ok(row);
            }
            tokio::select! {
                () = &mut deadline => return Ok(row),
                _ = changes.changed() => {}
            }
        }
    }

    /// Begins to delete one; its node confirms later.
    pub(crate) async fn delete_snapshot(&self, namespace: &str, id: &str) -> Result<(), ApiError> {
        let row = self.find_snapshot(namespace, id).await?;
        self.store.delete_snapshot(&row.id).await?;
        Ok(())
    }

    /// What a sandbox has to be asked for to go back to one of its own memory snapshots.
    pub(crate) async fn rollback_order(&self, row: &SandboxRow, snapshot_id: &str) -> Result<Order, ApiError> {
        let snapshot = self.find_snapshot(&row.namespace, snapshot_id).await?;
        if snapshot.sandbox_id != row.id {
            let words = "snapshot_id: the snapshot is of another sandbox; create one from it instead";
            return Err(ApiError::invalid(words));
        }
        if snapshot.kind != SnapshotType::Memory {
            let words = "snapshot_id: only a memory snapshot can be rolled back to; create a sandbox from it instead";
            return Err(ApiError::invalid(words));
        }
        restore::check_completed(&snapshot)?;
        Ok(Order::Rollback { snapshot_id: snapshot.id })
    }

    /// What differs between two snapshots, which their node finds out.
    pub(crate) async fn snapshot_diff(&self, namespace: &str, id: &str, other: &str) -> Result<SnapshotDiff, ApiError> {
        let (first, second) = (self.find_snapshot(namespace, id).await?, self.find_snapshot(namespace, other).await?);
        restore::check_completed(&first)?;
        restore::check_completed(&second)?;
        if first.node_id != second.node_id {
            return Err(ApiError::invalid("the two snapshots lie on different nodes and cannot be compared"));
        }
        let link = self.live.nodes.get(&first.node_id);
        let link = link.ok_or_else(|| StoreError::NodeAway(first.node_id.clone()))?;
        Ok(link.snapshot_diff(&first.id, &second.id).await?)
    }
}
