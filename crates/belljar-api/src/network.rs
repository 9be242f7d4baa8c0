//! The entries of a network policy: what `allow_out` and `deny_out` may say, and what each entry means.
//!
//! | entry | means |
//! |---|---|
//! | `203.0.113.7`, `2001:db8::7` | this address |
//! | `203.0.113.0/24`, `2001:db8::/32` | every address of the network; its host bits must be zero |
//! | `example.com` | this host name and no other |
//! | `*.example.com` | every name below it, at any depth, but not `example.com` itself |
//!
//! Names are compared without regard to case, a dot at the end is ignored, and an international name is written in its
//! ASCII form (`xn--…`). Entries may overlap and repeat. An entry that is not understood refuses the whole request: a
//! guess would open or close the wrong thing.
//!
//! It is not the policy itself: which entry wins, and what the node adds, is decided there. Called by the server before
//! it keeps a request, and by the node before it obeys one.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    limits,
    sandbox::{Invalid, NetworkConfig},
};

/// What one entry is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address (a network of one) or a network.
    Net(IpNet),
    /// One host name.
    Host(HostName),
    /// Every name below this one, at any depth, without itself.
    Below(HostName),
}

/// A host name in its only spelling: ASCII, lower case, without a dot at the end, of valid labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

/// An entry that means nothing. The text says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Nothing.
    #[error("it is empty; remove it")]
    Empty,
    /// Not an address, not a network, not a name.
    #[error("it is not an IP address, a CIDR, a host name or *.suffix")]
    Malformed,
    /// More than a host.
    #[error("it says more than a host; write only the host name, without scheme, port or path")]
    MoreThanHost,
    /// Not ASCII.
    #[error("it has characters beyond ASCII; write the name in its ASCII form (xn--...)")]
    NotAscii,
    /// A CIDR that is none.
    #[error("it is not a CIDR; write it like 203.0.113.0/24 or 2001:db8::/32")]
    Cidr,
    /// A CIDR whose address lies within the network.
    #[error(
        "its address has bits set that the prefix leaves open; write {network} for the network or {address} for the one address"
    )]
    HostBits {
        /// The whole network.
        network: IpNet,
        /// The one address.
        address: IpAddr,
    },
    /// An IPv4 address dressed as IPv6.
    #[error("it is an IPv4 address in IPv6 form; write the IPv4 address")]
    Mapped,
    /// `*` anywhere but as the first label.
    #[error("* stands only for the first labels, as in *.example.com; for every address write 0.0.0.0/0")]
    Star,
    /// Longer than DNS allows.
    #[error("a host name has at most {} bytes and its labels at most {}", limits::HOST_NAME_MAX, limits::LABEL_MAX)]
    Long,
}

/// The parsed lists of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// `allow_out`.
    pub allow: Vec<Target>,
    /// `deny_out`.
    pub deny: Vec<Target>,
}

impl NetworkConfig {
    /// Refuses a policy with an entry that is not understood, or with too many.
    pub fn check(&self) -> Result<(), Invalid> {
        self.rules().map(drop)
    }

    /// The two lists, parsed. The error names the entry and what to write instead.
    pub fn rules(&self) -> Result<Rules, Invalid> {
        Ok(Rules {
            allow: parse_list("network.allow_out", &self.allow_out)?,
            deny: parse_list("network.deny_out", &self.deny_out)?,
        })
    }
}

fn parse_list(field: &'static str, entries: &[String]) -> Result<Vec<Target>, Invalid> {
    if entries.len() > limits::NETWORK_RULES_MAX {
        let message = format!(
            "{} entries; at most {}: use CIDRs and *.suffix to say the same with fewer",
            entries.len(),
            limits::NETWORK_RULES_MAX
        );
        return Err(Invalid { field, message });
    }
    let parse = |entry: &String| {
        entry.parse().map_err(|error| Invalid { field, message: format!("{}: {error}", quote(entry)) })
    };
    entries.iter().map(parse).collect()
}

/// An entry as an error quotes it.
fn quote(entry: &str) -> String {
    let mut shown: String = entry.chars().take(limits::ENTRY_QUOTE).collect();
    if shown.len() < entry.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

impl std::str::FromStr for Target {
    type Err = TargetError;

    fn from_str(entry: &str) -> Result<Self, TargetError> {
        if entry.is_empty() {
            return Err(TargetError::Empty);
        }
        if !entry.is_ascii() {
            return Err(TargetError::NotAscii);
        }
        if let Ok(address) = entry.parse::<IpAddr>() {
            return not_mapped(address).map(|address| Self::Net(IpNet::from(address)));
        }
        if entry.contains("://") {
            return Err(TargetError::MoreThanHost);
        }
        if let Some((address, rest)) = entry.split_once('/') {
            return match (address.parse::<IpAddr>(), rest.parse::<u8>()) {
                (Ok(address), Ok(prefix)) => network(address, prefix),
                (Ok(_), Err(_)) => Err(TargetError::Cidr),
                _ if address.starts_with(|c: char| c.is_ascii_digit()) => Err(TargetError::Cidr),
                _ => Err(TargetError::MoreThanHost),
            };
        }
        if entry.contains(':') || entry.contains('@') {
            return Err(TargetError::MoreThanHost);
        }
        match entry.strip_prefix("*.") {
            Some(suffix) => suffix.parse().map(Self::Below),
            None => entry.parse().map(Self::Host),
        }
    }
}

fn network(address: IpAddr, prefix: u8) -> Result<Target, TargetError> {
    let address = not_mapped(address)?;
    let network = IpNet::new(address, prefix).map_err(|_| TargetError::Cidr)?;
    if network.network() != address {
        return Err(TargetError::HostBits { network: network.trunc(), address });
    }
    Ok(Target::Net(network))
}

fn not_mapped(address: IpAddr) -> Result<IpAddr, TargetError> {
    match address {
        IpAddr::V6(v6)
            if v6.to_ipv4_mapped().is_some_and(|v4| v4.to_ipv6_mapped() == v6) && v6 != Ipv6Addr::UNSPECIFIED =>
        {
            Err(TargetError::Mapped)
        }
        _ => Ok(address),
    }
}

impl HostName {
    /// The name, lower case, without a dot at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name and every name above it: `a.b.c`, `b.c`, `c`.
    pub fn and_above(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(Some(self.as_str()), |name| name.split_once('.').map(|(_, above)| above))
    }
}

impl std::str::FromStr for HostName {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if text.contains('*') {
            return Err(TargetError::Star);
        }
        if name.len() > limits::HOST_NAME_MAX || name.split('.').any(|label| label.len() > limits::LABEL_MAX) {
            return Err(TargetError::Long);
        }
        if !name.split('.').all(is_label) {
            return Err(TargetError::Malformed);
        }
        // Programs take a name that ends in a number for an IPv4 address: `1.2.3`, `0x7f.1`.
        let last = name.rsplit('.').next().unwrap_or_default();
        let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        if last.bytes().all(|b| b.is_ascii_digit()) || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(TargetError::Malformed);
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

/// Letters, digits, `-` and `_`, which no host name should have and many do.
fn is_label(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Self::Net(net) => write!(f, "{net}"),
            Self::Host(name) => write!(f, "{name}"),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, headers of IP included.
    pub bytes: u64,
}

/// What has passed through a sandbox's network, and what has not, since its VM process began: a wake from the disk begins
/// anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkUse {
    /// From the sandbox.
    pub out: Traffic,
    /// To the sandbox.
    pub r#in: Traffic,
    /// Kept back by the policy; the sandbox's log says what.
    pub dropped: Traffic,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an entry is understood as, or a piece of what is said about it.
    #[track_caller]
    fn check(entry: &str, expected: Result<&str, &str>) {
        match (entry.parse::<Target>().map(|target| target.to_string()), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{entry}"),
            (Err(got), Err(expected)) => assert!(got.to_string().contains(expected), "{entry}: {got}"),
            (got, expected) => panic!("{entry}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn entries_have_one_spelling() {
        check("1.2.3.4", Ok("1.2.3.4"));
        check("1.2.3.4/32", Ok("1.2.3.4"));
        check("0.0.0.0/0", Ok("0.0.0.0/0"));
        check("2001:DB8::/32", Ok("2001:db8::/32"));
        check("::/0", Ok("::/0"));
        check("Example.COM.", Ok("example.com"));
        check("*.Example.com", Ok("*.example.com"));
        check("*.com", Ok("*.com"));
        check("localhost", Ok("localhost"));
        check("xn--bcher-kva.example", Ok("xn--bcher-kva.example"));
        check("my_bucket.example.com", Ok("my_bucket.example.com"));
        check("4.example", Ok("4.example"));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_a_remedy() {
        check("", Err("empty"));
        check(" ", Err("not an IP address"));
        check("1.2.3", Err("not an IP address"));
        check("1.2.3.4.5", Err("not an IP address"));
        check("0x7f.0x1", Err("not an IP address"));
        check("010.1.1.1", Err("not an IP address"));
        check("1.2.3.4/33", Err("203.0.113.0/24"));
        check("1.2.3.4/", Err("203.0.113.0/24"));
        check("1.2.3/24", Err("203.0.113.0/24"));
        check("1.2.3.4/255.255.255.0", Err("203.0.113.0/24"));
        check("10.1.2.3/8", Err("write 10.0.0.0/8 for the network or 10.1.2.3 for"));
        check("2001:db8::1/32", Err("write 2001:db8::/32 "));
        check("::ffff:1.2.3.4", Err("write the IPv4 address"));
        check("::ffff:0:0/96", Err("write the IPv4 address"));
        check("https://example.com", Err("without scheme"));
        check("example.com:443", Err("without scheme"));
        check("1.2.3.4:443", Err("without scheme"));
        check("example.com/path", Err("without scheme"));
        check("[2001:db8::1]", Err("without scheme"));
        check("bücher.example", Err("xn--"));
        check("*", Err("0.0.0.0/0"));
        check("a.*.example", Err("first labels"));
        check("*a.example", Err("first labels"));
        check("*.*.example", Err("first labels"));
        check("*.", Err("not an IP address"));
        check("a..example", Err("not an IP address"));
        check(".example", Err("not an IP address"));
        check("a b.example", Err("not an IP address"));
        check("a\n.example", Err("not an IP address"));
        check(&"a.".repeat(127), Ok(&"a.".repeat(127)[..253]));
        check(&format!("{}b", "a.".repeat(127)), Err("253 bytes"));
        check(&format!("{}.example", "a".repeat(64)), Err("at most 63"));
    }

    #[test]
    fn a_list_is_refused_by_its_first_bad_entry_and_by_its_length() {
        let refused = |config: NetworkConfig| config.check().expect_err("refused").to_string();
        let config = NetworkConfig { deny_out: vec!["example.com".into(), "exa mple".into()], ..Default::default() };
        assert!(refused(config).starts_with("network.deny_out: \"exa mple\": it is not"));
        let config = NetworkConfig { allow_out: vec!["1.2.3.4".into(); 10_000], ..Default::default() };
        assert!(refused(config).starts_with("network.allow_out: 10000 entries; at most 1000"));
        let config = NetworkConfig { allow_out: vec!["x".repeat(100_000)], ..Default::default() };
        assert!(refused(config).len() < 300);
        let config = NetworkConfig { allow_out: vec!["1.2.3.4".into(); 1000], ..Default::default() };
        assert_eq!(config.rules().map(|rules| rules.allow.len()), Ok(1000));
    }
}
