//! The scripts, applied by the real `nft` in a namespace of their own.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use belljar_api::sandbox::NetworkConfig;

use super::{
    FORGET_DROPS, LIST, Wiring, admit, compile, counts, deny, dropped,
    golden_test::{WIRING, operator, policy, resolved},
    settle,
};
use crate::egress::policy::{Operator, Policy};

/// Runs a shell script, with the text at its input, in a new network namespace. `None` without the right to make one.
fn in_namespace(shell: &str, input: &str) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return None;
    }
    let mut child = Command::new("unshare")
        .args(["-n", "sh", "-euc", shell])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare of util-linux");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("write");
    let output = child.wait_with_output().expect("wait");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains("nft: not found"), "nft is missing: apt-get install nftables");
    assert!(output.status.success(), "{error}\n{input}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn full(generation: u32) -> Wiring<'static> {
    Wiring {
        generation,
        bytes_per_second: Some(1_000_000),
        new_connections_per_second: Some(100),
        connections_max: Some(4096),
        ..WIRING
    }
}

#[test]
fn nft_takes_every_script_again_and_again() {
    let policies = [
        policy(false, &[], &[], &operator()),
        policy(true, &[], &[], &Operator::default()),
        policy(true, &[], &["0.0.0.0/0"], &operator()),
        policy(true, &["0.0.0.0/0", "::/0"], &["evil.example", "1.1.0.0/16", "1.1.1.1"], &operator()),
        policy(true, &["8.8.8.0/24", "8.8.8.8", "8.8.9.0/24", "*.example.com"], &["8.8.8.8"], &operator()),
    ];
    let mut scripts = String::new();
    for generation in 1..=3 {
        for policy in &policies {
            // Each part is a transaction of its own.
            for script in [
                compile(policy, &resolved(), &full(generation)),
                settle([2, 0, 0, 0, 0, 1]),
                admit(&resolved().allowed.into_iter().collect::<Vec<_>>()),
                deny(&resolved().denied.into_iter().collect::<Vec<_>>()),
            ] {
                scripts.push_str(&format!("nft -f - <<'END'\n{script}END\n"));
            }
        }
    }
    let Some(listing) = in_namespace(&format!("{scripts}\nnft -j '{LIST}'"), "") else {
        return;
    };
    assert_eq!(counts(&listing), belljar_api::network::NetworkUse::default());
}

#[test]
fn a_renewed_address_stays_for_the_new_time() {
    let address = std::net::Ipv4Addr::new(1, 1, 1, 1);
    let (short, long) = (admit(&[(address, Duration::from_secs(50))]), admit(&[(address, Duration::from_secs(5000))]));
    let script = compile(&policy(true, &["*.example"], &[], &operator()), &resolved(), &WIRING);
    let shell = format!(
        "nft -f -; nft -f - <<'END'\n{short}END\nnft -f - <<'END'\n{long}END\nnft list set inet belljar resolved"
    );
    let Some(listing) = in_namespace(&shell, &script) else { return };
    assert!(listing.contains("1.1.1.1 timeout 1h23m20s"), "{listing}");
}

#[test]
fn noted_drops_are_read_back() {
    let add = "nft 'add element inet belljar drops { 1.2.3.4 . tcp . 443 . 2, 1.2.3.4 . icmp . 0 . 3 }'";
    let shell = format!("nft -f -; {add}; nft -j '{LIST}'");
    let forgetful = format!("{shell} > /dev/null; nft -f - <<'END'\n{FORGET_DROPS}END\nnft -j '{LIST}'");
    let script = compile(&policy(true, &["*.example"], &[], &operator()), &resolved(), &WIRING);
    let Some(listing) = in_namespace(&shell, &script) else { return };
    let lines: Vec<_> = dropped(&listing).iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["blocked: icmp 1.2.3.4, in deny_out", "blocked: tcp 1.2.3.4:443, not in allow_out"]);
    assert_eq!(in_namespace(&forgetful, &script).map(|listing| dropped(&listing)), Some(vec![]));
}

#[test]
fn a_thousand_rules_of_each_kind_are_taken() {
    let nets = |from: u32| (0..500_u32).map(move |i| format!("{}/31", std::net::Ipv4Addr::from_bits(from + i * 4)));
    let names = |of: &str| (0..500).map(|i| format!("*.h{i}.{of}")).collect::<Vec<_>>();
    let config = NetworkConfig {
        allow_internet_access: true,
        allow_out: nets(0x0808_0000).chain(names("good.example")).collect(),
        deny_out: nets(0x0809_0000).chain(names("evil.example")).collect(),
    };
    let policy = Policy::new(&config, &operator()).expect("entries are good");
    let _ = in_namespace("nft -f -", &compile(&policy, &resolved(), &full(1)));
}
