//! Where a request came from, as the guest is told: `X-Forwarded-For`, `-Proto` and `-Host`.
//!
//! What a client says of these is believed only when its connection comes from a proxy that the operator trusts. Then
//! the chain is read from its end, and cut at the first address that is no such proxy: what stands before that one was
//! written by somebody unknown.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;

const FOR: &str = "x-forwarded-for";
const PROTO: &str = "x-forwarded-proto";
const HOST: &str = "x-forwarded-host";

/// Addresses of a chain that are looked at; proxies do not stand that deep.
const CHAIN_MAX: usize = 32;

/// The connection that a request came over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// Its other end.
    pub(crate) address: IpAddr,
    /// Whether TLS protects it.
    pub(crate) is_tls: bool,
    /// Whether it is in this process, at the other end of a pipe in memory.
    pub(crate) is_here: bool,
}

/// What the request was when it reached us.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// Where from.
    pub(super) forwarded: Forwarded,
    /// The host that it is for.
    pub(super) host: Option<HeaderValue>,
    /// Whether the key in it opened the door; a user's own `Authorization` passes where none was needed.
    pub(super) key_used: bool,
}

/// The three headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forwarded {
    pub(super) chain: String,
    pub(super) proto: &'static str,
    pub(super) host: Option<HeaderValue>,
}

/// What the guest is told of a request with these headers, whose own host is `host`.
pub(super) fn forwarded(peer: Peer, host: Option<&HeaderValue>, headers: &HeaderMap, trusted: &[IpNet]) -> Forwarded {
    // A listener for both families shows an IPv4 client as an IPv6 address.
    let address = peer.address.to_canonical();
    let is_trusted = |address: &IpAddr| trusted.iter().any(|range| range.contains(address));
    let own = if peer.is_tls { "https" } else { "http" };
    if !is_trusted(&address) {
        return Forwarded { chain: address.to_string(), proto: own, host: host.cloned() };
    }
    let mut chain = vec![address];
    let lines = headers.get_all(FOR).iter().filter_map(|value| value.to_str().ok());
    let entries: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    for entry in entries.into_iter().rev().take(CHAIN_MAX) {
        // What is no address ends the chain: a proxy of the operator's would have written one.
        let Ok(entry) = entry.parse::<IpAddr>() else { break };
        let entry = entry.to_canonical();
        chain.push(entry);
        if !is_trusted(&entry) {
            break;
        }
    }
    let chain: Vec<String> = chain.iter().rev().map(IpAddr::to_string).collect();
    let proto = match headers.get(PROTO).and_then(|value| value.to_str().ok()) {
        Some("https") => "https",
        Some("http") => "http",
        _ => own,
    };
    Forwarded { chain: chain.join(", "), proto, host: headers.get(HOST).or(host).cloned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(peer: &str, is_tls: bool, pairs: &[(&'static str, &str)], expected: [&str; 3]) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("value"));
        }
        let trusted = ["10.0.0.0/8".parse().expect("range"), "fd00::/8".parse().expect("range")];
        let peer = Peer { address: peer.parse().expect("address"), is_tls, is_here: false };
        let got = forwarded(peer, Some(&HeaderValue::from_static("a.sb.test")), &headers, &trusted);
        assert_eq!([&got.chain, got.proto, got.host.as_ref().unwrap().to_str().unwrap()], expected);
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let claims = [(FOR, "1.2.3.4"), (PROTO, "https"), (HOST, "bank.test")];
        check("9.9.9.9", false, &claims, ["9.9.9.9", "http", "a.sb.test"]);
        check("9.9.9.9", true, &[], ["9.9.9.9", "https", "a.sb.test"]);
        check("::ffff:9.9.9.9", false, &claims, ["9.9.9.9", "http", "a.sb.test"]);
    }

    #[test]
    fn a_trusted_proxy_is_believed_as_far_as_the_first_stranger() {
        let claims = [(FOR, "1.1.1.1, 8.8.8.8,10.0.0.7"), (FOR, "fd00::1"), (PROTO, "https"), (HOST, "b.test")];
        check("10.0.0.1", false, &claims, ["8.8.8.8, 10.0.0.7, fd00::1, 10.0.0.1", "https", "b.test"]);
        check("::ffff:10.0.0.1", false, &[(FOR, "8.8.8.8")], ["8.8.8.8, 10.0.0.1", "http", "a.sb.test"]);
        check("10.0.0.1", true, &[(FOR, "1.1.1.1, evil"), (PROTO, "gopher")], ["10.0.0.1", "https", "a.sb.test"]);
    }
}
