//! Which rules hold a policy.

use super::{
    Resolved, Wiring,
    rule::{Chain, Counter, Key, Rule, Set, Step, Value},
};
use crate::egress::policy::{Mode, Policy, Reason};
use ipnet::Ipv4Net;

const TCP_OR_UDP: Value = Value::Words(&["tcp", "udp"]);
const ICMP: Value = Value::Words(&["icmp"]);
const ECHO: Value = Value::Words(&["echo-request"]);
/// DNS, and DNS over TLS or QUIC.
const DNS_PORTS: &[u16] = &[53, 853];

/// All chains of a namespace, in an order in which each is declared before it is used.
pub(super) fn chains(policy: &Policy, resolved: &Resolved, wiring: &Wiring<'_>) -> Vec<Chain> {
    let of = |name, rules| Chain { name, hook: None, rules };
    let hooked = |name, rules| Chain { name, hook: Some(name), rules };
    vec![
        of("sample", sample()),
        of("discard", discard()),
        of("refuse", refuse(wiring)),
        of("permit", permit(wiring)),
        of("decide", decide(policy, resolved)),
        of("outgoing", outgoing(wiring)),
        of("incoming", incoming(wiring)),
        of("service", service(wiring)),
        hooked("forward", forward(wiring)),
        hooked("input", input(wiring)),
    ]
}

fn device(key: Key, name: &str) -> Step {
    Step::Is(key, Value::Device(name.to_owned()))
}

fn forward(wiring: &Wiring<'_>) -> Vec<Rule> {
    vec![
        no_ipv6(),
        vec![device(Key::InDevice, wiring.tap), device(Key::OutDevice, wiring.uplink), Step::Goto("outgoing")],
        vec![device(Key::InDevice, wiring.uplink), device(Key::OutDevice, wiring.tap), Step::Goto("incoming")],
        discarded(vec![], Reason::Own),
    ]
}

fn no_ipv6() -> Rule {
    discarded(vec![Step::Is(Key::Family, Value::Words(&["ipv6"]))], Reason::Ipv6)
}

/// Packets that the guest sends elsewhere.
fn outgoing(wiring: &Wiring<'_>) -> Vec<Rule> {
    let mut rules = not_forged(wiring);
    rules.push(discarded(vec![Step::Is(Key::State, Value::Words(&["invalid"]))], Reason::NoConnection));
    rules.push(discarded(vec![Step::Is(Key::Direction, Value::Words(&["reply"]))], Reason::NoConnection));
    rules.extend(judged(wiring, Counter::Out));
    rules
}

/// Packets for the guest: only what it asked for.
fn incoming(wiring: &Wiring<'_>) -> Vec<Rule> {
    let mut rules = vec![
        discarded(vec![Step::Is(Key::State, Value::Words(&["invalid"]))], Reason::NoConnection),
        discarded(vec![Step::Is(Key::Direction, Value::Words(&["original"]))], Reason::Unsolicited),
    ];
    rules.extend(judged(wiring, Counter::In));
    rules
}

/// Passes what this generation has allowed, and has the rest judged.
fn judged(wiring: &Wiring<'_>, counter: Counter) -> Vec<Rule> {
    let mut rules = Vec::new();
    if let Some(rate) = wiring.bytes_per_second {
        rules.push(discarded(vec![Step::WiderThan(rate)], Reason::TooFast));
    }
    rules.push(refused(vec![Step::Is(Key::Remote, Value::Set(Set::Denied))], Reason::Denied));
    rules.push(vec![Step::Is(Key::Generation, Value::Number(wiring.generation)), Step::Count(counter), Step::Accept]);
    // An ICMP error about a connection that has not been judged yet: its protocol and ports are not those of the
    // connection, and it will be sent again.
    rules.push(discarded(vec![Step::Is(Key::State, Value::Words(&["related"]))], Reason::NoConnection));
    rules.push(vec![Step::Goto("decide")]);
    rules
}

fn not_forged(wiring: &Wiring<'_>) -> Vec<Rule> {
    vec![
        discarded(vec![Step::IsNot(Key::Hardware, Value::Guest)], Reason::Forged),
        discarded(vec![Step::IsNot(Key::Source, Value::Address(wiring.guest))], Reason::Forged),
    ]
}

/// The policy.
fn decide(policy: &Policy, resolved: &Resolved) -> Vec<Rule> {
    if policy.mode() == Mode::Closed {
        return vec![refused(vec![], Reason::InternetOff)];
    }
    let original = Step::Is(Key::Direction, Value::Words(&["original"]));
    let mut rules = vec![
        refused(vec![Step::IsNot(Key::Protocol, Value::Words(&["tcp", "udp", "icmp"]))], Reason::Protocol),
        refused(vec![original, Step::Is(Key::Protocol, ICMP), Step::IsNot(Key::IcmpType, ECHO)], Reason::Protocol),
    ];
    for (nets, reason) in
        [(policy.metadata(), Reason::Metadata), (policy.own(), Reason::Own), (policy.denied_nets(), Reason::Denied)]
    {
        rules.extend(to(nets).map(|test| refused(vec![test], reason)));
    }
    rules.extend(to(policy.private()).map(|test| {
        let opened =
            (!policy.opened().is_empty()).then(|| Step::IsNot(Key::Remote, Value::Nets(policy.opened().to_vec())));
        refused(std::iter::once(test).chain(opened).collect(), Reason::Private)
    }));
    if policy.closes_dns() {
        let tests = vec![Step::Is(Key::Protocol, TCP_OR_UDP), Step::Is(Key::RemotePort, Value::Ports(DNS_PORTS))];
        rules.push(refused(tests, Reason::Dns));
    }
    match policy.mode() {
        Mode::Listed => rules.extend(listed(policy, resolved)),
        Mode::Open | Mode::Closed => rules.push(vec![Step::Goto("permit")]),
    }
    rules
}

fn listed(policy: &Policy, resolved: &Resolved) -> Vec<Rule> {
    let mut rules = Vec::new();
    rules.extend(to(policy.allowed_nets()).map(|test| vec![test, Step::Goto("permit")]));
    rules.push(vec![Step::Is(Key::Remote, Value::Set(Set::Resolved)), Step::Goto("permit")]);
    if !resolved.carried.is_empty() {
        let carried = Value::Addresses(resolved.carried.iter().copied().collect());
        rules.push(vec![
            Step::Is(Key::State, Value::Words(&["established"])),
            Step::Is(Key::Remote, carried),
            Step::Goto("permit"),
        ]);
    }
    rules.push(refused(vec![], Reason::NotAllowed));
    rules
}

fn to(nets: &[Ipv4Net]) -> Option<Step> {
    (!nets.is_empty()).then(|| Step::Is(Key::Remote, Value::Nets(nets.to_vec())))
}

fn permit(wiring: &Wiring<'_>) -> Vec<Rule> {
    let new = || Step::Is(Key::State, Value::Words(&["new"]));
    let mut rules = Vec::new();
    if let Some(rate) = wiring.new_connections_per_second {
        rules.push(discarded(vec![new(), Step::FasterThan(rate)], Reason::TooFast));
    }
    if let Some(count) = wiring.connections_max {
        rules.push(discarded(vec![new(), Step::MoreThan(count)], Reason::TooMany));
    }
    rules.push(vec![Step::Remember(wiring.generation)]);
    rules.push(vec![device(Key::InDevice, wiring.tap), Step::Count(Counter::Out), Step::Accept]);
    rules.push(vec![Step::Count(Counter::In), Step::Accept]);
    rules
}

fn input(wiring: &Wiring<'_>) -> Vec<Rule> {
    vec![
        no_ipv6(),
        vec![device(Key::InDevice, "lo"), Step::Accept],
        vec![device(Key::InDevice, wiring.tap), Step::Goto("service")],
        vec![
            device(Key::InDevice, wiring.uplink),
            Step::Is(Key::State, Value::Words(&["established"])),
            Step::Is(Key::Direction, Value::Words(&["reply"])),
            Step::Count(Counter::In),
            Step::Accept,
        ],
    ]
}

/// What the namespace itself does for the guest.
fn service(wiring: &Wiring<'_>) -> Vec<Rule> {
    let at = |address| Step::Is(Key::Destination, Value::Address(address));
    let mut rules = not_forged(wiring);
    rules.push(discarded(vec![Step::Is(Key::State, Value::Words(&["invalid"]))], Reason::NoConnection));
    rules.push(vec![
        at(wiring.resolver),
        Step::Is(Key::Protocol, TCP_OR_UDP),
        Step::Is(Key::DestinationPort, Value::Ports(&[53])),
        Step::Accept,
    ]);
    rules.push(vec![
        at(wiring.proxy),
        Step::Is(Key::Protocol, Value::Words(&["tcp"])),
        Step::Is(Key::DestinationPort, Value::Ports(&[443])),
        Step::Count(Counter::Out),
        Step::Accept,
    ]);
    rules.push(vec![at(wiring.gateway), Step::Is(Key::Protocol, ICMP), Step::Is(Key::IcmpType, ECHO), Step::Accept]);
    let many = ["224.0.0.0/4", "255.255.255.255/32"].iter().filter_map(|net| net.parse().ok()).collect();
    rules.push(discarded(vec![Step::Is(Key::Destination, Value::Nets(many))], Reason::Private));
    rules.push(refused(vec![], Reason::Own));
    rules
}

/// Drops and says nothing.
fn discard() -> Vec<Rule> {
    vec![vec![Step::Count(Counter::Dropped), Step::Jump("sample")], vec![Step::Drop]]
}

/// Drops and tells the guest, so that its programs fail at once instead of waiting.
fn refuse(wiring: &Wiring<'_>) -> Vec<Rule> {
    let from_guest = || device(Key::InDevice, wiring.tap);
    vec![
        vec![Step::Count(Counter::Dropped)],
        vec![from_guest(), Step::Jump("sample")],
        vec![from_guest(), Step::Is(Key::Protocol, Value::Words(&["tcp"])), Step::Reset],
        vec![from_guest(), Step::Prohibit],
        vec![Step::Drop],
    ]
}

fn sample() -> Vec<Rule> {
    vec![
        vec![Step::Is(Key::Protocol, TCP_OR_UDP), Step::Sample],
        vec![Step::IsNot(Key::Protocol, TCP_OR_UDP), Step::SamplePortless],
    ]
}

fn discarded(tests: Vec<Step>, reason: Reason) -> Rule {
    [tests, vec![Step::Because(reason), Step::Goto("discard")]].concat()
}

fn refused(tests: Vec<Step>, reason: Reason) -> Rule {
    [tests, vec![Step::Because(reason), Step::Goto("refuse")]].concat()
}
