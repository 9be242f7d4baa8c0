//! Where everything durable lives: a trait, so that a fleet can use another database than the embedded one.
//!
//! Each method is one transaction. A store decides nothing: it loads rows, asks [`crate::life`] for the next ones and
//! saves them with the commands that belong to them. It tells its [`Observer`] every committed change, in the order of
//! the commits and before the caller gets its answer: a caller that went away changes nothing about what the rest of
//! the server sees.
//!
//! It is not a cache and knows no connection, image or key secret; what secrets it holds are sealed.

mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use belljar_api::{
    node::{Capacity, Command, NodeHello, SandboxReport, SnapshotReport},
    snapshot::SnapshotType,
};

pub use self::sqlite::OpenError;
pub(crate) use self::sqlite::SqliteStore;
use crate::{
    build::{Admission, BuildCache, BuildRow, Event},
    life::{Change, Ending, Order, Refusal, SandboxRow, Spec},
    pool::PoolRow,
    snapshot::SnapshotRow,
};

/// Why a store did not do what it was asked; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A live sandbox of the namespace has the name.
    #[error("name {0:?} is in use")]
    NameInUse(String),
    /// The sandbox cannot do that just now.
    #[error("{0}")]
    Refused(Refusal),
    /// A limit is reached.
    #[error("there are {max} {what} already")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// A node has not the memory.
    #[error("{needed_mb} MiB of memory are needed, and {free_mb} MiB are free")]
    NoRoom {
        /// What was asked for.
        needed_mb: u64,
        /// What there is.
        free_mb: u64,
    },
    /// The node that would have to do it is not connected.
    #[error("node {0} is not connected")]
    NodeAway(String),
    /// There is no such pool.
    #[error("there is no pool {0}")]
    NoPool(String),
    /// Claimed sandboxes of the pool live.
    #[error("pool {0} is in use")]
    PoolInUse(String),
    /// The pool has as many sandboxes as it may.
    #[error("pool {id} has {max} sandboxes already")]
    PoolFull {
        /// The pool.
        id: String,
        /// Its limit.
        max: u32,
    },
    /// An idempotency key came again with another request.
    #[error("the idempotency key belongs to another request")]
    KeyReused,
    /// The only key cannot be removed.
    #[error("the only key cannot be removed")]
    LastKey,
    /// The API key that asks was removed meanwhile.
    #[error("the API key was removed")]
    KeyGone,
    /// The SSH key was added before.
    #[error("the SSH key is there already, as {name:?}")]
    SshKeyKnown {
        /// Its label.
        name: String,
    },
    /// A new secret needs a value.
    #[error("there is no secret {0:?} yet, and no value for it")]
    NoValue(String),
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The database failed; the text is for the log.
    #[error("{0}")]
    Failed(String),
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
}

/// A committed change.
#[derive(Debug, Clone)]
pub(crate) enum Committed {
    /// A sandbox was made or changed.
    Sandbox(Arc<SandboxRow>),
    /// There is a new command for this node.
    Outbox {
        /// The node.
        node_id: String,
    },
    /// Something about snapshots changed.
    Snapshots,
    /// An image build was made or changed.
    Builds,
    /// A pool was made, changed or removed.
    Pool {
        /// Its id.
        id: String,
    },
    /// A key was made.
    KeyAdded(KeyRow),
    /// A key was removed.
    KeyRemoved {
        /// Its id.
        id: String,
    },
    /// An SSH key was added.
    SshKeyAdded(SshKeyRow),
    /// An SSH key was removed, by itself or with its API key.
    SshKeyRemoved {
        /// Its id.
        id: String,
    },
}

/// Is told every committed change, on the store's own thread: it must be quick and must not call the store.
pub(crate) type Observer = Arc<dyn Fn(Committed) + Send + Sync>;

/// An API key; the secret is nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRow {
    /// Its id.
    pub(crate) id: String,
    /// Its label.
    pub(crate) name: String,
    /// SHA-256 of the secret.
    pub(crate) hash: [u8; 32],
    /// Milliseconds since the epoch.
    pub(crate) created_at: i64,
}

/// An SSH key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshKeyRow {
    /// Its id.
    pub(crate) id: String,
    /// The API key that added it; it goes with that.
    pub(crate) api_key_id: String,
    /// Its label.
    pub(crate) name: String,
    /// As OpenSSH names it.
    pub(crate) key_type: String,
    /// `SHA256:…`; no two keys have the same.
    pub(crate) fingerprint: String,
    /// Type and base64, without a comment.
    pub(crate) public_key: String,
    /// Milliseconds since the epoch.
    pub(crate) created_at: i64,
    /// When it last opened a connection, milliseconds since the epoch, not to the second.
    pub(crate) last_used_at: Option<i64>,
}

/// A secret. What it is for is plain, its value is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretRow {
    /// Its id.
    pub(crate) id: String,
    /// Unique.
    pub(crate) name: String,
    /// The value; see [`crate::secret`].
    pub(crate) sealed: Vec<u8>,
    /// Never changes, so that sandboxes go on with a new value.
    pub(crate) placeholder: String,
    /// Where it may go.
    pub(crate) hosts: Vec<String>,
    /// In which headers.
    pub(crate) headers: Vec<String>,
    /// Milliseconds since the epoch.
    pub(crate) created_at: i64,
    /// Milliseconds since the epoch.
    pub(crate) updated_at: i64,
}

/// A secret that is put: a new one, or what changes of the one with that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretChange {
    /// Its name.
    pub(crate) name: String,
    /// Id of a new one.
    pub(crate) new_id: String,
    /// Placeholder of a new one.
    pub(crate) new_placeholder: String,
    /// A new one must have it.
    pub(crate) sealed: Option<Vec<u8>>,
    /// What is `None` stays; a new one has none.
    pub(crate) hosts: Option<Vec<String>>,
    /// What is `None` stays; a new one has the default.
    pub(crate) headers: Option<Vec<String>>,
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
}

/// The authority that guests trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuthorityRow {
    /// PEM.
    pub(crate) certificate: String,
    /// Its private key, PEM, sealed.
    pub(crate) sealed_key: Vec<u8>,
}

/// A node that was connected once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NodeRow {
    /// Its id.
    pub(crate) id: String,
    /// Driver that its sandboxes get.
    pub(crate) driver: String,
    /// Version of its program.
    pub(crate) version: String,
    /// Milliseconds since the epoch of its last hello.
    pub(crate) seen_at: i64,
}

/// What to do with a sandbox as it is made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Start {
    /// Give it to a node, if the memory is still free there; else it waits.
    Place(Reservation),
    /// It waits.
    Wait,
    /// It has ended before it began.
    End(Ending),
}

/// A place that holds only while the node's memory and GPUs suffice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reservation {
    /// The node.
    pub(crate) node_id: String,
    /// What it has in all.
    pub(crate) capacity: Capacity,
}

/// Everything that a node has.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Account {
    /// Its sandboxes.
    pub(crate) sandboxes: Vec<SandboxReport>,
    /// Its snapshots.
    pub(crate) snapshots: Vec<SnapshotReport>,
}

/// A snapshot that is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewSnapshot {
    /// Its id.
    pub(crate) id: String,
    /// What to take it of.
    pub(crate) sandbox_id: String,
    /// What to keep.
    pub(crate) kind: SnapshotType,
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
}

/// Copies that are to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewCopies {
    /// What to copy.
    pub(crate) source_id: String,
    /// Ids of the copies.
    pub(crate) ids: Vec<String>,
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
    /// Memory of the source's node in all, MiB; `None` while that is away.
    pub(crate) capacity_mb: Option<u64>,
    /// The same key and request again give the same copies.
    pub(crate) key: Option<String>,
}

/// What a pool is to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolChange {
    /// What a claimed sandbox is like.
    pub(crate) spec: Spec,
    /// Most sandboxes.
    pub(crate) max_containers: Option<u32>,
    /// Warm ones.
    pub(crate) warm_containers: Option<u32>,
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
}

/// Sandboxes and snapshots, and what they were made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Family {
    /// The live ones, and the ended ones that others came from.
    pub(crate) sandboxes: Vec<Arc<SandboxRow>>,
    /// All of them.
    pub(crate) snapshots: Vec<SnapshotRow>,
}

/// Which page of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Page {
    /// Only rows beyond this place.
    pub(crate) from: Option<Place>,
    /// Against the list's order.
    pub(crate) backward: bool,
    /// Most rows.
    pub(crate) limit: usize,
    /// What the server made for itself, too.
    pub(crate) internal: bool,
}

/// A place in a list: the time that orders it, then the id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
    /// The sandbox.
    pub(crate) id: String,
}

/// The durable state of a server.
#[async_trait]
pub(crate) trait Store: Send + Sync {
    /// Saves a new waiting sandbox and starts it as told. Fails with [`StoreError::NameInUse`], and for one of a pool
    /// with [`StoreError::PoolFull`] and [`StoreError::NoPool`].
    async fn create_sandbox(&self, row: SandboxRow, start: Start) -> Result<Arc<SandboxRow>, StoreError>;

    /// The sandbox with this id, ended or not.
    async fn sandbox(&self, id: &str) -> Result<Option<Arc<SandboxRow>>, StoreError>;

    /// The live sandbox with this name.
    async fn sandbox_named(&self, namespace: &str, name: &str) -> Result<Option<Arc<SandboxRow>>, StoreError>;

    /// Every sandbox that is live or takes a node's memory; for the start of the server.
    async fn held_sandboxes(&self) -> Result<Vec<Arc<SandboxRow>>, StoreError>;

    /// Live sandboxes of a namespace, oldest first.
    async fn live_sandboxes(&self, namespace: &str, page: Page) -> Result<Vec<Arc<SandboxRow>>, StoreError>;

    /// Ended sandboxes of a namespace, last ended first; a backward page comes in the same order.
    async fn ended_sandboxes(&self, namespace: &str, page: Page) -> Result<Vec<Arc<SandboxRow>>, StoreError>;

    /// Gives a waiting sandbox to a node. `None` when it does not wait any more or the memory is taken.
    async fn place_sandbox(&self, id: &str, on: Reservation) -> Result<Option<Arc<SandboxRow>>, StoreError>;

    /// Changes a live sandbox. `None` when it has ended. Fails with [`StoreError::NameInUse`].
    async fn change_sandbox(&self, id: &str, change: Change) -> Result<Option<Arc<SandboxRow>>, StoreError>;

    /// Asks for another state; one that is there already, or on its way, comes back as it is. `None` when there is
    /// none. Fails with [`StoreError::Refused`].
    async fn order(&self, id: &str, order: Order) -> Result<Option<Arc<SandboxRow>>, StoreError>;

    /// Makes copies of a running sandbox, all or none: `None` when there is no source. Fails with
    /// [`StoreError::Refused`], [`StoreError::NoRoom`], [`StoreError::NodeAway`] and [`StoreError::KeyReused`].
    async fn copy_sandbox(&self, new: NewCopies) -> Result<Option<Vec<Arc<SandboxRow>>>, StoreError>;

    /// Takes a snapshot: the row and its command. `None` when there is no such sandbox. Fails with
    /// [`StoreError::Refused`].
    async fn take_snapshot(&self, new: NewSnapshot) -> Result<Option<SnapshotRow>, StoreError>;

    /// The snapshot with this id.
    async fn snapshot(&self, id: &str) -> Result<Option<SnapshotRow>, StoreError>;

    /// Snapshots of a namespace, or of one sandbox in it, newest first.
    async fn snapshots(
        &self,
        namespace: &str,
        sandbox_id: Option<&str>,
        page: Page,
    ) -> Result<Vec<SnapshotRow>, StoreError>;

    /// Begins to delete a snapshot; again is no error. `None` when there is none.
    async fn delete_snapshot(&self, id: &str) -> Result<Option<SnapshotRow>, StoreError>;

    /// The fork tree of a namespace, of what the server made for itself only if that is wanted.
    async fn family(&self, namespace: &str, internal: bool) -> Result<Family, StoreError>;

    /// Saves a new image build if it may begin, and says what becomes of it. Builds that ended long ago are forgotten.
    async fn create_build(&self, row: BuildRow) -> Result<Admission, StoreError>;

    /// The image build with this id.
    async fn build(&self, id: &str) -> Result<Option<BuildRow>, StoreError>;

    /// The image build that was begun under this idempotency key.
    async fn build_requested(&self, request_id: &str) -> Result<Option<BuildRow>, StoreError>;

    /// Lets something happen to an image build, and gives it as it is then.
    async fn change_build(&self, id: &str, event: Event, at: i64) -> Result<Option<BuildRow>, StoreError>;

    /// Fails every image build that is under way; how many there were.
    async fn fail_builds(&self, words: &'static str, at: i64) -> Result<usize, StoreError>;

    /// Sandboxes that images were built in and that have not ended.
    async fn builders(&self) -> Result<Vec<String>, StoreError>;

    /// Where the layers of earlier builds in a namespace are.
    async fn build_cache(&self, namespace: &str) -> Result<Option<BuildCache>, StoreError>;

    /// Replaces that, and gives what it was.
    async fn set_build_cache(
        &self,
        namespace: &str,
        cache: Option<BuildCache>,
    ) -> Result<Option<BuildCache>, StoreError>;

    /// Saves a new pool.
    async fn create_pool(&self, row: PoolRow) -> Result<(), StoreError>;

    /// The pool with this id.
    async fn pool(&self, id: &str) -> Result<Option<PoolRow>, StoreError>;

    /// Pools of a namespace, or all of them, oldest first.
    async fn pools(&self, namespace: Option<&str>) -> Result<Vec<PoolRow>, StoreError>;

    /// Replaces what a pool is. `None` when there is none.
    async fn change_pool(&self, id: &str, change: PoolChange) -> Result<Option<PoolRow>, StoreError>;

    /// Removes a pool and ends its warm sandboxes; whether there was one. Fails with [`StoreError::PoolInUse`].
    async fn delete_pool(&self, id: &str, ending: Ending) -> Result<bool, StoreError>;

    /// Hands out the oldest warm sandbox that runs, or else the oldest that boots; `None` when there is none. Fails with
    /// [`StoreError::NoPool`].
    async fn claim(&self, pool_id: &str) -> Result<Option<Arc<SandboxRow>>, StoreError>;

    /// Ends a sandbox; one that has ended stays as it is. `None` when there is none.
    async fn terminate_sandbox(&self, id: &str, ending: Ending) -> Result<Option<Arc<SandboxRow>>, StoreError>;

    /// Takes over a node's full account: every sandbox and snapshot it told, and the loss of those that it should have
    /// told. What a command still in the outbox is about is not lost: the command will be delivered.
    async fn sync_node(&self, hello: NodeHello, account: Account, at: i64) -> Result<(), StoreError>;

    /// Takes over what a node says about one sandbox.
    async fn report(&self, node_id: &str, report: SandboxReport, at: i64) -> Result<(), StoreError>;

    /// Takes over what a node says about one snapshot.
    async fn report_snapshot(&self, node_id: &str, report: SnapshotReport) -> Result<(), StoreError>;

    /// The next commands for a node, in order.
    async fn outbox(&self, node_id: &str, limit: usize) -> Result<Vec<Command>, StoreError>;

    /// Forgets a command that the node has on disk.
    async fn acknowledge(&self, node_id: &str, seq: u64) -> Result<(), StoreError>;

    /// Forgets a command that the node refused; a sandbox that it should have made ends so, a snapshot fails, and a
    /// sandbox whose state it should have changed stays as it was, with the words why.
    async fn refuse(&self, node_id: &str, command: Command, ending: Ending) -> Result<(), StoreError>;

    /// Nodes that were connected once.
    async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError>;

    /// Every key, oldest first.
    async fn keys(&self) -> Result<Vec<KeyRow>, StoreError>;

    /// Saves a new key.
    async fn create_key(&self, key: KeyRow) -> Result<(), StoreError>;

    /// Removes a key and the SSH keys that it added; whether there was one. Fails with [`StoreError::LastKey`].
    async fn delete_key(&self, id: &str) -> Result<bool, StoreError>;

    /// Every SSH key, oldest first.
    async fn ssh_keys(&self) -> Result<Vec<SshKeyRow>, StoreError>;

    /// Saves a new SSH key. Fails with [`StoreError::SshKeyKnown`] and [`StoreError::KeyGone`].
    async fn create_ssh_key(&self, key: SshKeyRow) -> Result<(), StoreError>;

    /// Removes an SSH key; whether there was one.
    async fn delete_ssh_key(&self, id: &str) -> Result<bool, StoreError>;

    /// Notes that an SSH key was used.
    async fn touch_ssh_key(&self, id: &str, at: i64) -> Result<(), StoreError>;

    /// Every secret, by name.
    async fn secrets(&self) -> Result<Vec<SecretRow>, StoreError>;

    /// Saves secrets, all or none, and gives them as they are then. Fails with [`StoreError::NoValue`].
    async fn put_secrets(&self, changes: Vec<SecretChange>) -> Result<Vec<SecretRow>, StoreError>;

    /// Removes the secret with this id or name; whether there was one.
    async fn delete_secret(&self, reference: &str) -> Result<bool, StoreError>;

    /// The authority, when there is one.
    async fn authority(&self) -> Result<Option<AuthorityRow>, StoreError>;

    /// Saves the first authority; a later one changes nothing.
    async fn save_authority(&self, row: AuthorityRow) -> Result<(), StoreError>;
}

#[cfg(test)]
#[path = "conformance_test.rs"]
mod tests;
