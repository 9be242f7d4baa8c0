//! The control plane, continued: snapshots, the fork tree, and the space that they take.

use std::time::Instant;

use belljar_api::snapshot::{
    AcceptedSnapshot, CollectedList, CreateSnapshot, SnapshotDiff, SnapshotInfo, SnapshotList, SnapshotStatus,
    SnapshotType, StorageList, Tree,
};
use http::Method;

use crate::{
    Client, Error, Scope,
    client::{NAMESPACE, sandbox_path},
    limits::{REQUEST_TIMEOUT, STATE_WAIT},
    transport::{Call, Plane, query_value, segment},
};

impl Client {
    /// Takes a snapshot of a running sandbox, which goes on, and waits until it is completed or has failed, at most about
    /// [`REQUEST_TIMEOUT`].
    pub async fn snapshot(&self, reference: &str, kind: SnapshotType) -> Result<SnapshotInfo, Error> {
        let accepted = self.snapshot_without_waiting(reference, kind).await?;
        self.settled_snapshot(&accepted.snapshot_id).await
    }

    /// Waits until a snapshot is completed or has failed, at most about [`REQUEST_TIMEOUT`].
    pub async fn settled_snapshot(&self, id: &str) -> Result<SnapshotInfo, Error> {
        let (path, started) = (format!("{}?wait_ms={}", snapshot_path(id), STATE_WAIT.as_millis()), Instant::now());
        loop {
            let info: SnapshotInfo = self.transport.json(Call::new(Plane::Control, Method::GET, path.clone())).await?;
            if info.status != SnapshotStatus::InProgress || started.elapsed() + STATE_WAIT > REQUEST_TIMEOUT {
                return Ok(info);
            }
        }
    }

    /// Begins to take a snapshot of a running sandbox.
    pub async fn snapshot_without_waiting(
        &self,
        reference: &str,
        kind: SnapshotType,
    ) -> Result<AcceptedSnapshot, Error> {
        let path = format!("{}/snapshot", sandbox_path(reference));
        let body = CreateSnapshot { snapshot_type: Some(kind) };
        self.transport.json(Call::new(Plane::Control, Method::POST, path).json(&body)?).await
    }

    /// The snapshot with this id.
    pub async fn get_snapshot(&self, id: &str) -> Result<SnapshotInfo, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, snapshot_path(id))).await
    }

    /// Every snapshot, or every one of a sandbox, newest first. Of a sandbox that is named, nothing is left out.
    pub async fn snapshots(&self, scope: Scope, sandbox: Option<&str>) -> Result<Vec<SnapshotInfo>, Error> {
        let first = match sandbox {
            Some(reference) => format!("{}/snapshots?", sandbox_path(reference)),
            None => format!("{NAMESPACE}/snapshots?internal={}&", scope.internal()),
        };
        let (mut all, mut path) = (Vec::new(), first.clone());
        loop {
            let page: SnapshotList = self.transport.json(Call::new(Plane::Control, Method::GET, path)).await?;
            all.extend(page.snapshots);
            match page.cursor {
                Some(cursor) => path = format!("{first}cursor={}", query_value(&cursor)),
                None => return Ok(all),
            }
        }
    }

    /// Deletes a snapshot. Sandboxes and snapshots that came from it keep what they have.
    pub async fn delete_snapshot(&self, id: &str) -> Result<(), Error> {
        self.transport.nothing(Call::new(Plane::Control, Method::DELETE, snapshot_path(id))).await
    }

    /// The files that differ between two snapshots.
    pub async fn diff(&self, id: &str, other: &str) -> Result<SnapshotDiff, Error> {
        let path = format!("{}/diff/{}", snapshot_path(id), segment(other));
        self.transport.json(Call::new(Plane::Control, Method::GET, path)).await
    }

    /// Which sandbox and snapshot came from which.
    pub async fn tree(&self, scope: Scope) -> Result<Tree, Error> {
        let path = format!("{NAMESPACE}/tree?internal={}", scope.internal());
        self.transport.json(Call::new(Plane::Control, Method::GET, path)).await
    }

    /// What takes space on each node.
    pub async fn storage(&self) -> Result<StorageList, Error> {
        self.transport.json(Call::new(Plane::Control, Method::GET, "/platform/v1/storage")).await
    }

    /// Removes what no snapshot and no sandbox needs.
    pub async fn collect_garbage(&self) -> Result<CollectedList, Error> {
        self.transport.json(Call::new(Plane::Control, Method::POST, "/platform/v1/storage/gc")).await
    }
}

fn snapshot_path(id: &str) -> String {
    format!("{NAMESPACE}/snapshots/{}", segment(id))
}
