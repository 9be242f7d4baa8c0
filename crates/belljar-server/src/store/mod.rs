//! Where everything durable lives: a trait, so that a fleet can use another database than the embedded one.
//!
//! Each method is one transaction. A store decides nothing: it loads rows, asks [`crate::life`] for the next ones and
//! saves them with the commands that belong to them. It tells its [`Observer`] every committed change, in the order of
//! the commits and before the caller gets its answer: a caller that went away changes nothing about what the rest of
//! the server sees.
//!
//! It is not a cache and knows no connection, image or key secret.

mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use belljar_api::node::{Command, NodeHello, SandboxReport};

pub use self::sqlite::OpenError;
pub(crate) use self::sqlite::SqliteStore;
use crate::life::{Change, Ending, SandboxRow};

/// Why a store did not do what it was asked; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A live sandbox of the namespace has the name.
    #[error("name {0:?} is in use")]
    NameInUse(String),
    /// A limit is reached.
    #[error("there are {max} {what} already")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// The only key cannot be removed.
    #[error("the only key cannot be removed")]
    LastKey,
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
    /// A key was made.
    KeyAdded(KeyRow),
    /// A key was removed.
    KeyRemoved {
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// Give it to a node, if the memory is still free there; else it waits.
    Place(Reservation),
    /// It waits.
    Wait,
    /// It has ended before it began.
    End(Ending),
}

/// A place that holds only while the node's memory suffices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// The node.
    pub(crate) node_id: String,
    /// Its memory in all, MiB.
    pub(crate) capacity_mb: u64,
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
    /// Saves a new waiting sandbox and starts it as told. Fails with [`StoreError::NameInUse`].
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

    /// Ends a sandbox; one that has ended stays as it is. `None` when there is none.
    async fn terminate_sandbox(&self, id: &str, ending: Ending) -> Result<Option<Arc<SandboxRow>>, StoreError>;

    /// Takes over a node's full account: every sandbox it told, and the loss of those that it should have told. A
    /// sandbox with a command still in the outbox is not lost: the command will be delivered.
    async fn sync_node(&self, hello: NodeHello, reports: Vec<SandboxReport>, at: i64) -> Result<(), StoreError>;

    /// Takes over what a node says about one sandbox.
    async fn report(&self, node_id: &str, report: SandboxReport, at: i64) -> Result<(), StoreError>;

    /// The next commands for a node, in order.
    async fn outbox(&self, node_id: &str, limit: usize) -> Result<Vec<Command>, StoreError>;

    /// Forgets a command that the node has on disk.
    async fn acknowledge(&self, node_id: &str, seq: u64) -> Result<(), StoreError>;

    /// Forgets a command that the node refused; a sandbox that it should have made ends so.
    async fn refuse(&self, node_id: &str, command: Command, ending: Ending) -> Result<(), StoreError>;

    /// Nodes that were connected once.
    async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError>;

    /// Every key, oldest first.
    async fn keys(&self) -> Result<Vec<KeyRow>, StoreError>;

    /// Saves a new key.
    async fn create_key(&self, key: KeyRow) -> Result<(), StoreError>;

    /// Removes a key; whether there was one. Fails with [`StoreError::LastKey`].
    async fn delete_key(&self, id: &str) -> Result<bool, StoreError>;
}

#[cfg(test)]
#[path = "conformance_test.rs"]
mod tests;
