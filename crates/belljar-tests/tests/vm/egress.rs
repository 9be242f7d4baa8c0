//! What leaves a sandbox under a policy: real guests against a small internet.

use std::{
    collections::BTreeMap,
    io::Write,
    net::TcpListener,
    thread,
};

use belljar_tests::{
    Sandbox, World,
    internet::{self, DNS, HOST, Internet, METADATA, ONE, OTHER_DNS, PRIVATE, TWO},
};
use serde_json::{Value, json};

/// Tries everything at once, and says of each whether it worked. As root, who may send echo requests.
const PROBE: &str = r#"
import json, os, socket, struct, sys, threading
def tcp(host, port):
    s = socket.create_connection((host, int(port)), 1.5)
    s.settimeout(1.5)
    s.sendall(b"x")
    return bool(s.recv(64))
def udp(host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
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
def question(name, kind=1):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\x00" + struct.pack("!HH", kind, 1)
def dns(server, name):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1.5)
    s.sendto(question(name), (server, 53))
    answer = s.recv(512)
    return answer[3] & 15 == 0 and struct.unpack("!H", answer[6:8])[0] > 0
def probe(what):
    kind, *rest = what.split(" ")
    try:
        return {"tcp": tcp, "udp": udp, "icmp": icmp, "dns": dns}[kind](*rest)
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
    let answer = world.http().json("PATCH", &format!("/sandboxes/{}", sandbox.id), &json!({"network": network}).to_string());
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
    serve_on_host();
    let world = World::start_with(&[("BELLJAR_RESOLVERS", DNS.to_owned()), ("BELLJAR_NETWORK", "namespaces".to_owned())]);
    (internet, world)
}

const EVERY_PUBLIC: [&str; 10] =
    ["icmp one", "icmp two", "name one", "name two", "name wild", "other dns", "tcp one", "tcp two", "udp one", "udp two"];

#[test]
fn what_leaves_is_what_the_policy_says() {
    let (_internet, world) = start();
    let sandbox = world.create(&json!({"name": "box"}));
    let closed = json!({"allow_internet_access": false});
    let cases: &[(Value, &[&str])] = &[
        (Value::Null, &EVERY_PUBLIC),
        (closed, &[]),
        (json!({"allow_out": [ONE]}), &["icmp one", "tcp one", "udp one"]),
        (json!({"allow_out": ["45.83.1.0/31"]}), &["icmp one", "tcp one", "udp one"]),
        (json!({"allow_out": ["two.example"]}), &["icmp two", "name two", "tcp two", "udp two"]),
        (json!({"allow_out": ["*.wild.example"]}), &["icmp one", "name wild", "tcp one", "udp one"]),
        (json!({"deny_out": [TWO]}), &[]),
        (json!({"deny_out": ["two.example"]}), &[]),
        (json!({"deny_out": ["*.wild.example"]}), &[]),
        (json!({"allow_out": ["45.83.1.0/24"], "deny_out": [TWO]}), &[]),
    ];
    for (network, expected) in cases {
        patch(&world, &sandbox, network);
        let found = open(&sandbox);
        println!("{network}: {found:?} expected {expected:?}");
    }
    let _ = internet::sandbox_devices();
}
