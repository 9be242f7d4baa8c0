//! One query, from its bytes to the bytes of its answer.

use std::{net::Ipv4Addr, time::Instant};

use belljar_api::network::HostName;
use hickory_proto::op::{Message, ResponseCode};

use super::{
    Resolver, Shared,
    lookup::{Found, LookupError, lookup},
    memory::open_for,
    query::{self, Decision, Refusal, Transport},
};
use crate::{
    chain,
    egress::{
        limits,
        policy::{Mode, Policy, Reason},
    },
};

impl Resolver {
    /// The answer to a query; none to what is not one.
    pub(super) async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = query::read(bytes)?;
        let answer = self.shared.answer(&query).await;
        query::write(&answer, &query, transport)
    }
}

impl Resolver {
    /// Where somebody may connect on the guest's behalf. The firewall is told nothing: it is not the guest that connects.
    pub(crate) async fn reach(&self, name: &HostName) -> Result<Vec<Ipv4Addr>, Unreachable> {
        let shared = &*self.shared;
        let remembered = shared.memory().fresh(name, Instant::now());
        let (found, new) = match remembered {
            Some(found) => (found, false),
            None => (shared.look_up(name).await.map_err(Unreachable::Name)?, true),
        };
        let policy = shared.policy.read().await;
        match shared.permitted(&policy, name, found, new, Instant::now()).await {
            Ok(found) => Ok(found.addresses),
            Err(Obstacle::Policy(reason)) => Err(Unreachable::Policy(reason)),
            Err(Obstacle::Firewall) => Err(Unreachable::Name(ResponseCode::ServFail)),
        }
    }
}

/// A name to which nobody may connect, or nobody can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error("{0}")]
    Policy(Reason),
    #[error("the name does not resolve ({0})")]
    Name(ResponseCode),
}

impl Shared {
    async fn answer(&self, query: &Message) -> Message {
        let policy = self.policy.read().await.clone();
        match query::judge(query, &policy) {
            Decision::Code(code) => query::coded(query, code),
            Decision::Refuse(refusal) => self.refuse(query, refusal),
            Decision::Addresses(name) => match self.detour.as_ref().and_then(|detour| detour.around(&name)) {
                Some(address) => query::addresses(query, &Found::detour(address)),
                None => self.addresses(query, name).await,
            },
            Decision::Relay => self.relay(query).await,
        }
    }

    fn refuse(&self, query: &Message, refusal: Refusal) -> Message {
        self.memory().refuse(refusal);
        query::coded(query, ResponseCode::Refused)
    }

    async fn addresses(&self, query: &Message, name: HostName) -> Message {
        let remembered = self.memory().fresh(&name, Instant::now());
        let (found, new) = match remembered {
            Some(found) => (found, false),
            None => match self.look_up(&name).await {
                Ok(found) => (found, true),
                Err(code) => return query::coded(query, code),
            },
        };
        // From here until the answer is ready the policy stays: it may have become another one since the query came.
        let policy = self.policy.read().await;
        match self.hand_out(&policy, &name, found, new).await {
            Ok(found) => query::addresses(query, &found),
            Err(Obstacle::Policy(reason)) => self.refuse(query, Refusal { name, reason }),
            Err(Obstacle::Firewall) => query::coded(query, ResponseCode::ServFail),
        }
    }

    async fn look_up(&self, name: &HostName) -> Result<Found, ResponseCode> {
        let Ok(_slot) = self.lookups.try_acquire() else { return Err(ResponseCode::ServFail) };
        match lookup(&self.upstream, name).await {
            Ok(found) => Ok(found),
            Err(LookupError::NoName) => Err(ResponseCode::NXDomain),
            Err(error) => {
                tracing::debug!(%name, error = chain(&error), "a guest's query has no answer");
                Err(ResponseCode::ServFail)
            }
        }
    }

    /// What of an answer the guest may have, once the firewall lets it through.
    async fn hand_out(&self, policy: &Policy, name: &HostName, found: Found, new: bool) -> Result<Found, Obstacle> {
        let now = Instant::now();
        let found = self.permitted(policy, name, found, new, now).await?;
        if policy.mode() == Mode::Listed {
            self.admit(name, &found, now).await.map_err(|()| Obstacle::Firewall)?;
        }
        Ok(found)
    }

    /// What of an answer the policy lets the guest have.
    async fn permitted(
        &self,
        policy: &Policy,
        name: &HostName,
        found: Found,
        new: bool,
        now: Instant,
    ) -> Result<Found, Obstacle> {
        policy.name(name).map_err(Obstacle::Policy)?;
        if new {
            self.learn(name, &found, now);
        }
        if found.chain.iter().any(|name| policy.denies_name(name)) {
            self.deny(&found.addresses).await.map_err(|()| Obstacle::Firewall)?;
            return Err(Obstacle::Policy(Reason::Denied));
        }
        let reachable = |address: &Ipv4Addr| policy.address(*address);
        let kept: Vec<Ipv4Addr> =
            found.addresses.iter().copied().filter(|address| reachable(address).is_ok()).collect();
        if let (true, Some(Err(reason))) = (kept.is_empty(), found.addresses.first().map(reachable)) {
            return Err(Obstacle::Policy(reason));
        }
        Ok(Found { addresses: kept, ..found })
    }

    /// Opens what is not open for long enough.
    async fn admit(&self, name: &HostName, found: &Found, now: Instant) -> Result<(), ()> {
        let mut open = self.open.lock().await;
        let missing = open.missing(&found.addresses, now + found.ttl.max(limits::TTL_FLOOR));
        if missing.is_empty() {
            return Ok(());
        }
        let time = open_for(found.ttl);
        open.room(&missing, now)
            .map_err(|error| tracing::warn!(%name, %error, "cannot open the addresses of a name"))?;
        let timed: Vec<_> = missing.iter().map(|address| (*address, time)).collect();
        if let Err(error) = self.firewall.admit(&timed).await {
            tracing::warn!(%name, %error, "cannot open the addresses of a name");
            return Err(());
        }
        open.hold(&missing, now + time);
        drop(open);
        self.memory().extend(name, &missing, now + time);
        self.learnt.notify_one();
        Ok(())
    }

    /// Denies addresses of a denied name, and renews those that are denied already.
    pub(super) async fn deny(&self, addresses: &[Ipv4Addr]) -> Result<(), ()> {
        let now = Instant::now();
        let mut denied = self.denied.lock().await;
        // Not at every turn: half of the time is left at least.
        let missing = denied.missing(addresses, now + limits::DENIED_FOR / 2);
        if missing.is_empty() {
            return Ok(());
        }
        denied.room(&missing, now).map_err(|error| tracing::warn!(%error, "cannot deny the addresses of a name"))?;
        let timed: Vec<_> = missing.iter().map(|address| (*address, limits::DENIED_FOR)).collect();
        if let Err(error) = self.firewall.deny(&timed).await {
            tracing::warn!(%error, "cannot deny the addresses of a name");
            return Err(());
        }
        denied.hold(&missing, now + limits::DENIED_FOR);
        Ok(())
    }

    /// A question of any type, where no list names a host.
    async fn relay(&self, query: &Message) -> Message {
        let Some(question) = query.queries.first() else { return query::coded(query, ResponseCode::FormErr) };
        let Ok(_slot) = self.lookups.try_acquire() else { return query::coded(query, ResponseCode::ServFail) };
        let asked = tokio::time::timeout(limits::LOOKUP_TIMEOUT, self.upstream.ask(question)).await;
        let policy = self.policy.read().await;
        match asked {
            _ if !policy.free_dns() => query::coded(query, ResponseCode::Refused),
            Ok(Ok(answer)) => query::relayed(query, &policy, answer),
            Ok(Err(_)) | Err(_) => query::coded(query, ResponseCode::ServFail),
        }
    }
}

/// What keeps an answer from going out.
enum Obstacle {
    Policy(Reason),
    Firewall,
}
