//! What the resolver remembers of one sandbox: names, their addresses and until when those are open. Bounded, no I/O.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use belljar_api::network::HostName;

use super::{
    kept::{KeptName, Moment, Since},
    lookup::Found,
    query::Refusal,
};
use crate::egress::{
    limits,
    policy::{Mode, Policy},
    ruleset::Resolved,
};

/// Names that were asked for, by the guest or by the policy.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    names: HashMap<HostName, Entry>,
    /// Grows with each use; tells which name was used last.
    clock: u64,
    refusals: VecDeque<Refusal>,
    refused: HashSet<Refusal>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// The last answer.
    found: Found,
    fresh_until: Instant,
    /// Every address seen, and until when it is open under this name.
    seen: HashMap<Ipv4Addr, Instant>,
    /// Names on the way to any of them.
    chain: HashSet<HostName>,
    used: u64,
}

/// How long an address stays open after an answer with this TTL.
pub(super) fn open_for(ttl: Duration) -> Duration {
    ttl.clamp(limits::TTL_FLOOR, limits::TTL_CEILING) + limits::TTL_GRACE
}

impl Memory {
    /// The answer that is still good, with the rest of its TTL.
    pub(super) fn fresh(&mut self, name: &HostName, now: Instant) -> Option<Found> {
        self.clock += 1;
        let entry = self.names.get_mut(name)?;
        let left = entry.fresh_until.checked_duration_since(now).filter(|left| !left.is_zero())?;
        entry.used = self.clock;
        Some(Found { ttl: left, ..entry.found.clone() })
    }

    /// When the last answer stops being good.
    pub(super) fn fresh_until(&self, name: &HostName) -> Option<Instant> {
        self.names.get(name).map(|entry| entry.fresh_until)
    }

    /// Remembers an answer from upstream.
    pub(super) fn learn(&mut self, name: &HostName, found: &Found, now: Instant) {
        self.clock += 1;
        if !self.names.contains_key(name) {
            self.make_room();
        }
        let entry = self.names.entry(name.clone()).or_insert_with(|| Entry {
            found: found.clone(),
            fresh_until: now,
            seen: HashMap::new(),
            chain: HashSet::new(),
            used: 0,
        });
        entry.used = self.clock;
        entry.found = found.clone();
        entry.fresh_until = now + found.ttl;
        if entry.chain.len() < limits::ADDRESSES_PER_NAME_MAX {
            entry.chain.extend(found.chain.iter().cloned());
        }
        entry.see(&found.addresses, now + open_for(found.ttl));
    }

    /// An answer was given once more: its addresses are open for longer.
    pub(super) fn extend(&mut self, name: &HostName, addresses: &[Ipv4Addr], until: Instant) {
        if let Some(entry) = self.names.get_mut(name) {
            entry.see(addresses, until);
        }
    }

    /// All of it, as it is written.
    pub(super) fn told(&self, at: Moment) -> Vec<KeptName> {
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_by_key(|(_, entry)| entry.used);
        let open_until = |(address, until): (&Ipv4Addr, &Instant)| {
            let ago = at.now.saturating_duration_since(*until);
            (*address, (at.since_epoch + until.saturating_duration_since(at.now)).saturating_sub(ago).as_secs())
        };
        let told = |(name, entry): (&HostName, &Entry)| KeptName {
            name: name.to_string(),
            chain: entry.chain.iter().map(ToString::to_string).collect(),
            open_until: entry.seen.iter().map(open_until).collect(),
        };
        names.into_iter().map(told).collect()
    }

    /// Remembers what was written, as far as it means something yet; every name has to be looked up again.
    pub(super) fn recall(&mut self, names: Vec<KeptName>, at: Moment, since: Since) {
        for kept in names {
            let Ok(name) = kept.name.parse::<HostName>() else { continue };
            let until = |seconds: u64| {
                let left = Duration::from_secs(seconds).saturating_sub(at.since_epoch);
                // A clock that was set must not keep an address open for years.
                at.now + left.min(open_for(limits::TTL_CEILING))
            };
            let mut addresses: Vec<_> = kept.open_until.iter().map(|(address, at)| (*address, until(*at))).collect();
            addresses.retain(|(_, until)| since == Since::RanOn || *until > at.now);
            if addresses.is_empty() {
                continue;
            }
            let chain = kept.chain.iter().filter_map(|name| name.parse().ok()).collect();
            self.learn(&name, &Found { chain, addresses: Vec::new(), ttl: Duration::ZERO }, at.now);
            for (address, until) in addresses {
                self.extend(&name, &[address], until);
            }
        }
    }

    fn make_room(&mut self) {
        while self.names.len() >= limits::NAMES_MAX {
            let oldest = self.names.iter().min_by_key(|(_, entry)| entry.used).map(|(name, _)| name.clone());
            let Some(oldest) = oldest else { return };
            self.names.remove(&oldest);
        }
    }

    /// What a firewall must know from the start if `policy` comes into force.
    pub(super) fn under(&self, policy: &Policy, now: Instant) -> Resolved {
        let mut resolved = Resolved::default();
        for (name, entry) in &self.names {
            let denied = policy.denies_name(name) || entry.chain.iter().any(|name| policy.denies_name(name));
            let allowed = policy.mode() == Mode::Listed && policy.name(name).is_ok();
            for (address, until) in &entry.seen {
                let left = until.saturating_duration_since(now);
                if denied {
                    keep(&mut resolved.denied, *address, limits::DENIED_FOR);
                } else if allowed && policy.address(*address).is_ok() {
                    if left.is_zero() {
                        resolved.carried.insert(*address);
                    } else {
                        keep(&mut resolved.allowed, *address, left);
                    }
                }
            }
        }
        resolved
    }

    /// Notes that the guest asked for what it may not have.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        if self.refusals.len() < limits::DROPS_MAX && self.refused.insert(refusal.clone()) {
            self.refusals.push_back(refusal);
        }
    }

    /// What it noted since the last call.
    pub(super) fn take_refusals(&mut self) -> Vec<Refusal> {
        self.refused.clear();
        self.refusals.drain(..).collect()
    }
}

impl Entry {
    fn see(&mut self, addresses: &[Ipv4Addr], until: Instant) {
        for address in addresses {
            let known = self.seen.entry(*address).or_insert(until);
            *known = (*known).max(until);
        }
        while self.seen.len() > limits::ADDRESSES_PER_NAME_MAX {
            let Some(oldest) = self.seen.iter().min_by_key(|(_, until)| **until).map(|(address, _)| *address) else {
                return;
            };
            self.seen.remove(&oldest);
        }
    }
}

/// Keeps the longer time, and no more than the firewall takes.
pub(super) fn keep(set: &mut std::collections::BTreeMap<Ipv4Addr, Duration>, address: Ipv4Addr, time: Duration) {
    if set.len() >= limits::ADDRESSES_MAX && !set.contains_key(&address) {
        return;
    }
    let known = set.entry(address).or_insert(time);
    *known = (*known).max(time);
}

/// Addresses that one of the firewall's sets holds, and until when. Bounded.
#[derive(Debug, Default)]
pub(super) struct Held(HashMap<Ipv4Addr, Instant>);

/// The firewall holds as many addresses by name as it may.
#[derive(Debug, thiserror::Error)]
#[error("{} addresses are open by name already; wait until some of them have expired", limits::ADDRESSES_MAX)]
pub(super) struct Full;

impl Held {
    pub(super) fn replace(&mut self, addresses: &std::collections::BTreeMap<Ipv4Addr, Duration>, now: Instant) {
        self.0 = addresses.iter().map(|(address, time)| (*address, now + *time)).collect();
    }

    /// Those that are not held until `until`.
    pub(super) fn missing(&self, addresses: &[Ipv4Addr], until: Instant) -> Vec<Ipv4Addr> {
        addresses.iter().copied().filter(|address| self.0.get(address).is_none_or(|held| *held < until)).collect()
    }

    /// Whether there is room for these.
    pub(super) fn room(&mut self, addresses: &[Ipv4Addr], now: Instant) -> Result<(), Full> {
        if self.0.len() + addresses.len() > limits::ADDRESSES_MAX {
            self.0.retain(|_, until| *until > now);
        }
        let new = addresses.iter().filter(|address| !self.0.contains_key(*address)).count();
        if self.0.len() + new > limits::ADDRESSES_MAX { Err(Full) } else { Ok(()) }
    }

    pub(super) fn hold(&mut self, addresses: &[Ipv4Addr], until: Instant) {
        self.0.extend(addresses.iter().map(|address| (*address, until)));
    }
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
