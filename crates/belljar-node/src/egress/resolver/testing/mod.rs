//! The resolver on real sockets, against an upstream resolver that the test makes.
//!
//! A query and its answer read as in `dig`: `a.example A` and `NOERROR a.example 300 A 1.1.1.1`.

mod answers;
mod garbage;
mod kept;
mod swaps;
mod upstream;

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use belljar_api::sandbox::NetworkConfig;
use hickory_proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, MX, TXT},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Firewall, ResolveError, Resolver, Upstream, resolve_names};
use crate::{
    chain,
    egress::policy::{Operator, Policy},
};

const SOON: Duration = Duration::from_secs(10);

/// What the upstream resolver does with a name.
#[derive(Debug, Clone)]
pub(super) enum Says {
    /// Records, each as `owner ttl type data`.
    Records(Vec<String>),
    NoName,
    Fails,
    Nothing,
    /// The same as records, but over TCP only.
    OverTcp(Vec<String>),
    /// First with another id and another question.
    AfterForgeries(Vec<String>),
    Garbage,
}

/// An upstream resolver on loopback.
pub(super) struct World {
    names: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<AtomicUsize>,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl World {
    pub(super) async fn new() -> Self {
        let (tcp, udp) = bound().await;
        let address = tcp.local_addr().unwrap();
        let names = Arc::new(Mutex::new(HashMap::<String, Says>::new()));
        let asked = Arc::new(AtomicUsize::new(0));
        let of = |names: &Arc<Mutex<HashMap<String, Says>>>| names.clone();
        let tasks = vec![
            tokio::spawn(serve_udp(udp, of(&names), asked.clone())),
            tokio::spawn(serve_tcp(tcp, of(&names), asked.clone())),
        ];
        Self { names, asked, address, tasks }
    }

    pub(super) fn says(&self, name: &str, says: Says) {
        self.names.lock().unwrap().insert(name.to_owned(), says);
    }

    pub(super) fn has(&self, name: &str, records: &[&str]) {
        self.says(name, Says::Records(records.iter().map(|&record| record.to_owned()).collect()));
    }

    /// How many questions came.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub(super) fn upstream(&self) -> Upstream {
        Upstream::new([self.address]).with_timeout(Duration::from_millis(300))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// TCP and UDP at the same port.
async fn bound() -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (tcp, udp);
        }
    }
}

async fn serve_udp(socket: UdpSocket, names: Arc<Mutex<HashMap<String, Says>>>, asked: Arc<AtomicUsize>) {
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        asked.fetch_add(1, Ordering::SeqCst);
        let query = Message::from_vec(&buffer[..length]).unwrap();
        for answer in answers(&query, &names.lock().unwrap(), true) {
            socket.try_send_to(&answer, from).unwrap();
        }
    }
}

async fn serve_tcp(listener: TcpListener, names: Arc<Mutex<HashMap<String, Says>>>, asked: Arc<AtomicUsize>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        asked.fetch_add(1, Ordering::SeqCst);
        let query = read_framed(&mut stream).await.unwrap();
        let answers = answers(&Message::from_vec(&query).unwrap(), &names.lock().unwrap(), false);
        for answer in answers {
            write_framed(&mut stream, &answer).await.unwrap();
        }
    }
}

fn answers(query: &Message, names: &HashMap<String, Says>, udp: bool) -> Vec<Vec<u8>> {
    let name = query.queries[0].name.to_ascii().to_lowercase();
    let says = names.get(name.trim_end_matches('.')).cloned().unwrap_or(Says::NoName);
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.add_query(query.queries[0].clone());
    let mut all = Vec::new();
    match says {
        Says::NoName => answer.metadata.response_code = ResponseCode::NXDomain,
        Says::Fails => answer.metadata.response_code = ResponseCode::ServFail,
        Says::Nothing => return vec![],
        Says::Garbage => return vec![b"\xff\xff nonsense".to_vec()],
        Says::OverTcp(_) if udp => answer.metadata.truncation = true,
        Says::Records(records) | Says::OverTcp(records) => {
            answer.add_answers(records.iter().map(|text| record(text)));
        }
        Says::AfterForgeries(records) => {
            let lie = record("x.example 60 A 6.6.6.6");
            let (mut other_id, mut other_name) = (answer.clone(), answer.clone());
            other_id.metadata.id ^= 1;
            other_name.queries[0].name = Name::from_ascii("other.example.").unwrap();
            for mut forged in [other_id, other_name] {
                forged.add_answer(lie.clone());
                all.push(forged.to_vec().unwrap());
            }
            answer.add_answers(records.iter().map(|text| record(text)));
        }
    }
    all.push(answer.to_vec().unwrap());
    all
}

/// `owner ttl type data`.
fn record(text: &str) -> Record {
    let [owner, ttl, kind, data] = text.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let name = |text: &str| Name::from_ascii(format!("{text}.")).unwrap();
    let data = match kind {
        "A" => RData::A(A(data.parse().unwrap())),
        "AAAA" => RData::AAAA(AAAA(data.parse().unwrap())),
        "CNAME" => RData::CNAME(CNAME(name(data))),
        "MX" => RData::MX(MX::new(10, name(data))),
        "TXT" => RData::TXT(TXT::new(vec![data.to_owned()])),
        kind => panic!("record type {kind}"),
    };
    Record::from_rdata(name(owner), ttl.parse().unwrap(), data)
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn write_framed(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&[&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()).await
}

/// A firewall that remembers what it was told, as `+address seconds` or `-address seconds`.
#[derive(Default)]
pub(super) struct Recorder {
    told: Mutex<Vec<String>>,
    broken: AtomicBool,
    /// How long it takes.
    slow: Mutex<Duration>,
}

impl Recorder {
    async fn tell(&self, sign: char, addresses: &[(Ipv4Addr, Duration)]) -> io::Result<()> {
        let slow = *self.slow.lock().unwrap();
        tokio::time::sleep(slow).await;
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("the firewall is broken"));
        }
        let lines = addresses.iter().map(|(address, time)| format!("{sign}{address} {}", time.as_secs_f64().round()));
        self.told.lock().unwrap().extend(lines);
        Ok(())
    }

    pub(super) fn break_down(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    pub(super) fn slow_down(&self, time: Duration) {
        *self.slow.lock().unwrap() = time;
    }

    /// What it was told since the last call.
    pub(super) fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

#[async_trait]
impl Firewall for Recorder {
    async fn admit(&self, addresses: &[(Ipv4Addr, Duration)]) -> io::Result<()> {
        self.tell('+', addresses).await
    }

    async fn deny(&self, addresses: &[(Ipv4Addr, Duration)]) -> io::Result<()> {
        self.tell('-', addresses).await
    }
}

/// A sandbox's resolver with its sockets.
pub(super) struct Scene {
    pub(super) world: World,
    pub(super) firewall: Arc<Recorder>,
    pub(super) resolver: Resolver,
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<io::Result<()>>,
}

pub(super) fn policy(internet: bool, allow: &[&str], deny: &[&str]) -> Policy {
    let words = |list: &[&str]| list.iter().map(|&entry| entry.to_owned()).collect();
    let config = NetworkConfig { allow_internet_access: internet, allow_out: words(allow), deny_out: words(deny) };
    let operator = Operator { allow_private: vec!["10.1.0.0/16".parse().unwrap()], own: vec![] };
    Policy::new(&config, &operator).unwrap()
}

impl Scene {
    /// With names upstream, each `name: record, record`, before the policy comes into force.
    pub(super) async fn new(names: &[(&str, &[&str])], policy: Policy) -> Self {
        let scene = Self::begin(names, |_| {}).await;
        scene.apply(policy).await.unwrap();
        scene
    }

    /// Without a policy, once the resolver is `prepared`.
    pub(super) async fn begin(names: &[(&str, &[&str])], prepare: impl FnOnce(&Resolver)) -> Self {
        let world = World::new().await;
        for (name, records) in names {
            world.has(name, records);
        }
        let firewall = Arc::new(Recorder::default());
        let resolver = Resolver::new(Arc::new(world.upstream()), firewall.clone(), None);
        prepare(&resolver);
        let (tcp, udp) = bound().await;
        let (tcp, udp) = (tcp.into_std().unwrap(), udp.into_std().unwrap());
        let (address, stop) = (tcp.local_addr().unwrap(), CancellationToken::new());
        let serving = (resolver.clone(), stop.clone());
        let served = tokio::spawn(async move { serving.0.serve(udp, tcp, serving.1).await });
        Self { world, firewall, resolver, address, stop, served }
    }

    /// Swaps the policy, as the node does; what the firewall is compiled from, in one line.
    pub(super) async fn apply(&self, policy: Policy) -> Result<String, ResolveError> {
        let names = resolve_names(&policy, &self.world.upstream()).await?;
        let swap = self.resolver.swap(Arc::new(policy), names).await;
        let resolved = swap.resolved();
        let timed = |(address, time): (&Ipv4Addr, &Duration)| format!("{address} {}", time.as_secs_f64().round());
        let text = [
            resolved.allowed.iter().map(timed).map(|text| format!("+{text}")).collect::<Vec<_>>(),
            resolved.denied.iter().map(timed).map(|text| format!("-{text}")).collect(),
            resolved.carried.iter().map(|address| format!("~{address}")).collect(),
        ]
        .concat()
        .join(", ");
        swap.commit().await;
        Ok(text)
    }

    /// The error of a swap that is refused.
    pub(super) async fn refused(&self, policy: Policy) -> String {
        chain(&self.apply(policy).await.expect_err("a refused policy"))
    }

    /// Asks over UDP.
    pub(super) async fn ask(&self, query: &str) -> String {
        shown(&self.exchange(&question(query)).await.expect("an answer"))
    }

    /// Sends any bytes over UDP; `None` if there is no answer for a while.
    pub(super) async fn send(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket.send(bytes).await.unwrap();
        let mut buffer = vec![0; 65535];
        let length = timeout(Duration::from_secs(3), socket.recv(&mut buffer)).await.ok()?.ok()?;
        buffer.truncate(length);
        Some(buffer)
    }

    pub(super) async fn exchange(&self, message: &Message) -> Option<Message> {
        let bytes = self.send(&message.to_vec().unwrap()).await?;
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!((answer.metadata.id, &answer.queries), (message.metadata.id, &message.queries));
        Some(answer)
    }

    /// Asks over TCP, several times over one connection.
    pub(super) async fn ask_tcp(&self, queries: &[&str]) -> Vec<String> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut answers = Vec::new();
        for query in queries {
            write_framed(&mut stream, &question(query).to_vec().unwrap()).await.unwrap();
            let answer = timeout(SOON, read_framed(&mut stream)).await.unwrap().unwrap();
            answers.push(shown(&Message::from_vec(&answer).unwrap()));
        }
        answers
    }

    /// Ends it, and checks that it ends.
    pub(super) async fn end(self) {
        self.stop.cancel();
        timeout(SOON, self.served).await.expect("it ends").unwrap().unwrap();
        UdpSocket::bind(self.address).await.expect("the socket is free again");
    }
}

/// `name type`.
pub(super) fn question(text: &str) -> Message {
    let (name, kind) = text.split_once(' ').unwrap();
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind.parse::<RecordType>().unwrap()));
    message
}

pub(super) fn shown(answer: &Message) -> String {
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    let code = match answer.metadata.response_code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::NotImp => "NOTIMP",
        code => panic!("{code}"),
    };
    let mut text = code.to_owned();
    if answer.metadata.truncation {
        text.push_str(" TRUNCATED");
    }
    for record in &answer.answers {
        let owner = record.name.to_ascii();
        text.push_str(&format!("; {} {} {}", owner.trim_end_matches('.'), record.record_type(), record.data));
    }
    text
}
