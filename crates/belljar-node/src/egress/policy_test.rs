//! What a policy says about names and addresses, and what it warns of.

use super::*;

fn policy(internet: bool, allow: &[&str], deny: &[&str]) -> Policy {
    with(internet, allow, deny, &[], &[])
}

fn with(internet: bool, allow: &[&str], deny: &[&str], opened: &[&str], own: &[&str]) -> Policy {
    let words = |list: &[&str]| list.iter().map(|&entry| entry.to_owned()).collect();
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().expect("a network")).collect();
    let config = NetworkConfig { allow_internet_access: internet, allow_out: words(allow), deny_out: words(deny) };
    Policy::new(&config, &Operator { allow_private: nets(opened), own: nets(own) }).expect("entries are good")
}

/// `Ok(())` reads as "yes".
fn said(result: Result<(), Reason>) -> String {
    result.map_or_else(|reason| reason.to_string(), |()| "yes".to_owned())
}

#[test]
fn names_are_matched_label_by_label() {
    let check = |policy: &Policy, name: &str, expected: &str| {
        assert_eq!(said(policy.name(&name.parse().expect("a name"))), expected, "{name}");
    };
    let listed =
        policy(true, &["example.com", "*.example.org", "1.1.1.1"], &["bad.example.org", "*.worse.example.org"]);
    check(&listed, "example.com", "yes");
    check(&listed, "EXAMPLE.COM.", "yes");
    check(&listed, "a.example.com", "not in allow_out");
    check(&listed, "example.org", "not in allow_out");
    check(&listed, "a.example.org", "yes");
    check(&listed, "a.b.c.example.org", "yes");
    check(&listed, "notexample.org", "not in allow_out");
    check(&listed, "bad.example.org", "in deny_out");
    check(&listed, "a.bad.example.org", "yes");
    check(&listed, "worse.example.org", "yes");
    check(&listed, "a.worse.example.org", "in deny_out");
    check(&policy(true, &[], &["*.com"]), "example.com", "in deny_out");
    check(&policy(true, &[], &["*.com"]), "example.org", "yes");
    check(&policy(false, &["*.com"], &[]), "example.com", "yes");
    check(&policy(false, &[], &["*.com"]), "example.org", "internet access is off");
    check(&policy(true, &["1.1.1.1"], &[]), "example.org", "not in allow_out");
}

#[test]
fn an_answer_may_hold_only_what_may_be_reached() {
    let check = |policy: &Policy, address: &str, expected: &str| {
        assert_eq!(said(policy.address(address.parse().expect("an address"))), expected, "{address}");
    };
    let open = with(true, &[], &["8.8.8.0/24"], &["10.1.0.0/16", "169.254.0.0/16"], &["5.5.5.5/32", "10.1.7.0/24"]);
    check(&open, "1.1.1.1", "yes");
    check(&open, "8.8.8.8", "in deny_out");
    check(&open, "10.0.0.1", "private range");
    check(&open, "10.1.0.1", "yes");
    check(&open, "10.1.7.9", "the host or another sandbox");
    check(&open, "5.5.5.5", "the host or another sandbox");
    check(&open, "127.0.0.1", "private range");
    check(&open, "169.254.1.1", "yes");
    check(&open, "169.254.169.254", "metadata address");
    let exact = with(true, &[], &[], &["169.254.169.254/32", "5.5.5.5/32"], &["5.5.5.5/32"]);
    check(&exact, "169.254.169.254", "yes");
    check(&exact, "5.5.5.5", "yes");
    check(&exact, "169.254.170.2", "metadata address");
}

#[test]
fn entries_without_effect_are_warned_of() {
    let allow = ["10.0.0.0/8", "10.1.2.3", "169.254.169.254", "::/0", "5.5.5.5", "1.1.1.1", "0.0.0.0/0", "example.com"];
    let policy = with(true, &allow, &[], &["10.1.0.0/16"], &["5.5.5.5/32"]);
    let entries: Vec<_> = policy.warnings().iter().filter_map(|text| text.split(" has").next()).collect();
    let expected = ["10.0.0.0/8", "169.254.169.254", "::/0", "5.5.5.5"].map(|entry| format!("allow_out: {entry}"));
    assert_eq!(entries, expected);
}

#[test]
fn reasons_keep_their_marks() {
    let mut marks: Vec<u32> = Reason::ALL.iter().map(|reason| reason.mark()).collect();
    assert!(Reason::ALL.iter().all(|reason| Reason::of_mark(reason.mark()) == Some(*reason)));
    marks.dedup();
    assert_eq!((marks.len(), Reason::of_mark(0)), (Reason::ALL.len(), None));
}
