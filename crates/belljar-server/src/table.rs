//! The live sandboxes in memory: what the ingress routes by and what waiters watch.
//!
//! It is fed by the store, commit by commit, and by nobody else, so it never knows more than the store. A lookup takes
//! a short lock and never waits for the store.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use belljar_api::sandbox::{Gpus, Resources};
use tokio::sync::watch;

use crate::life::{Phase, SandboxRow};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Table {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Sandboxes that are live or take a node's memory.
    rows: HashMap<String, watch::Sender<Arc<SandboxRow>>>,
    /// (namespace, name) of the live ones.
    names: HashMap<(String, String), String>,
    /// Sandboxes of each pool.
    pools: HashMap<String, BTreeSet<String>>,
    /// What is taken of each node.
    used: HashMap<String, Used>,
}

/// What sandboxes have of a node.
#[derive(Debug, Default)]
struct Used {
    memory_mb: u64,
    /// By model.
    gpus: HashMap<String, u32>,
}

impl Table {
    // A panic while the lock is held cannot leave half a change behind that matters more than going on.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a committed row; returns the node of which it freed something.
    pub(crate) fn apply(&self, row: &Arc<SandboxRow>) -> Option<String> {
        let mut inner = self.write();
        let before = inner.rows.get(&row.id).map(|sender| Arc::clone(&sender.borrow()));
        let freed = inner.account(before.as_deref(), row);
        if let Some((name, before)) = before.as_ref().and_then(|b| Some((b.name.clone()?, b))) {
            let key = (before.namespace.clone(), name);
            // The name may belong to another one since this one ended.
            if inner.names.get(&key) == Some(&row.id) {
                inner.names.remove(&key);
            }
        }
        if let (None, Some(name)) = (row.ending(), &row.name) {
            inner.names.insert((row.namespace.clone(), name.clone()), row.id.clone());
        }
        let gone = row.ending().is_some() && row.held_by().is_none();
        if let Some(pool) = &row.pool {
            inner.join(&pool.pool_id, &row.id, !gone);
        }
        if let Some(sender) = inner.rows.get(&row.id) {
            sender.send_replace(Arc::clone(row));
        } else if !gone {
            inner.rows.insert(row.id.clone(), watch::Sender::new(Arc::clone(row)));
        }
        if gone {
            // Those who watch still see the last value.
            inner.rows.remove(&row.id);
        }
        freed
    }

    /// The sandbox with this id, as long as it is live or takes memory.
    pub(crate) fn get(&self, id: &str) -> Option<watch::Receiver<Arc<SandboxRow>>> {
        self.read().rows.get(id).map(watch::Sender::subscribe)
    }

    /// The live sandbox with this name.
    pub(crate) fn named(&self, namespace: &str, name: &str) -> Option<watch::Receiver<Arc<SandboxRow>>> {
        let inner = self.read();
        let id = inner.names.get(&(namespace.to_owned(), name.to_owned()))?;
        inner.rows.get(id).map(watch::Sender::subscribe)
    }

    /// The live sandboxes of a pool, oldest first.
    pub(crate) fn in_pool(&self, pool_id: &str) -> Vec<Arc<SandboxRow>> {
        let inner = self.read();
        let ids = inner.pools.get(pool_id).into_iter().flatten();
        let mut rows: Vec<_> =
            ids.filter_map(|id| inner.rows.get(id)).map(|sender| Arc::clone(&sender.borrow())).collect();
        drop(inner);
        rows.retain(|row| row.ending().is_none());
        rows.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        rows
    }

    /// Memory that sandboxes take on a node, MiB.
    pub(crate) fn used_mb(&self, node_id: &str) -> u64 {
        self.read().used.get(node_id).map_or(0, |used| used.memory_mb)
    }

    /// GPUs that sandboxes have on a node.
    pub(crate) fn used_gpus(&self, node_id: &str) -> Vec<Gpus> {
        let inner = self.read();
        let used = inner.used.get(node_id).into_iter().flat_map(|used| &used.gpus);
        used.map(|(model, count)| Gpus { model: model.clone(), count: *count }).collect()
    }

    /// Sandboxes that are not running yet, in the order of their creation.
    pub(crate) fn pending(&self) -> Vec<Arc<SandboxRow>> {
        let is_pending = |row: &SandboxRow| match &row.phase {
            Phase::Waiting => true,
            Phase::Placed { .. } => !row.is_up(),
            Phase::Ended { .. } => false,
        };
        let inner = self.read();
        let mut rows: Vec<_> =
            inner.rows.values().filter(|s| is_pending(&s.borrow())).map(|s| Arc::clone(&s.borrow())).collect();
        drop(inner);
        rows.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        rows
    }
}

impl Used {
    fn add(&mut self, resources: &Resources) {
        self.memory_mb += resources.memory_mb;
        for Gpus { count, model } in &resources.gpu_configs {
            *self.gpus.entry(model.clone()).or_default() += count;
        }
    }

    fn remove(&mut self, resources: &Resources) {
        self.memory_mb = self.memory_mb.saturating_sub(resources.memory_mb);
        for Gpus { count, model } in &resources.gpu_configs {
            if let Some(used) = self.gpus.get_mut(model) {
                *used = used.saturating_sub(*count);
            }
        }
    }
}

impl Inner {
    /// Puts a sandbox into the list of its pool, or takes it out.
    fn join(&mut self, pool_id: &str, id: &str, is_in: bool) {
        let members = self.pools.entry(pool_id.to_owned()).or_default();
        if is_in {
            members.insert(id.to_owned());
        } else {
            members.remove(id);
        }
        if members.is_empty() {
            self.pools.remove(pool_id);
        }
    }

    /// Moves what a row takes from where that was to where it is; returns the node that has more now.
    fn account(&mut self, before: Option<&SandboxRow>, after: &SandboxRow) -> Option<String> {
        let (old, new) = (before.and_then(SandboxRow::held_by), after.held_by());
        if old == new {
            return None;
        }
        if let Some(node) = new {
            self.used.entry(node.to_owned()).or_default().add(&after.spec.resources);
        }
        let (node, before) = (old?, before?);
        if let Some(used) = self.used.get_mut(node) {
            used.remove(&before.spec.resources);
        }
        Some(node.to_owned())
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
