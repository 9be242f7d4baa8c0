//! One health check of a managed process, on the guest's own loopback.

use std::{io, time::Duration};

use belljar_api::process::{HealthCheck, HealthCheckType};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{connect::connect_local, limits::HEALTH_ANSWER_MAX};

/// Asks once; no answer in time is a no.
pub(crate) async fn probe(check: &HealthCheck) -> bool {
    let ask = async {
        let stream = connect_local(check.port).await?;
        match check.kind {
            HealthCheckType::Tcp => Ok(true),
            HealthCheckType::Http => ask_http(stream, check.port, check.path.as_deref().unwrap_or("/")).await,
        }
    };
    matches!(timeout(Duration::from_millis(check.timeout_ms), ask).await, Ok(Ok::<_, io::Error>(true)))
}

async fn ask_http(mut stream: TcpStream, port: u16, path: &str) -> io::Result<bool> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: belljar-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(HEALTH_ANSWER_MAX);
    while answer.len() < HEALTH_ANSWER_MAX && !answer.contains(&b'\n') {
        if stream.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    Ok(is_good_status(&answer))
}

/// `HTTP/1.x 2..` or `3..`.
fn is_good_status(answer: &[u8]) -> bool {
    let mut words = answer.split(|&byte| byte == b' ');
    let is_http = words.next().is_some_and(|word| word.starts_with(b"HTTP/1."));
    is_http && words.next().is_some_and(|status| matches!(status, [b'2' | b'3', _, _, ..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_success_and_redirects_are_healthy() {
        for (answer, good) in [
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.0 302 Found\r\n", true),
            ("HTTP/1.1 500 Oops\r\n", false),
            ("HTTP/1.1 404 No\r\n", false),
            ("SSH-2.0-OpenSSH 200\r\n", false),
            ("", false),
        ] {
            assert_eq!(is_good_status(answer.as_bytes()), good, "{answer:?}");
        }
    }
}
