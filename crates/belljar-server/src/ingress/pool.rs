//! Unused connections to guests, kept for a moment: the next request to the same port then saves the round trips of a
//! new one. They are short-lived, since an open connection counts as activity.
//!
//! Only connections of one port of one sandbox are in one place, so what a guest leaves on one it leaves to itself.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, time::Instant};

use super::guest::Http1;
use crate::{
    life::SandboxRow,
    limits::{GUEST_IDLE, GUEST_IDLE_MAX},
};

/// A sandbox, as it stands.
pub(super) type Route = watch::Receiver<Arc<SandboxRow>>;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    inner: Arc<Mutex<HashMap<String, Kept>>>,
}

/// Connections of one sandbox.
#[derive(Debug, Default)]
struct Kept {
    /// In the order in which they end.
    idle: VecDeque<(Instant, u16, Http1)>,
    /// Whether a task is there that lets them go in time.
    is_watched: bool,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An unused connection to a port of a sandbox, the youngest first.
    pub(super) fn take(&self, sandbox_id: &str, port: u16) -> Option<Http1> {
        let mut all = self.lock();
        let idle = &mut all.get_mut(sandbox_id)?.idle;
        loop {
            let at = idle.iter().rposition(|(_, of, _)| *of == port)?;
            let (_, _, sender) = idle.remove(at)?;
            if sender.is_ready() {
                return Some(sender);
            }
        }
    }

    /// Lets go of every unused connection to a sandbox: it sleeps, or has ended. Its row says so already, so that none
    /// comes back afterwards.
    pub(crate) fn forget(&self, sandbox_id: &str) {
        let gone = self.lock().get_mut(sandbox_id).map(|kept| std::mem::take(&mut kept.idle));
        // Outside of the lock: closing them is the business of their own tasks.
        drop(gone);
    }

    /// Keeps a connection once its answer has been read to the end, in a task of its own.
    pub(super) fn keep(&self, route: Route, port: u16, mut sender: Http1) {
        let pool = self.clone();
        tokio::spawn(async move {
            // It is ready when the request's body has been sent to the end too.
            if matches!(tokio::time::timeout(GUEST_IDLE, sender.ready()).await, Ok(Ok(()))) {
                pool.put(&route, port, sender);
            }
        });
    }

    fn put(&self, route: &Route, port: u16, sender: Http1) {
        let mut all = self.lock();
        // Under the lock: see `forget`.
        let row = route.borrow();
        if !row.is_running() {
            return;
        }
        let kept = all.entry(row.id.clone()).or_default();
        if kept.idle.len() >= GUEST_IDLE_MAX {
            return;
        }
        kept.idle.push_back((Instant::now() + GUEST_IDLE, port, sender));
        if !kept.is_watched {
            kept.is_watched = true;
            tokio::spawn(self.clone().watch(row.id.clone()));
        }
    }

    /// Lets the connections of a sandbox go when their time is over, until there is none.
    async fn watch(self, sandbox_id: String) {
        let mut next = Instant::now() + GUEST_IDLE;
        loop {
            tokio::time::sleep_until(next).await;
            let (following, gone) = self.let_go(&sandbox_id);
            // Outside of the lock, as above.
            drop(gone);
            match following {
                Some(following) => next = following,
                None => return,
            }
        }
    }

    /// The connections whose time is over, and when that of the next is.
    fn let_go(&self, sandbox_id: &str) -> (Option<Instant>, Vec<(Instant, u16, Http1)>) {
        let now = Instant::now();
        let mut all = self.lock();
        let Some(kept) = all.get_mut(sandbox_id) else { return (None, Vec::new()) };
        let over = kept.idle.iter().take_while(|(end, _, _)| *end <= now).count();
        let gone = kept.idle.drain(..over).collect();
        let next = kept.idle.front().map(|(end, _, _)| *end);
        if next.is_none() {
            all.remove(sandbox_id);
        }
        (next, gone)
    }
}
