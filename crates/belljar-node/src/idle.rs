//! When a sandbox counts as idle: no proxied connection is open, and the last one closed `timeout` ago.
//!
//! The node counts, not the server, so that a restarted or unreachable server neither ends a sandbox nor keeps it.
//! Called by the tunnel (one [`Guard`] per connection) and by the sandbox's task (the deadline).

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// Counts the connections of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    open: usize,
    since: Instant,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self { state: Arc::new(watch::Sender::new(State { open: 0, since: Instant::now() })) }
    }

    /// Begins the time anew: a boot is not idleness.
    pub(crate) fn touch(&self) {
        self.state.send_modify(|state| state.since = Instant::now());
    }

    /// Counts one connection until the guard is dropped.
    pub(crate) fn enter(&self) -> Guard {
        self.state.send_modify(|state| state.open += 1);
        Guard { activity: self.clone() }
    }

    /// Whether a connection is open.
    pub(crate) fn is_open(&self) -> bool {
        self.state.borrow().open > 0
    }

    /// Resolves when the sandbox has been idle for `timeout`; never when that is zero.
    pub(crate) async fn idle_for(&self, timeout: Duration) {
        if timeout.is_zero() {
            return std::future::pending().await;
        }
        let mut changes = self.state.subscribe();
        loop {
            let State { open, since } = *changes.borrow_and_update();
            let expired = async {
                if open > 0 {
                    std::future::pending().await
                } else {
                    tokio::time::sleep_until(since + timeout).await;
                }
            };
            tokio::select! {
                () = expired => return,
                // `self` holds the sender, so this cannot fail.
                _ = changes.changed() => {}
            }
        }
    }
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct Guard {
    activity: Activity,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.activity.state.send_modify(|state| {
            state.open -= 1;
            state.since = Instant::now();
        });
    }
}

/// Connections over all sandboxes; bounds the node's memory.
pub(crate) type ConnectionSlots = Arc<tokio::sync::Semaphore>;

/// Rings when somebody suspects that a guest does not answer any more.
#[derive(Debug, Default)]
pub(crate) struct Suspicion(Mutex<Option<tokio::sync::mpsc::Sender<()>>>);

impl Suspicion {
    /// Who hears of it from now on.
    pub(crate) fn listen(&self) -> tokio::sync::mpsc::Receiver<()> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// A connection was not accepted in time. One pending suspicion is enough, so a full channel is fine.
    pub(crate) fn raise(&self) {
        if let Some(sender) = &*self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            let _ = sender.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_time_without_connections_counts() {
        let activity = Activity::new();
        let start = Instant::now();
        let guard = activity.enter();
        let waiter = tokio::spawn({
            let activity = activity.clone();
            async move { activity.idle_for(Duration::from_secs(10)).await }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiter.is_finished());
        drop(guard);
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(activity.enter());
        waiter.await.expect("waiter");
        assert_eq!(start.elapsed().as_secs(), 75);
    }
}
