//! The client against a tiny server that speaks canned answers: what goes over the wire, and what comes of it.
//!
//! The real server has tests of its own; here are only the things that it cannot be made to do on purpose.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use belljar_api::{
    process::{RunEvent, RunProcess},
    sandbox::CreateSandbox,
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use tokio_tungstenite::tungstenite::Message;

use crate::{Client, Error, Scope};

/// Status, content type, body.
type Answer = (u16, &'static str, &'static str);

/// A server that answers in order and writes down what it was asked.
struct Canned {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn canned(answers: &[Answer]) -> Canned {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let left = Arc::new(Mutex::new(answers.iter().copied().collect::<VecDeque<_>>()));
    let log = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (left, log) = (Arc::clone(&left), Arc::clone(&log));
            let service = service_fn(move |request| answer(request, Arc::clone(&left), Arc::clone(&log)));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Canned { address, asked, task: task.abort_handle() }
}

async fn answer(
    request: Request<Incoming>,
    left: Arc<Mutex<VecDeque<Answer>>>,
    log: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
    let head = format!(
        "{} {} host={} key={} length={}",
        request.method(),
        request.uri(),
        header(header::HOST),
        header(header::AUTHORIZATION),
        header(header::CONTENT_LENGTH),
    );
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let line = format!("{head} {}", String::from_utf8_lossy(&body)).trim().to_owned();
    log.lock().expect("log").push(line);
    let (status, kind, body) =
        left.lock().expect("answers").pop_front().unwrap_or((500, "application/json", r#"{"error":"?","code":"?"}"#));
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .body(Full::new(Bytes::from_static(body.as_bytes())))
}

impl Canned {
    fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address), Some("k")).expect("client")
    }

    #[track_caller]
    fn was_asked(&self, expected: &[&str]) {
        let asked = self.asked.lock().expect("log");
        let asked: Vec<_> = asked.iter().map(|line| line.replace(&self.address.to_string(), "SERVER")).collect();
        assert_eq!(asked, expected);
    }
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

#[tokio::test]
async fn what_was_not_delivered_is_sent_again_and_routed_by_host() {
    let stream = "data: {\"handle\":1,\"pid\":42,\"started_at\":5}\n\n: keep-alive\n\n\
                  data: {\"line\":\"hi\",\"timestamp\":6,\"stream\":\"stdout\"}\n\ndata: {\"heartbeat\":[]}\n\n\
                  data: {\"exit_code\":0,\"reason\":\"exited\"}\n\n";
    let server = canned(&[
        (503, JSON, r#"{"error":"boots","code":"SANDBOX_NOT_READY"}"#),
        (503, JSON, r#"{"error":"away","code":"SANDBOX_UNREACHABLE"}"#),
        (200, EVENTS, stream),
    ])
    .await;
    let request = RunProcess { command: "true".into(), ..RunProcess::default() };
    let mut events = server.client().sandbox("box-1").run(&request).await.expect("run");
    let mut seen = Vec::new();
    while let Some(event) = events.next().await.expect("event") {
        seen.push(event);
    }
    assert!(matches!(seen[0], RunEvent::Started { pid: 42, .. }), "{seen:?}");
    assert!(matches!(&seen[1], RunEvent::Line { line, .. } if line == "hi"), "{seen:?}");
    assert!(matches!(seen.last(), Some(RunEvent::Ended { exit_code: Some(0), .. })), "{seen:?}");
    let body = r#"{"command":"true","args":[],"env":{},"working_dir":null,"user":null}"#;
    let line = format!("POST /api/v1/processes/run host=box-1.local key=Bearer k length={} {body}", body.len());
    server.was_asked(&[&line, &line, &line]);
}

#[tokio::test]
async fn other_failures_are_not_sent_again() {
    let server = canned(&[(503, JSON, r#"{"error":"ended","code":"SANDBOX_NOT_RUNNING"}"#)]).await;
    let error = server.client().sandbox("x").health().await.expect_err("ended");
    assert_eq!(error.code(), Some("SANDBOX_NOT_RUNNING"));
    server.was_asked(&["GET /api/v1/health host=x.local key=Bearer k length=-"]);
}

#[tokio::test]
async fn a_failed_create_is_an_answer_and_a_refused_one_an_error() {
    let failed = r#"{"sandbox_id":"a","status":"failed","name":null,"pending_reason":null,"reason":"no such image",
        "termination_reason":"ImageNotFound","error_details":null,"ingress_endpoint":null,"sandbox_url":null}"#;
    let server = canned(&[(422, JSON, failed), (409, JSON, r#"{"error":"taken","code":"NAME_IN_USE"}"#)]).await;
    let client = server.client();
    let created = client.create(&CreateSandbox::default()).await.expect("answer");
    assert_eq!((created.status.as_str(), created.reason.as_deref()), ("failed", Some("no such image")));
    let error = client.create(&CreateSandbox::default()).await.expect_err("taken");
    assert_eq!((error.code(), error.to_string().as_str()), (Some("NAME_IN_USE"), "taken"));
}

const SLEEPER: &str = r#"{"id":"a","namespace":"default","status":"suspending","image":"i","runtime":null,
    "resources":{"cpus":1,"memory_mb":1,"disk_mb":1,"ephemeral_disk_mb":1},"timeout_secs":0,"entrypoint":null,
    "name":"box","network_policy":null,"network":null,"pool_id":null,"outcome":null,"termination_reason":null,
    "error_details":null,"pending_reason":null,"created_at":1,"terminated_at":null,
    "allow_unauthenticated_access":false,"exposed_ports":[],"ingress_endpoint":null,"sandbox_url":null,
    "file_systems":[],"auto_resume":true,"executor_id":null}"#;

#[tokio::test]
async fn a_state_is_asked_for_until_it_is_there() {
    let server = canned(&[(202, JSON, SLEEPER), (200, JSON, SLEEPER), (202, JSON, SLEEPER)]).await;
    server.client().suspend("box").await.expect("suspend");
    server.client().suspend_without_waiting("box").await.expect("suspend");
    let path = "POST /v1/namespaces/default/sandboxes/box/suspend?wait_ms=";
    let line = format!("{path}120000 host=SERVER key=Bearer k length=-");
    server.was_asked(&[&line, &line, &format!("{path}0 host=SERVER key=Bearer k length=-")]);
}

#[tokio::test]
async fn copies_that_failed_are_an_answer() {
    let failed = r#"{"source_sandbox_id":"a","sandboxes":[]}"#;
    let server = canned(&[(422, JSON, failed)]).await;
    let copied = server.client().copy("box", 2, Some("key 1")).await.expect("answer");
    assert_eq!(copied.source_sandbox_id, "a");
    let error = server.client().copy("box", 1, Some("\n")).await.expect_err("key");
    assert!(error.to_string().contains("idempotency key"), "{error}");
}

#[tokio::test]
async fn files_are_sent_with_their_length_and_paths_escaped() {
    let server = canned(&[(204, JSON, ""), (200, "application/octet-stream", "content")]).await;
    let sandbox = server.client().sandbox("x");
    sandbox.write_file("/tmp/a b", &b"content"[..], Some(7)).await.expect("put");
    let (mut text, file) = (String::new(), sandbox.read_file("/tmp/a b").await.expect("get"));
    assert_eq!(file.length(), Some(7));
    file.into_reader().read_to_string(&mut text).await.expect("read");
    assert_eq!(text, "content");
    server.was_asked(&[
        "PUT /api/v1/files?path=%2Ftmp%2Fa%20b host=x.local key=Bearer k length=7 content",
        "GET /api/v1/files?path=%2Ftmp%2Fa%20b host=x.local key=Bearer k length=-",
    ]);
}

#[tokio::test]
async fn answers_of_the_wrong_kind_are_protocol_errors() {
    let server = canned(&[(200, "text/html", "<html>"), (200, JSON, "{}")]).await;
    let sandbox = server.client().sandbox("x");
    let error = sandbox.run(&RunProcess::default()).await.expect_err("html");
    assert!(matches!(&error, Error::Protocol { detail, .. } if detail.contains("text/html")), "{error}");
    let error = sandbox.health().await.expect_err("empty");
    assert!(matches!(&error, Error::Protocol { detail, .. } if detail.contains("healthy")), "{error}");
}

#[tokio::test]
async fn nobody_there_is_a_connect_error_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    drop(listener);
    let error = Client::new(&url, None).expect("client").list(Scope::Clients).await.expect_err("nobody");
    assert!(matches!(&error, Error::Connect { url: at, .. } if *at == url), "{error:?}");
}

/// The head of the next request on `stream`.
async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.expect("head"));
    }
    String::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn a_refused_websocket_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let client =
        Client::new(&format!("http://{}", listener.local_addr().expect("address")), Some("k")).expect("client");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let head = head(&mut stream).await;
        let body = r#"{"error":"nobody listens on port 81","code":"CONNECTION_REFUSED"}"#;
        let answer = format!("HTTP/1.1 502 Bad Gateway\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.expect("answer");
        head
    });
    let (near, far) = (TcpListener::bind("127.0.0.1:0").await.expect("bind"), client.sandbox("web"));
    let local = TcpStream::connect(near.local_addr().expect("address")).await.expect("connect");
    let error = far.forward(local, 81).await.expect_err("refused");
    assert_eq!((error.code(), error.to_string().as_str()), (Some("CONNECTION_REFUSED"), "nobody listens on port 81"));
    let head = server.await.expect("server").to_lowercase();
    for part in
        ["get /api/v1/tunnels/tcp?port=81&half_close=true http/1.1", "host: web.local", "authorization: bearer k"]
    {
        assert!(head.contains(part), "{part} in {head}");
    }
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_the_end_of_file() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let client = Client::new(&format!("http://{}", listener.local_addr().expect("address")), None).expect("client");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accept");
        let mut socket = tokio_tungstenite::accept_async(stream).await.expect("websocket");
        while let Some(Ok(message)) = socket.next().await {
            if message.is_binary() {
                socket.send(message).await.expect("echo");
            }
        }
    });
    let tunnel = client.sandbox("web").tunnel("127.0.0.1:0".parse().expect("address"), 80).await.expect("tunnel");
    let mut near = TcpStream::connect(tunnel.address()).await.expect("connect");
    let serving = tokio::spawn(tunnel.serve(|error| panic!("{error}")));
    near.write_all(b"ping").await.expect("write");
    let mut echo = [0; 4];
    near.read_exact(&mut echo).await.expect("echo");
    assert_eq!(&echo, b"ping");
    near.shutdown().await.expect("shutdown");
    assert_eq!(near.read(&mut echo).await.expect("the peer's close ends the connection"), 0);
    serving.abort();
}

/// Serves one WebSocket as a guest that answers what it got once all of it has come.
async fn late_answer(listener: TcpListener) {
    let (stream, _) = listener.accept().await.expect("accept");
    let mut socket = tokio_tungstenite::accept_async(stream).await.expect("websocket");
    let mut all = Vec::new();
    loop {
        match socket.next().await.expect("a message").expect("ok") {
            Message::Binary(bytes) if bytes.is_empty() => break,
            Message::Binary(bytes) => all.extend_from_slice(&bytes),
            other => assert!(other.is_ping(), "{other}"),
        }
    }
    all.reverse();
    socket.send(Message::binary(all)).await.expect("answer");
    socket.send(Message::binary(Vec::new())).await.expect("the end");
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            return;
        }
    }
    panic!("no Close at the end");
}

#[tokio::test]
async fn a_tunnel_ends_each_direction_for_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let client = Client::new(&format!("http://{}", listener.local_addr().expect("address")), None).expect("client");
    let guest = tokio::spawn(late_answer(listener));
    let tunnel = client.sandbox("web").tunnel("127.0.0.1:0".parse().expect("address"), 80).await.expect("tunnel");
    let mut near = TcpStream::connect(tunnel.address()).await.expect("connect");
    let serving = tokio::spawn(tunnel.serve(|error| panic!("{error}")));
    near.write_all(b"question").await.expect("write");
    near.shutdown().await.expect("shutdown");
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.expect("answer");
    assert_eq!(answer, "noitseuq");
    guest.await.expect("guest");
    serving.abort();
}
