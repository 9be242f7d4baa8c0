//! Clients that send what two readers may understand differently, or send it as slowly as they can.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Harness;

impl Harness {
    /// Writes bytes and reads until the server closes or `answers` heads have come.
    async fn raw(&self, bytes: &[u8], answers: usize) -> String {
        let mut stream = TcpStream::connect(self.addr).await.expect("connect");
        let mut seen = Vec::new();
        // It may be refused while it is still being written.
        let _ = stream.write_all(bytes).await;
        let read = async {
            while String::from_utf8_lossy(&seen).matches("HTTP/1.1 ").count() < answers {
                if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("an answer or an end");
        String::from_utf8_lossy(&seen).into_owned()
    }
}

/// Statuses of the answers in what a connection said.
fn statuses(text: &str) -> Vec<u16> {
    text.split("HTTP/1.1 ").skip(1).map(|rest| rest[..3].parse().expect("a status")).collect()
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    let start = format!("POST /echo HTTP/1.1\r\nAuthorization: Bearer {}\r\n", harness.key);
    let host = format!("Host: 8080-{id}.local\r\n");
    let next = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(100 * 1024));
    for (what, head, body, expected) in [
        ("two lengths", "Content-Length: 4\r\nContent-Length: 0\r\n", "abcd", 400),
        ("a list of lengths", "Content-Length: 4, 0\r\n", "abcd", 400),
        ("a signed length", "Content-Length: +4\r\n", "abcd", 400),
        ("a length too large", "Content-Length: 99999999999999999999\r\n", "", 400),
        ("another encoding", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n", 400),
        ("an encoding after chunked", "Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n", 400),
        ("a folded header", "X-A: 1\r\n 2\r\n", "", 400),
        ("a folded encoding", "Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n", 400),
        ("a space before the colon", "Content-Length : 4\r\n", "abcd", 400),
        ("a bare CR", "X-A: 1\rContent-Length: 4\r\n", "abcd", 400),
        ("a NUL", "X-A: \0\r\n", "", 400),
        ("a second host", "Host: other.local\r\n", "", 400),
        ("two sandboxes", "X-Tensorlake-Sandbox-Id: a\r\nX-Tensorlake-Sandbox-Id: b\r\n", "", 400),
        ("headers without number", many.as_str(), "", 431),
        ("a header without end", long.as_str(), "", 431),
    ] {
        let text = harness.raw(format!("{start}{host}{head}\r\n{body}{next}").as_bytes(), 2).await;
        let statuses = statuses(&text);
        assert_eq!(statuses[0], expected, "{what}: {text}");
        // Where its end is beyond doubt, what follows is a request of its own, and here one without a key.
        assert!(statuses[1..].iter().all(|status| *status == 401), "{what}: {text}");
        assert!(!text.contains("smuggled"), "{what}: {text}");
    }
}

#[tokio::test]
async fn what_has_one_meaning_reaches_the_guest_with_that_one() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    let key = &harness.key;
    // The encoding outranks the length, which the guest then never sees, and nothing more is read (RFC 9112, 6.3).
    for lengths in
        ["Transfer-Encoding: chunked\r\nContent-Length: 4", "Content-Length: 4\r\nTransfer-Encoding: chunked"]
    {
        let both = format!(
            "POST / HTTP/1.1\r\nHost: 8080-{id}.local\r\nAuthorization: Bearer {key}\r\n{lengths}\r\n\r\n\
             3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        );
        let text = harness.raw(both.as_bytes(), 2).await;
        assert_eq!(statuses(&text), [200], "{text}");
        assert!(!text.to_lowercase().contains("\"content-length\":\"4\"") && !text.contains("smuggled"), "{text}");
    }
    for (request, expected) in [
        (format!("GET http://8080-{id}.local/ HTTP/1.1\r\nHost: other\r\n\r\n"), 400),
        (format!("CONNECT 8080-{id}.local:80 HTTP/1.1\r\nHost: 8080-{id}.local:80\r\n\r\n"), 405),
        ("\x16\x03\x01\x02\x00 hello\r\n\r\n".to_owned(), 400),
        (format!("POST / HTTP/1.0\r\nHost: 8080-{id}.local\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
    ] {
        assert_eq!(statuses(&harness.raw(request.as_bytes(), 2).await)[..], [expected], "{request:?}");
    }
}

#[tokio::test]
async fn who_sends_too_slowly_is_let_go() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    let host = format!("Host: 8080-{id}.local\r\nAuthorization: Bearer {}\r\n", harness.key);
    let stalled = format!("POST /count HTTP/1.1\r\n{host}Content-Length: 9\r\n\r\nabc");
    let (silent, head, http2, body) = tokio::join!(
        harness.raw(b"", 1),
        harness.raw(b"GET / HTTP/1.1\r\nHost: x\r\nX-A", 1),
        harness.raw(b"PRI * HTTP/2.0\r\n\r\nSM", 1),
        harness.raw(stalled.as_bytes(), 1),
    );
    assert_eq!((silent.as_str(), http2.as_str()), ("", ""));
    assert!(statuses(&head).iter().all(|status| *status == 408), "{head}");
    assert_eq!(statuses(&body), [408], "{body}");
}
