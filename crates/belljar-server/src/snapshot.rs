//! A snapshot as the store keeps it, and every way in which it may change.
//!
//! ```text
//!  InProgress --report--> Completed --delete--> Deleting --report(Deleted), lost--> (gone)
//!       |  \--report, lost--> Failed --delete----^
//!       \--delete--------------------------------^
//! ```
//!
//! Pure, like [`crate::life`]. The bytes lie on one node; the row outlives the sandbox it was taken of.

use belljar_api::{
    node::SnapshotState,
    snapshot::{SnapshotInfo, SnapshotStatus, SnapshotType},
};

use crate::life::Spec;

/// Version of the format that nodes write, as clients see it.
const FORMAT_VERSION: &str = "1";

/// One snapshot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SnapshotRow {
    /// See [`belljar_api::id`].
    pub(crate) id: String,
    /// Namespace.
    pub(crate) namespace: String,
    /// What it was taken of.
    pub(crate) sandbox_id: String,
    /// Where it lies.
    pub(crate) node_id: String,
    /// What it holds.
    pub(crate) kind: SnapshotType,
    /// Where it stands.
    pub(crate) standing: Standing,
    /// What the sandbox was like.
    pub(crate) spec: Spec,
    /// The snapshot before it.
    pub(crate) parent_id: Option<String>,
    /// Milliseconds since the epoch.
    pub(crate) created_at: i64,
}

/// Where a snapshot stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its node is at it, or will be when it has taken the command.
    InProgress,
    /// Durable on its node.
    Completed {
        /// Bytes that it added on disk.
        size_bytes: u64,
        /// Size of its disk, bytes.
        rootfs_disk_bytes: u64,
    },
    /// There is nothing of it.
    Failed {
        /// Why, for people.
        error: String,
    },
    /// Its node has not said yet that it is gone.
    Deleting,
}

/// What a report makes of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// Nothing new.
    Same,
    /// It stands there now.
    Changed(Standing),
    /// It is gone.
    Gone,
}

impl SnapshotRow {
    /// Whether it will not change by itself any more.
    pub(crate) fn is_settled(&self) -> bool {
        match self.standing {
            Standing::InProgress | Standing::Deleting => false,
            Standing::Completed { .. } | Standing::Failed { .. } => true,
        }
    }

    /// As the API shows it.
    pub(crate) fn info(&self) -> SnapshotInfo {
        let (status, error, sizes) = match &self.standing {
            Standing::InProgress => (SnapshotStatus::InProgress, None, None),
            Standing::Completed { size_bytes, rootfs_disk_bytes } => {
                (SnapshotStatus::Completed, None, Some((*size_bytes, *rootfs_disk_bytes)))
            }
            Standing::Failed { error } => (SnapshotStatus::Failed, Some(error.clone()), None),
            Standing::Deleting => (SnapshotStatus::Deleting, None, None),
        };
        let completed = status == SnapshotStatus::Completed;
        SnapshotInfo {
            id: self.id.clone(),
            namespace: self.namespace.clone(),
            sandbox_id: self.sandbox_id.clone(),
            base_image: Some(self.spec.image.clone()),
            status,
            error,
            snapshot_type: self.kind,
            size_bytes: sizes.map(|(size, _)| size),
            rootfs_disk_bytes: sizes.map(|(_, disk)| disk),
            snapshot_uri: completed.then(|| format!("belljar:{}/{}", self.node_id, self.id)),
            snapshot_format_version: completed.then(|| FORMAT_VERSION.to_owned()),
            parent_id: self.parent_id.clone(),
            created_at: self.created_at,
        }
    }
}

/// Takes over what its node says.
pub(crate) fn report(row: &SnapshotRow, state: &SnapshotState) -> Outcome {
    let standing = match (&row.standing, state) {
        (_, SnapshotState::Deleted) => return Outcome::Gone,
        // The node has not seen the command yet.
        (Standing::Deleting, _) => return Outcome::Same,
        (_, SnapshotState::InProgress) => Standing::InProgress,
        (_, SnapshotState::Completed { size_bytes, rootfs_disk_bytes }) => {
            Standing::Completed { size_bytes: *size_bytes, rootfs_disk_bytes: *rootfs_disk_bytes }
        }
        (_, SnapshotState::Failed { error }) => Standing::Failed { error: error.clone() },
    };
    if standing == row.standing {
        return Outcome::Same;
    }
    Outcome::Changed(standing)
}

/// Its node told all it has, and this was not in it.
pub(crate) fn lost(row: &SnapshotRow) -> Outcome {
    match row.standing {
        Standing::Deleting => Outcome::Gone,
        Standing::Failed { .. } => Outcome::Same,
        Standing::InProgress | Standing::Completed { .. } => {
            let error = format!("node {} no longer has this snapshot", row.node_id);
            Outcome::Changed(Standing::Failed { error })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::rows;

    fn row(standing: Standing) -> SnapshotRow {
        SnapshotRow {
            id: "s".into(),
            namespace: "default".into(),
            sandbox_id: "id".into(),
            node_id: "n".into(),
            kind: SnapshotType::Memory,
            standing,
            spec: rows::spec(),
            parent_id: None,
            created_at: 1,
        }
    }

    #[track_caller]
    fn check(outcome: Outcome, expected: &str) -> SnapshotRow {
        match outcome {
            Outcome::Changed(standing) => {
                let row = row(standing);
                let info = row.info();
                let error = info.error.map(|error| format!(" ({error})")).unwrap_or_default();
                assert_eq!(format!("{:?}{error}", info.status), expected);
                row
            }
            other => panic!("{other:?}, not {expected}"),
        }
    }

    #[test]
    fn it_is_taken_and_goes() {
        let completed = SnapshotState::Completed { size_bytes: 5, rootfs_disk_bytes: 9 };
        let taken = row(Standing::InProgress);
        assert_eq!(report(&taken, &SnapshotState::InProgress), Outcome::Same);
        let done = check(report(&taken, &completed), "Completed");
        let info = done.info();
        assert_eq!((info.size_bytes, info.rootfs_disk_bytes), (Some(5), Some(9)));
        assert_eq!(info.snapshot_uri.as_deref(), Some("belljar:n/s"));
        check(report(&taken, &SnapshotState::Failed { error: "no space".into() }), "Failed (no space)");
        check(lost(&done), "Failed (node n no longer has this snapshot)");
        let deleting = row(Standing::Deleting);
        assert_eq!(report(&deleting, &completed), Outcome::Same);
        assert_eq!((report(&deleting, &SnapshotState::Deleted), lost(&deleting)), (Outcome::Gone, Outcome::Gone));
    }

    proptest! {
        #[test]
        fn one_that_is_being_deleted_never_comes_back(states in prop::collection::vec(0u8..3, 0..20)) {
            let row = row(Standing::Deleting);
            for state in states {
                let state = match state {
                    0 => SnapshotState::InProgress,
                    1 => SnapshotState::Completed { size_bytes: 1, rootfs_disk_bytes: 1 },
                    _ => SnapshotState::Failed { error: "x".into() },
                };
                prop_assert_eq!(report(&row, &state), Outcome::Same);
            }
        }
    }
}
