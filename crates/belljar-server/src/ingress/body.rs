//! Bodies on their way through: one remembers when a byte last moved, the other gives its connection back at its end.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use super::pool::{Pool, Route, Sender};

/// When a byte of a request last moved.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    started: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), last_ms: Arc::default() }
    }

    fn touch(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    /// Resolves when nothing has moved for `limit`.
    pub(super) async fn stalled(&self, limit: Duration) {
        loop {
            let end = self.started + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// A client's body on its way to the guest.
#[derive(Debug)]
pub(super) struct GuestBody {
    inner: Incoming,
    progress: Progress,
}

impl GuestBody {
    pub(super) fn new(inner: Incoming, progress: Progress) -> Self {
        Self { inner, progress }
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        self.progress.touch();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A guest's body on its way to the client. At its end the connection goes back to the pool; dropped before, it ends.
#[derive(Debug)]
pub(super) struct ClientBody {
    inner: Incoming,
    lease: Option<Lease>,
}

/// A connection in use.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) sender: Sender,
    /// Where it goes back to; `None` for one that is not used again.
    pub(super) home: Option<(Pool, Route)>,
}

impl ClientBody {
    pub(super) fn new(inner: Incoming, lease: Lease) -> Self {
        let mut body = Self { inner, lease: Some(lease) };
        if body.inner.is_end_stream() {
            body.give_back();
        }
        body
    }

    fn give_back(&mut self) {
        if let Some(Lease { sender, home: Some((pool, route)) }) = self.lease.take() {
            pool.keep(route, sender);
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        // A body of known length ends without another look.
        if frame.is_none() || self.inner.is_end_stream() {
            self.give_back();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
