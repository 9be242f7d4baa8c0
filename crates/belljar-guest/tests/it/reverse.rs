use std::{convert::Infallible, time::Duration};

use belljar_api::{
    limits::AGENT_PORT,
    tunnel::{PORT_HEADER, REVERSE_CONNECTIONS_MAX, REVERSE_PATH, REVERSE_UPGRADE, REVERSE_WINDOW},
};
use bytes::Bytes;
use http_body_util::{Empty, Full};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, client::conn::http1, server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use crate::harness::Agent;

async fn ask(agent: &Agent, query: &str, upgrade: &str) -> Response<Incoming> {
    let stream = agent.link.open(AGENT_PORT).await.expect("the port answers");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("http");
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!("{REVERSE_PATH}?{query}"))
        .header("host", "sandbox")
        .header("connection", "upgrade")
        .header("upgrade", upgrade);
    sender.send_request(request.body(Full::<Bytes>::default()).expect("a request")).await.expect("an answer")
}

/// A tunnel whose connections are answered by `serve`, or refused when it is `None`.
async fn open<F>(
    agent: &Agent,
    query: &str,
    serve: Option<fn(TokioIo<hyper::upgrade::Upgraded>) -> F>,
) -> (u16, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let answer = ask(agent, query, REVERSE_UPGRADE).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let port = answer.headers()[PORT_HEADER].to_str().expect("text").parse().expect("a port");
    let upgraded = hyper::upgrade::on(answer).await.expect("an upgrade");
    let service = service_fn(move |request: Request<Incoming>| async move {
        assert_eq!(request.method(), Method::CONNECT);
        assert!(request.uri().host().is_some_and(|host| host == "127.0.0.1"));
        let mut response = Response::new(Empty::<Bytes>::new());
        match serve {
            Some(serve) => {
                tokio::spawn(async move {
                    serve(TokioIo::new(hyper::upgrade::on(request).await.expect("a stream"))).await;
                });
            }
            None => *response.status_mut() = StatusCode::BAD_GATEWAY,
        }
        Ok::<_, Infallible>(response)
    });
    let serving = tokio::spawn(async move {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .max_concurrent_streams(REVERSE_CONNECTIONS_MAX)
            .initial_stream_window_size(REVERSE_WINDOW)
            .initial_connection_window_size(REVERSE_WINDOW * REVERSE_CONNECTIONS_MAX);
        let _ = builder.serve_connection(upgraded, service).await;
    });
    (port, serving)
}

/// Answers once all has come: works only if each direction ends for itself.
async fn count(mut io: TokioIo<hyper::upgrade::Upgraded>) {
    let mut all = Vec::new();
    if io.read_to_end(&mut all).await.is_ok() {
        let _ = io.write_all(format!("{} bytes", all.len()).as_bytes()).await;
        let _ = io.shutdown().await;
    }
}

async fn never(_: TokioIo<hyper::upgrade::Upgraded>) {}

/// A client that has its connections to itself, until nobody listens any more.
async fn until_closed(port: u16) {
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn hundreds_of_connections_share_it_and_end_for_themselves() {
    let agent = Agent::start().await;
    let (port, serving) = open(&agent, "port=0", Some(count)).await;
    let connections = (0..300_usize).map(|n| {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
            stream.write_all(&vec![7; n * 1000]).await.expect("written");
            stream.shutdown().await.expect("half closed");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            assert_eq!(answer, format!("{} bytes", n * 1000));
        })
    });
    for connection in connections.collect::<Vec<_>>() {
        connection.await.expect("whole");
    }
    serving.abort();
    until_closed(port).await;
}

#[tokio::test]
async fn one_that_stands_still_stops_no_other() {
    let agent = Agent::start().await;
    async fn stall_or_count(io: TokioIo<hyper::upgrade::Upgraded>) {
        let mut io = io;
        if io.read_u8().await.is_ok_and(|first| first == b's') {
            tokio::time::sleep(Duration::from_secs(600)).await;
        }
        count(io).await;
    }
    let (port, serving) = open(&agent, "port=0", Some(stall_or_count)).await;
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        stream.write_u8(b's').await.expect("written");
        // Far more than any window: what fits is taken, then nothing more.
        let filled = tokio::time::timeout(Duration::from_millis(50), stream.write_all(&vec![0; 64 << 20])).await;
        assert!(filled.is_err(), "64 MiB went to somebody who reads nothing");
        stalled.push(stream);
    }
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    stream.write_all(&vec![1; 100_000]).await.expect("written");
    stream.shutdown().await.expect("half closed");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert_eq!(answer, "99999 bytes");
    serving.abort();
}

#[tokio::test]
async fn what_the_client_cannot_reach_is_reset() {
    let agent = Agent::start().await;
    let (port, serving) =
        open(&agent, "port=0", None::<fn(TokioIo<hyper::upgrade::Upgraded>) -> std::future::Ready<()>>).await;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    let error = stream.read(&mut [0; 1]).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    serving.abort();
}

#[tokio::test]
async fn it_ends_with_the_client_and_with_the_link() {
    let mut agent = Agent::start().await;
    let (port, serving) = open(&agent, "port=0", Some(never)).await;
    serving.abort();
    until_closed(port).await;
    let (port, serving) = open(&agent, "port=0", Some(never)).await;
    agent.reconnect().await;
    until_closed(port).await;
    serving.abort();
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_refused_before_the_upgrade() {
    let agent = Agent::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    for (query, upgrade, status) in [
        (format!("port={port}"), REVERSE_UPGRADE, 409),
        ("port=65536".into(), REVERSE_UPGRADE, 400),
        (String::new(), REVERSE_UPGRADE, 400),
        ("port=0".into(), "websocket", 400),
    ] {
        assert_eq!(ask(&agent, &query, upgrade).await.status(), status, "{query}");
    }
}
