//! The rules of any policy decide like the model, packet by packet.

use std::net::Ipv4Addr;

use belljar_api::sandbox::NetworkConfig;
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
    sample::select,
};

use super::{
    Resolved, Wiring, compile,
    rule::{Chain, Key, Set, Step, Value},
};
use crate::egress::{
    model::{Packet, Protocol, State, Way, World, verdict},
    policy::{Operator, Policy, Reason},
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const PROXY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);

/// What the rules did with a packet.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed { generation: u32 },
    Stopped(Option<Reason>),
}

/// The kernel, as far as our rules need one.
struct Kernel<'a> {
    chains: &'a [Chain],
    resolved: &'a Resolved,
    /// What is in the set of that name.
    guest: Option<[u8; 6]>,
    packet: &'a Packet,
    reason: Option<Reason>,
    generation: u32,
}

enum End {
    Accept,
    Drop,
    Fell,
}

impl Kernel<'_> {
    fn run(&mut self) -> Outcome {
        let hook = if self.packet.way == Way::Service { "input" } else { "forward" };
        match self.chain(hook) {
            End::Accept => Outcome::Passed { generation: self.generation },
            // A chain that the kernel enters drops what no rule decides.
            End::Drop | End::Fell => Outcome::Stopped(self.reason),
        }
    }

    fn chain(&mut self, name: &str) -> End {
        let chain = self.chains.iter().find(|chain| chain.name == name).expect("a chain of that name");
        'rules: for rule in &chain.rules {
            for step in rule {
                match step {
                    Step::Is(key, value) if self.is(*key, value) => {}
                    Step::IsNot(key, value) if !self.is(*key, value) => {}
                    Step::FasterThan(_) if self.packet.over[0] => {}
                    Step::WiderThan(_) if self.packet.over[1] => {}
                    Step::MoreThan(_) if self.packet.over[2] => {}
                    Step::Is(..) | Step::IsNot(..) | Step::FasterThan(_) | Step::WiderThan(_) | Step::MoreThan(_) => {
                        continue 'rules;
                    }
                    Step::Because(reason) => self.reason = Some(*reason),
                    Step::Remember(generation) => self.generation = *generation,
                    Step::Count(_) | Step::Sample | Step::SamplePortless => {}
                    Step::Accept => return End::Accept,
                    Step::Drop | Step::Reset | Step::Prohibit => return End::Drop,
                    Step::Jump(to) => match self.chain(to) {
                        End::Fell => {}
                        end => return end,
                    },
                    Step::Goto(to) => return self.chain(to),
                }
            }
        }
        End::Fell
    }

    fn is(&self, key: Key, value: &Value) -> bool {
        let packet = self.packet;
        let (from, to) = match packet.way {
            Way::Out => ("tap", "up"),
            Way::In => ("up", "tap"),
            Way::Service => ("tap", ""),
            Way::Back => ("tap", "tap"),
        };
        let protocol = match packet.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Echo | Protocol::Icmp => "icmp",
            Protocol::Sctp => "sctp",
        };
        let icmp = match (packet.protocol, packet.reply) {
            (Protocol::Echo, false) => "echo-request",
            (Protocol::Echo, true) => "echo-reply",
            _ => "timestamp-request",
        };
        let state = match packet.state {
            State::New => "new",
            State::Established => "established",
            State::Related => "related",
            State::Invalid => "invalid",
        };
        match (key, value) {
            (Key::InDevice, Value::Device(name)) => name == from,
            (Key::OutDevice, Value::Device(name)) => name == to,
            (Key::Family, Value::Words(words)) => words.contains(&if packet.ipv6 { "ipv6" } else { "ipv4" }),
            (Key::Hardware, Value::Guest) => self.guest == Some(packet.hardware),
            (Key::Protocol, Value::Words(words)) => words.contains(&protocol),
            (Key::IcmpType, Value::Words(words)) => protocol == "icmp" && words.contains(&icmp),
            (Key::State, Value::Words(words)) => words.contains(&state),
            (Key::Direction, Value::Words(words)) => words.contains(&if packet.reply { "reply" } else { "original" }),
            (Key::Generation, Value::Number(generation)) => *generation == packet.generation,
            (Key::Source, value) => self.is_address(packet.source, value),
            (Key::Destination | Key::Remote, value) => self.is_address(packet.remote, value),
            (Key::DestinationPort | Key::RemotePort, Value::Ports(ports)) => ports.contains(&packet.port),
            (key, value) => panic!("{key} {value}"),
        }
    }

    fn is_address(&self, address: Ipv4Addr, value: &Value) -> bool {
        match value {
            Value::Address(one) => *one == address,
            Value::Addresses(list) => list.contains(&address),
            Value::Nets(nets) => nets.iter().any(|net| net.contains(&address)),
            Value::Set(Set::Resolved) => self.resolved.allowed.contains_key(&address),
            Value::Set(Set::Denied) => self.resolved.denied.contains_key(&address),
            value => panic!("an address is compared with {value}"),
        }
    }
}

/// Addresses at the edges of what entries and tables say.
fn address() -> impl Strategy<Value = Ipv4Addr> {
    let known = [
        "1.1.1.1",
        "1.1.1.2",
        "1.1.2.1",
        "8.8.8.8",
        "93.184.216.34",
        "93.184.216.35",
        "10.0.0.1",
        "10.0.2.2",
        "10.0.2.3",
        "10.0.2.15",
        "10.1.2.3",
        "10.255.255.255",
        "100.63.255.255",
        "100.64.0.0",
        "100.100.100.200",
        "127.0.0.1",
        "168.63.129.16",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.1.1",
        "172.15.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "172.32.0.0",
        "192.0.0.192",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.5",
        "198.51.100.9",
        "224.0.0.251",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "0.1.2.3",
        "192.88.99.1",
        "192.31.196.1",
        "5.5.5.5",
    ];
    prop_oneof![
        8 => select(known.to_vec()).prop_map(|text| text.parse::<Ipv4Addr>().expect("an address")),
        1 => any::<u32>().prop_map(Ipv4Addr::from_bits),
    ]
}

fn entry() -> impl Strategy<Value = String> {
    let known = [
        "0.0.0.0/0",
        "1.1.1.1",
        "1.1.1.0/24",
        "1.1.0.0/16",
        "8.8.8.8",
        "93.184.216.34/31",
        "10.0.0.0/8",
        "10.1.2.3",
        "169.254.169.254",
        "169.254.0.0/16",
        "192.168.1.0/24",
        "example.com",
        "*.example.com",
        "api.example.com",
        "::/0",
        "2001:db8::1",
        "fd00:ec2::254",
        "128.0.0.0/1",
    ];
    prop_oneof![6 => select(known.to_vec()).prop_map(str::to_owned), 1 => address().prop_map(|address| address.to_string())]
}

fn operator() -> impl Strategy<Value = Operator> {
    let nets = |known: &[&str]| known.iter().map(|net| net.parse().expect("a network")).collect::<Vec<_>>();
    let opened =
        nets(&["10.0.0.0/8", "10.1.0.0/16", "169.254.0.0/16", "169.254.169.254/32", "203.0.113.5/32", "fd00::/8"]);
    let own = nets(&["10.0.2.0/24", "203.0.113.5/32", "5.5.5.5/32", "2001:db8::/32"]);
    (vec(select(opened), 0..3), vec(select(own), 0..3)).prop_map(|(allow_private, own)| Operator { allow_private, own })
}

fn resolved() -> impl Strategy<Value = Resolved> {
    let timed = || btree_map(address(), Just(std::time::Duration::from_secs(60)), 0..4);
    (timed(), timed(), btree_set(address(), 0..4)).prop_map(|(allowed, denied, carried)| Resolved {
        allowed,
        denied,
        carried,
    })
}

fn world() -> impl Strategy<Value = World<'static>> {
    let config = (any::<bool>(), vec(entry(), 0..4), vec(entry(), 0..4))
        .prop_map(|(on, allow_out, deny_out)| NetworkConfig { allow_internet_access: on, allow_out, deny_out });
    let wiring = (option::of(Just(1_000_000)), option::of(Just(100)), option::of(Just(1000))).prop_map(
        |(bytes_per_second, new_connections_per_second, connections_max)| Wiring {
            guest: GUEST,
            gateway: GATEWAY,
            resolver: RESOLVER,
            proxy: PROXY,
            tap: "tap",
            uplink: "up",
            generation: 7,
            bytes_per_second,
            new_connections_per_second,
            connections_max,
        },
    );
    let guest = prop_oneof![9 => Just(Some(MAC)), 1 => Just(None)];
    (config, operator(), resolved(), wiring, guest).prop_map(|(config, operator, resolved, wiring, guest)| World {
        config,
        operator,
        resolved,
        wiring,
        guest,
    })
}

fn packet() -> impl Strategy<Value = Packet> {
    let way = prop_oneof![6 => Just(Way::Out), 3 => Just(Way::In), 2 => Just(Way::Service), 1 => Just(Way::Back)];
    let protocol = select(vec![
        Protocol::Tcp,
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Udp,
        Protocol::Echo,
        Protocol::Icmp,
        Protocol::Sctp,
    ]);
    let state = prop_oneof![5 => Just(State::New), 5 => Just(State::Established), 1 => Just(State::Related), 1 => Just(State::Invalid)];
    let over = [prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1)];
    let from = (
        prop::bool::weighted(0.05),
        prop_oneof![9 => Just(MAC), 1 => Just([2, 0, 0, 0, 0, 9])],
        prop_oneof![9 => Just(GUEST), 1 => address()],
    );
    let generation = prop_oneof![3 => Just(0), 2 => Just(6), 1 => Just(7)];
    (way, protocol, state, over, from, address(), select(vec![22, 53, 80, 443, 853]), any::<bool>(), generation)
        .prop_map(|(way, protocol, state, over, (ipv6, hardware, source), remote, port, reply, generation)| {
            let reply = match (way, state) {
                (Way::In, _) => reply || state != State::New,
                (_, State::New) => false,
                _ => reply,
            };
            Packet { way, ipv6, hardware, source, remote, protocol, port, state, reply, generation, over }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn rules_decide_like_the_model(world in world(), packets in vec(packet(), 1..20)) {
        let policy = Policy::new(&world.config, &world.operator).expect("entries are good");
        let chains = compile::chains(&policy, &world.resolved, &world.wiring);
        for packet in packets {
            let mut kernel = Kernel {
                chains: &chains,
                resolved: &world.resolved,
                guest: world.guest,
                packet: &packet,
                reason: None,
                generation: packet.generation,
            };
            let outcome = kernel.run();
            let expected = match verdict(&world, &packet) {
                // The namespace's own services keep no generations.
                Ok(()) if packet.way == Way::Service => Outcome::Passed { generation: packet.generation },
                Ok(()) => Outcome::Passed { generation: 7 },
                Err(reason) => Outcome::Stopped(Some(reason)),
            };
            prop_assert_eq!(outcome, expected, "{:?} {:?}", world, packet);
        }
    }
}
