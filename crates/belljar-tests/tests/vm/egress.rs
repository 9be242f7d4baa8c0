//! What leaves a sandbox under a policy: real guests against a small internet.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{TcpListener, TcpStream},
    thread,
};

use belljar_tests::{
    Sandbox, World,
    internet::{DNS, HOST, Internet, METADATA, ONE, OTHER_DNS, PRIVATE, SIX, TWO},
};
use serde_json::{Value, json};

/// Tries everything at once, and says of each whether it worked. As root, who may send echo requests.
const PROBE: &str = r#"
import json, os, socket, struct, subprocess, sys, threading
# Nobody gives the guest an IPv6 address; its root may take one, and knows the way out.
def run(command): return subprocess.run(command.split(), capture_output=True, text=True).stdout
try: socket.create_connection(("10.0.2.3", 53), 1.5).close()
except OSError: pass
gateway = run("ip neigh show 10.0.2.3").split("lladdr ")[-1][:17]
for command in ["address add 2606:4700:1::2/64 dev eth0 nodad", "neighbour replace fe80::1 lladdr %s dev eth0" % gateway, "route replace default via fe80::1 dev eth0"]:
    run("ip -6 " + command)
def tcp(host, port):
    s = socket.create_connection((host, int(port)), 1.5)
    s.settimeout(1.5)
    s.sendall(b"x")
    return bool(s.recv(64))
def udp(host, port):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1.5)
    s.sendto(b"ping", (host, int(port)))
    return s.recv(64) == b"ping"
def icmp(host):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    s.settimeout(1.5)
    number = threading.get_ident() & 0xffff
    head = struct.pack("!BBHHH", 8, 0, 0, number, 1)
    total = sum(struct.unpack("!4H", head)) ; total = (total >> 16) + (total & 0xffff)
    s.sendto(struct.pack("!BBHHH", 8, 0, ~total & 0xffff, number, 1), (host, 0))
    while True:
        answer, sender = s.recvfrom(256)
        if sender[0] == host and answer[20] == 0:
            return True
def icmp6(host):
    s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
    s.settimeout(1.5)
    s.sendto(struct.pack("!BBHHH", 128, 0, 0, 7, 1), (host, 0))
    while True:
        answer, sender = s.recvfrom(256)
        if sender[0] == host and answer[0] == 129:
            return True
def question(name, kind=1):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00" + struct.pack("!HH", kind, 1)
def dns(server, name):
    s = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1.5)
    s.sendto(question(name), (server, 53))
    answer = s.recv(512)
    return answer[3] & 15 == 0 and struct.unpack("!H", answer[6:8])[0] > 0
def probe(what):
    kind, *rest = what.split(" ")
    try:
        return {"tcp": tcp, "udp": udp, "icmp": icmp, "icmp6": icmp6, "dns": dns}[kind](*rest)
    except OSError:
        return False
found = {}
def note(what): found[what] = probe(what)
threads = [threading.Thread(target=note, args=(what,)) for what in json.loads(sys.argv[1])]
[t.start() for t in threads]; [t.join() for t in threads]
print(json.dumps(found))
"#;

/// What is tried: a short name, and what the probe is told.
fn probes() -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("tcp one", format!("tcp {ONE} 80")),
        ("tcp two", format!("tcp {TWO} 80")),
        ("udp one", format!("udp {ONE} 7")),
        ("udp two", format!("udp {TWO} 7")),
        ("icmp one", format!("icmp {ONE}")),
        ("icmp two", format!("icmp {TWO}")),
        ("name one", "tcp one.example 80".to_owned()),
        ("name two", "tcp two.example 80".to_owned()),
        ("name wild", "tcp a.b.wild.example 80".to_owned()),
        ("name rebind", "tcp rebind.example 80".to_owned()),
        ("name metadata", "tcp metadata.example 80".to_owned()),
        ("other dns", format!("dns {OTHER_DNS} two.example")),
        ("tcp six", format!("tcp {SIX} 80")),
        ("udp six", format!("udp {SIX} 7")),
        ("icmp six", format!("icmp6 {SIX}")),
        ("dns six", format!("dns {SIX} two.example")),
        ("private", format!("tcp {PRIVATE} 80")),
        ("metadata", format!("tcp {METADATA} 80")),
        ("host", format!("tcp {HOST} 8081")),
        ("inside", "tcp 10.0.2.2 8081".to_owned()),
    ])
}

/// What of that works now.
fn open(sandbox: &Sandbox<'_>) -> Vec<&'static str> {
    let probes = probes();
    let asked: Vec<&String> = probes.values().collect();
    let request = json!({"command": "python3", "args": ["-c", PROBE, json!(asked).to_string()], "user": "root"});
    let ran = sandbox.run_request(&request);
    let found: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    probes.iter().filter(|(_, told)| found[told.as_str()] == true).map(|(name, _)| *name).collect()
}

fn patch(world: &World, sandbox: &Sandbox<'_>, network: &Value) {
    let answer =
        world.http().json("PATCH", &format!("/sandboxes/{}", sandbox.id), &json!({"network": network}).to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// A server on the host itself, on every address that it has.
fn serve_on_host() {
    let listener = TcpListener::bind("0.0.0.0:8081").expect("port 8081");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"the host");
        }
    });
}

fn start() -> (Internet, World) {
    let internet = Internet::enter();
    // From the host it can be reached, so that it means something when a guest cannot.
    TcpStream::connect((SIX, 80)).expect("IPv6 works on the host");
    serve_on_host();
    let world =
        World::start_with(&[("BELLJAR_RESOLVERS", DNS.to_owned()), ("BELLJAR_NETWORK", "namespaces".to_owned())]);
    (internet, world)
}

const EVERY_PUBLIC: [&str; 10] = [
    "icmp one",
    "icmp two",
    "name one",
    "name two",
    "name wild",
    "other dns",
    "tcp one",
    "tcp two",
    "udp one",
    "udp two",
];

const ONE_ONLY: [&str; 3] = ["icmp one", "tcp one", "udp one"];
const TWO_ONLY: [&str; 4] = ["icmp two", "name two", "tcp two", "udp two"];

#[test]
fn what_leaves_is_what_the_policy_says() {
    let (_internet, world) = start();
    let sandbox = world.create(&json!({"name": "box"}));
    let without_two = ["icmp one", "name one", "name wild", "tcp one", "udp one"];
    let cases: &[(Value, &[&str])] = &[
        (Value::Null, &EVERY_PUBLIC),
        (json!({"allow_internet_access": false}), &[]),
        // Names cannot be asked for where only addresses are allowed.
        (json!({"allow_out": [ONE]}), &ONE_ONLY),
        (json!({"allow_out": ["45.83.1.0/31"]}), &ONE_ONLY),
        (json!({"allow_out": [ONE], "allow_internet_access": false}), &ONE_ONLY),
        (json!({"allow_out": ["two.example"]}), &TWO_ONLY),
        // What a name led to is open, by whatever it is called.
        (json!({"allow_out": ["*.wild.example"]}), &["icmp one", "name wild", "tcp one", "udp one"]),
        (json!({"deny_out": [TWO]}), &["icmp one", "name one", "name wild", "other dns", "tcp one", "udp one"]),
        (
            json!({"deny_out": ["45.83.1.2/31"]}),
            &["icmp one", "name one", "name wild", "other dns", "tcp one", "udp one"],
        ),
        (json!({"deny_out": ["two.example"]}), &without_two),
        // Its address was handed out already, so that is denied too, and with it its other name.
        (json!({"deny_out": ["*.wild.example"]}), &TWO_ONLY),
        (json!({"allow_out": ["45.83.1.0/24"], "deny_out": [TWO]}), &ONE_ONLY),
        (json!({"allow_out": ["45.83.1.0/24", "two.example"], "deny_out": ["two.example"]}), &ONE_ONLY),
        (json!({"deny_out": ["0.0.0.0/0"]}), &[]),
        (json!({"allow_out": ["2606:4700::/32"]}), &[]),
        (json!({"allow_out": ["2606:4700::/32", ONE]}), &ONE_ONLY),
        (json!({"deny_out": ["2606:4700::/32"]}), &EVERY_PUBLIC),
        (json!({"allow_out": [PRIVATE, METADATA, HOST]}), &[]),
    ];
    for (network, expected) in cases {
        patch(&world, &sandbox, network);
        assert_eq!(open(&sandbox), *expected, "{network}");
    }
    // Its packets over IPv6 did leave the guest, and got no further.
    assert!(sandbox.sh("ip -6 route show default").contains("via fe80::1"));
}

#[test]
fn a_policy_holds_after_sleep_restore_and_copy() {
    let (_internet, world) = start();
    let sandbox = world.create(&json!({"name": "box", "network": {"allow_out": ["two.example"]}}));
    // An address is open once its name was asked for, and not before.
    let early = sandbox.run(&format!("timeout 5 bash -c '</dev/tcp/{TWO}/80'"));
    assert_ne!(early.end["exit_code"], 0, "it was open before its name was asked for: {early:?}");
    let open = |sandbox: &Sandbox<'_>| {
        sandbox.run("getent hosts two.example one.example");
        open(sandbox)
    };
    assert_eq!(open(&sandbox), TWO_ONLY, "asked for");
    world.suspend("box");
    assert_eq!(open(&sandbox), TWO_ONLY, "woken in memory");
    let copy = world.copy(&sandbox.id, 1).remove(0);
    assert_eq!(open(&copy), TWO_ONLY, "copied");
    let snapshot = world.snapshot(&sandbox.id, "memory");
    let restored = world.create(&json!({"snapshot_id": snapshot["id"]}));
    assert_eq!(open(&restored), TWO_ONLY, "restored");
    let other = world.create(&json!({"snapshot_id": snapshot["id"], "network": {"allow_out": [ONE]}}));
    assert_eq!(open(&other), ONE_ONLY, "restored with another policy");
    world.kill_server();
    world.up();
    assert_eq!(open(&sandbox), TWO_ONLY, "adopted");
    assert_eq!(open(&restored), TWO_ONLY, "the restored one adopted");
}

/// Talks to a server over one connection and notes how far it got and how it ended.
const TALK: &str = r#"
import socket, sys, time
s = socket.create_connection((sys.argv[1], 80), 5)
s.settimeout(5)
s.recv(64)
n = 0
try:
    while True:
        s.sendall(b"%08d" % n)
        got = b""
        while len(got) < 8:
            more = s.recv(8 - len(got))
            if not more: raise OSError("closed")
            got += more
        n += 1
        open("/tmp/count.new", "w").write(str(n))
        import os; os.rename("/tmp/count.new", "/tmp/count")
        time.sleep(0.02)
except OSError as error:
    open("/tmp/end", "w").write(repr(error))
"#;

/// Fails unless the talk in a sandbox goes on.
fn talk_goes_on(sandbox: &Sandbox<'_>, why: &str) {
    let count = || {
        sandbox.sh("until test -e /tmp/count; do sleep 0.05; done; cat /tmp/count").parse::<u64>().expect("a number")
    };
    let before = count();
    sandbox.sh("sleep 0.5");
    assert!(count() > before, "{why}: {:?}", sandbox.run("cat /tmp/end"));
}

#[test]
fn what_a_wildcard_opened_stays_known_to_the_next_node_and_to_copies() {
    let (_internet, world) = start();
    let sandbox = world.create(&json!({"name": "box", "network": {"allow_out": ["*.wild.example"]}}));
    sandbox.start(&json!({"command": "python3", "args": ["-c", TALK, "a.wild.example"]}));
    talk_goes_on(&sandbox, "open");
    // It is written a moment later.
    sandbox.sh("sleep 2");
    world.kill_server();
    world.up();
    talk_goes_on(&sandbox, "adopted");
    patch(&world, &sandbox, &json!({"allow_out": ["*.wild.example", TWO]}));
    talk_goes_on(&sandbox, "under another policy");
    // A program in a copy may know the address already.
    let knock = format!("timeout 5 bash -c '</dev/tcp/{ONE}/80'");
    world.copy(&sandbox.id, 1).remove(0).sh(&knock);
    patch(&world, &sandbox, &json!({"allow_out": [TWO]}));
    assert_ne!(sandbox.run(&knock).end["exit_code"], 0, "the wildcard is gone, and its address is open");
}

#[test]
fn a_change_cuts_what_is_forbidden_and_nothing_else() {
    let (_internet, world) = start();
    let sandbox = world.create(&json!({"name": "box"}));
    sandbox.start(&json!({"command": "python3", "args": ["-c", TALK, ONE]}));
    let goes_on = |why: &str| talk_goes_on(&sandbox, why);
    goes_on("open");
    for network in
        [json!({"allow_out": ["45.83.1.0/24"]}), json!({"deny_out": [TWO]}), json!({"allow_out": ["one.example"]})]
    {
        patch(&world, &sandbox, &network);
        goes_on(&network.to_string());
    }
    world.kill_server();
    world.up();
    goes_on("adopted");
    patch(&world, &sandbox, &json!({"allow_out": [TWO]}));
    let end = sandbox.sh("for i in $(seq 60); do test -e /tmp/end && break; sleep 0.1; done; cat /tmp/end");
    assert!(end.contains("reset") || end.contains("refused"), "{end}");
    let counted = world.http().get(&format!("/sandboxes/{}/network", sandbox.id)).json;
    for what in ["out", "in", "dropped"] {
        assert!(counted[what]["packets"].as_u64() > Some(0) && counted[what]["bytes"].as_u64() > Some(40), "{counted}");
    }
    // It does not come back with the old policy: it is another connection then.
    let log = world.ok(&["logs", "box"]);
    assert!(log.contains(&format!("blocked: tcp {ONE}:80, not in allow_out")), "{log}");
}

#[test]
fn rules_that_cannot_be_held_are_refused_and_the_old_ones_stay() {
    let (_internet, world) = start();
    let sandbox = world.create(&json!({"name": "box", "network": {"allow_out": [ONE]}}));
    let refused = |network: Value, wanted: &str| {
        let body = json!({"network": network}).to_string();
        let answer = world.http().json("PATCH", &format!("/sandboxes/{}", sandbox.id), &body);
        assert_eq!((answer.status, answer.code()), (400, "INVALID_ARGUMENT"), "{answer:?}");
        assert!(answer.json["error"].as_str().is_some_and(|text| text.contains(wanted)), "{wanted}: {answer:?}");
    };
    refused(json!({"allow_out": ["nowhere.example"]}), "nowhere.example");
    refused(json!({"allow_out": ["rebind.example"]}), PRIVATE);
    refused(json!({"allow_out": ["metadata.example"]}), METADATA);
    refused(json!({"allow_out": ["1.2.3.4/33"]}), "1.2.3.4/33");
    refused(json!({"deny_out": ["a..b"]}), "a..b");
    assert_eq!(open(&sandbox), ONE_ONLY);
}

#[test]
fn the_operator_opens_private_networks() {
    let _internet = Internet::enter();
    serve_on_host();
    let settings = [
        ("BELLJAR_RESOLVERS", DNS.to_owned()),
        ("BELLJAR_ALLOW_PRIVATE", format!("10.77.0.0/16,169.254.0.0/16,{HOST}/32")),
    ];
    let world = World::start_with(&settings);
    let sandbox = world.create(&json!({}));
    let mut expected = [EVERY_PUBLIC.as_slice(), &["host", "name rebind", "private"]].concat();
    expected.sort_unstable();
    assert_eq!(open(&sandbox), expected, "whoever opens a range does not mean the metadata service in it");
}

/// What a guest's root may try. Says what it managed.
const ATTACK: &str = r#"
import json, os, socket, struct, subprocess, sys, time
one, two = sys.argv[1:3]
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def packet(source, target, payload, fragment=0):
    udp = struct.pack("!HHHH", 4000, 7, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 77, fragment, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
own = raw.getsockname()[4]
def route():
    return bytes.fromhex(subprocess.check_output(["ip", "neigh", "show", "10.0.2.2"], text=True).split("lladdr ")[1][:17].replace(":", ""))
socket.create_connection((one, 80), 2).close()
gateway = route()
def send(body, kind=0x0800, sender=own): raw.send(gateway + sender + struct.pack("!H", kind) + body)
# So that it is known to get somewhere at all.
send(packet("10.0.2.15", one, b"honest"))
# The senders of others, and of nobody.
for source in ["10.0.2.2", "10.0.2.3", "10.0.2.99", "45.83.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255"]:
    send(packet(source, one, b"forged sender"))
send(packet("10.0.2.15", one, b"forged hardware"), sender=bytes.fromhex("020000000009"))
# Tags, tunnels, other protocols.
send(b"\x00\x05\x08\x00" + packet("10.0.2.15", one, b"tagged"), kind=0x8100)
send(b"\x60\x00\x00\x00\x00\x08\x11\x40" + b"\xfe\x80" + b"\x00" * 13 + b"\x01" + b"\xff\x02" + b"\x00" * 13 + b"\x01" + struct.pack("!HHHH", 1, 7, 8, 0), kind=0x86dd)
# Fragments: the first is too short for a header, the rest come before it, or overlap.
for offset in [0x2000, 0x2001, 0x0001, 0x1fff]:
    send(packet("10.0.2.15", two, b"in fragments", offset))
# Frames of every length.
for size in [0, 1, 13, 14, 20, 33, 1400]:
    try: raw.send((gateway + own + b"\x08\x00" + b"\x45" * size)[:size + 14])
    except OSError: pass
# "The gateway, and the resolver, is me."
for address in ["10.0.2.2", "10.0.2.3", "10.0.2.4", "10.0.2.15"]:
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + own + socket.inet_aton(address) + gateway + socket.inet_aton("10.0.2.2")
    send(arp, kind=0x0806)
# Whatever listens where the guest can see it.
heard = []
for host in ["10.0.2.2", "10.0.2.3", "10.0.2.4"]:
    for port in list(range(1, 1024)) + [2222, 8081, 8900, 9443, 9501]:
        s = socket.socket(); s.settimeout(0.02)
        if s.connect_ex((host, port)) == 0: heard.append((host, port))
        s.close()
# As many connections as it can begin.
flood = []
for n in range(3000):
    s = socket.socket(); s.setblocking(False); s.connect_ex((one, 9)); flood.append(s)
print(json.dumps({"heard": heard}))
"#;

#[test]
fn an_attacker_inside_reaches_nobody() {
    let (internet, world) = start();
    let neighbour = world.create(&json!({}));
    let sandbox = world.create(&json!({"name": "box", "network": {"allow_out": [ONE]}}));
    let request = json!({"command": "python3", "args": ["-c", ATTACK, ONE, TWO], "user": "root"});
    let ran = sandbox.run_request(&request);
    let found: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(found["heard"], json!([["10.0.2.3", 53]]), "only the resolver listens");
    assert_eq!(internet.datagrams(), ["honest"], "something forged came through");
    // Neither the flood nor the rest is in anybody else's way.
    assert_eq!(open(&neighbour), EVERY_PUBLIC);
    let log = world.ok(&["logs", "box"]);
    assert!(log.contains("forged sender"), "{log}");
    // Its own lines are not those of an attacker: the host has not been told wrong.
    sandbox.sh("sleep 2");
    assert_eq!(open(&sandbox), ONE_ONLY);
}
