//! The resolver's memory is bounded, and forgets the right things.

use belljar_api::sandbox::NetworkConfig;

use super::*;
use crate::egress::policy::Operator;

fn name(text: &str) -> HostName {
    text.parse().expect("a name")
}

fn found(addresses: &[Ipv4Addr], ttl: u64) -> Found {
    Found { chain: vec![], addresses: addresses.to_vec(), ttl: Duration::from_secs(ttl) }
}

fn listed() -> Policy {
    let config = NetworkConfig { allow_out: vec!["*.example".into()], ..NetworkConfig::default() };
    Policy::new(&config, &Operator::default()).expect("entries are good")
}

#[test]
fn the_name_that_was_not_used_for_the_longest_time_goes_first() {
    let (mut memory, now) = (Memory::default(), Instant::now());
    for i in 0..limits::NAMES_MAX {
        memory.learn(&name(&format!("h{i}.example")), &found(&[], 60), now);
    }
    assert!(memory.fresh(&name("h0.example"), now).is_some());
    memory.learn(&name("new.example"), &found(&[], 60), now);
    assert_eq!(memory.names.len(), limits::NAMES_MAX);
    assert!(memory.fresh(&name("h0.example"), now).is_some() && memory.fresh(&name("h1.example"), now).is_none());
}

#[test]
fn a_name_with_ever_new_addresses_keeps_the_newest() {
    let (mut memory, now) = (Memory::default(), Instant::now());
    for i in 0..1000 {
        let address = Ipv4Addr::from_bits(0x0101_0000 + i);
        memory.learn(&name("a.example"), &found(&[address], 60), now + Duration::from_millis(i.into()));
    }
    let seen = memory.under(&listed(), now).allowed;
    assert_eq!(seen.len(), limits::ADDRESSES_PER_NAME_MAX);
    assert_eq!(seen.keys().next_back(), Some(&Ipv4Addr::from_bits(0x0101_0000 + 999)));
}

#[test]
fn an_address_that_has_expired_is_carried_over_for_open_connections() {
    let (mut memory, now) = (Memory::default(), Instant::now());
    let address = Ipv4Addr::new(1, 1, 1, 1);
    memory.learn(&name("a.example"), &found(&[address], 5), now);
    let later = now + Duration::from_secs(80);
    assert_eq!(memory.fresh(&name("a.example"), later), None);
    let left = Duration::from_secs(10);
    assert_eq!(memory.under(&listed(), later), Resolved { allowed: [(address, left)].into(), ..Resolved::default() });
    let carried = Resolved { carried: [address].into(), ..Resolved::default() };
    assert_eq!(memory.under(&listed(), now + Duration::from_secs(100)), carried);
}

#[test]
fn the_firewall_is_never_asked_to_hold_more_than_it_can() {
    let (mut held, now) = (Held::default(), Instant::now());
    let addresses: Vec<_> = (0..16 * 1024).map(|i| Ipv4Addr::from_bits(0x0101_0000 + i)).collect();
    assert_eq!(addresses.len(), limits::ADDRESSES_MAX);
    held.room(&addresses, now).expect("room");
    held.hold(&addresses, now + Duration::from_secs(90));
    let more = [Ipv4Addr::new(2, 2, 2, 2)];
    held.room(&addresses[..9], now).expect("they are there already");
    held.room(&more, now).expect_err("full");
    held.room(&more, now + Duration::from_secs(91)).expect("all have expired");
}
