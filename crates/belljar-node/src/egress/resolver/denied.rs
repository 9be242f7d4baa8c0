//! Keeps the addresses of denied names denied: asks for them again when their TTL has passed.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use belljar_api::network::HostName;
use futures_util::{StreamExt, stream};

use super::{Resolver, Shared, lookup::lookup};
use crate::egress::limits;

impl Resolver {
    /// Runs until it is dropped.
    pub(super) async fn keep_denied(&self) {
        let shared = &*self.shared;
        let mut swaps = shared.swaps.subscribe();
        loop {
            swaps.mark_unchanged();
            tokio::select! {
                () = shared.keep_denied() => {}
                // The sender lives as long as we do.
                _ = swaps.changed() => {}
            }
        }
    }
}

/// When a name is due, and how long it then rests if it does not resolve.
struct Turn {
    due: Instant,
    pause: Duration,
}

impl Shared {
    /// Runs while the policy stays as it is.
    async fn keep_denied(&self) {
        let now = Instant::now();
        let policy = self.policy.read().await.clone();
        let mut turns: HashMap<HostName, Turn> = policy
            .denied_hosts()
            .map(|name| {
                let due = self.memory().fresh_until(name).unwrap_or(now);
                (name.clone(), Turn { due, pause: limits::DENIED_RETRY.0 })
            })
            .collect();
        loop {
            let Some(next) = turns.values().map(|turn| turn.due).min() else { return std::future::pending().await };
            tokio::time::sleep_until(next.into()).await;
            let now = Instant::now();
            let due: Vec<HostName> =
                turns.iter().filter(|(_, turn)| turn.due <= now).map(|(name, _)| name.clone()).collect();
            let ask = |name: HostName| async move { (self.renew(&name).await, name) };
            let mut done = stream::iter(due).map(ask).buffer_unordered(limits::RESOLVE_AT_ONCE);
            while let Some((ttl, name)) = done.next().await {
                if let Some(turn) = turns.get_mut(&name) {
                    turn.take(ttl);
                }
            }
        }
    }

    /// Denies what a name has now; how long that holds.
    async fn renew(&self, name: &HostName) -> Option<Duration> {
        let found = lookup(&self.upstream, name).await.ok()?;
        // No swap while this is done.
        let policy = self.policy.read().await;
        if policy.denies_name(name) {
            self.learn(name, &found, Instant::now());
            self.deny(&found.addresses).await.ok()?;
        }
        Some(found.ttl)
    }
}

impl Turn {
    fn take(&mut self, ttl: Option<Duration>) {
        let wait = ttl.map_or(self.pause, |ttl| ttl.max(limits::TTL_FLOOR));
        self.pause = if ttl.is_some() { limits::DENIED_RETRY.0 } else { (self.pause * 2).min(limits::DENIED_RETRY.1) };
        self.due = Instant::now() + wait;
    }
}
