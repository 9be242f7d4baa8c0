//! The resolver of one sandbox: answers what its policy permits, and opens the firewall for what it answers.
//!
//! ```text
//! query -> malformed or too many: no answer
//!       -> name or type not permitted: REFUSED
//!       -> AAAA, HTTPS, SVCB: no records (IPv6 is absent)
//!       -> A of a name with a detour: the address of that
//!       -> A: remembered, or asked upstream -> addresses that may not be reached are left out (none left: REFUSED)
//!                                           -> Firewall::admit -> answer
//! ```
//!
//! **No answer goes out before the firewall knows its addresses.** While a policy is swapped no address is admitted, and
//! an answer that was looked up under the old policy is judged by the new one.
//!
//! A name that is not permitted gets REFUSED and not NXDOMAIN: it may well exist, and programs should say so.
//! With names in a policy only A is asked upstream, so that a permitted name is the only thing a query can carry out.
//! Without any the resolver hands on every type and only takes IPv6 and private addresses out of the answers.
//!
//! It is not a recursive resolver, and validates no DNSSEC: those upstream do. It knows nothing of namespaces: whoever
//! calls it brings bound sockets.

mod answer;
mod denied;
mod kept;
mod lookup;
mod memory;
mod query;
mod rate;
mod serve;
mod swap;
#[cfg(test)]
mod testing;
mod upstream;

use std::{
    io,
    net::Ipv4Addr,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use belljar_api::network::HostName;
use tokio::sync::{Mutex, Notify, RwLock, Semaphore, watch};

pub(crate) use self::{
    answer::Unreachable,
    kept::Since,
    query::Refusal,
    swap::{Names, ResolveError, resolve_names},
    upstream::Upstream,
};
use self::{
    kept::Place,
    lookup::Found,
    memory::{Held, Memory},
};
use super::{limits, policy::Policy};

/// What the resolver changes in the sandbox's firewall. It calls one at a time.
#[async_trait]
pub(crate) trait Firewall: Send + Sync {
    /// Opens addresses of permitted names for these times from now (script: [`super::ruleset::admit`]). An address that
    /// is open already gets the new time.
    async fn admit(&self, addresses: &[(Ipv4Addr, Duration)]) -> io::Result<()>;
    /// Denies addresses of denied names for these times from now (script: [`super::ruleset::deny`]).
    async fn deny(&self, addresses: &[(Ipv4Addr, Duration)]) -> io::Result<()>;
}

/// A way for requests to some names that does not lead to their own addresses.
pub(crate) trait Detour: Send + Sync {
    /// Where requests to a name go instead, if they do.
    fn around(&self, name: &HostName) -> Option<Ipv4Addr>;
}

/// One sandbox's resolver. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Arc<Upstream>,
    firewall: Arc<dyn Firewall>,
    /// Read while addresses are admitted, written while a policy is swapped.
    policy: RwLock<Arc<Policy>>,
    memory: std::sync::Mutex<Memory>,
    /// Where that is kept; rings when there is something new.
    place: Place,
    learnt: Notify,
    /// Names that are answered with another address than theirs.
    detour: Option<Arc<dyn Detour>>,
    /// What the firewall holds open. Locked while that is changed.
    open: Mutex<Held>,
    /// What it denies by name.
    denied: Mutex<Held>,
    lookups: Semaphore,
    /// Counts the swaps, for whoever must begin anew with each.
    swaps: watch::Sender<u64>,
}

impl Resolver {
    /// A resolver that refuses everything until its first policy is committed ([`Resolver::swap`]).
    pub(crate) fn new(upstream: Arc<Upstream>, firewall: Arc<dyn Firewall>, detour: Option<Arc<dyn Detour>>) -> Self {
        let shared = Shared {
            upstream,
            firewall,
            policy: RwLock::new(Arc::new(Policy::closed())),
            memory: std::sync::Mutex::default(),
            place: Place::default(),
            learnt: Notify::new(),
            detour,
            open: Mutex::default(),
            denied: Mutex::default(),
            lookups: Semaphore::new(limits::LOOKUPS_MAX),
            swaps: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Names that were refused since the last call, each once, for the sandbox's log.
    pub(crate) fn take_refusals(&self) -> Vec<Refusal> {
        self.shared.memory().take_refusals()
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, name: &HostName, found: &Found, now: Instant) {
        self.memory().learn(name, found, now);
        self.learnt.notify_one();
    }
}
