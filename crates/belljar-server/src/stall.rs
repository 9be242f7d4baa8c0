//! Clients that leave lying what they asked for: after a while it is given up, because it keeps a sandbox awake.
//!
//! A client with a connection to itself is the kernel's business ([`UNACKNOWLEDGED_MAX`](crate::limits)). But one stream of
//! an HTTP/2 connection can stand still while the connection is well and answers every ping. Who takes a little now and
//! then goes on for as long as it likes; a guest that has nothing to say may be waited for without end.
//!
//! ```text
//! wanted --part--> lying --taken--> wanted --end--> done
//!                     \--CLIENT_READ_STALL--> given up: its source is let go, the client sees a reset
//! ```

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{limits::CLIENT_READ_STALL, serve::Busy};

/// The client took nothing for too long.
#[derive(Debug, thiserror::Error)]
#[error("the client took nothing for {} s", CLIENT_READ_STALL.as_secs())]
struct Stalled;

/// The body of an answer over HTTP/2. Its request is under way until it ends.
pub(crate) struct Answer {
    source: Arc<Mutex<Source>>,
    /// There as soon as the client may leave something lying.
    watch: Option<AbortOnDropHandle<()>>,
    _busy: Arc<Busy>,
}

struct Source {
    /// `None` once it is given up.
    body: Option<Body>,
    /// Since when a part lies that the client does not take. HTTP/2 asks for the next only when the last is on its way.
    lies_since: Option<Instant>,
}

impl Answer {
    pub(crate) fn new(body: Body, busy: Arc<Busy>) -> Self {
        let source = Arc::new(Mutex::new(Source { body: Some(body), lies_since: None }));
        Self { source, watch: None, _busy: busy }
    }
}

fn lock(source: &Mutex<Source>) -> MutexGuard<'_, Source> {
    source.lock().unwrap_or_else(PoisonError::into_inner)
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let mut source = lock(&this.source);
        source.lies_since = None;
        let Some(body) = source.body.as_mut() else { return Poll::Ready(Some(Err(axum::Error::new(Stalled)))) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        // What ends with this part holds nothing any more.
        if matches!(frame, Some(Ok(_))) && !body.is_end_stream() {
            source.lies_since = Some(Instant::now());
            if this.watch.is_none() {
                this.watch = Some(AbortOnDropHandle::new(tokio::spawn(watch(Arc::clone(&this.source)))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.source).body.as_ref().is_some_and(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.source).body.as_ref().map(hyper::body::Body::size_hint).unwrap_or_default()
    }
}

/// Gives a body up when a part of it has lain for too long. Nobody else would: the one who asks for parts waits himself.
async fn watch(source: Arc<Mutex<Source>>) {
    loop {
        // What begins to lie later is noticed in time: this looks again after each such period.
        let since = lock(&source).lies_since;
        sleep_until(since.unwrap_or_else(Instant::now) + CLIENT_READ_STALL).await;
        let given_up = {
            let mut source = lock(&source);
            let is_over = source.lies_since.is_some_and(|since| since.elapsed() >= CLIENT_READ_STALL);
            if is_over { source.body.take() } else { None }
        };
        if given_up.is_some() {
            tracing::debug!("{Stalled}; its answer was given up");
            return;
        }
    }
}

/// A client's end of a connection that changed its protocol: writing to it fails when nothing is taken for too long.
#[derive(Debug)]
pub(crate) struct Impatient<Io> {
    io: Io,
    /// Runs while something lies.
    lies: Option<Pin<Box<Sleep>>>,
}

impl<Io> Impatient<Io> {
    pub(crate) fn new(io: Io) -> Self {
        Self { io, lies: None }
    }

    fn judge<T>(&mut self, taken: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if taken.is_ready() {
            self.lies = None;
            return taken;
        }
        ready!(self.lies.get_or_insert_with(|| Box::pin(sleep(CLIENT_READ_STALL))).as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Stalled)))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Impatient<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Impatient<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.judge(taken, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let taken = Pin::new(&mut self.io).poll_flush(cx);
        self.judge(taken, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let taken = Pin::new(&mut self.io).poll_shutdown(cx);
        self.judge(taken, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_cut_when_nothing_is_taken_and_not_when_little_is() {
        let (near, mut far) = tokio::io::duplex(4);
        let mut near = Impatient::new(near);
        let slow = async {
            let mut taken = [0; 4];
            for _ in 0..5 {
                sleep(CLIENT_READ_STALL / 2).await;
                far.read_exact(&mut taken).await.expect("read");
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[1; 20]), slow);
        written.expect("all of it, however slowly");
        let cut = near.write_all(&[1; 20]).await.expect_err("nobody reads");
        assert_eq!(cut.kind(), io::ErrorKind::TimedOut);
    }
}
