//! What a guest may see of a request, and a client of a guest's answer: pure functions over header lists.

use std::net::IpAddr;

use belljar_api::limits::AGENT_PORT;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::auth;

/// Headers that concern one connection only (RFC 9110, 7.6.1), and `Expect`, which we answer ourselves.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// What the request was when it reached us.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    /// Whose connection it came over.
    pub(super) peer: IpAddr,
    /// `Host` as the client sent it.
    pub(super) host: Option<&'a HeaderValue>,
    /// Whether the key in it opened the door; a user's own `Authorization` passes where none was needed.
    pub(super) key_used: bool,
}

/// The protocol that a request asks to change to; only one that can be spliced.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = listed(headers).any(|name| name == header::UPGRADE);
    let protocol = headers.get(header::UPGRADE)?;
    // HTTP/2 over an upgraded connection would carry requests past the header rules.
    let is_http = protocol.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("h2c"));
    (asks && !is_http).then(|| protocol.clone())
}

/// The names in `Connection`.
fn listed(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let lists = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).filter_map(|name| name.trim().parse().ok())
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in listed(headers).collect::<Vec<_>>() {
        headers.remove(name);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The headers that a guest port gets. What only a trusted proxy may say is taken out and said anew.
pub(super) fn to_guest(headers: &HeaderMap, origin: Origin<'_>, port: u16) -> HeaderMap {
    let mut out = headers.clone();
    let switching = upgrade(headers);
    strip_hop_by_hop(&mut out);
    let ours = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("x-tensorlake-")
            || name.starts_with("x-forwarded-")
            || name == "forwarded"
            || name == "x-real-ip"
    };
    for name in out.keys().filter(|name| ours(name)).cloned().collect::<Vec<_>>() {
        out.remove(name);
    }
    let is_key = auth::bearer(headers).is_some_and(|token| token.starts_with(auth::KEY_PREFIX));
    if origin.key_used || is_key {
        out.remove(header::AUTHORIZATION);
    }
    if let Ok(peer) = HeaderValue::from_str(&origin.peer.to_string()) {
        out.insert("x-forwarded-for", peer);
    }
    out.insert("x-forwarded-proto", HeaderValue::from_static("http"));
    if let Some(host) = origin.host {
        out.insert("x-forwarded-host", host.clone());
    }
    let host = match origin.host {
        Some(host) if port != AGENT_PORT => host.clone(),
        _ => HeaderValue::from_str(&format!("localhost:{port}")).unwrap_or(HeaderValue::from_static("localhost")),
    };
    out.insert(header::HOST, host);
    if let Some(protocol) = switching {
        out.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        out.insert(header::UPGRADE, protocol);
    }
    out
}

/// The headers of a guest's answer that the client gets.
pub(super) fn to_client(headers: &HeaderMap, switched: bool) -> HeaderMap {
    let mut out = headers.clone();
    strip_hop_by_hop(&mut out);
    if switched {
        out.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = headers.get(header::UPGRADE) {
            out.insert(header::UPGRADE, protocol.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn map(text: &str) -> HeaderMap {
        let pairs = text.lines().map(|line| line.trim().split_once(": ").expect("line"));
        pairs.map(|(n, v)| (n.parse::<HeaderName>().expect("name"), v.parse().expect("value"))).collect()
    }

    #[track_caller]
    fn check(input: &str, port: u16, key_used: bool, expected: &str) {
        let input = map(input);
        let origin = Origin { peer: Ipv4Addr::LOCALHOST.into(), host: input.get(header::HOST), key_used };
        let mut got: Vec<_> = to_guest(&input, origin, port)
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        got.sort();
        let mut expected: Vec<_> = expected.lines().map(|line| line.trim().to_owned()).collect();
        expected.sort();
        assert_eq!(got, expected);
    }

    #[test]
    fn a_guest_sees_neither_the_key_nor_what_only_we_may_say() {
        check(
            "host: box.local
             authorization: Bearer belljar_x
             x-tensorlake-sandbox-id: box
             x-forwarded-for: 9.9.9.9
             forwarded: for=9.9.9.9
             connection: keep-alive, x-private
             x-private: 1
             transfer-encoding: chunked
             expect: 100-continue
             x-pty-token: t
             accept: */*",
            9501,
            true,
            "host: localhost:9501
             x-forwarded-for: 127.0.0.1
             x-forwarded-proto: http
             x-forwarded-host: box.local
             x-pty-token: t
             accept: */*",
        );
    }

    #[test]
    fn an_open_port_gets_its_own_authorization_and_host() {
        let rest = "x-forwarded-for: 127.0.0.1\nx-forwarded-proto: http\nx-forwarded-host: 80-box.local:9443";
        check(
            "host: 80-box.local:9443\nauthorization: Basic eA==",
            80,
            false,
            &format!("host: 80-box.local:9443\nauthorization: Basic eA==\n{rest}"),
        );
        check(
            "host: 80-box.local:9443\nauthorization: Bearer belljar_old",
            80,
            false,
            &format!("host: 80-box.local:9443\n{rest}"),
        );
    }

    #[test]
    fn only_an_asked_for_upgrade_passes() {
        let asked = map("connection: Upgrade\nupgrade: websocket\nsec-websocket-key: x");
        let origin = Origin { peer: Ipv4Addr::LOCALHOST.into(), host: None, key_used: true };
        let out = to_guest(&asked, origin, 9501);
        assert_eq!((&out["connection"], &out["upgrade"]), (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap()));
        assert_eq!(upgrade(&map("upgrade: websocket")), None);
        assert_eq!(upgrade(&map("connection: upgrade\nupgrade: h2c")), None);
    }
}
