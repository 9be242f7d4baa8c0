//! What the server does, apart from HTTP: one file per noun, each a set of functions over [`App`].

pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod place;
pub(crate) mod sandbox;

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{Keys, NodeToken},
    config::Urls,
    node_link::Nodes,
    store::{Committed, Store},
    table::Table,
};

/// Everything a request may need.
pub(crate) struct App {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) live: Arc<Live>,
    pub(crate) urls: Urls,
    pub(crate) default_image: String,
    pub(crate) ingress_domain: Option<String>,
    pub(crate) node_token: NodeToken,
    pub(crate) guests: crate::ingress::Pool,
    /// The node sessions; they end when [`Self::stopping`] is cancelled.
    pub(crate) sessions: TaskTracker,
    pub(crate) stopping: CancellationToken,
    /// The same store, for tests that break it.
    #[cfg(test)]
    pub(crate) sqlite: Arc<crate::store::SqliteStore>,
}

/// What the server knows in memory: caches that the store's commits feed, and the connected nodes.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) table: Table,
    pub(crate) keys: Keys,
    pub(crate) nodes: Nodes,
    /// Something happened that may let a pending sandbox go on.
    pub(crate) retry: Notify,
}

impl Live {
    /// Takes over a commit. Called by the store's thread, in commit order.
    pub(crate) fn committed(&self, change: Committed) {
        match change {
            Committed::Sandbox(row) => {
                let freed = self.table.apply(&row).is_some();
                // A sandbox that may be given up has a deadline that the placer must learn of.
                if freed || (row.ending().is_none() && row.spec.max_pending_secs.is_some()) {
                    self.retry.notify_one();
                }
            }
            Committed::Outbox { node_id } => self.nodes.wake(&node_id),
            Committed::KeyAdded(key) => self.keys.add(key),
            Committed::KeyRemoved { id } => self.keys.remove(&id),
        }
    }
}
