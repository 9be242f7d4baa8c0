//! From a policy to the rules of a sandbox's network namespace. Pure: values in, text out.
//!
//! The text is a whole script for `nft -f -`, which the kernel takes in one step or not at all. It keeps counters, the notes of
//! blocked destinations and whose the network is, and replaces everything else.
//!
//! ```text
//! tap -> forward -> outgoing --allowed by this generation--------------------------> accept
//!                      |  \--anything else--> decide --> permit (marks connection) -> accept
//!                      |                        \------> refuse -> reset or prohibited, towards the guest
//!                      \--forged, invalid, too fast----> discard
//! uplink -> forward -> incoming: only replies, else the same
//! tap -> input -> service: DNS to the resolver, HTTPS to the proxy, echo to the gateway
//! uplink -> input: replies to the proxy's own connections
//! output: nothing from a VM process, which may live here for its tap, only the resolver's and the proxy's
//! ```
//!
//! **A connection is judged once per generation of the policy**: `permit` marks it with the generation, and its packets
//! then pass by the mark. A new script has a new generation, so the next packet of each connection, whichever way it
//! goes, is judged again: what is still allowed goes on, what is not is cut. Rules look at the address to which the
//! guest opened the connection, so that a reply is judged like the packet it answers.
//!
//! An address of a name is open for new connections as long as the set `resolved` holds it; a connection outlives
//! that. Denied addresses are looked up for every packet, since they may become known at any time.
//!
//! Rules may be there before it is known for which guest: until [`settle`] tells its hardware address, all that comes from a
//! guest is forged.

mod compile;
mod drops;
#[cfg(test)]
mod evaluate_test;
#[cfg(test)]
mod golden_test;
#[cfg(test)]
mod kernel_test;
mod rule;
#[cfg(test)]
mod traffic_test;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::Ipv4Addr,
    time::Duration,
};

use belljar_vmm::jail::FIRST_USER;

use self::rule::{Chain, DROPS, GUEST, Set};
pub(crate) use self::{
    drops::{FORGET_DROPS, LIST, counts, dropped},
    rule::Counter,
};
use super::{limits, policy::Policy};

/// Addresses behind the names of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Those of permitted names, and for how long yet.
    pub(crate) allowed: BTreeMap<Ipv4Addr, Duration>,
    /// Those of denied names, and for how long yet.
    pub(crate) denied: BTreeMap<Ipv4Addr, Duration>,
    /// Those that permitted names once had: connections that are open go on, new ones are not made.
    pub(crate) carried: BTreeSet<Ipv4Addr>,
}

/// The network namespace that the rules are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wiring<'a> {
    /// The guest's only address.
    pub(crate) guest: Ipv4Addr,
    /// The guest's way out: the namespace itself. Answers echo and nothing else.
    pub(crate) gateway: Ipv4Addr,
    /// Where the resolver's sockets are bound, in the namespace, port 53.
    pub(crate) resolver: Ipv4Addr,
    /// Where the proxy's socket is bound, in the namespace, port 443. It connects from there, too.
    pub(crate) proxy: Ipv4Addr,
    /// The device towards the guest.
    pub(crate) tap: &'a str,
    /// The device towards the host.
    pub(crate) uplink: &'a str,
    /// Another one than any script had before in this namespace, and not 0: connections that carry it are not judged
    /// again. A node that finds a namespace of the node before it does not know what that used; a random number does.
    pub(crate) generation: u32,
    /// In each direction.
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) new_connections_per_second: Option<u32>,
    /// Connections that the kernel keeps track of at once.
    pub(crate) connections_max: Option<u32>,
}

/// The script that makes a namespace obey `policy`, from whatever was there before, without a gap.
pub(crate) fn compile(policy: &Policy, resolved: &Resolved, wiring: &Wiring<'_>) -> String {
    let chains = compile::chains(policy, resolved, wiring);
    let mut script = declarations(&chains, wiring);
    for (set, addresses) in [(Set::Resolved, &resolved.allowed), (Set::Denied, &resolved.denied)] {
        let addresses: Vec<_> = addresses.iter().map(|(address, time)| (*address, *time)).collect();
        line(&mut script, format_args!("flush set inet belljar {}", set.name()));
        script.push_str(&elements(set, &addresses));
    }
    for chain in &chains {
        for rule in &chain.rules {
            let _ = write!(script, "add rule inet belljar {}", chain.name);
            for step in rule {
                let _ = write!(script, " {step}");
            }
            script.push('\n');
        }
    }
    line(&mut script, format_args!("add rule inet belljar postrouting oifname {:?} masquerade", wiring.uplink));
    line(&mut script, format_args!("add rule inet belljar inmates meta skuid >= {FIRST_USER} drop"));
    script.push_str(&arp(wiring));
    script
}

/// The script that makes a namespace, which has rules, the network of the guest with this hardware address alone.
pub(crate) fn settle(mac: [u8; 6]) -> String {
    let mac = words(mac);
    let mut script = String::new();
    for family in ["inet", "arp"] {
        line(&mut script, format_args!("flush set {family} belljar {GUEST}"));
        line(&mut script, format_args!("add element {family} belljar {GUEST} {{ {mac} }}"));
    }
    script
}

/// A hardware address as it is written.
pub(crate) fn words(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The script that opens addresses of permitted names for the given times from now, whatever they had before.
pub(crate) fn admit(addresses: &[(Ipv4Addr, Duration)]) -> String {
    renew(Set::Resolved, addresses)
}

/// The script that denies addresses of denied names for the given times from now.
pub(crate) fn deny(addresses: &[(Ipv4Addr, Duration)]) -> String {
    renew(Set::Denied, addresses)
}

/// Adding an address that is there leaves its old time; deleting one that is not there is an error. So: all three.
fn renew(set: Set, addresses: &[(Ipv4Addr, Duration)]) -> String {
    if addresses.is_empty() {
        return String::new();
    }
    let plain: Vec<_> = addresses.iter().map(|(address, _)| address.to_string()).collect();
    let (name, plain) = (set.name(), plain.join(", "));
    let mut script = String::new();
    line(&mut script, format_args!("add element inet belljar {name} {{ {plain} }}"));
    line(&mut script, format_args!("delete element inet belljar {name} {{ {plain} }}"));
    script.push_str(&elements(set, addresses));
    script
}

fn elements(set: Set, addresses: &[(Ipv4Addr, Duration)]) -> String {
    if addresses.is_empty() {
        return String::new();
    }
    let timed = |(address, time): &(Ipv4Addr, Duration)| format!("{address} timeout {}s", time.as_secs().max(1));
    let elements: Vec<_> = addresses.iter().map(timed).collect();
    format!("add element inet belljar {} {{ {} }}\n", set.name(), elements.join(", "))
}

/// Makes what is not there yet, and empties the chains.
fn declarations(chains: &[Chain], wiring: &Wiring<'_>) -> String {
    let mut script = format!("# Generation {}.\nadd table inet belljar\n", wiring.generation);
    let script_ref = &mut script;
    for counter in Counter::ALL {
        line(script_ref, format_args!("add counter inet belljar {}", counter.name()));
    }
    for set in Set::ALL {
        let (name, size) = (set.name(), limits::SET_MAX);
        line(script_ref, format_args!("add set inet belljar {name} {{ type ipv4_addr; flags timeout; size {size}; }}"));
    }
    line(script_ref, format_args!("add set inet belljar {GUEST} {{ type ether_addr; }}"));
    let kept = format!("flags dynamic,timeout; timeout {}s; size {};", limits::DROPS_SECONDS, limits::DROPS_MAX);
    line(
        script_ref,
        format_args!("add set inet belljar {DROPS} {{ type ipv4_addr . inet_proto . inet_service . mark; {kept} }}"),
    );
    for chain in chains {
        match chain.hook {
            Some(hook) => line(
                script_ref,
                format_args!(
                    "add chain inet belljar {} {{ type filter hook {hook} priority filter; policy drop; }}",
                    chain.name
                ),
            ),
            None => line(script_ref, format_args!("add chain inet belljar {}", chain.name)),
        }
    }
    script
        .push_str("add chain inet belljar postrouting { type nat hook postrouting priority srcnat; policy accept; }\n");
    script.push_str("add chain inet belljar inmates { type filter hook output priority filter; policy accept; }\n");
    script.push_str("flush table inet belljar\n");
    script
}

/// A guest may speak only for its own address in ARP too.
fn arp(wiring: &Wiring<'_>) -> String {
    let mut script = String::from("add table arp belljar\n");
    script.push_str("add chain arp belljar input { type filter hook input priority filter; policy accept; }\n");
    line(&mut script, format_args!("add set arp belljar {GUEST} {{ type ether_addr; }}"));
    script.push_str("flush table arp belljar\n");
    let tap = wiring.tap;
    line(&mut script, format_args!("add rule arp belljar input iifname {tap:?} arp saddr ip != {} drop", wiring.guest));
    line(&mut script, format_args!("add rule arp belljar input iifname {tap:?} arp saddr ether != @{GUEST} drop"));
    script
}

fn line(script: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(script, "{text}");
}
