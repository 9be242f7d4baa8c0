//! What a sandbox may take of the host's network and disk, and what it is told of it and of the processor.

use std::{fs, path::PathBuf};

use belljar_tests::{
    Sandbox, World,
    internet::{DNS, FLOOD, Internet, ONE, TWO},
};
use serde_json::{Value, json};

fn start(settings: &[(&'static str, String)]) -> World {
    let own = [("BELLJAR_RESOLVERS", DNS.to_owned()), ("BELLJAR_NETWORK", "namespaces".to_owned())];
    World::start_with(&[&own, settings].concat())
}

/// Writes the configuration file, whose path it answers.
fn configure(world: &World, text: &str) -> PathBuf {
    let settings = world.data().parent().unwrap().join("belljar");
    fs::create_dir_all(&settings).unwrap();
    let file = settings.join("config.toml");
    fs::write(&file, text).unwrap();
    file
}

/// A server does not start with that, and says why; it starts without.
fn refused(world: &World, text: &str, why: &str) {
    let file = configure(world, text);
    world.kill_server();
    let error = world.up_fails();
    assert!(error.contains(why), "{error}");
    fs::remove_file(file).unwrap();
    world.up();
}

/// Runs a Python script with the names of the other side.
fn python(sandbox: &Sandbox<'_>, script: &str) -> String {
    let ran = sandbox.run_request(&json!({"command": "python3", "args": ["-c", script, ONE, TWO]}));
    assert_eq!(ran.end["exit_code"], 0, "{ran:?}");
    ran.stdout
}

fn counted(world: &World, sandbox: &Sandbox<'_>) -> Value {
    world.http().get(&format!("/sandboxes/{}/network", sandbox.id)).json
}

fn number(of: &Value) -> u64 {
    of.as_u64().unwrap_or_else(|| panic!("{of} is not a number"))
}

/// A thousand long datagrams, as fast as it can.
const SEND: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(1000): s.sendto(b'x' * 1400, (sys.argv[1], 7))
";

/// A word that is answered with a flood; done when the first datagram of it is there.
const ASK: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.sendto(b'please', (sys.argv[2], 19))
s.recv(2048)
";

/// Three hundred conversations of one datagram each, all at once.
const CONVERSE: &str = "
import socket, sys
all = []
for n in range(300):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b'conversation', (sys.argv[1], 7))
    all.append(s)
";

#[test]
fn a_sandbox_takes_no_more_than_its_share() {
    let internet = Internet::enter();
    let world = start(&[]);
    let sandbox = world.create(&json!({"name": "box"}));
    python(&sandbox, SEND);
    python(&sandbox, ASK);
    assert_eq!(counted(&world, &sandbox)["dropped"]["packets"], 0, "nothing is limited to so little by itself");
    // A sandbox that lives has the new limits too.
    let restart = |text: &str| {
        configure(&world, text);
        world.kill_server();
        world.up();
        // It is awake when it has answered.
        sandbox.sh("true");
        counted(&world, &sandbox)
    };

    // 125000 bytes a second, and as many once.
    let before = restart("network_bandwidth_mbit = 1");
    python(&sandbox, SEND);
    let after = counted(&world, &sandbox);
    assert!(number(&after["dropped"]["packets"]) > number(&before["dropped"]["packets"]), "{after}");
    assert!(number(&after["out"]["bytes"]) < number(&before["out"]["bytes"]) + 1_000_000, "{before} {after}");
    sandbox.sh("sleep 2");
    let before = counted(&world, &sandbox);
    python(&sandbox, ASK);
    let after = counted(&world, &sandbox);
    assert!(number(&after["dropped"]["packets"]) > number(&before["dropped"]["packets"]), "{before} {after}");
    let flood = u64::try_from(FLOOD.0 * FLOOD.1).unwrap();
    assert!(number(&after["in"]["bytes"]) < number(&before["in"]["bytes"]) + flood * 3 / 4, "{before} {after}");
    let log = world.ok(&["logs", "box"]);
    assert!(log.contains(&format!("blocked: udp {ONE}:7, over the rate limit")), "{log}");

    let conversations = || internet.datagrams().iter().filter(|text| *text == "conversation").count();
    restart("network_new_connections = 20");
    python(&sandbox, CONVERSE);
    let begun = conversations();
    assert!((20..200).contains(&begun), "{begun} of 300");

    restart("network_connections = 30");
    python(&sandbox, CONVERSE);
    // Some of before may only have been counted now.
    assert!(conversations() < begun + 100, "{} more of 300", conversations() - begun);
    let log = world.ok(&["logs", "box"]);
    assert!(log.contains(&format!("blocked: udp {ONE}:7, too many connections")), "{log}");

    refused(&world, "network_bandwidth_mbit = 0", "network_bandwidth_mbit: 0 is not between 1 and 100000");
}

#[test]
fn a_disk_is_no_faster_than_it_may_be() {
    let world = World::golden_with(&[]);
    configure(&world, "disk_bandwidth_mib = 2");
    world.kill_server();
    world.up();
    // From a golden snapshot that knew no limit.
    let sandbox = world.create(&json!({"name": "box"}));
    let write = "dd if=/dev/zero of=/workspace/zeroes bs=256k count=32 oflag=direct status=none";
    let text = sandbox.sh(&format!("a=$(date +%s%N); {write}; b=$(date +%s%N); echo $(((b - a) / 1000000))"));
    // Four seconds, less one that may have been saved up. A slow machine only takes longer.
    assert!(text.parse::<u64>().unwrap() >= 2500, "8 MiB in {text} ms");

    refused(&world, "disk_bandwidth_mib = 0", "disk_bandwidth_mib: 0 is not between 1 and 1000000");
    sandbox.delete();
}

/// Which of two features of the processor the guest's kernel knows.
fn told(sandbox: &Sandbox<'_>) -> String {
    sandbox.sh("grep -m1 ^flags /proc/cpuinfo | tr ' ' '\\n' | grep -x -e avx2 -e rdseed")
}

#[test]
fn a_guest_is_not_told_of_features_that_are_hidden_and_that_for_life() {
    let world = World::golden_with(&[("BELLJAR_RESIDENT_SECS", "0".to_owned())]);
    let first = world.create(&json!({}));
    if world.info(&first.id).json["runtime"] == "cloud-hypervisor" {
        return refused(&world, "hide_cpu_features = ['avx2']", "cloud-hypervisor tells them all there is");
    }
    let restart = |hidden: &str| {
        configure(&world, &format!("hide_cpu_features = [{hidden}]"));
        world.kill_server();
        world.up();
    };
    first.delete();
    // The golden snapshot that is there knows both.
    restart("'avx2'");
    let sandbox = world.create(&json!({"name": "box"}));
    assert_eq!(told(&sandbox), "rdseed");
    world.suspend("box");
    restart("'rdseed'");
    assert_eq!(told(&sandbox), "rdseed", "it goes on with what it was told");
    let other = world.create(&json!({}));
    assert_eq!(told(&other), "avx2");
    refused(&world, "hide_cpu_features = ['avx1024']", "`avx1024` is no processor feature that can be hidden");
    other.delete();
    sandbox.delete();
}

#[test]
fn a_guest_is_told_the_mtu_of_the_way_out() {
    let internet = Internet::enter();
    internet.narrow(1400);
    let world = start(&[]);
    let mtu = |sandbox: &Sandbox<'_>| sandbox.sh("cat /sys/class/net/eth0/mtu");
    let sandbox = world.create(&json!({"name": "box"}));
    assert_eq!(mtu(&sandbox), "1400", "booted");
    let snapshot = world.snapshot(&sandbox.id, "memory");
    internet.narrow(1300);
    assert_eq!(mtu(&world.create(&json!({"snapshot_id": snapshot["id"]}))), "1300", "restored");
    assert_eq!(mtu(&world.copy(&sandbox.id, 1)[0]), "1300", "copied");
    world.suspend("box");
    assert_eq!(mtu(&sandbox), "1300", "woken");
    internet.narrow(1500);
    world.suspend("box");
    assert_eq!(mtu(&sandbox), "1500", "as wide as before");
}
