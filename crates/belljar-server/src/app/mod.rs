//! What the server does, apart from HTTP: one file per noun, each a set of functions over [`App`].

pub(crate) mod build;
pub(crate) mod copy;
pub(crate) mod image;
pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod place;
pub(crate) mod pool;
pub(crate) mod restore;
pub(crate) mod sandbox;
pub(crate) mod secret;
pub(crate) mod sleep;
pub(crate) mod snapshot;
pub(crate) mod ssh_key;
pub(crate) mod storage;
pub(crate) mod tree;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use belljar_api::{id::is_id, sandbox::TerminationReason, ssh_key::SshGateway};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{Keys, NodeToken},
    config::Urls,
    ingress::{Pool as Guests, Target},
    life::SandboxRow,
    node_link::Nodes,
    secret::Secrets,
    ssh::SshKeys,
    store::{Committed, Store},
    table::Table,
};

/// Everything a request may need.
pub(crate) struct App {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) live: Arc<Live>,
    pub(crate) urls: Urls,
    pub(crate) default_image: String,
    /// Where contexts of image builds lie.
    pub(crate) contexts: PathBuf,
    pub(crate) ingress_domain: Option<String>,
    /// Proxies whose word on a client's address counts.
    pub(crate) trusted_proxies: Vec<ipnet::IpNet>,
    pub(crate) node_token: NodeToken,
    /// Seals secrets and opens them.
    pub(crate) secrets: Secrets,
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
    pub(crate) ssh_keys: SshKeys,
    /// Where `ssh` finds us, while we listen for it.
    pub(crate) ssh_gateway: OnceLock<SshGateway>,
    pub(crate) nodes: Nodes,
    /// Unused connections to guest agents.
    pub(crate) guests: Guests,
    /// What keeps the pools filled.
    pub(crate) pools: pool::Pools,
    /// Rings when something about snapshots changed.
    pub(crate) snapshots: watch::Sender<()>,
    /// Image builds under way.
    pub(crate) builds: build::Builds,
    /// Something happened that may let a pending sandbox go on.
    pub(crate) retry: Notify,
}

impl Live {
    /// The sandbox that a proxied request names: by id, or by name in the default namespace.
    pub(crate) fn routed(&self, reference: &str) -> Option<watch::Receiver<Arc<SandboxRow>>> {
        let found = if is_id(reference) {
            self.table.get(reference)
        } else {
            self.table.named(crate::http::DEFAULT_NAMESPACE, reference)
        };
        found.filter(|row| !row.borrow().is_unclaimed())
    }

    /// Whether a sandbox is there and shows this port to the outside.
    pub(crate) fn shows(&self, target: &Target) -> bool {
        self.routed(&target.sandbox).is_some_and(|row| {
            let row = row.borrow();
            row.ending().is_none() && (target.is_agent() || row.spec.exposed_ports.contains(&target.port))
        })
    }

    /// Takes over a commit. Called by the store's thread, in commit order.
    pub(crate) fn committed(&self, change: Committed) {
        match change {
            Committed::Sandbox(row) => {
                let was_over = self.table.get(&row.id).is_some_and(|before| before.borrow().ending().is_some());
                let freed = self.table.apply(&row).is_some();
                if let Some(pool) = &row.pool {
                    let wished = row.ending().is_none_or(|ending| ending.reason == TerminationReason::User);
                    self.pools.changed(&pool.pool_id, !wished && !was_over && !pool.claimed);
                }
                if !row.is_running() {
                    // What was connected to it is dead, or keeps it awake for nobody.
                    self.guests.forget(&row.id);
                }
                // A sandbox that may be given up has a deadline that the placer must learn of.
                if freed || (row.ending().is_none() && row.spec.max_pending_secs.is_some()) {
                    self.retry.notify_one();
                }
            }
            Committed::Outbox { node_id } => self.nodes.wake(&node_id),
            Committed::Pool { id } => self.pools.reset(&id),
            Committed::Snapshots => self.snapshots.send_modify(|()| {}),
            Committed::Builds => self.builds.changed.send_modify(|()| {}),
            Committed::KeyAdded(key) => self.keys.add(key),
            Committed::KeyRemoved { id } => self.keys.remove(&id),
            Committed::SshKeyAdded(key) => self.ssh_keys.add(key),
            Committed::SshKeyRemoved { id } => self.ssh_keys.remove(&id),
        }
    }
}
