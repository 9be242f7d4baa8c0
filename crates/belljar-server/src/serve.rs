//! One connection of a client, plain or in TLS: which HTTP it speaks, and what it may take.
//!
//! ```text
//! TLS --ALPN--> h2 ------------------------------> HTTP/2: many requests, each with its window
//!  |             \-> http/1.1 ----------\
//! plain --first bytes--> "PRI * HTTP/2.0" -> HTTP/2
//!                   \--> anything else  --> HTTP/1.1: one request after the other, upgrades
//! ```
//! A client that sends no head, or nothing at all, is let go after a while; so is an HTTP/2 connection without a
//! request. What it does not read stays where it came from: nothing here holds more than a window of each request. Who
//! takes nothing for too long loses it: [`crate::stall`].

use std::{
    convert::Infallible,
    future::pending,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, body::Body};
use bytes::{Buf, Bytes};
use http::Request;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    http::edge::Edge,
    ingress::{GrpcConnections, Hold, Outside, Peer},
    limits::{
        CLIENT_CONNECTION_WINDOW, CLIENT_STREAM_WINDOW, CLIENT_STREAMS_MAX, HEAD_BYTES_MAX, HEADER_READ_TIMEOUT,
        HEADERS_MAX, KEEP_ALIVE_AFTER, STREAM_SEND_BUFFER, UNACKNOWLEDGED_MAX,
    },
    stall::Answer,
};

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What serves connections.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) app: Arc<App>,
    pub(crate) router: Router,
    /// No further requests, please.
    pub(crate) shutdown: CancellationToken,
    /// The end, whatever is under way.
    pub(crate) abort: CancellationToken,
}

/// Counts as a request that is under way, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Busy(watch::Sender<usize>);

impl Busy {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Service {
    /// Serves a connection of which nothing was read yet.
    pub(crate) async fn plain<Io>(self, io: Io, peer: Peer, place: OwnedSemaphorePermit)
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match tokio::time::timeout(HEADER_READ_TIMEOUT, sniff(io)).await {
            Ok(Ok((true, io))) => self.http2(io, peer, place).await,
            Ok(Ok((false, io))) => self.http1(io, peer, place).await,
            Ok(Err(error)) => tracing::debug!(peer = %peer.address, %error, "a connection ended"),
            Err(_) => tracing::debug!(peer = %peer.address, "a connection that said nothing was closed"),
        }
    }

    fn edge(&self, outside: Outside) -> Edge {
        Edge { app: Arc::clone(&self.app), router: self.router.clone(), outside }
    }

    /// Serves HTTP/1.1.
    pub(crate) async fn http1<Io>(self, io: Io, peer: Peer, place: OwnedSemaphorePermit)
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let hold = Hold { _place: Arc::new(place), _busy: None };
        let edge = self.edge(Outside { peer, hold, grpc: GrpcConnections::default() });
        let service = service_fn(move |request| {
            let edge = edge.clone();
            async move { Ok::<_, Infallible>(edge.serve(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        self.drive(peer, connection, |connection| connection.graceful_shutdown(), pending()).await;
    }

    /// Serves HTTP/2.
    pub(crate) async fn http2<Io>(self, io: Io, peer: Peer, place: OwnedSemaphorePermit)
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (count, mut open) = watch::channel(0usize);
        let (place, grpc, this) = (Arc::new(place), GrpcConnections::default(), self.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = Arc::new(Busy::new(&count));
            let hold = Hold { _place: Arc::clone(&place), _busy: Some(Arc::clone(&busy)) };
            let edge = this.edge(Outside { peer, hold, grpc: grpc.clone() });
            async move {
                let response = edge.serve(request).await;
                Ok::<_, Infallible>(response.map(|body| Body::new(Answer::new(body, busy))))
            }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(CLIENT_STREAM_WINDOW)
            .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
            .max_concurrent_streams(CLIENT_STREAMS_MAX)
            .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            .max_send_buf_size(STREAM_SEND_BUFFER)
            .keep_alive_interval(KEEP_ALIVE_AFTER)
            .keep_alive_timeout(UNACKNOWLEDGED_MAX)
            .enable_connect_protocol();
        let connection = builder.serve_connection(TokioIo::new(io), service);
        let unused = async move {
            // The count lives as long as the connection, which is what this is raced with.
            while open.wait_for(|count| *count == 0).await.is_ok() {
                if tokio::time::timeout(HEADER_READ_TIMEOUT, open.wait_for(|count| *count > 0)).await.is_err() {
                    return;
                }
            }
            pending().await
        };
        self.drive(peer, connection, |connection| connection.graceful_shutdown(), unused).await;
    }

    /// Lets a connection run until it ends by itself, asks it to end when the server does or nobody uses it, and drops
    /// it in the end.
    async fn drive<C>(self, peer: Peer, connection: C, leave: fn(Pin<&mut C>), unused: impl Future<Output = ()>)
    where
        C: Future<Output = hyper::Result<()>>,
    {
        tokio::pin!(connection, unused);
        let mut leaving = false;
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(peer = %peer.address, %error, "a connection ended");
                    }
                    return;
                }
                () = self.shutdown.cancelled(), if !leaving => {
                    leaving = true;
                    leave(connection.as_mut());
                }
                () = unused.as_mut(), if !leaving => {
                    leaving = true;
                    leave(connection.as_mut());
                }
                () = self.abort.cancelled() => return,
            }
        }
    }
}

/// Whether a connection begins as HTTP/2 does, and the connection with what was read put back.
async fn sniff<Io: AsyncRead + Unpin>(mut io: Io) -> io::Result<(bool, Rewound<Io>)> {
    let mut seen = [0; PREFACE.len()];
    let mut len = 0;
    while len < PREFACE.len() && seen[..len] == PREFACE[..len] {
        match io.read(&mut seen[len..]).await? {
            0 => break,
            n => len += n,
        }
    }
    let start = Bytes::copy_from_slice(&seen[..len]);
    Ok((seen[..len] == *PREFACE, Rewound { start, io }))
}

/// A connection whose first bytes are read once more.
struct Rewound<Io> {
    start: Bytes,
    io: Io,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Rewound<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.start.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let part = self.start.len().min(buffer.remaining());
        buffer.put_slice(&self.start[..part]);
        self.start.advance(part);
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Rewound<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn http2_is_told_from_the_first_bytes_however_they_come() {
        for (text, expected) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest"[..], true),
            (b"PRI * HTTP/2.0\r\n\r\nGET", false),
            (b"POST / HTTP/1.1\r\n\r\n", false),
            (b"PROPFIND / HTTP/1.1\r\n\r\n", false),
            (b"PRI", false),
            (b"", false),
        ] {
            for piece in [1, 3, 100] {
                let (mut near, far) = tokio::io::duplex(piece);
                let writing = tokio::spawn(async move {
                    let _ = near.write_all(text).await;
                });
                let (is_http2, mut io) = sniff(far).await.expect("read");
                let mut all = Vec::new();
                io.read_to_end(&mut all).await.expect("read");
                assert_eq!((is_http2, &all[..]), (expected, text), "in pieces of {piece}");
                writing.await.expect("written");
            }
        }
    }
}
