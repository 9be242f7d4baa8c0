//! What a guest may see of a request, and a client of a guest's answer: pure functions over header lists.

use belljar_api::limits::AGENT_PORT;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::body::Frame;

use super::forwarded::Origin;
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

/// What decides where a message ends, or who asks, stands in its head and nowhere else (RFC 9110, 6.5.1).
const NOT_IN_TRAILERS: [HeaderName; 5] =
    [header::CONTENT_LENGTH, header::HOST, header::AUTHORIZATION, header::COOKIE, header::TRAILER];

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

/// What only we may say to a guest, so that what a client said of it is taken out.
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-tensorlake-")
        || name.starts_with("x-forwarded-")
        || name == "forwarded"
        || name == "x-real-ip"
        || name == "http2-settings"
}

fn strip_ours(headers: &mut HeaderMap) {
    for name in headers.keys().filter(|name| is_ours(name)).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// The headers that a guest port gets. What only a trusted proxy may say is taken out and said anew.
pub(super) fn to_guest(headers: &HeaderMap, origin: &Origin, port: u16, is_grpc: bool) -> HeaderMap {
    let mut out = headers.clone();
    let switching = upgrade(headers);
    strip_hop_by_hop(&mut out);
    strip_ours(&mut out);
    let is_key = auth::bearer(headers).is_some_and(|token| token.starts_with(auth::KEY_PREFIX));
    if origin.key_used || is_key {
        out.remove(header::AUTHORIZATION);
    }
    if let Ok(chain) = HeaderValue::from_str(&origin.forwarded.chain) {
        out.insert("x-forwarded-for", chain);
    }
    out.insert("x-forwarded-proto", HeaderValue::from_static(origin.forwarded.proto));
    if let Some(host) = &origin.forwarded.host {
        out.insert("x-forwarded-host", host.clone());
    }
    let host = match &origin.host {
        Some(host) if port != AGENT_PORT => host.clone(),
        _ => HeaderValue::from_str(&format!("localhost:{port}")).unwrap_or(HeaderValue::from_static("localhost")),
    };
    out.insert(header::HOST, host);
    if is_grpc {
        // A gRPC server refuses a client that does not say that it takes trailers.
        out.insert(header::TE, HeaderValue::from_static("trailers"));
    }
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

/// Trailers that a guest gets: nothing comes in through them that a header could not.
pub(super) fn trailers_to_guest(frame: Frame<Bytes>) -> Frame<Bytes> {
    trailers(frame, strip_ours)
}

/// Trailers that a client gets.
pub(super) fn trailers_to_client(frame: Frame<Bytes>) -> Frame<Bytes> {
    trailers(frame, |_| {})
}

fn trailers(frame: Frame<Bytes>, strip: impl FnOnce(&mut HeaderMap)) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut map) => {
            strip_hop_by_hop(&mut map);
            for name in NOT_IN_TRAILERS {
                map.remove(name);
            }
            strip(&mut map);
            Frame::trailers(map)
        }
        Err(data) => data,
    }
}

/// A length and an encoding in one answer are two opinions on where it ends: what one side takes for a body the other
/// takes for the next answer (RFC 9112, 6.1). We take neither. In a request hyper goes by the encoding, takes the length
/// out, and closes the connection behind it.
pub(super) fn is_ambiguous(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::{super::forwarded::Forwarded, *};

    fn origin(host: Option<&HeaderValue>, key_used: bool) -> Origin {
        let forwarded = Forwarded { chain: "127.0.0.1".into(), proto: "http", host: host.cloned() };
        Origin { forwarded, host: host.cloned(), key_used }
    }

    fn map(text: &str) -> HeaderMap {
        let pairs = text.lines().map(|line| line.trim().split_once(": ").expect("line"));
        pairs.map(|(n, v)| (n.parse::<HeaderName>().expect("name"), v.parse().expect("value"))).collect()
    }

    #[track_caller]
    fn check(input: &str, port: u16, key_used: bool, expected: &str) {
        let input = map(input);
        let origin = origin(input.get(header::HOST), key_used);
        let mut got: Vec<_> = to_guest(&input, &origin, port, false)
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
        let out = to_guest(&asked, &origin(None, true), 9501, false);
        assert_eq!((&out["connection"], &out["upgrade"]), (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap()));
        assert_eq!(upgrade(&map("upgrade: websocket")), None);
        assert_eq!(upgrade(&map("connection: upgrade\nupgrade: h2c")), None);
    }

    #[test]
    fn trailers_bring_in_nothing_that_a_header_could_not() {
        let all = "x-forwarded-for: 9.9.9.9\nx-tensorlake-sandbox-id: a\nauthorization: Bearer x\ncontent-length: 9\n\
                   transfer-encoding: chunked\ngrpc-status: 0";
        let text = |frame: Frame<Bytes>| {
            let map = frame.into_trailers().expect("trailers");
            map.keys().map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(text(trailers_to_guest(Frame::trailers(map(all)))), ["grpc-status"]);
        let seen = text(trailers_to_client(Frame::trailers(map(all))));
        assert_eq!(seen, ["x-forwarded-for", "x-tensorlake-sandbox-id", "grpc-status"]);
    }
}
