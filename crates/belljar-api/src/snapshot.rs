//! Snapshots, live copies, the fork tree and storage, as the public API shows them.
//!
//! ```text
//! in_progress -> completed -> deleting -> (gone)
//!            \-> failed (with an error; nothing is kept)
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::sandbox::CreatedSandbox;

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotType {
    /// The disk. A sandbox made from it boots; cpus, memory and disk size may differ.
    #[default]
    Filesystem,
    /// Disk, memory and devices, frozen at the same instant. A sandbox made from it goes on where the source stood.
    Memory,
}

/// Where a snapshot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotStatus {
    /// Being taken or written.
    InProgress,
    /// Durable.
    Completed,
    /// Not taken; `error` says why.
    Failed,
    /// Being removed.
    Deleting,
}

/// Body of `POST /sandboxes/{ref}/snapshot`; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateSnapshot {
    /// What to keep.
    pub snapshot_type: Option<SnapshotType>,
}

/// Answer of `POST /sandboxes/{ref}/snapshot` (202).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AcceptedSnapshot {
    /// The new id.
    pub snapshot_id: String,
    /// `in_progress`.
    pub status: SnapshotStatus,
}

/// A snapshot. Only `id` is sent, never a second spelling: clients refuse both together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// 21 characters of `[0-9a-z]`.
    pub id: String,
    /// Namespace.
    pub namespace: String,
    /// Sandbox it was taken of; that one may be gone.
    pub sandbox_id: String,
    /// Image of that sandbox.
    pub base_image: Option<String>,
    /// Where it stands.
    pub status: SnapshotStatus,
    /// Why it failed.
    pub error: Option<String>,
    /// What it holds.
    pub snapshot_type: SnapshotType,
    /// Bytes on disk that only this snapshot needed when it was taken.
    pub size_bytes: Option<u64>,
    /// Size of its disk, bytes.
    pub rootfs_disk_bytes: Option<u64>,
    /// `belljar:<node id>/<id>`: where it lies.
    pub snapshot_uri: Option<String>,
    /// Version of its format.
    pub snapshot_format_version: Option<String>,
    /// Snapshot that the source was made from or that was taken of it before; the fork tree's edge.
    pub parent_id: Option<String>,
    /// Milliseconds since the epoch.
    pub created_at: i64,
}

/// Answer of `GET /snapshots` and `GET /sandboxes/{ref}/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// Newest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// Begin the next page here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Answer of `POST /sandboxes/{ref}/copy` (200; 422 when a copy failed; 504 when one is still pending).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CopiedSandboxes {
    /// What was copied.
    pub source_sandbox_id: String,
    /// Each copy, as a create answers it.
    pub sandboxes: Vec<CreatedSandbox>,
}

/// Body of `POST /sandboxes/{ref}/rollback`. An addition of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rollback {
    /// A completed memory snapshot of this very sandbox.
    pub snapshot_id: String,
}

/// What a node of the fork tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TreeKind {
    /// A sandbox.
    Sandbox,
    /// A snapshot.
    Snapshot,
}

/// One node of the fork tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TreeNode {
    /// Sandbox or snapshot.
    pub kind: TreeKind,
    /// Its id.
    pub id: String,
    /// Name of a sandbox that has one.
    pub name: Option<String>,
    /// Status word.
    pub status: String,
    /// Id of what it was made from: a snapshot, or the sandbox it is a copy or a snapshot of.
    pub parent_id: Option<String>,
    /// Milliseconds since the epoch.
    pub created_at: i64,
}

/// Answer of `GET /tree`: every live sandbox and snapshot of the namespace, and the ended ones between them. An
/// addition of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tree {
    /// Oldest first; a parent that is gone for good is not in the list.
    pub nodes: Vec<TreeNode>,
}

/// How a path differs between two snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// Only in the second.
    Added,
    /// Only in the first.
    Removed,
    /// Another type, size, mode, owner, link target or content.
    Changed,
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffEntry {
    /// Absolute path in the guest.
    pub path: String,
    /// How.
    pub difference: Difference,
    /// Size in the second snapshot (or, when removed, in the first), bytes.
    pub size_bytes: u64,
}

/// Answer of `GET /snapshots/{id}/diff/{other}`. An addition of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDiff {
    /// By path.
    pub entries: Vec<DiffEntry>,
    /// There were more entries than an answer holds.
    pub truncated: bool,
}

/// What takes space on one node, bytes on disk. Answer of `GET /platform/v1/storage`, one per node. An addition of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageUse {
    /// The node.
    pub node_id: String,
    /// The file system in all.
    pub total_bytes: u64,
    /// What is free on it.
    pub free_bytes: u64,
    /// How disks are cloned: `reflink`, `reflink (volume)`, `copy`.
    pub clone_method: String,
    /// Image copies.
    pub images_bytes: u64,
    /// Golden snapshots and the VMs kept ready.
    pub templates_bytes: u64,
    /// Sandboxes: disks and memory that is written out. Shared blocks count once for each owner.
    pub sandboxes_bytes: u64,
    /// Chunks of snapshots; each once.
    pub snapshots_bytes: u64,
    /// Of these, chunks that no snapshot needs any more: `gc` frees them.
    pub garbage_bytes: u64,
    /// Unpacked snapshots, ready to be mapped; bounded, made again on demand.
    pub cache_bytes: u64,
    /// Logs.
    pub logs_bytes: u64,
}

/// Answer of `GET /platform/v1/storage`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageList {
    /// Connected nodes.
    pub nodes: Vec<StorageUse>,
}

/// What one node's clean-up freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Collected {
    /// The node.
    pub node_id: String,
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Files removed.
    pub removed_files: u64,
}

/// Answer of `POST /platform/v1/storage/gc`. An addition of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CollectedList {
    /// Connected nodes.
    pub nodes: Vec<Collected>,
}
