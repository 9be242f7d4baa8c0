//! Whole scripts as they reach `nft`, and what of them each policy changes.

use std::{net::Ipv4Addr, time::Duration};

use belljar_api::sandbox::NetworkConfig;

use super::{Resolved, Wiring, admit, compile, deny, settle};
use crate::egress::policy::{Operator, Policy};

pub(super) const WIRING: Wiring<'_> = Wiring {
    guest: Ipv4Addr::new(10, 0, 2, 15),
    gateway: Ipv4Addr::new(10, 0, 2, 2),
    resolver: Ipv4Addr::new(10, 0, 2, 3),
    proxy: Ipv4Addr::new(10, 0, 2, 4),
    tap: "tap0",
    uplink: "up0",
    generation: 1,
    bytes_per_second: None,
    new_connections_per_second: None,
    connections_max: None,
};

pub(super) fn policy(internet: bool, allow: &[&str], deny: &[&str], operator: &Operator) -> Policy {
    let words = |list: &[&str]| list.iter().map(|&entry| entry.to_owned()).collect();
    let config = NetworkConfig { allow_internet_access: internet, allow_out: words(allow), deny_out: words(deny) };
    Policy::new(&config, operator).expect("entries are good")
}

pub(super) fn operator() -> Operator {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().expect("a network")).collect();
    Operator { allow_private: nets(&["10.1.0.0/16"]), own: nets(&["10.0.2.0/24", "10.200.0.0/16"]) }
}

pub(super) fn resolved() -> Resolved {
    let (one, two) = (Ipv4Addr::new(93, 184, 216, 34), Ipv4Addr::new(6, 6, 6, 6));
    Resolved {
        allowed: [(one, Duration::from_secs(90))].into(),
        denied: [(two, Duration::from_secs(3600))].into(),
        carried: [Ipv4Addr::new(93, 184, 216, 35)].into(),
    }
}

#[track_caller]
fn check(script: &str, expected: &str) {
    let expected: Vec<_> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let script: Vec<_> = script.lines().collect();
    assert_eq!(script, expected, "\n{}", script.join("\n"));
}

/// The rules that hold the policy, with the prefix that is common to all of them left out.
fn decide(policy: &Policy) -> String {
    let script = compile(policy, &resolved(), &WIRING);
    let rules = script.lines().filter_map(|line| line.strip_prefix("add rule inet belljar decide "));
    rules.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_whole_script() {
    let wiring = Wiring {
        bytes_per_second: Some(1_000_000),
        new_connections_per_second: Some(100),
        connections_max: Some(4096),
        ..WIRING
    };
    check(
        &compile(&policy(false, &[], &[], &operator()), &resolved(), &wiring),
        r#"
        # Generation 1.
        add table inet belljar
        add counter inet belljar out
        add counter inet belljar in
        add counter inet belljar dropped
        add set inet belljar resolved { type ipv4_addr; flags timeout; size 32768; }
        add set inet belljar denied { type ipv4_addr; flags timeout; size 32768; }
        add set inet belljar guest { type ether_addr; }
        add set inet belljar drops { type ipv4_addr . inet_proto . inet_service . mark; flags dynamic,timeout; timeout 60s; size 512; }
        add chain inet belljar sample
        add chain inet belljar discard
        add chain inet belljar refuse
        add chain inet belljar permit
        add chain inet belljar decide
        add chain inet belljar outgoing
        add chain inet belljar incoming
        add chain inet belljar service
        add chain inet belljar forward { type filter hook forward priority filter; policy drop; }
        add chain inet belljar input { type filter hook input priority filter; policy drop; }
        add chain inet belljar postrouting { type nat hook postrouting priority srcnat; policy accept; }
        add chain inet belljar inmates { type filter hook output priority filter; policy accept; }
        flush table inet belljar
        flush set inet belljar resolved
        add element inet belljar resolved { 93.184.216.34 timeout 90s }
        flush set inet belljar denied
        add element inet belljar denied { 6.6.6.6 timeout 3600s }
        add rule inet belljar sample meta l4proto { tcp, udp } limit rate 20/second burst 100 packets add @drops { ip daddr . meta l4proto . th dport . meta mark }
        add rule inet belljar sample meta l4proto != { tcp, udp } limit rate 20/second burst 100 packets add @drops { ip daddr . meta l4proto . 0 . meta mark }
        add rule inet belljar discard counter name "dropped" jump sample
        add rule inet belljar discard drop
        add rule inet belljar refuse counter name "dropped"
        add rule inet belljar refuse iifname "tap0" jump sample
        add rule inet belljar refuse iifname "tap0" meta l4proto tcp reject with tcp reset
        add rule inet belljar refuse iifname "tap0" reject with icmp type admin-prohibited
        add rule inet belljar refuse drop
        add rule inet belljar permit ct state new limit rate over 100/second burst 100 packets meta mark set 12 goto discard
        add rule inet belljar permit ct state new ct count over 4096 meta mark set 13 goto discard
        add rule inet belljar permit ct mark set 1
        add rule inet belljar permit iifname "tap0" counter name "out" accept
        add rule inet belljar permit counter name "in" accept
        add rule inet belljar decide meta mark set 1 goto refuse
        add rule inet belljar outgoing ether saddr != @guest meta mark set 10 goto discard
        add rule inet belljar outgoing ip saddr != 10.0.2.15 meta mark set 10 goto discard
        add rule inet belljar outgoing ct state invalid meta mark set 11 goto discard
        add rule inet belljar outgoing ct direction reply meta mark set 11 goto discard
        add rule inet belljar outgoing limit rate over 1000000 bytes/second burst 250000 bytes meta mark set 12 goto discard
        add rule inet belljar outgoing ct original ip daddr @denied meta mark set 3 goto refuse
        add rule inet belljar outgoing ct mark 1 counter name "out" accept
        add rule inet belljar outgoing ct state related meta mark set 11 goto discard
        add rule inet belljar outgoing goto decide
        add rule inet belljar incoming ct state invalid meta mark set 11 goto discard
        add rule inet belljar incoming ct direction original meta mark set 14 goto discard
        add rule inet belljar incoming limit rate over 1000000 bytes/second burst 250000 bytes meta mark set 12 goto discard
        add rule inet belljar incoming ct original ip daddr @denied meta mark set 3 goto refuse
        add rule inet belljar incoming ct mark 1 counter name "in" accept
        add rule inet belljar incoming ct state related meta mark set 11 goto discard
        add rule inet belljar incoming goto decide
        add rule inet belljar service ether saddr != @guest meta mark set 10 goto discard
        add rule inet belljar service ip saddr != 10.0.2.15 meta mark set 10 goto discard
        add rule inet belljar service ct state invalid meta mark set 11 goto discard
        add rule inet belljar service ip daddr 10.0.2.3 meta l4proto { tcp, udp } th dport { 53 } accept
        add rule inet belljar service ip daddr 10.0.2.4 meta l4proto tcp th dport { 443 } counter name "out" accept
        add rule inet belljar service ip daddr 10.0.2.2 meta l4proto icmp icmp type echo-request accept
        add rule inet belljar service ip daddr { 224.0.0.0/4, 255.255.255.255/32 } meta mark set 6 goto discard
        add rule inet belljar service meta mark set 5 goto refuse
        add rule inet belljar forward meta nfproto ipv6 meta mark set 8 goto discard
        add rule inet belljar forward iifname "tap0" oifname "up0" goto outgoing
        add rule inet belljar forward iifname "up0" oifname "tap0" goto incoming
        add rule inet belljar forward meta mark set 5 goto discard
        add rule inet belljar input meta nfproto ipv6 meta mark set 8 goto discard
        add rule inet belljar input iifname "lo" accept
        add rule inet belljar input iifname "tap0" goto service
        add rule inet belljar input iifname "up0" ct state established ct direction reply counter name "in" accept
        add rule inet belljar postrouting oifname "up0" masquerade
        add rule inet belljar inmates meta skuid >= 1879048192 drop
        add table arp belljar
        add chain arp belljar input { type filter hook input priority filter; policy accept; }
        add set arp belljar guest { type ether_addr; }
        flush table arp belljar
        add rule arp belljar input iifname "tap0" arp saddr ip != 10.0.2.15 drop
        add rule arp belljar input iifname "tap0" arp saddr ether != @guest drop
        "#,
    );
}

#[test]
fn a_network_becomes_the_guests() {
    check(
        &settle([2, 0, 0, 0, 0, 0xa1]),
        "flush set inet belljar guest
        add element inet belljar guest { 02:00:00:00:00:a1 }
        flush set arp belljar guest
        add element arp belljar guest { 02:00:00:00:00:a1 }",
    );
}

#[test]
fn closed() {
    check(
        &decide(&policy(false, &[], &["1.1.1.1"], &operator())),
        r#"
        meta mark set 1 goto refuse
        "#,
    );
}

#[test]
fn open() {
    check(
        &decide(&policy(true, &[], &[], &Operator::default())),
        r#"
        meta l4proto != { tcp, udp, icmp } meta mark set 9 goto refuse
        ct direction original meta l4proto icmp icmp type != echo-request meta mark set 9 goto refuse
        ct original ip daddr { 100.100.100.200/32, 168.63.129.16/32, 169.254.169.254/32, 169.254.170.2/32 } meta mark set 4 goto refuse
        ct original ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.31.196.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/4, 240.0.0.0/4 } meta mark set 6 goto refuse
        goto permit
        "#,
    );
}

#[test]
fn open_but_for_a_name() {
    check(
        &decide(&policy(true, &[], &["evil.example", "1.1.0.0/16", "1.1.1.1"], &operator())),
        r#"
        meta l4proto != { tcp, udp, icmp } meta mark set 9 goto refuse
        ct direction original meta l4proto icmp icmp type != echo-request meta mark set 9 goto refuse
        ct original ip daddr { 100.100.100.200/32, 168.63.129.16/32, 169.254.169.254/32, 169.254.170.2/32 } meta mark set 4 goto refuse
        ct original ip daddr { 10.0.2.0/24, 10.200.0.0/16 } meta mark set 5 goto refuse
        ct original ip daddr { 1.1.0.0/16 } meta mark set 3 goto refuse
        ct original ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.31.196.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/4, 240.0.0.0/4 } ct original ip daddr != { 10.1.0.0/16 } meta mark set 6 goto refuse
        meta l4proto { tcp, udp } ct original proto-dst { 53, 853 } meta mark set 7 goto refuse
        goto permit
        "#,
    );
}

#[test]
fn listed() {
    let allow = ["*.example.com", "8.8.8.8", "8.8.8.9", "2001:db8::1", "9.9.9.0/24"];
    check(
        &decide(&policy(true, &allow, &[], &operator())),
        r#"
        meta l4proto != { tcp, udp, icmp } meta mark set 9 goto refuse
        ct direction original meta l4proto icmp icmp type != echo-request meta mark set 9 goto refuse
        ct original ip daddr { 100.100.100.200/32, 168.63.129.16/32, 169.254.169.254/32, 169.254.170.2/32 } meta mark set 4 goto refuse
        ct original ip daddr { 10.0.2.0/24, 10.200.0.0/16 } meta mark set 5 goto refuse
        ct original ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.31.196.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/4, 240.0.0.0/4 } ct original ip daddr != { 10.1.0.0/16 } meta mark set 6 goto refuse
        meta l4proto { tcp, udp } ct original proto-dst { 53, 853 } meta mark set 7 goto refuse
        ct original ip daddr { 8.8.8.8/31, 9.9.9.0/24 } goto permit
        ct original ip daddr @resolved goto permit
        ct state established ct original ip daddr { 93.184.216.35 } goto permit
        meta mark set 2 goto refuse
        "#,
    );
}

#[test]
fn addresses_are_renewed_in_one_step() {
    let (one, two) = (Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(2, 2, 2, 2));
    check(
        &admit(&[(one, Duration::from_secs(90)), (two, Duration::from_millis(100))]),
        r#"
        add element inet belljar resolved { 1.1.1.1, 2.2.2.2 }
        delete element inet belljar resolved { 1.1.1.1, 2.2.2.2 }
        add element inet belljar resolved { 1.1.1.1 timeout 90s, 2.2.2.2 timeout 1s }
        "#,
    );
    check(
        &deny(&[(one, Duration::from_secs(90))]),
        "add element inet belljar denied { 1.1.1.1 }
        delete element inet belljar denied { 1.1.1.1 }
        add element inet belljar denied { 1.1.1.1 timeout 90s }",
    );
    check(&admit(&[]), "");
}
