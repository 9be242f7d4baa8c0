use std::time::Duration;

use belljar_api::{
    limits::AGENT_PORT,
    tunnel::{Offer, PORT_HEADER, REVERSE_CONNECTIONS_MAX, REVERSE_PATH, REVERSE_UPGRADE},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::harness::Agent;

type Stream = TokioIo<Upgraded>;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn ask(agent: &Agent, path: &str, upgrade: &str) -> Response<Incoming> {
    let stream = agent.link.open(AGENT_PORT).await.expect("the port answers");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("http");
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!("{REVERSE_PATH}{path}"))
        .header("host", "sandbox")
        .header("connection", "upgrade")
        .header("upgrade", upgrade);
    sender.send_request(request.body(Full::<Bytes>::default()).expect("a request")).await.expect("an answer")
}

/// What the server holds of a listener.
struct Listener<'a> {
    agent: &'a Agent,
    port: u16,
    lines: BufReader<Stream>,
}

impl<'a> Listener<'a> {
    async fn open(agent: &'a Agent) -> Self {
        let answer = ask(agent, "?port=0", REVERSE_UPGRADE).await;
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        let port = answer.headers()[PORT_HEADER].to_str().expect("text").parse().expect("a port");
        let stream = TokioIo::new(hyper::upgrade::on(answer).await.expect("an upgrade"));
        Self { agent, port, lines: BufReader::new(stream) }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.expect("a connection")
    }

    async fn next(&mut self) -> Offer {
        let mut line = String::new();
        timeout(PATIENCE, self.lines.read_line(&mut line)).await.expect("in time").expect("a line");
        serde_json::from_str(&line).expect("an offer")
    }

    async fn take(&self, offer: &Offer) -> Result<Stream, StatusCode> {
        let answer = ask(self.agent, &format!("/{}", offer.id), REVERSE_UPGRADE).await;
        match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => Ok(TokioIo::new(hyper::upgrade::on(answer).await.expect("an upgrade"))),
            status => Err(status),
        }
    }
}

/// Until nobody listens any more.
async fn until_closed(port: u16) {
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[track_caller]
fn check_reset(read: std::io::Result<usize>) {
    assert_eq!(read.expect_err("a reset").kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn connections_are_offered_taken_and_end_for_themselves() {
    let agent = Agent::start().await;
    let mut listener = Listener::open(&agent).await;
    for size in [0, 1, 300_000] {
        let mut program = listener.connect().await;
        let offer = listener.next().await;
        assert_eq!(offer.peer, program.local_addr().expect("an address").to_string());
        let mut taken = listener.take(&offer).await.expect("taken");
        let (question, answer) = (vec![7; size], vec![8; size]);
        let asking = async {
            program.write_all(&question).await.expect("written");
            program.shutdown().await.expect("half closed");
            let mut all = Vec::new();
            program.read_to_end(&mut all).await.expect("its end");
            all
        };
        let answering = async {
            let mut all = Vec::new();
            taken.read_to_end(&mut all).await.expect("its end");
            taken.write_all(&answer).await.expect("written");
            taken.shutdown().await.expect("half closed");
            all
        };
        let (got_answer, got_question) = tokio::join!(asking, answering);
        assert!(got_question == question && got_answer == answer, "{size} bytes");
        assert_eq!(listener.take(&offer).await.err(), Some(StatusCode::NOT_FOUND), "taken twice");
    }
}

#[tokio::test]
async fn what_breaks_off_on_one_side_is_reset_on_the_other() {
    let agent = Agent::start().await;
    let mut listener = Listener::open(&agent).await;
    // The server, whether or not it ever wanted it.
    let mut program = listener.connect().await;
    let offer = listener.next().await;
    drop(listener.take(&offer).await.expect("taken"));
    check_reset(program.read(&mut [0; 1]).await);
    // The program.
    let program = listener.connect().await;
    let offer = listener.next().await;
    let mut taken = listener.take(&offer).await.expect("taken");
    program.set_zero_linger().expect("linger");
    drop(program);
    check_reset(taken.read(&mut [0; 1]).await);
}

#[tokio::test]
async fn no_more_are_accepted_than_can_be_carried() {
    let agent = Agent::start().await;
    let mut listener = Listener::open(&agent).await;
    let mut programs = Vec::new();
    for _ in 0..REVERSE_CONNECTIONS_MAX {
        programs.push(listener.connect().await);
        listener.next().await;
    }
    // The kernel takes it, and it is offered when another one has ended.
    programs.push(listener.connect().await);
    let mut line = String::new();
    assert!(timeout(Duration::from_millis(200), listener.lines.read_line(&mut line)).await.is_err(), "{line}");
    drop(listener);
    for mut program in programs {
        check_reset(program.read(&mut [0; 1]).await);
    }
}

#[tokio::test]
async fn it_ends_with_the_server_and_with_the_link() {
    let mut agent = Agent::start().await;
    let mut listener = Listener::open(&agent).await;
    let (mut waiting, mut carried) = (listener.connect().await, listener.connect().await);
    listener.next().await;
    let offer = listener.next().await;
    let _taken = listener.take(&offer).await.expect("taken");
    let port = listener.port;
    drop(listener);
    check_reset(waiting.read(&mut [0; 1]).await);
    check_reset(carried.read(&mut [0; 1]).await);
    until_closed(port).await;
    let listener = Listener::open(&agent).await;
    let (port, lines) = (listener.port, listener.lines);
    agent.reconnect().await;
    until_closed(port).await;
    drop(lines);
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_refused_before_the_upgrade() {
    let agent = Agent::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    for (path, upgrade, status) in [
        (format!("?port={port}"), REVERSE_UPGRADE, 409),
        ("?port=65536".into(), REVERSE_UPGRADE, 400),
        (String::new(), REVERSE_UPGRADE, 400),
        ("?port=0".into(), "websocket", 400),
        ("/1".into(), "websocket", 400),
        ("/1".into(), REVERSE_UPGRADE, 404),
    ] {
        assert_eq!(ask(&agent, &path, upgrade).await.status(), status, "{path}");
    }
}
