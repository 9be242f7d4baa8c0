//! [`LinkStream`]: one stream as a tokio byte stream.

use std::{
    io,
    pin::Pin,
    sync::{Arc, MutexGuard},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    core::{
        frame::{RefuseCode, ResetCode},
        mux::StreamError,
    },
    error::LinkError,
    session::{Shared, State, Wakers},
};

/// One connection over the link, with a half-close in each direction, like a TCP connection.
///
/// - Written bytes are on their way at once; flushing does nothing. `shutdown` ends our direction.
/// - Dropping it after `shutdown` still delivers everything written, and tells the peer if we had not read to its end.
///   Dropping it before `shutdown` resets the stream: the peer sees an error, never a short but orderly end.
/// - When the session ends, reading and writing fail with [`io::ErrorKind::ConnectionReset`] and the
///   [`LinkError`] inside; a direction that the peer had already finished can still be read to its end.
#[derive(Debug)]
pub struct LinkStream {
    shared: Arc<Shared>,
    id: u32,
}

impl LinkStream {
    /// Holds the stream `id` of a session whose lock the caller has.
    pub(crate) fn new(shared: &Arc<Shared>, state: &mut State, id: u32) -> LinkStream {
        state.wakers.insert(id, Wakers::default());
        LinkStream { shared: Arc::clone(shared), id }
    }

    pub(crate) fn shared(&self) -> (MutexGuard<'_, State>, Option<LinkError>, u32) {
        let (state, ended) = self.shared.lock();
        (state, ended, self.id)
    }

    /// Waits for the end of the session, also when the stream itself is gone.
    pub(crate) fn session_ended(&self) -> impl Future<Output = LinkError> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move { shared.ended().await }
    }

    /// Waits for the guest's answer to OPEN.
    pub(crate) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Result<(), RefuseCode>, LinkError>> {
        let (mut state, ended, id) = self.shared();
        if let Some(reason) = ended {
            return Poll::Ready(Err(reason));
        }
        match state.mux.answer(id) {
            Some(answer) => Poll::Ready(Ok(answer)),
            None => wait(&mut state, id, |wakers| &mut wakers.read, cx),
        }
    }
}

fn wait<T>(state: &mut State, id: u32, slot: fn(&mut Wakers) -> &mut Option<Waker>, cx: &Context<'_>) -> Poll<T> {
    let slot = slot(state.wakers.entry(id).or_default());
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
    Poll::Pending
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> io::Error {
        let kind = match error {
            StreamError::Reset(ResetCode::Cancelled) => io::ErrorKind::ConnectionReset,
            StreamError::Reset(ResetCode::Done) | StreamError::Finished => io::ErrorKind::BrokenPipe,
            StreamError::NotConnected => io::ErrorKind::NotConnected,
        };
        io::Error::new(kind, error)
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let (mut state, ended, id) = self.shared();
        if let Some(reason) = ended
            && !state.mux.is_complete(id)
        {
            return Poll::Ready(Err(reason.into()));
        }
        let read = state.mux.read(id, |a, b| {
            let before = buf.remaining();
            for part in [a, b] {
                buf.put_slice(&part[..part.len().min(buf.remaining())]);
            }
            before - buf.remaining()
        })?;
        if read.is_none() {
            return wait(&mut state, id, |wakers| &mut wakers.read, cx);
        }
        state.wake_task();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let (mut state, ended, id) = self.shared();
        if let Some(reason) = ended {
            return Poll::Ready(Err(reason.into()));
        }
        let mut total = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match state.mux.write(id, buf)? {
                Some(count) => total += count,
                None if total == 0 => return wait(&mut state, id, |wakers| &mut wakers.write, cx),
                None => break,
            }
        }
        state.wake_task();
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (mut state, ended, id) = self.shared();
        if let Some(reason) = ended {
            return Poll::Ready(Err(reason.into()));
        }
        state.mux.finish(id)?;
        state.wake_task();
        Poll::Ready(Ok(()))
    }
}

impl Drop for LinkStream {
    fn drop(&mut self) {
        let (mut state, _, id) = self.shared();
        let wakers = state.wakers.remove(&id);
        state.mux.release(id);
        state.wake_task();
        drop(state);
        // A waker may run code of its own when dropped: not under the lock.
        drop(wakers);
    }
}
