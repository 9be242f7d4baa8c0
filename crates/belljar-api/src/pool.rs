//! Pools of warm sandboxes, as the public API shows them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::sandbox::{NetworkConfig, Resources, ResourcesRequest};

/// Body of `POST /sandbox-pools` and `PUT /sandbox-pools/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PoolRequest {
    /// Image name; the server's default when absent.
    pub image: Option<String>,
    /// Cpus, memory, disk of each sandbox.
    pub resources: Option<ResourcesRequest>,
    /// Idle seconds of a claimed sandbox until it is suspended; 0 is none.
    pub timeout_secs: Option<u64>,
    /// Program that starts with each sandbox.
    pub entrypoint: Option<Vec<String>>,
    /// Most sandboxes, warm and claimed together.
    pub max_containers: Option<u32>,
    /// Unclaimed running sandboxes that are kept.
    pub warm_containers: Option<u32>,
    /// Network policy. In a PUT, absent and `null` are the default one.
    pub network: Option<NetworkConfig>,
    /// Secrets that each sandbox uses.
    pub secret_names: Option<Vec<String>>,
    /// Whether exposed ports answer without a key.
    pub allow_unauthenticated_access: Option<bool>,
    /// Guest ports routed from outside.
    pub exposed_ports: Option<Vec<u16>>,
}

/// Answer of `POST /sandbox-pools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedPool {
    /// The new id.
    pub pool_id: String,
    /// Namespace.
    pub namespace: String,
}

/// One sandbox of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolContainer {
    /// Its id.
    pub id: String,
    /// `pending`, `running` or `terminated`.
    pub state: String,
    /// Set once it is claimed.
    pub sandbox_id: Option<String>,
    /// Node that runs it.
    pub executor_id: Option<String>,
}

/// A pool. Only `id` is sent, never a second spelling: clients refuse both together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolInfo {
    /// 21 characters of `[0-9a-z]`.
    pub id: String,
    /// Namespace.
    pub namespace: String,
    /// Image name.
    pub image: String,
    /// What each sandbox has.
    pub resources: Resources,
    /// Idle seconds of a claimed sandbox until it is suspended; 0 is none.
    pub timeout_secs: u64,
    /// Program that starts with each sandbox.
    pub entrypoint: Option<Vec<String>>,
    /// Most sandboxes, warm and claimed together.
    pub max_containers: Option<u32>,
    /// Unclaimed running sandboxes that are kept.
    pub warm_containers: Option<u32>,
    /// Network policy.
    pub network_policy: Option<NetworkConfig>,
    /// Whether exposed ports answer without a key.
    #[serde(default)]
    pub allow_unauthenticated_access: bool,
    /// Guest ports routed from outside.
    #[serde(default)]
    pub exposed_ports: Vec<u16>,
    /// Secrets that each sandbox uses.
    #[serde(default)]
    pub secret_names: Vec<String>,
    /// Warm and claimed sandboxes.
    pub containers: Vec<PoolContainer>,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Milliseconds since the epoch.
    pub updated_at: i64,
}

/// Answer of `GET /sandbox-pools`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolList {
    /// Oldest first.
    pub pools: Vec<PoolInfo>,
}
