//! The rules in the kernel, between a guest and a world that are namespaces too: what passes, what the guest is told of
//! the rest, and what a swap does to connections.
//!
//! ```text
//! guest: g0 10.0.2.15 == tap0 :sandbox: up0 == w0 :world, with public, private and metadata addresses
//! ```

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

use belljar_vmm::jail::FIRST_USER;

use super::{
    Resolved, Wiring, admit, compile, counts, deny, dropped,
    golden_test::{WIRING, policy},
    settle,
};
use crate::egress::policy::{Operator, Policy};

/// The guest's.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// After which no answer is silence, where silence is expected.
const SHORT: Duration = Duration::from_millis(500);
/// The same where an answer is expected: longer than a busy machine makes a thread wait.
const LONG: Duration = Duration::from_secs(20);
const WORLD: [&str; 8] =
    ["1.1.1.1", "2.2.2.2", "3.3.3.3", "8.8.8.8", "10.1.0.1", "192.168.7.7", "169.254.169.254", "168.63.129.16"];

type Work = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
struct Namespace {
    work: mpsc::Sender<Work>,
    tid: i32,
}

impl Namespace {
    fn new() -> Self {
        let (work, todo) = mpsc::channel::<Work>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            tell.send(nix::unistd::gettid().as_raw()).expect("somebody waits");
            todo.into_iter().for_each(|work| work());
        });
        Self { work, tid: told.recv().expect("a thread id") }
    }

    /// Does something in it.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.work.send(Box::new(move || drop(tell.send(work())))).expect("the thread lives");
        told.recv().expect("it did not panic")
    }

    fn shell(&self, script: &str) -> String {
        let script = script.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-euc", &script]).output().expect("sh");
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    fn nft(&self, script: &str) {
        let script = script.to_owned();
        self.run(move || {
            let mut child =
                Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft of nftables");
            child.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("write");
            assert!(child.wait().expect("wait").success(), "{script}");
        });
    }
}

struct Net {
    guest: Namespace,
    sandbox: Namespace,
    world: Namespace,
}

/// `None` without the rights for it.
fn net() -> Option<Net> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return None;
    }
    let net = Net { guest: Namespace::new(), sandbox: Namespace::new(), world: Namespace::new() };
    let (guest, world) = (net.guest.tid, net.world.tid);
    net.sandbox.shell(&format!(
        "ip link set lo up; ip link add tap0 type veth peer name g0 netns {guest}; \
         ip link add up0 type veth peer name w0 netns {world}; \
         ip addr add 10.0.2.2/24 dev tap0; ip addr add 10.0.2.3/32 dev tap0; \
         ip addr add fd00::2/64 dev tap0 nodad; ip link set tap0 up; \
         ip addr add 100.64.0.2/30 dev up0; ip link set up0 up; ip route add default via 100.64.0.1; \
         echo 1 > /proc/sys/net/ipv4/ip_forward; \
         : the kernel tells one guest only so often that something is prohibited, which is right but not in a test; \
         echo 0 > /proc/sys/net/ipv4/icmp_ratelimit"
    ));
    net.guest.shell(
        "ip link set lo up; ip link set g0 address 02:00:00:00:00:01; ip addr add 10.0.2.15/24 dev g0; \
         ip link set g0 up; ip route add default via 10.0.2.2; ip addr add fd00::15/64 dev g0 nodad; echo 0 0 > /proc/sys/net/ipv4/ping_group_range",
    );
    let addresses: String = WORLD.iter().map(|address| format!("ip addr add {address}/32 dev lo; ")).collect();
    net.world.shell(&format!("ip link set lo up; {addresses} ip addr add 100.64.0.1/30 dev w0; ip link set w0 up"));
    net.world.run(|| {
        for port in [53, 80] {
            let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bind");
            thread::spawn(move || tcp.incoming().flatten().for_each(|stream| drop(thread::spawn(|| echo(stream)))));
            for address in WORLD {
                let udp = UdpSocket::bind((address, port)).expect("bind");
                thread::spawn(move || echo_udp(&udp));
            }
        }
    });
    net.sandbox.run(|| {
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).expect("bind");
        thread::spawn(move || tcp.incoming().flatten().for_each(echo));
        for address in ["10.0.2.3:53", "[fd00::2]:80"] {
            let udp = UdpSocket::bind(address).expect("bind");
            thread::spawn(move || echo_udp(&udp));
        }
    });
    net.guest.run(|| {
        // A link that has just come up loses packets for a moment.
        let socket = open_udp("10.0.2.3:53".parse().expect("an address"), SHORT).expect("a socket");
        while say_udp(&socket).is_err() {}
    });
    net.sandbox.run(|| {
        let socket = open_udp("1.1.1.1:80".parse().expect("an address"), SHORT).expect("a socket");
        while say_udp(&socket).is_err() {}
    });
    Some(net)
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn echo_udp(socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..length], from);
    }
}

fn open(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    Ok(stream)
}

fn say(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])
}

fn say_udp(socket: &UdpSocket) -> io::Result<()> {
    socket.send(b"hello")?;
    socket.recv(&mut [0; 16]).map(drop)
}

fn open_udp(to: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    Ok(socket)
}

/// A socket that sends echo requests, and gets the answers.
fn open_echo(to: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), SockProtocol::Icmp)?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    Ok(socket)
}

fn say_echo(socket: &UdpSocket) -> io::Result<()> {
    socket.send(&[8, 0, 0, 0, 0, 0, 0, 1])?;
    socket.recv(&mut [0; 16]).map(drop)
}

/// How it went, in a word.
fn word(result: io::Result<()>) -> &'static str {
    match result.map_err(|error| (error.kind(), error.to_string())) {
        Ok(()) => "passes",
        Err((io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset, _)) => "reset",
        Err((io::ErrorKind::HostUnreachable, _)) => "prohibited",
        Err((io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock, _)) => "silence",
        Err((_, text)) => panic!("{text}"),
    }
}

impl Net {
    fn apply(&self, policy: &Policy, resolved: &Resolved, generation: u32) {
        self.sandbox.nft(&(compile(policy, resolved, &Wiring { generation, ..WIRING }) + &settle(MAC)));
    }

    /// `tcp 1.1.1.1:80`, from the guest.
    #[track_caller]
    fn check(&self, what: &str, expected: &str) {
        let (protocol, to) = what.split_once(' ').expect("protocol and address");
        let (protocol, to) = (protocol.to_owned(), to.parse::<SocketAddr>().expect("an address"));
        let patience = if expected == "silence" { SHORT } else { LONG };
        let got = self.guest.run(move || {
            word(match protocol.as_str() {
                "tcp" => open(to, patience).and_then(|stream| say(&stream)),
                "udp" => open_udp(to, patience).and_then(|socket| say_udp(&socket)),
                _ => open_echo(to, patience).and_then(|socket| say_echo(&socket)),
            })
        });
        assert_eq!(got, expected, "{what}");
    }

    fn connect(&self, to: &str) -> TcpStream {
        let to = to.parse().expect("an address");
        self.guest.run(move || open(to, LONG)).expect("a connection")
    }
}

fn operator() -> Operator {
    Operator { allow_private: vec!["10.1.0.0/16".parse().expect("a network")], own: vec![] }
}

fn names(allowed: &[&str], carried: &[&str]) -> Resolved {
    let parse = |address: &&str| address.parse::<Ipv4Addr>().expect("an address");
    Resolved {
        allowed: allowed.iter().map(|address| (parse(address), Duration::from_secs(300))).collect(),
        carried: carried.iter().map(parse).collect(),
        ..Resolved::default()
    }
}

#[test]
fn what_passes_and_what_the_guest_is_told_of_the_rest() {
    let Some(net) = net() else { return };
    // Without rules IPv6 would get through.
    net.check("udp [fd00::2]:80", "passes");
    net.apply(&policy(true, &[], &["2.2.2.2"], &operator()), &Resolved::default(), 1);
    for (what, expected) in [
        ("tcp 1.1.1.1:80", "passes"),
        ("udp 1.1.1.1:80", "passes"),
        ("udp 8.8.8.8:53", "passes"),
        ("tcp 10.1.0.1:80", "passes"),
        ("tcp 2.2.2.2:80", "reset"),
        ("udp 2.2.2.2:80", "prohibited"),
        ("tcp 192.168.7.7:80", "reset"),
        ("tcp 169.254.169.254:80", "reset"),
        ("udp 168.63.129.16:80", "prohibited"),
        ("udp 10.0.2.3:53", "passes"),
        ("icmp 1.1.1.1:0", "passes"),
        ("icmp 2.2.2.2:0", "prohibited"),
        ("icmp 10.0.2.2:0", "passes"),
        ("icmp 10.0.2.3:0", "prohibited"),
        ("tcp 10.0.2.3:80", "reset"),
        ("tcp 10.0.2.2:80", "reset"),
        ("udp [fd00::2]:80", "silence"),
        ("tcp 100.64.0.2:80", "reset"),
        ("tcp 100.64.0.1:80", "reset"),
    ] {
        net.check(what, expected);
    }
    net.apply(&policy(true, &["*.example", "8.8.8.8"], &[], &operator()), &names(&["1.1.1.1"], &["3.3.3.3"]), 2);
    for (what, expected) in [
        ("tcp 1.1.1.1:80", "passes"),
        ("udp 1.1.1.1:80", "passes"),
        ("icmp 1.1.1.1:0", "passes"),
        ("icmp 2.2.2.2:0", "prohibited"),
        ("tcp 1.1.1.1:53", "reset"),
        ("udp 8.8.8.8:80", "passes"),
        ("udp 8.8.8.8:53", "prohibited"),
        ("tcp 2.2.2.2:80", "reset"),
        ("tcp 3.3.3.3:80", "reset"),
        ("udp 10.1.0.1:80", "prohibited"),
        ("udp 10.0.2.3:53", "passes"),
    ] {
        net.check(what, expected);
    }
    let lines = dropped(&net.sandbox.shell("nft -j list set inet belljar drops"));
    let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
    for line in [
        "blocked: tcp 2.2.2.2:80, in deny_out",
        "blocked: tcp 2.2.2.2:80, not in allow_out",
        "blocked: tcp 169.254.169.254:80, metadata address",
        "blocked: icmp 2.2.2.2, in deny_out",
        "blocked: udp 8.8.8.8:53, DNS goes to the sandbox's own resolver only",
        "blocked: tcp 10.0.2.2:80, the host or another sandbox",
    ] {
        assert!(lines.iter().any(|got| got == line), "{line}: {lines:#?}");
    }
    let counts = counts(&net.sandbox.shell("nft -j list counters table inet belljar"));
    assert!(counts.out.packets > 10 && counts.r#in.packets > 10 && counts.dropped.packets > 10, "{counts:?}");
}

#[test]
fn nothing_passes_before_the_network_is_somebodys() {
    let Some(net) = net() else { return };
    net.sandbox.nft(&compile(&policy(true, &[], &[], &operator()), &Resolved::default(), &WIRING));
    net.check("udp 1.1.1.1:80", "silence");
    net.check("icmp 10.0.2.2:0", "silence");
    net.sandbox.nft(&settle(MAC));
    net.check("udp 1.1.1.1:80", "passes");
    net.check("icmp 10.0.2.2:0", "passes");
    net.sandbox.nft(&settle([2, 0, 0, 0, 0, 2]));
    net.check("udp 1.1.1.1:80", "silence");
}

#[test]
fn a_guest_that_forges_its_address_is_not_heard() {
    let Some(net) = net() else { return };
    net.apply(&policy(true, &[], &[], &operator()), &Resolved::default(), 1);
    net.check("udp 1.1.1.1:80", "passes");
    net.guest.shell("ip addr add 10.0.2.99/24 dev g0; ip route replace default via 10.0.2.2 src 10.0.2.99");
    net.check("tcp 1.1.1.1:80", "silence");
    net.guest.shell("ip route replace default via 10.0.2.2 src 10.0.2.15; ip link set g0 address 02:00:00:00:00:02");
    net.guest.shell("ip route replace default via 10.0.2.2 src 10.0.2.15");
    net.check("udp 1.1.1.1:80", "silence");
}

/// It may live in the namespace, where its tap is, and is not the guest.
#[test]
fn a_vm_process_reaches_nothing_itself() {
    let Some(net) = net() else { return };
    net.apply(&policy(true, &[], &[], &operator()), &Resolved::default(), 1);
    net.check("tcp 1.1.1.1:80", "passes");
    let send = |user: u32, to: &str| {
        let script = format!("setpriv --reuid {user} --clear-groups bash -c 'echo x >/dev/udp/{to}' 2>&1 || true");
        net.sandbox.shell(&script)
    };
    for to in ["1.1.1.1/80", "127.0.0.1/80", "10.0.2.2/80"] {
        assert_eq!(send(0, to), "", "{to}");
        let inmate = send(FIRST_USER + 1, to);
        assert!(inmate.contains("not permitted"), "{to}: {inmate}");
    }
}

#[test]
fn a_swap_keeps_what_is_allowed_and_cuts_the_rest() {
    let Some(net) = net() else { return };
    let (open, one) = (policy(true, &[], &[], &operator()), policy(true, &["*.example"], &[], &operator()));
    net.apply(&open, &Resolved::default(), 1);
    let (kept, cut, carried) = (net.connect("1.1.1.1:80"), net.connect("2.2.2.2:80"), net.connect("3.3.3.3:80"));
    let cut_udp = net.guest.run(|| open_udp("2.2.2.2:80".parse().expect("an address"), LONG).expect("a socket"));
    assert_eq!([say(&kept), say(&cut), say(&carried), say_udp(&cut_udp)].map(word), ["passes"; 4]);
    net.apply(&one, &names(&["1.1.1.1"], &["3.3.3.3"]), 2);
    let results = [say(&kept), say(&cut), say(&carried), say_udp(&cut_udp)];
    assert_eq!(results.map(word), ["passes", "reset", "passes", "prohibited"]);
    net.check("tcp 3.3.3.3:80", "reset");
    // Nothing at all, and back: what was cut for good stays so.
    net.apply(&policy(false, &[], &[], &operator()), &Resolved::default(), 3);
    assert_eq!(word(say(&kept)), "reset");
    net.apply(&open, &Resolved::default(), 4);
    net.check("tcp 1.1.1.1:80", "passes");
}

#[test]
fn an_address_of_a_name_expires_for_new_connections_only() {
    let Some(net) = net() else { return };
    net.apply(&policy(true, &["*.example"], &[], &operator()), &Resolved::default(), 1);
    net.check("tcp 1.1.1.1:80", "reset");
    let address = Ipv4Addr::new(1, 1, 1, 1);
    net.sandbox.nft(&admit(&[(address, Duration::from_secs(1))]));
    let connection = net.connect("1.1.1.1:80");
    thread::sleep(Duration::from_millis(1500));
    net.check("tcp 1.1.1.1:80", "reset");
    assert_eq!(word(say(&connection)), "passes");
    // Denied at last by a name: also what is open.
    net.sandbox.nft(&deny(&[(address, Duration::from_secs(100))]));
    assert_eq!(word(say(&connection)), "reset");
}

#[test]
fn swaps_under_traffic_lose_nothing() {
    let Some(net) = net() else { return };
    let nets: Vec<String> = (0..100).map(|i| format!("20.{i}.0.0/17")).collect();
    let mut allow: Vec<&str> = nets.iter().map(String::as_str).collect();
    allow.push("*.example");
    let policies = [policy(true, &allow, &[], &operator()), policy(true, &[], &["2.2.2.2"], &operator())];
    net.apply(&policies[0], &names(&["1.1.1.1"], &[]), 1);
    let (stop, stopped) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let socket = net.guest.run(|| open_udp("1.1.1.1:80".parse().expect("an address"), LONG).expect("a socket"));
    thread::spawn(move || {
        let mut sent = 0_u32;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            // One at a time: the first that is lost is an error.
            if let Err(error) = say_udp(&socket) {
                let _ = tell.send(Err(error));
                return;
            }
            sent += 1;
        }
        let _ = tell.send(Ok(sent));
    });
    let began = Instant::now();
    for generation in 2..42 {
        net.apply(&policies[generation as usize % 2], &names(&["1.1.1.1"], &[]), generation);
    }
    let each = began.elapsed() / 40;
    drop(stop);
    let sent = told.recv().expect("the thread lives").expect("nothing is lost");
    println!("{sent} datagrams went and came, a swap took {each:?}");
    assert!(sent > 40);
    let counts = counts(&net.sandbox.shell("nft -j list counters table inet belljar"));
    assert_eq!(counts.dropped.packets, 0);
}

#[test]
fn a_flood_of_connections_or_bytes_is_contained() {
    let Some(net) = net() else { return };
    let open = policy(true, &[], &[], &operator());
    let through = |count: usize| {
        net.guest.run(move || {
            let to = "1.1.1.1:80".parse().expect("an address");
            let sockets: Vec<_> = (0..count).map(|_| open_udp(to, SHORT).expect("a socket")).collect();
            sockets.iter().for_each(|socket| drop(socket.send(b"hello")));
            sockets.iter().filter(|socket| socket.recv(&mut [0; 16]).is_ok()).count()
        })
    };
    let apply = |wiring: Wiring<'_>| net.sandbox.nft(&(compile(&open, &Resolved::default(), &wiring) + &settle(MAC)));
    // What was set up before is known to the kernel as well: one connection.
    apply(Wiring { generation: 1, connections_max: Some(6), ..WIRING });
    assert!((4..=6).contains(&through(12)));
    apply(Wiring { generation: 2, new_connections_per_second: Some(5), ..WIRING });
    assert!((4..=8).contains(&through(12)));
    apply(Wiring { generation: 3, bytes_per_second: Some(1000), ..WIRING });
    let passed = net.guest.run(|| {
        let socket = open_udp("1.1.1.1:80".parse().expect("an address"), SHORT).expect("a socket");
        // Four times what may pass at once.
        (0..512).for_each(|_| drop(socket.send(&[0; 1024])));
        std::iter::from_fn(|| socket.recv(&mut [0; 2048]).ok()).count()
    });
    assert!((1..160).contains(&passed), "{passed} of 512");
}
