//! A server for the guest's side and a client for ours, as small as can be: what is measured lies between them.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Bytes of each answer's body.
pub(super) const BODY: usize = 1024;

/// Serves HTTP/1.1 with kept connections; gives the port.
pub(super) async fn serve_http() -> u16 {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n{}", "x".repeat(BODY));
    serve(move |mut stream| {
        let answer = answer.clone();
        async move {
            let mut seen = Vec::new();
            while stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                while let Some(end) = seen.windows(4).position(|end| end == b"\r\n\r\n") {
                    seen.drain(..end + 4);
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        }
    })
    .await
}

/// Sends so many bytes to whoever connects, and ends; gives the port.
pub(super) async fn serve_bytes(count: u64) -> u16 {
    serve(move |mut stream| async move {
        let chunk = vec![7; 256 * 1024];
        let mut left = count;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            if stream.write_all(&chunk[..part]).await.is_err() {
                return;
            }
            left -= part as u64;
        }
    })
    .await
}

async fn serve<F>(answer: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("no delay");
            tokio::spawn(answer(stream));
        }
    });
    port
}

/// A kept connection on which requests are sent one after the other.
pub(super) struct Client<Io> {
    io: Io,
    request: Vec<u8>,
    seen: Vec<u8>,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Client<Io> {
    pub(super) fn new(io: Io, headers: &str) -> Self {
        let request = format!("GET / HTTP/1.1\r\n{headers}\r\n").into_bytes();
        Self { io, request, seen: Vec::with_capacity(16 * 1024) }
    }

    /// One request and its whole answer.
    pub(super) async fn ask(&mut self) -> Duration {
        let begun = Instant::now();
        self.io.write_all(&self.request).await.expect("written");
        self.seen.clear();
        loop {
            assert!(self.io.read_buf(&mut self.seen).await.expect("read") > 0, "the connection ended");
            let head = self.seen.windows(4).position(|end| end == b"\r\n\r\n");
            if head.is_some_and(|end| self.seen.len() >= end + 4 + BODY) {
                assert!(self.seen.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&self.seen));
                return begun.elapsed();
            }
        }
    }
}

/// Reads to the end; gives megabytes per second.
pub(super) async fn drain(mut io: impl AsyncRead + Unpin, expected: u64) -> f64 {
    let begun = Instant::now();
    let (mut buffer, mut count) = (vec![0; 256 * 1024], 0);
    loop {
        match io.read(&mut buffer).await.expect("read") {
            0 => break,
            n => count += n as u64,
        }
    }
    assert_eq!(count, expected, "not all came");
    count as f64 / 1e6 / begun.elapsed().as_secs_f64()
}
