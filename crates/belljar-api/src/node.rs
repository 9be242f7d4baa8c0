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
//! | `GET /v1/reports` | -> endless JSON lines of [`Report`]: first every sandbox and snapshot, then [`Report::Synced`], then changes |
//! | `GET /v1/images` | -> `[`[`crate::image::ImageInfo`]`]`, read anew from disk |
//! | `GET /v1/images?name=`, `?id=` | -> [`crate::image::ImageInfo`], aliases resolved; 404 names the images there are |
//! | `DELETE /v1/images?name=`, `?id=` | -> [`DeletedImage`]: a name, or an image with all its names; 404 as above, 403 for one of the product's own |
//! | `POST /v1/images/from-snapshot` | [`NewImage`] -> [`crate::image::ImageInfo`]; 404 when the snapshot is not here, 400 when it or the name cannot be an image, 409 while the name is being made |
//! | `POST /v1/images/import` | [`ImportImage`] -> JSON lines of [`ImportReport`]; who drops the answer stops the import. 409 when one with this id is under way, 429 when too many are |
//! | `GET /v1/images/name?name=` | -> `{"name"}`, canonical; 400 when no image can have it, 403 when it is one of the product's own |
//! | `POST /v1/images/give` | [`GiveImage`] -> `{}` once it is there; who drops the request stops it. 404 when there is no such image or sandbox |
//! | `POST /v1/images/import/{build_id}/stop` | -> [`StoppedImport`]; 404 when no such import is under way |
//! | `GET /v1/storage` | -> [`crate::snapshot::StorageUse`] |
//! | `POST /v1/storage/gc` | -> [`crate::snapshot::Collected`] |
//! | `GET /v1/snapshots/{id}/diff/{other}` | -> [`crate::snapshot::SnapshotDiff`]; 404 when one is not here |
//! | `POST /v1/network/check` | [`NetworkConfig`] -> `{}`; 400 says what cannot be enforced, or which name has no address |
//! | `GET /v1/network/{sandbox_id}` | -> [`crate::network::NetworkUse`]; 404 when nothing is counted now |
//! | `GET /v1/sandboxes/{sandbox_id}/done/{generation}` | -> `{}` once the command of that generation shows its effect: new rules hold; at once when the sandbox is not here |
//! | `PUT /v1/credentials` | [`Credentials`] -> `{}`: all that there are, kept in memory only; before any command, and after every change |
//! | `POST /v1/logs` | [`LogQuery`] -> [`crate::log::LogPage`] |
//! | `GET /v1/logs/{sandbox_id}/processes` | -> [`crate::log::LogProcessList`] |
//! | `POST /v1/streams/{sandbox_id}/{port}` | 200, then the two bodies are the bytes of a connection to that port of the guest; else 4xx/5xx [`crate::error::ErrorBody`] |
//!
//! Commands are delivered at least once, in order of `seq`. A node ignores a command whose generation is not newer than
//! what it has, and answers a repeated one with the same acknowledgement. (`Terminate` of an ended sandbox is the one
//! that is taken again: it lets the node forget.)
//!
//! The end of a body is the end of that direction, and the other goes on; what was cut off is reset with `INTERNAL_ERROR`.
//! (It is no `CONNECT`, because the library tells those who read an upgraded connection of a reset as of an orderly end.)
//!
//! A stream to a sleeping sandbox wakes it, when its settings allow that: the node is the one place that knows
//! whether it sleeps *now*. It puts an idle one to sleep by itself, too; the server learns of both by report.

use serde::{Deserialize, Serialize};

use crate::{
    build::BuildPhase,
    image::ImageInfo,
    sandbox::{Gpus, NetworkConfig, Resources, TerminationReason},
    secret::{SecretRef, SecretValue},
    snapshot::SnapshotType,
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
    /// Whether `allow_out` and `deny_out` hold there.
    #[serde(default)]
    pub egress_rules: bool,
    /// Images on the node.
    pub images: Vec<ImageInfo>,
}

/// What a node can hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Host cpus: the most that one sandbox may ask for. Cpus are shared, so they do not add up.
    pub cpus: f64,
    /// Memory for sandboxes, MiB; adds up.
    pub memory_mb: u64,
    /// GPUs for sandboxes, each model once; each is one sandbox's at a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpus>,
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
        /// What it begins as.
        #[serde(default)]
        origin: Origin,
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
    /// Put it to sleep. Only for one whose settings say [`Settings::suspends`].
    Suspend,
    /// Wake it.
    Resume,
    /// Take a snapshot of it.
    Snapshot {
        /// Id of the new snapshot.
        snapshot_id: String,
        /// What to keep.
        kind: SnapshotType,
    },
    /// Make running copies of it, in one pause. Each copy is a sandbox of its own from here on: it reports under its own
    /// id, and ends with `StartupFailedInternalError` when it cannot be made.
    Copy {
        /// The copies.
        copies: Vec<CopySpec>,
    },
    /// Put it back to one of its own memory snapshots, under its own id. It is running afterwards.
    Rollback {
        /// The snapshot.
        snapshot_id: String,
    },
    /// Remove a snapshot; [`Command::sandbox_id`] is the snapshot's id.
    DeleteSnapshot,
}

/// What a sandbox begins as.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum Origin {
    /// Its image.
    #[default]
    Image,
    /// A snapshot on this node.
    Snapshot {
        /// Which.
        snapshot_id: String,
        /// What it holds.
        kind: SnapshotType,
    },
    /// A running sandbox on this node; only a [`Op::Copy`] of that makes it.
    Copy {
        /// The source.
        sandbox_id: String,
    },
}

/// One copy that [`Op::Copy`] makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopySpec {
    /// Id of the new sandbox.
    pub sandbox_id: String,
    /// Its first generation.
    pub generation: u64,
    /// What it is to be.
    pub spec: SandboxSpec,
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
    /// Secrets that it uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,
    /// Values that may change later.
    pub settings: Settings,
}

/// What a node needs to put secrets into requests. Only ever in memory there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Certificate of the installation's authority, PEM: what guests trust.
    pub ca_certificate: String,
    /// Its private key, PEM (PKCS #8).
    pub ca_key: SecretValue,
    /// Every secret.
    pub secrets: Vec<Secret>,
}

/// A secret with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// What sandboxes have in its place.
    pub placeholder: String,
    /// The secret itself.
    pub value: SecretValue,
    /// Where it may go: host names and `*.suffix`es.
    pub hosts: Vec<String>,
    /// In which headers, lower case.
    pub headers: Vec<String>,
}

/// What may change while a sandbox runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Name, when it has one: its host name.
    pub name: Option<String>,
    /// Idle puts it to sleep instead of ending it: it has a name, or was claimed from a pool.
    #[serde(default)]
    pub suspends: bool,
    /// Whether a connection wakes it.
    #[serde(default)]
    pub auto_resume: bool,
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
    /// How one snapshot stands.
    Snapshot(SnapshotReport),
    /// Every sandbox and snapshot of the node has been told: what was not is not there.
    Synced,
}

/// How a snapshot stands on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// The snapshot.
    pub snapshot_id: String,
    /// Where it stands.
    pub state: SnapshotState,
}

/// State of a snapshot on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum SnapshotState {
    /// Being taken or written.
    InProgress,
    /// Durable.
    Completed {
        /// Bytes that it added on disk.
        size_bytes: u64,
        /// Size of its disk, bytes.
        rootfs_disk_bytes: u64,
    },
    /// Not taken; nothing of it is kept but this report, until the server sends [`Op::DeleteSnapshot`].
    Failed {
        /// Why, for people.
        error: String,
    },
    /// Removed. Told once.
    Deleted,
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
    /// Why the last suspend, resume, copy or rollback that was asked for did not happen; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// State of a sandbox on its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum NodeState {
    /// Being made.
    Starting,
    /// The agent answers.
    Running,
    /// Being put to sleep: nothing of it is durable yet.
    Suspending,
    /// Asleep, and durable. Its memory may still be held for a quick wake; that does not count as used.
    Suspended,
    /// Waking.
    Resuming,
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

/// An image that is to be made of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewImage {
    /// Its name; what that stood for before it stands for no longer.
    pub name: String,
    /// A completed filesystem snapshot.
    pub snapshot_id: String,
    /// Whether it is there for every project.
    pub public: bool,
}

/// An image that is to be imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportImage {
    /// The build that this is for.
    pub build_id: String,
    /// Its name; what that stood for before it stands for no longer.
    pub name: String,
    /// Whether it is there for every project.
    pub public: bool,
    /// Where it comes from.
    pub source: ImportSource,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum ImportSource {
    /// A registry.
    Registry {
        /// Which image of which one.
        image_ref: String,
        /// Docker's `config.json`, of which only `auths` counts. In memory only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registry_credentials_json: Option<SecretValue>,
    },
    /// A sandbox that it was built in.
    Sandbox {
        /// Digest of its configuration: `sha256:…`.
        config_digest: String,
        /// Where it lies. Without this it is only named, when it was imported before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        archive: Option<SandboxFile>,
    },
}

/// A file or a directory in a running sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxFile {
    /// The sandbox.
    pub sandbox_id: String,
    /// The path.
    pub path: String,
}

/// An image that is to be put into a running sandbox, as a directory in the OCI layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GiveImage {
    /// Name of the image.
    pub name: String,
    /// Where it goes: a directory that is made.
    pub to: SandboxFile,
}

/// What becomes of an import. Every one but [`Self::Step`] is the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "import")]
pub enum ImportReport {
    /// It has got so far. Until the first one it waits for others.
    Step {
        /// How far.
        phase: BuildPhase,
    },
    /// The image is there.
    Done {
        /// It.
        image: ImageInfo,
    },
    /// There is none.
    Failed {
        /// Why, for people.
        error: String,
    },
    /// There is none, and there will be none: it was stopped.
    Stopped,
    /// It was not imported before, and nobody said where it lies.
    Absent,
}

/// Whether an import was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedImport {
    /// There will be no image. Otherwise it is being named just now, and its last report says what became of it.
    pub stopped: bool,
}

/// What was removed of the images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedImage {
    /// Names that stand for nothing any more.
    pub names: Vec<String>,
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
