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

#[test]
fn what_is_written_is_remembered_as_far_as_it_means_something() {
    let now = Instant::now();
    let at = |seconds: u64| Moment {
        now: now + Duration::from_secs(seconds),
        since_epoch: Duration::from_secs(1_700_000_000 + seconds),
    };
    let address = |last: u8| Ipv4Addr::new(1, 1, 1, last);
    let mut memory = Memory::default();
    memory.learn(&name("short.example"), &found(&[address(1)], 60), now);
    memory.learn(&name("long.example"), &found(&[address(2)], 600), now);
    let told = memory.told(at(0));
    let recall = |seconds: u64, since: Since| {
        let mut next = Memory::default();
        next.recall(told.clone(), at(seconds), since);
        assert!(next.fresh(&name("long.example"), at(seconds).now).is_none(), "it was taken for an answer");
        next.under(&listed(), at(seconds).now)
    };
    for since in [Since::RanOn, Since::StoodStill] {
        assert_eq!(recall(10, since), memory.under(&listed(), at(10).now));
    }
    // One that ran on may have a connection to what is over.
    let ran_on = recall(200, Since::RanOn);
    assert_eq!(ran_on, memory.under(&listed(), at(200).now));
    assert!(ran_on.carried.contains(&address(1)));
    let stood_still = recall(200, Since::StoodStill);
    assert_eq!((stood_still.carried.len(), stood_still.allowed), (0, ran_on.allowed));
    // A clock that was put back a year.
    let back = Moment { since_epoch: Duration::from_secs(1_668_000_000), ..at(0) };
    let mut next = Memory::default();
    next.recall(told.clone(), back, Since::StoodStill);
    assert!(next.under(&listed(), back.now).allowed.values().all(|left| *left <= open_for(limits::TTL_CEILING)));
}
