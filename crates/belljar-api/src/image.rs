//! Images as the public API shows them (`/images/v4`), and the runtime configuration that an image carries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is process 1 of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// The agent.
    #[default]
    Agent,
    /// The image's systemd, of which the agent is a service.
    Systemd,
}

/// What a sandbox takes over from its image. Holds in every process, terminal and entrypoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RuntimeConfig {
    /// Environment variables; a request's own win.
    pub env: BTreeMap<String, String>,
    /// Working directory of a process that names none; `None` is the user's home.
    pub workdir: Option<String>,
    /// `name`, `uid` or `uid:gid` of a process that names none; `None` is `tl-user`.
    pub user: Option<String>,
    /// Program that starts with the sandbox.
    pub entrypoint: Vec<String>,
    /// Its arguments.
    pub cmd: Vec<String>,
    /// What boots the machine.
    pub init: Init,
}

/// An image record. Timestamps are strings: the published clients refuse numbers here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageInfo {
    /// `image_<first 21 hex digits of the digest>`.
    pub id: String,
    /// The name it is registered under.
    pub name: String,
    /// Content address of the root file system: `blake3:<64 hex>`. It is no snapshot that could be restored.
    pub snapshot_id: String,
    /// Whether it is there for every project; base images are.
    pub global: bool,
    /// Bytes it takes on disk.
    pub physical_size_bytes: u64,
    /// Bytes of the file system it holds.
    pub logical_size_bytes: u64,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
}

/// Body of `POST /images/v4/images/from-snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageFromSnapshot {
    /// Name to give it. If it stands for another image, no longer for that.
    pub name: String,
    /// A completed filesystem snapshot; the image needs it no longer when it is made.
    pub snapshot_id: String,
    /// Whether it is there for every project.
    #[serde(default)]
    pub public: bool,
}

/// Answer of `GET /images/v4/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// By name.
    pub items: Vec<ImageInfo>,
    /// Whether there are more.
    pub pagination: Pagination,
}

/// Where the next page is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pagination {
    /// Cursor of the next page; null on the last.
    pub next: Option<String>,
}
