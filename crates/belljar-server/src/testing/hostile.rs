//! Guests that answer with what is not, or not quite, HTTP: refused or contained, and nobody else is any the worse.

use axum::body::Body;
use http::header;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Harness;

/// First port of those that answer from [`SCRIPTS`].
const FIRST: u16 = 7100;

/// What a port answers to every request, and how a client's request to it ends: with this status, and this in its body.
const SCRIPTS: &[(&str, &str, u16, &str)] = &[
    (
        "a length and an encoding",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        502,
        "PROXY_ERROR",
    ),
    ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 502, "PROXY_ERROR"),
    ("a length list", "HTTP/1.1 200 OK\r\ncontent-length: 3, 4\r\n\r\nabcd", 502, "PROXY_ERROR"),
    ("a length too large", "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", 502, "PROXY_ERROR"),
    ("a negative length", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", 502, "PROXY_ERROR"),
    ("a folded header", "HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 0\r\n\r\n", 502, "PROXY_ERROR"),
    ("a bare CR", "HTTP/1.1 200 OK\r\nx-a: 1\rx-b: 2\r\ncontent-length: 0\r\n\r\n", 502, "PROXY_ERROR"),
    ("a NUL", "HTTP/1.1 200 OK\r\nx-a: \0\r\ncontent-length: 0\r\n\r\n", 502, "PROXY_ERROR"),
    ("a space in a name", "HTTP/1.1 200 OK\r\nx-a : 1\r\ncontent-length: 0\r\n\r\n", 502, "PROXY_ERROR"),
    ("bare LFs, written anew", "HTTP/1.1 200 OK\nx-a: 1\ncontent-length: 2\n\nok", 200, "ok"),
    ("another protocol", "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", 502, "PROXY_ERROR"),
    ("no status", "HTTP/1.1 \r\n\r\n", 502, "PROXY_ERROR"),
    ("a status below 100", "HTTP/1.1 099 No\r\n\r\n", 502, "PROXY_ERROR"),
    ("HTTP/2 unasked", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 502, "PROXY_ERROR"),
    ("nothing", "", 502, "CONNECTION_CLOSED"),
    ("half a head", "HTTP/1.1 200 OK\r\nx-a", 502, "CONNECTION_CLOSED"),
    ("ready before the body", "HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nearly", 413, "early"),
    ("a second answer behind", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nevil", 200, "ok"),
    ("interim answers without end", "<1xx>", 502, "PROXY_ERROR"),
    ("a head without end", "<head>", 502, "PROXY_ERROR"),
    ("a thousand headers", "<headers>", 502, "PROXY_ERROR"),
];

/// Bodies that go wrong after their head: the client's body breaks off too, and is never taken for whole.
const BROKEN_BODIES: &[(&str, &str)] = &[
    ("a short body", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"),
    ("a chunk too large", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\nabc"),
    ("a chunk that is no number", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nabc"),
    (
        "a bare LF in a chunk's extension",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
    ),
    ("chunks without an end", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    ("a trailer without end", "<trailer>"),
];

fn port(index: usize) -> u16 {
    FIRST + u16::try_from(index).expect("port")
}

/// What a port says, if it is one of these.
pub(super) fn script(port: u16) -> Option<&'static str> {
    let index = usize::from(port.checked_sub(FIRST)?);
    let scripts = SCRIPTS.iter().map(|(_, script, _, _)| *script);
    scripts.chain(BROKEN_BODIES.iter().map(|(_, script)| *script)).nth(index)
}

/// Reads a request's head and says what it has to say, until it has said all or nobody listens.
pub(super) async fn play(mut io: impl AsyncRead + AsyncWrite + Unpin, script: &'static str) {
    let mut seen = Vec::new();
    while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
        if io.read_buf(&mut seen).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let (start, again, times): (&str, String, usize) = match script {
        "<1xx>" => ("", "HTTP/1.1 103 Early Hints\r\nx-a: 1\r\n\r\n".into(), usize::MAX),
        "<head>" => ("HTTP/1.1 200 OK\r\nx-a: ", "a".repeat(1024), 4096),
        "<headers>" => ("HTTP/1.1 200 OK\r\n", "x-a: 1\r\n".into(), 1000),
        "<trailer>" => {
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-a: ", "a".repeat(1024), 4096)
        }
        script => (script, String::new(), 0),
    };
    let mut wrote = io.write_all(start.as_bytes()).await;
    for _ in 0..times {
        if wrote.is_err() {
            return;
        }
        wrote = io.write_all(again.as_bytes()).await;
    }
    if again.starts_with("x-a") {
        let _ = io.write_all(b"content-length: 0\r\n\r\n").await;
    }
    let _ = io.shutdown().await;
}

impl Harness {
    async fn sandbox_of_scripts(&self) -> String {
        let count = SCRIPTS.len() + BROKEN_BODIES.len();
        let ports: Vec<_> = (0..count).map(port).chain([8080]).collect();
        self.create(&serde_json::json!({ "exposed_ports": ports }).to_string()).await
    }

    fn to_port(&self, id: &str, port: u16) -> http::request::Builder {
        let request = self.request("GET", "/").header("x-tensorlake-sandbox-id", id);
        request.header("x-tensorlake-sandbox-port", port)
    }
}

#[tokio::test]
async fn a_hostile_answer_is_refused_or_contained() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.sandbox_of_scripts().await;
    for (index, (what, _, status, body)) in SCRIPTS.iter().enumerate() {
        for _ in 0..2 {
            let reply = harness.ask(harness.to_port(&id, port(index)), "").await;
            let text = String::from_utf8_lossy(&reply.body);
            assert_eq!(reply.status, *status, "{what}: {text}");
            assert!(text.contains(body) && !text.contains("evil"), "{what}: {text}");
            assert!(!reply.headers.contains_key(header::TRANSFER_ENCODING), "{what}");
        }
        assert_eq!(harness.ask(harness.to_port(&id, 8080), "").await.status, 200, "after {what}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_never_taken_for_whole() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.sandbox_of_scripts().await;
    for (index, (what, _)) in BROKEN_BODIES.iter().enumerate() {
        let request = harness.to_port(&id, port(SCRIPTS.len() + index)).body(Body::empty()).expect("request");
        // It may break off before the head was sent on.
        let whole = match harness.try_send(request).await {
            Ok(response) => response.into_body().collect().await.is_ok(),
            Err(_) => false,
        };
        assert!(!whole, "{what}: it looks whole");
    }
    assert_eq!(harness.ask(harness.to_port(&id, 8080), "").await.status, 200);
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.sandbox_of_scripts().await;
    let early = SCRIPTS.iter().position(|(what, ..)| *what == "ready before the body").expect("script");
    let never = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    let request = harness.to_port(&id, port(early)).method("POST").body(Body::from_stream(never)).expect("request");
    let response = harness.send(request).await;
    assert_eq!(response.status(), 413);
    assert_eq!(response.into_body().collect().await.expect("body").to_bytes(), "early");
}
