//! Which sandbox and port a request is for: a pure function of its head.
//!
//! A head that names two hosts, or two sandboxes, is refused: what one reader takes for the target another may not.
//!
//! In this order: `X-Tensorlake-Sandbox-Id` (with `X-Tensorlake-Sandbox-Port`), `Host: {x}.local`, `{x}.localhost`,
//! `{x}.{domain}`, each also as `{port}-{x}.…`. `x` is an id or a name; a name begins with a letter, so the form with
//! a port is never a name. Everything else is ours.

use belljar_api::{
    id::{check_name, is_id},
    limits::AGENT_PORT,
};
use http::{HeaderMap, HeaderValue, Uri, header};

use crate::error::ApiError;

/// Names the sandbox, whatever the host.
pub(crate) const SANDBOX_ID: &str = "x-tensorlake-sandbox-id";
/// Names the port beside it.
pub(crate) const SANDBOX_PORT: &str = "x-tensorlake-sandbox-port";

/// A sandbox and a port of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Id or name.
    pub(crate) sandbox: String,
    /// [`AGENT_PORT`] is the guest agent.
    pub(crate) port: u16,
}

impl Target {
    /// Whether this is the guest agent, and not a user's port.
    pub(crate) fn is_agent(&self) -> bool {
        self.port == AGENT_PORT
    }
}

/// The target, or `None` when the request is for the server itself.
pub(crate) fn find(
    host: Option<&HeaderValue>,
    headers: &HeaderMap,
    domain: Option<&str>,
) -> Result<Option<Target>, ApiError> {
    for name in [SANDBOX_ID, SANDBOX_PORT] {
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(ApiError::invalid(format!("{name}: given more than once; give it once")));
        }
    }
    if let Some(value) = headers.get(SANDBOX_ID) {
        let sandbox = value.to_str().unwrap_or_default();
        if !is_reference(sandbox) {
            return Err(ApiError::invalid(format!("{SANDBOX_ID}: not the id or the name of a sandbox")));
        }
        let port = match headers.get(SANDBOX_PORT) {
            Some(value) => value.to_str().ok().and_then(|text| text.parse().ok()).filter(|port| *port != 0),
            None => Some(AGENT_PORT),
        };
        let port = port.ok_or_else(|| ApiError::invalid(format!("{SANDBOX_PORT}: not a port; use 1 to 65535")))?;
        return Ok(Some(Target { sandbox: sandbox.to_owned(), port }));
    }
    Ok(host.and_then(name).and_then(|host| by_host(&host, domain)))
}

/// The host that a request is for, with its port: its `Host`, or the authority of its target (HTTP/2, or an absolute
/// URI).
pub(crate) fn host(uri: &Uri, headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(ApiError::invalid("Host: given more than once; give it once"));
    }
    let Some(authority) = uri.authority() else { return Ok(header.cloned()) };
    if authority.as_str().contains('@') {
        return Err(ApiError::invalid("the request's target has a user name; leave it out"));
    }
    let same = header.is_none_or(|header| header.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()));
    if !same {
        return Err(ApiError::invalid("Host: another one than in the request's target; give one"));
    }
    Ok(HeaderValue::from_str(authority.as_str()).ok())
}

/// The host name in a host, lower case, without its port.
fn name(host: &HeaderValue) -> Option<String> {
    let host = host.to_str().ok()?;
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    Some(name.trim_end_matches('.').to_ascii_lowercase())
}

fn by_host(host: &str, domain: Option<&str>) -> Option<Target> {
    let label = [Some("local"), Some("localhost"), domain]
        .into_iter()
        .flatten()
        .find_map(|suffix| host.strip_suffix(suffix)?.strip_suffix('.'))?;
    by_label(label)
}

/// What a host name below a domain leads to. Of the ways to write a port, only the plain one counts here.
pub(crate) fn below(host: &str, domain: &str) -> Option<Target> {
    let label = host.strip_suffix(domain)?.strip_suffix('.')?;
    let target = by_label(label)?;
    let is_plain = label == target.sandbox || label == format!("{}-{}", target.port, target.sandbox);
    is_plain.then_some(target)
}

fn by_label(label: &str) -> Option<Target> {
    if is_reference(label) {
        return Some(Target { sandbox: label.to_owned(), port: AGENT_PORT });
    }
    let (port, sandbox) = label.split_once('-')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    is_reference(sandbox).then(|| Target { sandbox: sandbox.to_owned(), port })
}

fn is_reference(text: &str) -> bool {
    is_id(text) || check_name(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "5gm9wex8dm6ko1ed441ya";

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<http::HeaderName>().expect("name"), value.parse().expect("value"));
        }
        headers
    }

    #[track_caller]
    fn check(pairs: &[(&str, &str)], expected: Option<(&str, u16)>) {
        let headers = map(pairs);
        let host = host(&Uri::from_static("/x"), &headers).expect("host");
        let got = find(host.as_ref(), &headers, Some("sb.test")).expect("target");
        let expected = expected.map(|(sandbox, port)| Target { sandbox: sandbox.to_owned(), port });
        assert_eq!(got, expected, "{pairs:?}");
    }

    #[test]
    fn the_header_wins_then_the_host() {
        check(&[(SANDBOX_ID, "box-1"), ("host", "other.local")], Some(("box-1", 9501)));
        check(&[(SANDBOX_ID, ID), (SANDBOX_PORT, "8080")], Some((ID, 8080)));
        check(&[("host", &format!("{ID}.local"))], Some((ID, 9501)));
        check(&[("host", "box-1.local:9443")], Some(("box-1", 9501)));
        check(&[("host", "BOX-1.Local")], Some(("box-1", 9501)));
        check(&[("host", "8080-box-1.localhost:9443")], Some(("box-1", 8080)));
        check(&[("host", &format!("{ID}.sb.test:80"))], Some((ID, 9501)));
        check(&[("host", &format!("3000-{ID}.sb.test."))], Some((ID, 3000)));
    }

    #[test]
    fn everything_else_is_ours() {
        for host in
            ["localhost:8900", "127.0.0.1:9443", "sb.test", "a.b.sb.test", "xsb.test", "0-box.local", "70000-box.local"]
        {
            check(&[("host", host)], None);
        }
        check(&[], None);
    }

    #[test]
    fn a_host_below_a_domain_is_written_in_one_way() {
        let below = |host: &str| below(host, "sb.test").map(|target| (target.sandbox, target.port));
        assert_eq!(below("box-1.sb.test"), Some(("box-1".into(), 9501)));
        assert_eq!(below("8080-box-1.sb.test"), Some(("box-1".into(), 8080)));
        for host in ["08080-box-1.sb.test", "+8080-box-1.sb.test", "sb.test", "a.b.sb.test", "box-1.local", ".sb.test"]
        {
            assert_eq!(below(host), None, "{host}");
        }
    }

    #[test]
    fn wrong_headers_are_refused() {
        for (name, value) in [(SANDBOX_ID, "no such/thing"), (SANDBOX_ID, ""), (SANDBOX_PORT, "0"), (SANDBOX_PORT, "x")]
        {
            let mut headers =
                HeaderMap::from_iter([(http::HeaderName::from_static(SANDBOX_ID), "box".parse().unwrap())]);
            headers.insert(name, value.parse().unwrap());
            assert!(find(None, &headers, None).is_err(), "{name}: {value}");
        }
        assert!(find(None, &map(&[(SANDBOX_ID, "a"), (SANDBOX_ID, "b")]), None).is_err());
    }

    #[test]
    fn a_request_has_one_host() {
        let of = |uri: &str, pairs: &[(&str, &str)]| {
            let host = host(&uri.parse().expect("URI"), &map(pairs));
            host.map(|host| host.map(|host| host.to_str().expect("text").to_owned())).map_err(|_| ())
        };
        assert_eq!(of("/", &[]), Ok(None));
        assert_eq!(of("/", &[("host", "a.local:1")]), Ok(Some("a.local:1".into())));
        assert_eq!(of("http://a.local:1/", &[]), Ok(Some("a.local:1".into())));
        assert_eq!(of("http://a.local/", &[("host", "A.local")]), Ok(Some("a.local".into())));
        assert_eq!(of("http://a.local/", &[("host", "b.local")]), Err(()));
        assert_eq!(of("http://u@a.local/", &[]), Err(()));
        assert_eq!(of("/", &[("host", "a.local"), ("host", "b.local")]), Err(()));
    }
}
