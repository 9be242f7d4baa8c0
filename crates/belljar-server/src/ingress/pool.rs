//! Unused connections to guest agents, kept for a moment: the next request then saves the round trips of a new one.
//!
//! Only the agent's connections are kept. They are few and short-lived, since an open connection counts as activity.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hyper::client::conn::http1::SendRequest;
use tokio::sync::watch;

use super::body::GuestBody;
use crate::{
    life::SandboxRow,
    limits::{GUEST_IDLE, GUEST_IDLE_MAX},
};

/// A sandbox, as it stands.
pub(super) type Route = watch::Receiver<Arc<SandboxRow>>;

/// A connection on which requests can be sent, one after the other.
pub(super) type Sender = SendRequest<GuestBody>;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    idle: HashMap<String, Vec<(u64, Sender)>>,
    /// Numbers the visits, so that the end of one does not end a later one.
    visits: u64,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An unused connection to the agent of a sandbox, the youngest first.
    pub(super) fn take(&self, sandbox_id: &str) -> Option<Sender> {
        let mut inner = self.lock();
        let senders = inner.idle.get_mut(sandbox_id)?;
        let found = std::iter::from_fn(|| senders.pop()).map(|(_, sender)| sender).find(Sender::is_ready);
        if senders.is_empty() {
            inner.idle.remove(sandbox_id);
        }
        found
    }

    /// Lets go of every unused connection to a sandbox: it sleeps, or has ended. Its row says so already, so that none
    /// comes back afterwards.
    pub(crate) fn forget(&self, sandbox_id: &str) {
        let gone = self.lock().idle.remove(sandbox_id);
        // Outside of the lock: closing them is the business of their own tasks.
        drop(gone);
    }

    /// Keeps a connection once its answer has been read to the end, in a task of its own.
    pub(super) fn keep(&self, route: Route, mut sender: Sender) {
        let (pool, sandbox_id) = (self.clone(), route.borrow().id.clone());
        tokio::spawn(async move {
            // It is ready when the request's body has been sent to the end too.
            if !matches!(tokio::time::timeout(GUEST_IDLE, sender.ready()).await, Ok(Ok(()))) {
                return;
            }
            let visit = {
                let mut inner = pool.lock();
                // Under the lock: see `forget`.
                if !route.borrow().is_running() {
                    return;
                }
                inner.visits += 1;
                let visit = inner.visits;
                let senders = inner.idle.entry(sandbox_id.clone()).or_default();
                if senders.len() >= GUEST_IDLE_MAX {
                    return;
                }
                senders.push((visit, sender));
                visit
            };
            tokio::time::sleep(GUEST_IDLE).await;
            let mut inner = pool.lock();
            if let Some(senders) = inner.idle.get_mut(&sandbox_id) {
                senders.retain(|(of, _)| *of != visit);
                if senders.is_empty() {
                    inner.idle.remove(&sandbox_id);
                }
            }
        });
    }
}
