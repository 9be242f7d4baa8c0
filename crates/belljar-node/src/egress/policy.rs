//! The policy of one sandbox: which names it may ask for, and which addresses it may reach.
//!
//! In this order, the first that applies wins:
//!
//! 1. Internet access off and nothing in `allow_out`: nothing leaves, DNS included.
//! 2. Metadata services of clouds, and addresses of the host and of other sandboxes, are denied. The operator opens one of
//!    them only by an entry that is exactly it: whoever opens `169.254.0.0/16` does not mean the metadata service.
//! 3. What `deny_out` names is denied, a name with all addresses it is known to have. Addresses are often shared: whoever
//!    denies a name denies its neighbours at the same address too. A wildcard is denied by DNS, and by those addresses
//!    that were handed out under a name before it was denied.
//! 4. Addresses that are not public are denied unless the operator opens them, also if `allow_out` names them
//!    ([`Policy::warnings`] says so).
//! 5. With any name in either list, or anything in `allow_out`, DNS goes to the sandbox's resolver and nowhere else.
//! 6. With anything in `allow_out`, only that: its addresses, and those that its names were resolved to.
//!
//! IPv6 is absent in a sandbox: such entries are understood, and nothing over IPv6 leaves.
//! Only TCP, UDP and ICMP echo leave.

use std::{collections::HashSet, fmt, net::Ipv4Addr};

use belljar_api::{
    network::{HostName, Target},
    sandbox::{Invalid, NetworkConfig},
};
use ipnet::{IpNet, Ipv4Net};

/// Addresses of cloud metadata services. The IPv6 ones (`fd00:ec2::254` and its kin) need no entry: IPv6 is absent.
const METADATA: [Ipv4Addr; 4] = [
    // AWS, Google, Azure, OpenStack, DigitalOcean, Hetzner, Oracle.
    Ipv4Addr::new(169, 254, 169, 254),
    // AWS: credentials of containers.
    Ipv4Addr::new(169, 254, 170, 2),
    // Alibaba.
    Ipv4Addr::new(100, 100, 100, 200),
    // Azure: the host of the virtual machine, at a public address.
    Ipv4Addr::new(168, 63, 129, 16),
];

/// Networks that are not the public internet (IANA's special-purpose registry), as address and prefix length.
const PRIVATE: [([u8; 4], u8); 16] = [
    // This network.
    ([0, 0, 0, 0], 8),
    // Private.
    ([10, 0, 0, 0], 8),
    // Carriers' NAT.
    ([100, 64, 0, 0], 10),
    // Loopback.
    ([127, 0, 0, 0], 8),
    // Link-local.
    ([169, 254, 0, 0], 16),
    // Private.
    ([172, 16, 0, 0], 12),
    // Protocol assignments.
    ([192, 0, 0, 0], 24),
    // Documentation.
    ([192, 0, 2, 0], 24),
    // AS112, a sink for queries about private addresses.
    ([192, 31, 196, 0], 24),
    // Relays from IPv6, abandoned.
    ([192, 88, 99, 0], 24),
    // Private.
    ([192, 168, 0, 0], 16),
    // Benchmarks.
    ([198, 18, 0, 0], 15),
    // Documentation.
    ([198, 51, 100, 0], 24),
    // Documentation.
    ([203, 0, 113, 0], 24),
    // Multicast.
    ([224, 0, 0, 0], 4),
    // Reserved, and broadcast.
    ([240, 0, 0, 0], 4),
];

/// What the operator of a node decides for all its sandboxes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Operator {
    /// Networks that are not public and may be reached all the same.
    pub(crate) allow_private: Vec<IpNet>,
    /// Addresses of the host, public ones too, and the networks in which sandboxes live: closed, unless an entry of
    /// `allow_private` is exactly one of them.
    pub(crate) own: Vec<IpNet>,
}

/// Why something may not leave. The numbers are marks in the firewall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum Reason {
    InternetOff = 1,
    NotAllowed = 2,
    Denied = 3,
    Metadata = 4,
    Own = 5,
    Private = 6,
    Dns = 7,
    Ipv6 = 8,
    Protocol = 9,
    Forged = 10,
    NoConnection = 11,
    TooFast = 12,
    TooMany = 13,
    Unsolicited = 14,
}

impl Reason {
    /// All of them.
    pub(crate) const ALL: [Self; 14] = [
        Self::InternetOff,
        Self::NotAllowed,
        Self::Denied,
        Self::Metadata,
        Self::Own,
        Self::Private,
        Self::Dns,
        Self::Ipv6,
        Self::Protocol,
        Self::Forged,
        Self::NoConnection,
        Self::TooFast,
        Self::TooMany,
        Self::Unsolicited,
    ];

    /// The mark by which the firewall names it.
    pub(crate) fn mark(self) -> u32 {
        self as u32
    }

    /// The reason with this mark.
    pub(crate) fn of_mark(mark: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.mark() == mark)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InternetOff => "internet access is off",
            Self::NotAllowed => "not in allow_out",
            Self::Denied => "in deny_out",
            Self::Metadata => "metadata address",
            Self::Own => "the host or another sandbox",
            Self::Private => "private range",
            Self::Dns => "DNS goes to the sandbox's own resolver only",
            Self::Ipv6 => "IPv6 is absent",
            Self::Protocol => "only TCP, UDP and ICMP echo leave a sandbox",
            Self::Forged => "forged sender",
            Self::NoConnection => "it belongs to no connection",
            Self::TooFast => "over the rate limit",
            Self::TooMany => "too many connections",
            Self::Unsolicited => "nobody asked for it",
        })
    }
}

/// What is allowed when nothing more special is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing leaves.
    Closed,
    /// Only what `allow_out` names.
    Listed,
    /// Everything public.
    Open,
}

/// The policy of one sandbox, ready to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    mode: Mode,
    allow: List,
    deny: List,
    metadata: Vec<Ipv4Net>,
    own: Vec<Ipv4Net>,
    private: Vec<Ipv4Net>,
    opened: Vec<Ipv4Net>,
    warnings: Vec<String>,
}

/// One list of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct List {
    /// Without overlaps.
    nets: Vec<Ipv4Net>,
    hosts: HashSet<HostName>,
    /// A name is in it if a name above it is.
    below: HashSet<String>,
}

impl Policy {
    /// The policy that a sandbox's settings and the operator's make together.
    pub(crate) fn new(config: &NetworkConfig, operator: &Operator) -> Result<Self, Invalid> {
        let rules = config.rules()?;
        let mode = match (config.allow_internet_access, rules.allow.is_empty()) {
            (_, false) => Mode::Listed,
            (true, true) => Mode::Open,
            (false, true) => Mode::Closed,
        };
        let named_by_operator = |net: &Ipv4Net| operator.allow_private.contains(&IpNet::V4(*net));
        let closed = |nets: Vec<Ipv4Net>| nets.into_iter().filter(|net| !named_by_operator(net)).collect::<Vec<_>>();
        let mut policy = Self {
            mode,
            metadata: merged(closed(METADATA.map(Ipv4Net::from).to_vec())),
            own: merged(closed(only_v4(&operator.own))),
            private: PRIVATE
                .iter()
                .filter_map(|(address, prefix)| Ipv4Net::new((*address).into(), *prefix).ok())
                .collect(),
            opened: merged(only_v4(&operator.allow_private)),
            allow: List::new(&rules.allow),
            deny: List::new(&rules.deny),
            warnings: Vec::new(),
        };
        policy.warnings = rules.allow.iter().filter_map(|target| policy.warning(target)).collect();
        Ok(policy)
    }

    /// A policy under which nothing leaves.
    pub(crate) fn closed() -> Self {
        let none = Vec::new;
        let (allow, deny) = (List::default(), List::default());
        let (metadata, own, private, opened) = (none(), none(), none(), none());
        Self { mode: Mode::Closed, allow, deny, metadata, own, private, opened, warnings: Vec::new() }
    }

    /// Entries of `allow_out` that have no effect on this node, each with its reason.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn warning(&self, target: &Target) -> Option<String> {
        let within = |nets: &[Ipv4Net], net: &Ipv4Net| nets.iter().any(|outer| outer.contains(net));
        let reason = match target {
            Target::Net(IpNet::V6(_)) => Reason::Ipv6,
            Target::Net(IpNet::V4(net)) if within(&self.metadata, net) => Reason::Metadata,
            Target::Net(IpNet::V4(net)) if within(&self.own, net) => Reason::Own,
            Target::Net(IpNet::V4(net)) if within(&self.private, net) && !within(&self.opened, net) => Reason::Private,
            _ => return None,
        };
        Some(format!("allow_out: {target} has no effect ({reason}); the node's operator can open private addresses"))
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether DNS goes to the sandbox's resolver and nowhere else.
    pub(crate) fn closes_dns(&self) -> bool {
        self.mode != Mode::Open || self.names()
    }

    /// Whether the resolver hands on any question, also such that it cannot read: no list names a host.
    pub(crate) fn free_dns(&self) -> bool {
        !self.closes_dns()
    }

    fn names(&self) -> bool {
        self.allow.has_names() || self.deny.has_names()
    }

    /// Whether the guest may ask for a name.
    pub(crate) fn name(&self, name: &HostName) -> Result<(), Reason> {
        match self.mode {
            Mode::Closed => Err(Reason::InternetOff),
            _ if self.deny.has(name) => Err(Reason::Denied),
            Mode::Listed if !self.allow.has(name) => Err(Reason::NotAllowed),
            _ => Ok(()),
        }
    }

    /// Whether `deny_out` names it.
    pub(crate) fn denies_name(&self, name: &HostName) -> bool {
        self.deny.has(name)
    }

    /// Whether an address may be reached under a name that is permitted: what an answer may hold. An address of a private
    /// network here is how a name is turned against the network behind the node (DNS rebinding).
    pub(crate) fn address(&self, address: Ipv4Addr) -> Result<(), Reason> {
        let within = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&address));
        match () {
            () if self.mode == Mode::Closed => Err(Reason::InternetOff),
            () if within(&self.metadata) => Err(Reason::Metadata),
            () if within(&self.own) => Err(Reason::Own),
            () if within(&self.deny.nets) => Err(Reason::Denied),
            () if within(&self.private) && !within(&self.opened) => Err(Reason::Private),
            () => Ok(()),
        }
    }

    /// The hosts that `allow_out` names and `deny_out` does not: each of them has to resolve.
    pub(crate) fn allowed_hosts(&self) -> impl Iterator<Item = &HostName> {
        self.allow.hosts.iter().filter(|host| !self.deny.has(host))
    }

    /// The hosts that `deny_out` names: their addresses are denied too.
    pub(crate) fn denied_hosts(&self) -> impl Iterator<Item = &HostName> {
        self.deny.hosts.iter()
    }

    /// What the rules need: networks without overlaps.
    pub(crate) fn allowed_nets(&self) -> &[Ipv4Net] {
        &self.allow.nets
    }

    pub(crate) fn denied_nets(&self) -> &[Ipv4Net] {
        &self.deny.nets
    }

    pub(crate) fn metadata(&self) -> &[Ipv4Net] {
        &self.metadata
    }

    pub(crate) fn own(&self) -> &[Ipv4Net] {
        &self.own
    }

    pub(crate) fn private(&self) -> &[Ipv4Net] {
        &self.private
    }

    pub(crate) fn opened(&self) -> &[Ipv4Net] {
        &self.opened
    }
}

impl List {
    fn new(targets: &[Target]) -> Self {
        let mut list = Self::default();
        for target in targets {
            match target {
                Target::Net(IpNet::V4(net)) => list.nets.push(*net),
                Target::Net(IpNet::V6(_)) => {}
                Target::Host(name) => drop(list.hosts.insert(name.clone())),
                Target::Below(name) => drop(list.below.insert(name.as_str().to_owned())),
            }
        }
        list.nets = merged(list.nets);
        list
    }

    fn has(&self, name: &HostName) -> bool {
        self.hosts.contains(name) || name.and_above().skip(1).any(|above| self.below.contains(above))
    }

    fn has_names(&self) -> bool {
        !self.hosts.is_empty() || !self.below.is_empty()
    }
}

fn only_v4(nets: &[IpNet]) -> Vec<Ipv4Net> {
    nets.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(net.trunc()) } else { None }).collect()
}

/// The same addresses without overlaps, in order: nftables refuses overlaps.
fn merged(nets: Vec<Ipv4Net>) -> Vec<Ipv4Net> {
    Ipv4Net::aggregate(&nets)
}

#[cfg(test)]
#[path = "policy_test.rs"]
mod tests;
