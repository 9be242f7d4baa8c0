//! The fork tree: what came from what.

use belljar_api::{
    node::Origin,
    snapshot::{TreeKind, TreeNode},
};

use super::App;
use crate::{error::ApiError, life::SandboxRow, snapshot::SnapshotRow, visible};

impl App {
    /// Every live sandbox and snapshot of a namespace, and the ended sandboxes that they came from, oldest first.
    pub(crate) async fn tree(&self, namespace: &str, internal: bool) -> Result<Vec<TreeNode>, ApiError> {
        let family = self.store.family(namespace, internal).await?;
        let sandboxes = family.sandboxes.iter().map(|row| sandbox(row, self.has_node(row)));
        let mut nodes: Vec<_> = sandboxes.chain(family.snapshots.iter().map(snapshot)).collect();
        nodes.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(nodes)
    }
}

fn sandbox(row: &SandboxRow, has_node: bool) -> TreeNode {
    let parent_id = match &row.origin {
        Origin::Image => None,
        Origin::Snapshot { snapshot_id, .. } => Some(snapshot_id.clone()),
        Origin::Copy { sandbox_id } => Some(sandbox_id.clone()),
    };
    TreeNode {
        kind: TreeKind::Sandbox,
        id: row.id.clone(),
        name: row.name.clone(),
        status: visible::wire_word(visible::status(row, has_node).0),
        parent_id,
        created_at: row.created_at,
    }
}

fn snapshot(row: &SnapshotRow) -> TreeNode {
    let info = row.info();
    TreeNode {
        kind: TreeKind::Snapshot,
        id: info.id,
        name: None,
        status: visible::wire_word(info.status),
        parent_id: Some(info.sandbox_id),
        created_at: info.created_at,
    }
}
