//! What a policy means, told once more without rules: slow, plain, and from the user's words. The tests compare the
//! compiled rules with it.

use std::net::Ipv4Addr;

use belljar_api::{network::Target, sandbox::NetworkConfig};
use ipnet::{IpNet, Ipv4Net};

use super::{
    policy::{Operator, Reason},
    ruleset::{Resolved, Wiring},
};

/// A packet that a sandbox's namespace is about to pass on or to take for itself.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) way: Way,
    pub(super) ipv6: bool,
    pub(super) hardware: [u8; 6],
    pub(super) source: Ipv4Addr,
    /// Where the connection was opened to.
    pub(super) remote: Ipv4Addr,
    pub(super) protocol: Protocol,
    /// Where the connection was opened to, if it has ports.
    pub(super) port: u16,
    pub(super) state: State,
    pub(super) reply: bool,
    /// The generation of the policy that allowed the connection.
    pub(super) generation: u32,
    /// It is over the limits of new connections per second, bytes per second, connections.
    pub(super) over: [bool; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the guest to the world.
    Out,
    /// From the world to the guest.
    In,
    /// From the guest to the namespace itself.
    Service,
    /// From a device back to it.
    Back,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Echo,
    /// ICMP that asks for something else.
    Icmp,
    Sctp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    New,
    Established,
    Related,
    Invalid,
}

/// All that decides about a packet.
#[derive(Debug, Clone)]
pub(super) struct World<'a> {
    pub(super) config: NetworkConfig,
    pub(super) operator: Operator,
    pub(super) resolved: Resolved,
    pub(super) wiring: Wiring<'a>,
    /// The guest's hardware address; `None`: it is nobody's network yet.
    pub(super) guest: Option<[u8; 6]>,
}

/// Whether a packet passes.
pub(super) fn verdict(world: &World<'_>, packet: &Packet) -> Result<(), Reason> {
    let wiring = &world.wiring;
    if packet.ipv6 {
        return Err(Reason::Ipv6);
    }
    let forged = packet.source != wiring.guest || world.guest != Some(packet.hardware);
    match packet.way {
        Way::Back => return Err(Reason::Own),
        Way::Out | Way::Service if forged => return Err(Reason::Forged),
        _ if packet.state == State::Invalid => return Err(Reason::NoConnection),
        Way::Service => return service(wiring, packet),
        Way::Out if packet.reply => return Err(Reason::NoConnection),
        Way::In if !packet.reply => return Err(Reason::Unsolicited),
        Way::Out | Way::In => {}
    }
    let [fast, wide, many] = packet.over;
    if wide && wiring.bytes_per_second.is_some() {
        return Err(Reason::TooFast);
    }
    if world.resolved.denied.contains_key(&packet.remote) {
        return Err(Reason::Denied);
    }
    if packet.generation == wiring.generation {
        return Ok(());
    }
    if packet.state == State::Related {
        return Err(Reason::NoConnection);
    }
    policy(world, packet)?;
    match packet.state {
        State::New if fast && wiring.new_connections_per_second.is_some() => Err(Reason::TooFast),
        State::New if many && wiring.connections_max.is_some() => Err(Reason::TooMany),
        _ => Ok(()),
    }
}

fn service(wiring: &Wiring<'_>, packet: &Packet) -> Result<(), Reason> {
    let https = packet.protocol == Protocol::Tcp && packet.port == 443;
    let dns = matches!(packet.protocol, Protocol::Tcp | Protocol::Udp) && packet.port == 53;
    match packet.remote {
        at if at == wiring.resolver && dns => Ok(()),
        at if at == wiring.proxy && https => Ok(()),
        at if at == wiring.gateway && packet.protocol == Protocol::Echo && !packet.reply => Ok(()),
        at if at.is_multicast() || at.is_broadcast() => Err(Reason::Private),
        _ => Err(Reason::Own),
    }
}

fn policy(world: &World<'_>, packet: &Packet) -> Result<(), Reason> {
    let (config, operator, resolved) = (&world.config, &world.operator, &world.resolved);
    let rules = config.rules().expect("entries are good");
    let to = packet.remote;
    if !config.allow_internet_access && config.allow_out.is_empty() {
        return Err(Reason::InternetOff);
    }
    if packet.protocol == Protocol::Sctp || (packet.protocol == Protocol::Icmp && !packet.reply) {
        return Err(Reason::Protocol);
    }
    let exactly_opened = |net: Ipv4Net| operator.allow_private.contains(&IpNet::V4(net));
    let metadata = ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16"];
    if metadata.contains(&to.to_string().as_str()) && !exactly_opened(Ipv4Net::from(to)) {
        return Err(Reason::Metadata);
    }
    let own = |net: &IpNet| matches!(net, IpNet::V4(net) if net.contains(&to) && !exactly_opened(*net));
    if operator.own.iter().any(own) {
        return Err(Reason::Own);
    }
    let named =
        |list: &[Target]| list.iter().any(|target| matches!(target, Target::Net(IpNet::V4(net)) if net.contains(&to)));
    if named(&rules.deny) {
        return Err(Reason::Denied);
    }
    let opened = operator.allow_private.iter().any(|net| matches!(net, IpNet::V4(net) if net.contains(&to)));
    if !is_public(to) && !opened {
        return Err(Reason::Private);
    }
    let names = rules.allow.iter().chain(&rules.deny).any(|target| !matches!(target, Target::Net(_)));
    let dns = matches!(packet.protocol, Protocol::Tcp | Protocol::Udp) && [53, 853].contains(&packet.port);
    if dns && (names || !rules.allow.is_empty()) {
        return Err(Reason::Dns);
    }
    let carried = packet.state == State::Established && resolved.carried.contains(&to);
    if rules.allow.is_empty() || named(&rules.allow) || resolved.allowed.contains_key(&to) || carried {
        Ok(())
    } else {
        Err(Reason::NotAllowed)
    }
}

/// The same as the policy's table, in the standard library's words where it has them.
fn is_public(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 31 && c == 196)
        || (a == 192 && b == 88 && c == 99))
}
