//! What the firewall noted: blocked destinations and counters, read from the JSON of `nft`.

use std::{fmt, net::Ipv4Addr};

use belljar_api::network::{NetworkUse, Traffic};
use serde_json::Value;

use super::rule::Counter;
use crate::egress::policy::Reason;

/// Commands that list blocked destinations and counters.
pub(crate) const LIST: &str = "list set inet belljar drops; list counters table inet belljar";
/// Script that forgets blocked destinations.
pub(crate) const FORGET_DROPS: &str = "flush set inet belljar drops\n";

/// A destination that was blocked at least once. Prints as a line for the sandbox's log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Dropped {
    pub(crate) protocol: String,
    pub(crate) address: Ipv4Addr,
    /// `None` where the protocol has none.
    pub(crate) port: Option<u16>,
    pub(crate) reason: Reason,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocked: {} {}", self.protocol, self.address)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, ", {}", self.reason)
    }
}

/// The blocked destinations in the answer to [`LIST`]. What is not understood is left out.
pub(crate) fn dropped(json: &str) -> Vec<Dropped> {
    let objects = objects(json);
    let sets = objects.iter().filter_map(|object| object.get("set")?.get("elem")?.as_array());
    let mut found: Vec<_> = sets.flatten().filter_map(entry).collect();
    found.sort_by_key(|dropped| (dropped.address, dropped.port));
    found
}

fn entry(element: &Value) -> Option<Dropped> {
    let value = element.get("elem").map_or(Some(element), |inner| inner.get("val"))?;
    let [address, protocol, port, mark] = value.get("concat")?.as_array()?.as_slice() else { return None };
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let port = u16::try_from(number(port)?).ok()?;
    Some(Dropped {
        protocol: protocol.as_str().map_or_else(|| format!("protocol {protocol}"), str::to_owned),
        address: address.as_str()?.parse().ok()?,
        port: (port != 0).then_some(port),
        reason: Reason::of_mark(number(mark)?)?,
    })
}

/// The counters in the answer to [`LIST`].
pub(crate) fn counts(json: &str) -> NetworkUse {
    let objects = objects(json);
    let of = |counter: Counter| {
        let counters = objects.iter().filter_map(|object| object.get("counter"));
        let found =
            counters.into_iter().find(|found| found.get("name").and_then(Value::as_str) == Some(counter.name()));
        let field = |name| found.and_then(|found| found.get(name)?.as_u64()).unwrap_or_default();
        Traffic { packets: field("packets"), bytes: field("bytes") }
    };
    NetworkUse { out: of(Counter::Out), r#in: of(Counter::In), dropped: of(Counter::Dropped) }
}

/// Each command's answer is a line of its own; others are remarks.
fn objects(json: &str) -> Vec<Value> {
    let answers = json.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lists = answers.filter_map(|mut answer| match answer.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Some(objects),
        _ => None,
    });
    lists.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_read_as_log_lines() {
        let elements = r#"{"elem": {"val": {"concat": ["1.2.3.5", "udp", 53, 7]}, "expires": 59}},
            {"elem": {"val": {"concat": ["1.2.3.4", "tcp", 443, 2]}, "expires": 59}},
            {"elem": {"val": {"concat": ["1.2.3.6", "icmp", 0, 3]}, "expires": 59}},
            {"elem": {"val": {"concat": ["1.2.3.7", 200, 0, 9]}, "expires": 59}},
            {"elem": {"val": {"concat": ["1.2.3.7", "tcp", 0, 99]}}}, {"elem": 7}, null"#;
        let json = format!(
            r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}}, {{"set": {{"name": "drops", "elem": [{}]}}}}]}}"#,
            elements.replace('\n', " ")
        );
        let lines: Vec<_> = dropped(&json).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "blocked: tcp 1.2.3.4:443, not in allow_out",
                "blocked: udp 1.2.3.5:53, DNS goes to the sandbox's own resolver only",
                "blocked: icmp 1.2.3.6, in deny_out",
                "blocked: protocol 200 1.2.3.7, only TCP, UDP and ICMP echo leave a sandbox",
            ]
        );
        assert_eq!(dropped("nonsense\n"), []);
    }

    #[test]
    fn counters_are_read_by_name() {
        let out = r#"{"nftables": [{"counter": {"name": "out", "packets": 2, "bytes": 120}}]}"#;
        let dropped = r#"{"nftables": [{"counter": {"name": "dropped", "packets": 1, "bytes": 60}}]}"#;
        let json = format!("{out}\n{dropped}\nnetlink: Error: Unknown set '__set0' in lookup expression\n");
        let (out, dropped) = (Traffic { packets: 2, bytes: 120 }, Traffic { packets: 1, bytes: 60 });
        assert_eq!(counts(&json), NetworkUse { out, dropped, r#in: Traffic::default() });
    }
}
