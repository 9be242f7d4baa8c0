//! From a name to its IPv4 addresses, through CNAMEs.

use std::{net::Ipv4Addr, time::Duration};

use belljar_api::network::HostName;
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::time::timeout;

use super::upstream::{Upstream, UpstreamError};
use crate::egress::limits;

/// What a name was resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The names that the name led to, without itself.
    pub(crate) chain: Vec<HostName>,
    /// None if the name exists and has no IPv4 address.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// The shortest of the chain's.
    pub(crate) ttl: Duration,
}

impl Found {
    /// Another address than the name's own.
    pub(super) fn detour(address: Ipv4Addr) -> Self {
        Self { chain: Vec::new(), addresses: vec![address], ttl: limits::PROXY_TTL }
    }
}

/// A name without an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("there is no such name")]
    NoName,
    #[error("its CNAMEs lead through more than {} names", limits::CHAIN_MAX)]
    LongChain,
    #[error("its CNAME is not a host name")]
    OddChain,
    #[error("no answer within {:?}", limits::LOOKUP_TIMEOUT)]
    Timeout,
    #[error("no answer")]
    Upstream(#[from] UpstreamError),
}

/// A host name as a query carries it. `None` if it is none.
pub(super) fn host_name(name: &Name) -> Option<HostName> {
    // Text would show a dot within a label escaped; labels are compared as they are.
    let mut text = String::new();
    for label in name.iter() {
        let label = std::str::from_utf8(label).ok().filter(|label| !label.contains('.'))?;
        text.push_str(label);
        text.push('.');
    }
    text.parse().ok()
}

/// The name as DNS writes it.
pub(super) fn dns_name(name: &HostName) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

/// Looks a name up.
pub(super) async fn lookup(upstream: &Upstream, name: &HostName) -> Result<Found, LookupError> {
    timeout(limits::LOOKUP_TIMEOUT, follow(upstream, name)).await.map_err(|_| LookupError::Timeout)?
}

async fn follow(upstream: &Upstream, name: &HostName) -> Result<Found, LookupError> {
    let mut found = Found { chain: Vec::new(), addresses: Vec::new(), ttl: limits::TTL_CEILING };
    // Most resolvers send the whole chain in one answer; some send its first name only.
    for _ in 0..limits::CHAIN_MAX {
        let at = found.chain.last().unwrap_or(name);
        let question = Query::query(dns_name(at).ok_or(LookupError::OddChain)?, RecordType::A);
        let answer = upstream.ask(&question).await?;
        if take(&mut found, question.name, &answer)? == Step::Done {
            return Ok(found);
        }
    }
    Err(LookupError::LongChain)
}

#[derive(PartialEq, Eq)]
enum Step {
    Done,
    /// The answer ends at a name that has not been asked for.
    Further,
}

/// Takes what an answer says about `at` and the names it leads to. Records about anything else are ignored.
fn take(found: &mut Found, mut at: Name, answer: &Message) -> Result<Step, LookupError> {
    let first = found.chain.len();
    loop {
        let mut next = None;
        for record in answer.answers.iter().filter(|record| record.name == at) {
            let ttl = Duration::from_secs(record.ttl.into());
            match &record.data {
                RData::A(address) => {
                    found.ttl = found.ttl.min(ttl);
                    if found.addresses.len() < limits::ADDRESSES_PER_ANSWER_MAX && !found.addresses.contains(address) {
                        found.addresses.push(**address);
                    }
                }
                RData::CNAME(target) => {
                    found.ttl = found.ttl.min(ttl);
                    next = Some((**target).clone());
                }
                _ => {}
            }
        }
        let Some(target) = next.filter(|_| found.addresses.is_empty()) else { break };
        if found.chain.len() >= limits::CHAIN_MAX {
            return Err(LookupError::LongChain);
        }
        found.chain.push(host_name(&target).ok_or(LookupError::OddChain)?);
        at = target;
    }
    let moved = found.chain.len() > first;
    match (found.addresses.is_empty(), answer.metadata.response_code) {
        (false, _) => Ok(Step::Done),
        (true, ResponseCode::NXDomain) => Err(LookupError::NoName),
        (true, _) if moved => Ok(Step::Further),
        (true, _) => {
            found.ttl = found.ttl.min(limits::NEGATIVE_TTL);
            Ok(Step::Done)
        }
    }
}
