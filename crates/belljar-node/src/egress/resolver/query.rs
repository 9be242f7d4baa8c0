//! Reading questions and writing answers. No I/O, and no decision that needs more than the policy.

use std::fmt;

use belljar_api::network::HostName;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, RData, Record, RecordType,
        rdata::{A, CNAME},
    },
};

use super::lookup::{Found, dns_name, host_name};
use crate::egress::{
    limits,
    policy::{Policy, Reason},
};

/// What becomes of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Answered with this code and no records.
    Code(ResponseCode),
    /// Refused, which the sandbox's log should say.
    Refuse(Refusal),
    /// The addresses of this name.
    Addresses(HostName),
    /// Handed on as it is.
    Relay,
}

/// A name that the guest asked for and may not have. Prints as a line for the sandbox's log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Refusal {
    pub(crate) name: HostName,
    pub(crate) reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocked: dns {}, {}", self.name, self.reason)
    }
}

/// A query, if it is one. Answers and garbage are not answered: that would make an echo of the resolver.
pub(super) fn read(bytes: &[u8]) -> Option<Message> {
    if bytes.len() > limits::QUERY_MAX {
        return None;
    }
    Message::from_vec(bytes).ok().filter(|message| message.metadata.message_type == MessageType::Query)
}

/// What the policy says to a query.
pub(super) fn judge(query: &Message, policy: &Policy) -> Decision {
    if query.metadata.op_code != OpCode::Query {
        return Decision::Code(ResponseCode::NotImp);
    }
    let [question] = query.queries.as_slice() else { return Decision::Code(ResponseCode::FormErr) };
    if question.query_class != DNSClass::IN {
        return Decision::Code(ResponseCode::Refused);
    }
    let name = host_name(&question.name);
    let permitted = match &name {
        Some(name) => policy.name(name).map_err(|reason| Refusal { name: name.clone(), reason }),
        None if policy.free_dns() => Ok(()),
        None => return Decision::Code(ResponseCode::Refused),
    };
    if let Err(refusal) = permitted {
        return Decision::Refuse(refusal);
    }
    match (question.query_type, name) {
        (RecordType::A, Some(name)) => Decision::Addresses(name),
        (RecordType::A | RecordType::ANY | RecordType::AXFR | RecordType::IXFR, _) => {
            Decision::Code(ResponseCode::Refused)
        }
        // IPv6 is absent, also as a hint.
        (RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB, _) => Decision::Code(ResponseCode::NoError),
        _ if policy.free_dns() => Decision::Relay,
        (RecordType::CNAME, _) => Decision::Code(ResponseCode::NoError),
        _ => Decision::Code(ResponseCode::Refused),
    }
}

/// An answer without records.
pub(super) fn coded(query: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.response_code = code;
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(limits::UDP_ANSWER_MAX);
        answer.set_edns(edns);
    }
    answer
}

/// The answer with these addresses and the names on the way to them.
pub(super) fn addresses(query: &Message, found: &Found) -> Message {
    let mut answer = coded(query, ResponseCode::NoError);
    let Some(mut owner) = query.queries.first().map(|question| question.name.clone()) else { return answer };
    let ttl = u32::try_from(found.ttl.as_secs()).unwrap_or(u32::MAX);
    for name in found.chain.iter().filter_map(dns_name) {
        answer.add_answer(Record::from_rdata(owner, ttl, RData::CNAME(CNAME(name.clone()))));
        owner = name;
    }
    for address in &found.addresses {
        answer.add_answer(Record::from_rdata(owner.clone(), ttl, RData::A(A(*address))));
    }
    answer
}

/// What came from upstream, without what the guest cannot or must not reach.
pub(super) fn relayed(query: &Message, policy: &Policy, upstream: Message) -> Message {
    let mut answer = coded(query, upstream.metadata.response_code);
    let reachable = |record: &Record| match &record.data {
        RData::A(address) => policy.address(**address).is_ok(),
        RData::AAAA(_) => false,
        _ => true,
    };
    answer.add_answers(upstream.answers.into_iter().filter(reachable));
    answer.add_authorities(upstream.authorities);
    answer.add_additionals(upstream.additionals.into_iter().filter(reachable));
    answer
}

/// The bytes of an answer; over UDP cut to what the guest takes.
pub(super) fn write(answer: &Message, query: &Message, transport: Transport) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    let longest = match transport {
        Transport::Udp => {
            let wanted = query.edns.as_ref().map_or(limits::UDP_ANSWER_MIN, Edns::max_payload);
            wanted.clamp(limits::UDP_ANSWER_MIN, limits::UDP_ANSWER_MAX)
        }
        Transport::Tcp => u16::MAX,
    };
    if bytes.len() <= usize::from(longest) { Some(bytes) } else { answer.truncate().to_vec().ok() }
}

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}
