//! Bodies on their way through: one remembers when a byte last moved, the other gives its connection back at its end.
//!
//! Neither keeps anything: a frame is asked for when the other side takes it. Trailers pass by the header rules.

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

use super::{
    guest::{Grpc, Http1},
    headers,
    pool::{Pool, Route},
};
use crate::limits::{CLIENT_BODY_STALL, GUEST_ANSWER_TIMEOUT};

/// Who has kept a request waiting for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stalled {
    /// The guest took all and answered nothing.
    Guest,
    /// The client began a body and does not go on with it.
    Client,
}

/// When a byte of a request last moved, and whether the next one is the client's to send.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    started: Instant,
    inner: Arc<Moves>,
}

#[derive(Debug, Default)]
struct Moves {
    last_ms: AtomicU64,
    /// When the guest began to wait for the client, milliseconds, plus one; 0 while it does not.
    waits_since_ms: AtomicU64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), inner: Arc::default() }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    fn moved(&self) {
        self.inner.last_ms.store(self.now_ms(), Ordering::Relaxed);
        self.inner.waits_since_ms.store(0, Ordering::Relaxed);
    }

    fn waits(&self) {
        let now = self.now_ms() + 1;
        let _ = self.inner.waits_since_ms.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Resolves when one of the two has kept the other waiting for too long.
    pub(super) async fn stalled(&self) -> Stalled {
        loop {
            let at = |ms: u64, limit: Duration| self.started + Duration::from_millis(ms) + limit;
            let guest = at(self.inner.last_ms.load(Ordering::Relaxed), GUEST_ANSWER_TIMEOUT);
            let client = self.inner.waits_since_ms.load(Ordering::Relaxed).checked_sub(1);
            // A wait that begins later is noticed in time: this looks again after each such period.
            let client = at(client.unwrap_or_else(|| self.now_ms()), CLIENT_BODY_STALL);
            let (end, who) = if client < guest { (client, Stalled::Client) } else { (guest, Stalled::Guest) };
            if Instant::now() >= end {
                return who;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// A client's body on its way to the guest.
#[derive(Debug)]
pub(super) struct GuestBody {
    /// `None` for a request that is asked anew and had none.
    inner: Option<Incoming>,
    progress: Progress,
}

impl GuestBody {
    pub(super) fn new(inner: Incoming, progress: Progress) -> Self {
        Self { inner: Some(inner), progress }
    }

    pub(super) fn empty(progress: Progress) -> Self {
        Self { inner: None, progress }
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) else {
            self.progress.waits();
            return Poll::Pending;
        };
        self.progress.moved();
        Poll::Ready(frame.map(|frame| frame.map(headers::trailers_to_guest)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
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
pub(super) enum Lease {
    /// One request at a time; goes back to where it came from.
    Http1(Http1, Pool, Route, u16),
    /// One request, and no other after it.
    Once(#[expect(dead_code, reason = "held until the answer has been read")] Http1),
    /// Shared by the requests of one client.
    Http2(Grpc),
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
        match self.lease.take() {
            Some(Lease::Http1(sender, pool, route, port)) => pool.keep(route, port, sender),
            Some(Lease::Http2(connection)) => connection.linger(),
            Some(Lease::Once(_)) | None => {}
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
        Poll::Ready(frame.map(|frame| frame.map(headers::trailers_to_client)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
