//! Rules as values: each prints as one line of nftables, and the tests evaluate them.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;

use crate::egress::{limits, policy::Reason};

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// Where the kernel enters it, if it does; what no rule decides is then dropped.
    pub(super) hook: Option<&'static str>,
    pub(super) rules: Vec<Rule>,
}

/// Steps from left to right; the first test that fails ends the rule.
pub(super) type Rule = Vec<Step>;

/// One test or one action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Is(Key, Value),
    IsNot(Key, Value),
    /// More new connections per second than this.
    FasterThan(u32),
    /// More bytes per second than this.
    WiderThan(u64),
    /// More connections than this.
    MoreThan(u32),
    /// Names the reason for a refusal to come.
    Because(Reason),
    /// Marks the connection as allowed by this generation of the policy.
    Remember(u32),
    Count(Counter),
    /// Notes a blocked destination with the reason, now and then.
    Sample,
    /// The same for what has no ports.
    SamplePortless,
    Accept,
    Drop,
    /// Tells the guest that its connection is over.
    Reset,
    /// Tells the guest that this is forbidden.
    Prohibit,
    Jump(&'static str),
    Goto(&'static str),
}

/// A named counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    Out,
    In,
    Dropped,
}

/// What a test looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    InDevice,
    OutDevice,
    Family,
    Hardware,
    Source,
    Destination,
    DestinationPort,
    Protocol,
    IcmpType,
    /// The address to which the guest opened the connection, whichever way this packet goes.
    Remote,
    /// Its port.
    RemotePort,
    State,
    Direction,
    /// The generation that allowed the connection.
    Generation,
}

/// What it is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Device(String),
    Address(Ipv4Addr),
    Addresses(Vec<Ipv4Addr>),
    Nets(Vec<Ipv4Net>),
    Set(Set),
    /// The set [`GUEST`].
    Guest,
    Ports(&'static [u16]),
    Words(&'static [&'static str]),
    Number(u32),
}

/// A set that changes while the rules stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// Addresses that permitted names were resolved to.
    Resolved,
    /// Addresses of denied names.
    Denied,
}

impl Counter {
    pub(super) const ALL: [Self; 3] = [Self::Out, Self::In, Self::Dropped];

    /// Its name in the firewall.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
            Self::Dropped => "dropped",
        }
    }
}

impl Set {
    pub(super) const ALL: [Self; 2] = [Self::Resolved, Self::Denied];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Resolved => "resolved",
            Self::Denied => "denied",
        }
    }
}

/// The set of hardware addresses that the guest may use: its own, or none while the network is nobody's.
pub(super) const GUEST: &str = "guest";

/// The set of blocked destinations: address, protocol, port or 0, reason.
pub(super) const DROPS: &str = "drops";

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sampled, burst) = (limits::DROP_SAMPLES_PER_SECOND, limits::DROP_SAMPLES_BURST);
        match self {
            Self::Is(key, value) => write!(f, "{key} {value}"),
            Self::IsNot(key, value) => write!(f, "{key} != {value}"),
            Self::FasterThan(rate) => write!(f, "limit rate over {rate}/second burst {rate} packets"),
            Self::WiderThan(rate) => {
                let burst = (rate / 4).max(limits::BURST_MIN);
                write!(f, "limit rate over {rate} bytes/second burst {burst} bytes")
            }
            Self::MoreThan(count) => write!(f, "ct count over {count}"),
            Self::Because(reason) => write!(f, "meta mark set {}", reason.mark()),
            Self::Remember(generation) => write!(f, "ct mark set {generation}"),
            Self::Count(counter) => write!(f, "counter name \"{}\"", counter.name()),
            Self::Sample => write!(
                f,
                "limit rate {sampled}/second burst {burst} packets add @{DROPS} {{ ip daddr . meta l4proto . th dport . meta mark }}"
            ),
            Self::SamplePortless => {
                write!(
                    f,
                    "limit rate {sampled}/second burst {burst} packets add @{DROPS} {{ ip daddr . meta l4proto . 0 . meta mark }}"
                )
            }
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Reset => f.write_str("reject with tcp reset"),
            Self::Prohibit => f.write_str("reject with icmp type admin-prohibited"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InDevice => "iifname",
            Self::OutDevice => "oifname",
            Self::Family => "meta nfproto",
            Self::Hardware => "ether saddr",
            Self::Source => "ip saddr",
            Self::Destination => "ip daddr",
            Self::DestinationPort => "th dport",
            Self::Protocol => "meta l4proto",
            Self::IcmpType => "icmp type",
            Self::Remote => "ct original ip daddr",
            Self::RemotePort => "ct original proto-dst",
            Self::State => "ct state",
            Self::Direction => "ct direction",
            Self::Generation => "ct mark",
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(name) => write!(f, "{name:?}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Addresses(addresses) => list(f, addresses),
            Self::Nets(nets) => list(f, nets),
            Self::Set(set) => write!(f, "@{}", set.name()),
            Self::Guest => write!(f, "@{GUEST}"),
            Self::Ports(ports) => list(f, ports),
            Self::Words([word]) => f.write_str(word),
            Self::Words(words) => list(f, words),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if index == 0 { "{ " } else { ", " })?;
    }
    f.write_str(" }")
}
