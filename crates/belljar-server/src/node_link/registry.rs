//! Which nodes are connected.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::NodeLink;

/// The nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    inner: RwLock<Inner>,
    /// Rings when a node connects.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    connected: HashMap<String, Arc<NodeLink>>,
    seats: HashMap<String, Place>,
    /// Also of nodes that are away.
    drivers: HashMap<String, String>,
}

/// One node's place: at most one session is in it.
#[derive(Debug, Default)]
struct Place {
    taken: Arc<Mutex<()>>,
    session: CancellationToken,
}

/// Held by the one session that speaks for a node.
#[derive(Debug)]
pub(super) struct Seat {
    _taken: OwnedMutexGuard<()>,
    /// Cancelled when a newer connection of the same node came.
    pub(super) replaced: CancellationToken,
}

impl Nodes {
    fn with<T>(&self, look: impl FnOnce(&Inner) -> T) -> T {
        look(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_mut<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether any node is connected.
    pub(crate) fn any(&self) -> bool {
        self.with(|inner| !inner.connected.is_empty())
    }

    /// Every connected node, by id.
    pub(crate) fn connected(&self) -> Vec<Arc<NodeLink>> {
        let mut links: Vec<_> = self.with(|inner| inner.connected.values().cloned().collect());
        links.sort_by(|a, b| a.id().cmp(b.id()));
        links
    }

    /// The node with this id, when it is connected.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<NodeLink>> {
        self.with(|inner| inner.connected.get(id).cloned())
    }

    /// The same, after waiting for it up to `patience`: a node that lost its connection dials again at once.
    pub(crate) async fn wait(&self, id: &str, patience: Duration) -> Option<Arc<NodeLink>> {
        self.wait_for(|| self.get(id), patience).await
    }

    /// The first connected node, after waiting for one up to `patience`.
    pub(crate) async fn wait_any(&self, patience: Duration) -> Option<Arc<NodeLink>> {
        self.wait_for(|| self.connected().into_iter().next(), patience).await
    }

    async fn wait_for(&self, find: impl Fn() -> Option<Arc<NodeLink>>, patience: Duration) -> Option<Arc<NodeLink>> {
        let mut changes = self.changed.subscribe();
        let connected = async {
            loop {
                if let Some(link) = find() {
                    return Some(link);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(patience, connected).await.ok().flatten()
    }

    /// Resolves when the next node connects. Keeps nothing alive.
    pub(crate) fn next(&self) -> impl Future<Output = ()> + use<> {
        let mut changes = self.changed.subscribe();
        async move {
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Driver of a node, connected or not.
    pub(crate) fn driver(&self, id: &str) -> Option<String> {
        self.with(|inner| inner.drivers.get(id).cloned())
    }

    /// Remembers the driver of a node.
    pub(crate) fn set_driver(&self, id: String, driver: String) {
        self.with_mut(|inner| inner.drivers.insert(id, driver));
    }

    /// Tells a node's session that there is a command.
    pub(crate) fn wake(&self, id: &str) {
        self.with(|inner| {
            if let Some(link) = inner.connected.get(id) {
                link.wake().notify_one();
            }
        });
    }

    /// Ends the node's present session and waits until it is over.
    pub(super) async fn take_seat(&self, id: &str) -> Seat {
        let (taken, replaced) = self.with_mut(|inner| {
            let place = inner.seats.entry(id.to_owned()).or_default();
            place.session.cancel();
            place.session = CancellationToken::new();
            (Arc::clone(&place.taken), place.session.clone())
        });
        Seat { _taken: taken.lock_owned().await, replaced }
    }

    /// The node can be used until the guard is dropped.
    pub(super) fn connect(&self, link: &Arc<NodeLink>) -> Connected<'_> {
        self.with_mut(|inner| {
            inner.drivers.insert(link.id().to_owned(), link.hello().driver.clone());
            inner.connected.insert(link.id().to_owned(), Arc::clone(link));
        });
        self.changed.send_replace(());
        Connected { nodes: self, id: link.id().to_owned() }
    }
}

/// Takes the node out of the registry when its session ends. The seat makes sure that no other session is in.
#[derive(Debug)]
pub(super) struct Connected<'a> {
    nodes: &'a Nodes,
    id: String,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.nodes.with_mut(|inner| inner.connected.remove(&self.id));
    }
}
