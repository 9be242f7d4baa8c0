//! What server and node say to each other.
//!
//! The node dials **out**: `POST /node/v1/connect` on the server's listener with `Authorization: Bearer <node token>`
//! and `Upgrade: belljar-node/1`. After the 101 the roles turn: over that one connection the *server* is an HTTP/2
//! client (prior knowledge) and the node an HTTP/2 server:
//!
//! | request | body -> answer |
//! |---|---|
//! | `GET /v1/hello` | -> [`NodeHello`] |
//! | `POST /v1/commands` | [`Command`] -> [`CommandAck`] once it is durable on the node; 4xx [`crate::error::ErrorBody`] never retried |
//! | `GET /v1/reports` | -> endless JSON lines of [`Report`]: first every sandbox, then [`Report::Synced`], then changes |
//! | `GET /v1/images` | -> `[`[`crate::image::ImageInfo`]`]`, read anew from disk |
//! | `GET /v1/images?name=` | -> [`crate::image::ImageInfo`], aliases resolved; 404 names the images there are |
//! | `POST /v1/logs` | [`LogQuery`] -> [`crate::log::LogPage`] |
//! | `GET /v1/logs/{sandbox_id}/processes` | -> [`crate::log::LogProcessList`] |
//! | `CONNECT {sandbox_id}:{port}` | 200, then the stream's bytes are the guest connection's; else 4xx/5xx [`crate::error::ErrorBody`] |
//!
//! Commands are delivered at least once, in order of `seq`. A node ignores a command whose generation is older than
//! what it has, and answers a repeated one with the same acknowledgement.

use serde::{Deserialize, Serialize};

use crate::{
    image::ImageInfo,
    sandbox::{NetworkConfig, Resources, TerminationReason},
};

/// Version of this protocol, in the `Upgrade` header.
pub const UPGRADE: &str = "belljar-node/1";
/// Path of the connect request on the server.
pub const CONNECT_PATH: &str = "/node/v1/connect";

/// Who a node is and what it can hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeHello {
    /// Stable id, made on the node's first start.
    pub node_id: String,
    /// Version of the program.
    pub version: String,
    /// Driver that sandboxes get.
    pub driver: String,
    /// What there is in all.
    pub capacity: Capacity,
    /// Images on the node.
    pub images: Vec<ImageInfo>,
}

/// What a node can hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Host cpus: the most that one sandbox may ask for. Cpus are shared, so they do not add up.
    pub cpus: f64,
    /// Memory for sandboxes, MiB; adds up.
    pub memory_mb: u64,
}

/// An instruction from the durable outbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Place in the outbox.
    pub seq: u64,
    /// The sandbox.
    pub sandbox_id: String,
    /// Issued by the store; a stale one changes nothing.
    pub generation: u64,
    /// What to do.
    pub op: Op,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// Make it and run it.
    Create {
        /// What to make.
        spec: SandboxSpec,
    },
    /// Take over what may change while it runs.
    Update {
        /// All such values.
        settings: Settings,
    },
    /// End it and remove everything it owns.
    Terminate {
        /// Why.
        reason: TerminationReason,
    },
}

/// All that a node needs to make a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Namespace, for log lines.
    pub namespace: String,
    /// Image name.
    pub image: String,
    /// Cpus, memory, disk.
    pub resources: Resources,
    /// Program that starts with it; wins over the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Values that may change later.
    pub settings: Settings,
}

/// What may change while a sandbox runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Name, when it has one: its host name, and idle never ends it.
    pub name: Option<String>,
    /// Idle seconds; 0 is none.
    pub timeout_secs: u64,
    /// Network policy.
    pub network: NetworkConfig,
}

/// The node has the command on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandAck {
    /// Its place in the outbox.
    pub seq: u64,
    /// False when it was older than what the node has.
    pub applied: bool,
}

/// What a node tells unasked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "report")]
pub enum Report {
    /// How one sandbox stands.
    Sandbox(SandboxReport),
    /// Every sandbox of the node has been told: what was not is not there.
    Synced,
}

/// How a sandbox stands on its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// The sandbox.
    pub sandbox_id: String,
    /// Generation of the last command that was taken.
    pub generation: u64,
    /// Where it stands.
    pub state: NodeState,
}

/// State of a sandbox on its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum NodeState {
    /// Being made.
    Starting,
    /// The agent answers.
    Running,
    /// It ended; everything it owned but its log is gone. Kept and told until the server has acknowledged it by
    /// `Terminate`.
    Terminated {
        /// Why.
        reason: TerminationReason,
        /// More words, for people; empty when the reason says all.
        detail: String,
        /// Milliseconds since the epoch.
        at: i64,
    },
}

/// Which lines of a sandbox's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogQuery {
    /// The sandbox.
    pub sandbox_id: String,
    /// Only these levels; empty is all.
    pub levels: Vec<u8>,
    /// Only these process handles; empty is all.
    pub process_ids: Vec<String>,
    /// From this token of an earlier page.
    pub next_token: Option<String>,
    /// Only the first so many.
    pub head: Option<usize>,
    /// Only the last so many.
    pub tail: Option<usize>,
    /// Only lines that contain this text.
    pub body: Option<String>,
}
