//! A small internet made of network namespaces, so that no test needs the real one.
//!
//! ```text
//!   this thread's namespace: the host ══ veth ══ another namespace: the internet
//!     45.83.0.1                                    45.83.0.2, and every address of `ADDRESSES`
//!     2606:4700:ffff::1                            2606:4700:ffff::2, and `SIX`
//! ```
//! A thread that has entered it ([`Internet::enter`]) and everything that it starts lives on that host: a
//! [`World`](crate::World) started then has its own routes, rules and devices, and needs no change. Its addresses are those of
//! real public networks, since others are denied to sandboxes; nothing leaves the two namespaces. Both are gone with the
//! process.
//!
//! What there is: TCP on port 80 that says which address was reached and then echoes; TCP on port 19 that says a lot; TCP on
//! port 9 that never says anything; UDP echo on port 7; UDP on port 19 that answers a word with a flood; HTTPS on port 443;
//! DNS on port 53 of every address, UDP only, for the names of `ZONE`.

mod https;

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    str::FromStr,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// Two servers that a policy can tell apart.
pub const ONE: &str = "45.83.1.1";
/// The other.
pub const TWO: &str = "45.83.1.2";
/// A server of a private network beside the host.
pub const PRIVATE: &str = "10.77.0.1";
/// Looks like the metadata service of a cloud.
pub const METADATA: &str = "169.254.169.254";
/// The host's DNS server.
pub const DNS: &str = "45.83.2.53";
/// A server with an IPv6 address.
pub const SIX: &str = "2606:4700::1";
/// Somebody else's.
pub const OTHER_DNS: &str = "45.83.2.54";
/// The host, on the way out.
pub const HOST: &str = "45.83.0.1";

const ADDRESSES: [&str; 6] = [ONE, TWO, PRIVATE, METADATA, DNS, OTHER_DNS];

/// Its names; a `*` stands for one label or more.
const ZONE: [(&str, &str); 5] = [
    ("one.example.", ONE),
    ("two.example.", TWO),
    ("*.wild.example.", ONE),
    ("rebind.example.", PRIVATE),
    ("metadata.example.", METADATA),
];

/// Bytes that port 19 says over TCP.
pub const A_LOT: usize = 64 << 20;
/// Datagrams of a flood, and the bytes of each.
pub const FLOOD: (usize, usize) = (400, 1400);

/// Seconds that an answer holds.
const TTL: u32 = 5;

/// What came in, as text.
type Seen = Arc<Mutex<Vec<String>>>;

/// The other side.
pub struct Internet {
    datagrams: Seen,
    /// Heads of HTTPS requests.
    requests: Seen,
    dir: TempDir,
}

impl Internet {
    /// Makes both namespaces and puts the calling thread into the host's.
    ///
    /// # Panics
    /// Without the rights for it.
    pub fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run it as root");
        ip("link set lo up");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let internet = Self { datagrams: Seen::default(), requests: Seen::default(), dir };
        let https = https::make(&internet.authority());
        let (ready, made) = channel();
        let (connect, connected) = channel();
        let (datagrams, requests) = (internet.datagrams.clone(), internet.requests.clone());
        thread::spawn(move || {
            serve(&ready, &connected, &datagrams, || https::serve(&https, &requests));
        });
        let tid: i32 = made.recv().expect("the internet");
        ip(&format!("link add out0 type veth peer name in0 netns {tid}"));
        ip(&format!("address add {HOST}/24 dev out0"));
        ip("-6 address add 2606:4700:ffff::1/64 dev out0 nodad");
        ip("link set out0 up");
        ip("route add default via 45.83.0.2");
        ip("-6 route add default via 2606:4700:ffff::2");
        connect.send(()).expect("the internet");
        // The services are there when this is answered.
        made.recv().expect("the internet serves");
        internet
    }

    /// Certificate (PEM) of the authority by which its hosts prove their names; nobody trusts it by himself.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("authority.pem")
    }

    /// Heads of the HTTPS requests that came since the last call, in lower case.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().expect("the requests"))
    }

    /// Lets the host send packets of this many bytes at most, on a thread that has entered.
    pub fn narrow(&self, mtu: u16) {
        ip(&format!("link set out0 mtu {mtu}"));
    }

    /// What came to port 7, each as text.
    pub fn datagrams(&self) -> Vec<String> {
        self.datagrams.lock().expect("the datagrams").clone()
    }
}

/// Runs `ip` in the namespace of the calling thread.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).stdin(Stdio::null()).output().expect("ip starts");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn serve(ready: &Sender<i32>, connected: &Receiver<()>, datagrams: &Seen, https: impl FnOnce()) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    ip("link set lo up");
    ready.send(nix::unistd::gettid().as_raw()).expect("told");
    connected.recv().expect("connected");
    ip("address add 45.83.0.2/24 dev in0");
    ip("-6 address add 2606:4700:ffff::2/64 dev in0 nodad");
    ip("link set in0 up");
    ip(&format!("-6 address add {SIX}/128 dev lo nodad"));
    for address in ADDRESSES {
        ip(&format!("address add {address}/32 dev lo"));
    }
    for address in ["0.0.0.0", SIX] {
        let tcp = TcpListener::bind((address, 80)).expect("port 80");
        thread::spawn(move || accept(&tcp));
    }
    https();
    let talker = TcpListener::bind("0.0.0.0:19").expect("port 19");
    thread::spawn(move || talker.incoming().flatten().for_each(|stream| drop(thread::spawn(|| say_a_lot(stream)))));
    let silent = TcpListener::bind("0.0.0.0:9").expect("port 9");
    thread::spawn(move || silent.incoming().flatten().for_each(std::mem::forget));
    // A socket for each address: an answer has to come from where the question went.
    for address in ADDRESSES.into_iter().chain([SIX]) {
        let echo = UdpSocket::bind((address, 7)).expect("port 7");
        let datagrams = datagrams.clone();
        thread::spawn(move || echo_datagrams(&echo, &datagrams));
        let flood = UdpSocket::bind((address, 19)).expect("port 19");
        thread::spawn(move || answer_with_floods(&flood));
        let dns = UdpSocket::bind((address, 53)).expect("port 53");
        thread::spawn(move || answer_questions(&dns));
    }
    ready.send(0).expect("told");
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || talk(stream));
    }
}

fn talk(mut stream: TcpStream) -> io::Result<()> {
    let here = stream.local_addr()?.ip();
    writeln!(stream, "this is {here}")?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// Writes [`A_LOT`] to a connection.
pub fn say_a_lot(mut stream: TcpStream) -> io::Result<()> {
    let chunk = [7; 64 * 1024];
    (0..A_LOT / chunk.len()).try_for_each(|_| stream.write_all(&chunk))
}

/// Answers each byte of a connection with one.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    io::copy(&mut stream.try_clone()?, &mut stream).map(drop)
}

fn answer_with_floods(socket: &UdpSocket) {
    let (count, size) = FLOOD;
    let datagram = vec![7; size];
    while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
        (0..count).for_each(|_| drop(socket.send_to(&datagram, from)));
    }
}

fn echo_datagrams(socket: &UdpSocket, seen: &Mutex<Vec<String>>) {
    let mut buffer = [0; 2048];
    while let Ok((count, from)) = socket.recv_from(&mut buffer) {
        seen.lock().expect("the datagrams").push(String::from_utf8_lossy(&buffer[..count]).into_owned());
        let _ = socket.send_to(&buffer[..count], from);
    }
}

fn answer_questions(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((count, from)) = socket.recv_from(&mut buffer) {
        let Ok(question) = Message::from_vec(&buffer[..count]) else { continue };
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_available = true;
        answer.metadata.recursion_desired = true;
        for query in &question.queries {
            let name = query.name().to_ascii().to_ascii_lowercase();
            answer.add_query(query.clone());
            match find(&name) {
                Some(address) if query.query_type() == RecordType::A => {
                    let name = Name::from_str(&name).expect("a name");
                    answer.add_answer(Record::from_rdata(name, TTL, RData::A(A(address))));
                }
                Some(_) => {}
                None => answer.metadata.response_code = ResponseCode::NXDomain,
            }
        }
        if let Ok(bytes) = answer.to_vec() {
            let _ = socket.send_to(&bytes, from);
        }
    }
}

fn find(name: &str) -> Option<Ipv4Addr> {
    let matches = |pattern: &str| match pattern.strip_prefix('*') {
        Some(suffix) => name.ends_with(suffix) && name.len() > suffix.len(),
        None => name == pattern,
    };
    ZONE.iter().find(|(pattern, _)| matches(pattern)).map(|(_, address)| address.parse().expect("an address"))
}
