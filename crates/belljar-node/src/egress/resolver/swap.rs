//! The change from one policy to the next, the first one too.
//!
//! ```text
//! resolve_names (network, seconds, may refuse) -> Resolver::swap (admits nothing any more)
//!     -> Swap::resolved -> compile -> nft, by the caller -> Swap::commit (answers under the new policy)
//!                                                        \-> dropped: the old policy stays
//! ```

use std::{net::Ipv4Addr, sync::Arc, time::Instant};

use belljar_api::network::HostName;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{sync::RwLockWriteGuard, time::timeout};

use super::{
    Resolver,
    lookup::{Found, LookupError, lookup},
    memory::{keep, open_for},
    upstream::Upstream,
};
use crate::egress::{
    limits,
    policy::{Mode, Policy, Reason},
    ruleset::Resolved,
};

/// A policy whose names cannot be obeyed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("network.allow_out: {name:?} does not resolve; correct it, or try again later")]
    Name { name: HostNameText, source: LookupError },
    #[error("network.allow_out: {name:?} has no IPv4 address, and IPv6 is absent in a sandbox; remove it")]
    NoAddress { name: HostNameText },
    #[error(
        "network.allow_out: {name:?} resolves to {address}, which stays closed ({reason}); remove it, or have the node's \
         operator open that address"
    )]
    Closed { name: HostNameText, address: Ipv4Addr, reason: Reason },
    #[error("network.allow_out: its names did not resolve within {:?}; try again later", limits::RESOLVE_TIMEOUT)]
    Slow,
}

/// A name in an error.
type HostNameText = String;

/// The names of a policy with their addresses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names(Vec<(HostName, Found)>);

/// Resolves the host names that a policy lists. Each one in `allow_out` must resolve to something that may be reached;
/// one in `deny_out` need not resolve, and is tried again while the policy is in force.
pub(crate) async fn resolve_names(policy: &Policy, upstream: &Upstream) -> Result<Names, ResolveError> {
    if policy.mode() == Mode::Closed {
        return Ok(Names::default());
    }
    let (allowed, denied) = tokio::join!(
        timeout(limits::RESOLVE_TIMEOUT, allowed(policy, upstream)),
        timeout(limits::LOOKUP_TIMEOUT, denied(policy, upstream)),
    );
    let mut names = allowed.map_err(|_| ResolveError::Slow)??;
    names.extend(denied.unwrap_or_default());
    Ok(Names(names))
}

async fn allowed(policy: &Policy, upstream: &Upstream) -> Result<Vec<(HostName, Found)>, ResolveError> {
    let resolve = |name: HostName| async move {
        let found =
            lookup(upstream, &name).await.map_err(|source| ResolveError::Name { name: name.to_string(), source })?;
        reachable(policy, &name, &found)?;
        Ok((name, found))
    };
    let hosts: Vec<HostName> = policy.allowed_hosts().cloned().collect();
    stream::iter(hosts).map(resolve).buffer_unordered(limits::RESOLVE_AT_ONCE).try_collect().await
}

/// Refuses a name of which nothing can be reached. What `deny_out` takes away is the user's own wish.
fn reachable(policy: &Policy, name: &HostName, found: &Found) -> Result<(), ResolveError> {
    let Some(first) = found.addresses.first() else { return Err(ResolveError::NoAddress { name: name.to_string() }) };
    let closed = |address: &Ipv4Addr| policy.address(*address).err().filter(|reason| *reason != Reason::Denied);
    match closed(first) {
        Some(reason) if found.addresses.iter().all(|address| closed(address).is_some()) => {
            Err(ResolveError::Closed { name: name.to_string(), address: *first, reason })
        }
        _ => Ok(()),
    }
}

async fn denied(policy: &Policy, upstream: &Upstream) -> Vec<(HostName, Found)> {
    let resolve = |name: HostName| async move { lookup(upstream, &name).await.ok().map(|found| (name, found)) };
    let hosts: Vec<HostName> = policy.denied_hosts().cloned().collect();
    stream::iter(hosts)
        .map(resolve)
        .buffer_unordered(limits::RESOLVE_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// A change of policy that is under way. While it lives, no answer with an address goes out.
pub(crate) struct Swap<'a> {
    resolver: &'a Resolver,
    current: RwLockWriteGuard<'a, Arc<Policy>>,
    next: Arc<Policy>,
    names: Names,
    resolved: Resolved,
    at: Instant,
}

impl Resolver {
    /// Begins to put `next` into force.
    pub(crate) async fn swap(&self, next: Arc<Policy>, names: Names) -> Swap<'_> {
        let current = self.shared.policy.write().await;
        let at = Instant::now();
        let mut resolved = self.shared.memory().under(&next, at);
        for (name, found) in &names.0 {
            let denied = next.denies_name(name);
            for address in &found.addresses {
                match (denied, next.mode()) {
                    (true, _) => keep(&mut resolved.denied, *address, limits::DENIED_FOR),
                    (false, Mode::Listed) if next.address(*address).is_ok() => {
                        keep(&mut resolved.allowed, *address, open_for(found.ttl));
                    }
                    _ => {}
                }
            }
        }
        Swap { resolver: self, current, next, names, resolved, at }
    }
}

impl Swap<'_> {
    /// What the firewall must know from the start.
    pub(crate) fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// The firewall obeys the new policy; now the resolver does too.
    pub(crate) async fn commit(mut self) {
        let shared = &self.resolver.shared;
        for (name, found) in &self.names.0 {
            shared.learn(name, found, self.at);
        }
        shared.open.lock().await.replace(&self.resolved.allowed, self.at);
        shared.denied.lock().await.replace(&self.resolved.denied, self.at);
        *self.current = self.next;
        shared.swaps.send_modify(|swaps| *swaps += 1);
    }
}
