//! Every limit of the egress policy, with its unit and its reason.

use std::time::Duration;

/// Shortest time for which an address that was handed out stays reachable: programs keep addresses longer than a TTL of
/// a few seconds says.
pub(super) const TTL_FLOOR: Duration = Duration::from_secs(60);
/// Longest TTL that is believed: a mistaken TTL of a year would keep an address open after it changed hands.
pub(super) const TTL_CEILING: Duration = Duration::from_secs(3600);
/// How long an address stays reachable beyond its TTL: between the answer and the first packet lies a program.
pub(super) const TTL_GRACE: Duration = Duration::from_secs(30);
/// How long a name without an address is not asked for again.
pub(super) const NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// How long an address of a denied name stays denied after it was last seen: hosts with many addresses show a few at a time.
pub(super) const DENIED_FOR: Duration = Duration::from_secs(3600);
/// First and last pause before a denied name that did not resolve is tried again.
pub(super) const DENIED_RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// Names that one sandbox's resolver remembers; the one that was not asked for the longest time goes first.
pub(super) const NAMES_MAX: usize = 4096;
/// How long a resolver's memory is not written after it has changed, lest a guest that asks and asks has it written and
/// written.
pub(super) const KEEP_PAUSE: Duration = Duration::from_secs(1);
/// Addresses of one name that are remembered over several answers.
pub(super) const ADDRESSES_PER_NAME_MAX: usize = 64;
/// Addresses in one answer; more are left out.
pub(super) const ADDRESSES_PER_ANSWER_MAX: usize = 32;
/// Addresses that are open, or denied, by name at once, in one sandbox's firewall.
pub(super) const ADDRESSES_MAX: usize = 16 * 1024;
/// Names in one chain of CNAMEs.
pub(super) const CHAIN_MAX: usize = 10;

/// Longest query that is read, bytes. One question fits in 300; the rest is room for EDNS.
pub(super) const QUERY_MAX: usize = 1232;
/// Longest answer over UDP, bytes: what crosses every network unfragmented.
pub(super) const UDP_ANSWER_MAX: u16 = 1232;
/// Longest answer over UDP to a guest that says nothing, bytes, as in DNS.
pub(super) const UDP_ANSWER_MIN: u16 = 512;
/// Queries per second of one sandbox over a longer time. More are not answered: a tunnel in names becomes useless.
pub(super) const QUERIES_PER_SECOND: u32 = 100;
/// Queries of one sandbox at once: a browser's start.
pub(super) const QUERIES_BURST: u32 = 500;
/// Queries of one sandbox that wait for upstream resolvers; more are answered with SERVFAIL.
pub(super) const LOOKUPS_MAX: usize = 64;
/// Connections of one sandbox to its resolver.
pub(super) const TCP_CONNECTIONS_MAX: usize = 16;
/// How long such a connection may be silent.
pub(super) const TCP_IDLE: Duration = Duration::from_secs(10);
/// How long one upstream resolver may take for one answer.
pub(super) const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// How often each upstream resolver is asked.
pub(super) const UPSTREAM_ATTEMPTS: usize = 2;
/// How long one question may take in all: stub resolvers give up after five seconds.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_millis(4500);
/// Upstream resolvers that are asked.
pub(super) const UPSTREAMS_MAX: usize = 3;
/// Names that are resolved at once when a policy is applied.
pub(super) const RESOLVE_AT_ONCE: usize = 16;
/// How long the names of a policy may take to resolve; an update waits for it.
pub(super) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Most entries of the sets in which the firewall keeps addresses: twice what the resolver hands out, since one that is
/// renewed counts twice for a moment.
pub(super) const SET_MAX: usize = 2 * ADDRESSES_MAX;
/// Blocked destinations that the firewall remembers until the node has read them.
pub(super) const DROPS_MAX: usize = 512;
/// How long it does, seconds.
pub(super) const DROPS_SECONDS: u32 = 60;
/// Blocked packets per second of which one sandbox's are remembered.
pub(super) const DROP_SAMPLES_PER_SECOND: u32 = 20;
/// Blocked packets at once of which all are remembered: what a program tries when it starts.
pub(super) const DROP_SAMPLES_BURST: u32 = 100;
/// Least bytes that may pass at once under a bandwidth limit: two segments as large as the kernel makes them.
pub(super) const BURST_MIN: u64 = 128 * 1024;

/// Connections of one sandbox to the proxy that puts secrets into its requests.
pub(super) const PROXY_CONNECTIONS_MAX: usize = 256;
/// How long a guest may take for its part of the handshake, and for the head of a request.
pub(super) const PROXY_HANDSHAKE: Duration = Duration::from_secs(10);
/// See [`PROXY_HANDSHAKE`]; also how long a connection may wait for its next request.
pub(super) const PROXY_HEAD: Duration = Duration::from_secs(60);
/// How long the way to a host may take, its TLS included.
pub(super) const PROXY_CONNECT: Duration = Duration::from_secs(15);
/// Bytes of all headers of a request.
pub(super) const PROXY_HEADERS_MAX: usize = 64 * 1024;
/// Bytes of a header after a secret was put into it.
pub(super) const SWAPPED_HEADER_MAX: usize = 64 * 1024;
/// Streams of one HTTP/2 connection at once.
pub(super) const PROXY_STREAMS_MAX: u32 = 100;
/// Unused connections to one host that are kept, and how long.
pub(super) const PROXY_IDLE: (usize, Duration) = (8, Duration::from_secs(30));
/// TTL of the proxy's address: how soon a guest notices that a name is no longer bound to a secret.
pub(super) const PROXY_TTL: Duration = Duration::from_secs(30);
/// Refused requests that are remembered for the sandbox's log.
pub(super) const PROXY_REFUSALS_MAX: usize = 64;

const _: () = assert!(UPSTREAM_TIMEOUT.as_millis() < LOOKUP_TIMEOUT.as_millis());
const _: () = assert!(TTL_FLOOR.as_secs() < TTL_CEILING.as_secs() && UDP_ANSWER_MIN <= UDP_ANSWER_MAX);
const _: () = assert!(ADDRESSES_PER_ANSWER_MAX <= ADDRESSES_PER_NAME_MAX && SET_MAX >= 2 * ADDRESSES_MAX);
