//! Files of the guest (`/api/v1/files`); contents are raw bodies and have no type here.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/v1/files/list?path=`: directories first, then by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirectoryList {
    /// The directory, as asked for.
    pub path: String,
    /// What is in it.
    pub entries: Vec<DirectoryEntry>,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirectoryEntry {
    /// Its name, without the directory.
    pub name: String,
    /// Whether it is a directory (links are followed).
    pub is_dir: bool,
    /// Bytes; null for directories.
    pub size: Option<u64>,
    /// Milliseconds since the epoch.
    pub modified_at: Option<i64>,
}
