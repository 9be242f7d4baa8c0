//! What the two sides share: the state of one session between its streams and the task that moves its bytes, and the
//! pump, which is that task's hold on the byte stream.
//!
//! Locking: one mutex for each session, held for table look-ups and copies of at most a batch, never across I/O.
//! Wake-ups: a stream that gives the session something to send wakes the task; the task wakes streams.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

use crate::{
    core::{
        decoder::Decoder,
        frame::{AbortCode, Frame},
        hello::HelloKind,
        mux::{Event, Mux, Role, Violation},
    },
    error::LinkError,
    limits::ROUNDS,
};

/// The task of a link, as a future: nothing moves unless it is polled (usually `tokio::spawn(session)`). Resolves with
/// the reason when the link ends. Dropping it closes the byte stream and breaks every stream.
#[must_use = "a link moves no bytes unless its session is spawned or awaited"]
pub struct Session {
    task: Pin<Box<dyn Future<Output = LinkError> + Send>>,
}

impl Session {
    pub(crate) fn new(task: impl Future<Output = LinkError> + Send + 'static) -> Session {
        Session { task: Box::pin(task) }
    }
}

impl Future for Session {
    type Output = LinkError;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LinkError> {
        self.task.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Those who wait for one stream.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    /// For bytes, or for the answer to an open.
    pub(crate) read: Option<Waker>,
    /// For room.
    pub(crate) write: Option<Waker>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) mux: Mux,
    /// One for each stream that a [`crate::LinkStream`] holds.
    pub(crate) wakers: HashMap<u32, Wakers>,
    /// The task, while it has nothing to send.
    idle_task: Option<Waker>,
}

impl State {
    /// To be called after anything that may have given the session something to send.
    pub(crate) fn wake_task(&mut self) {
        if self.mux.has_output()
            && let Some(task) = self.idle_task.take()
        {
            task.wake();
        }
    }

    fn wake(&mut self, stream: u32, read: bool, write: bool) {
        let Some(wakers) = self.wakers.get_mut(&stream) else { return };
        let read = wakers.read.take_if(|_| read);
        let write = wakers.write.take_if(|_| write);
        read.into_iter().chain(write).for_each(Waker::wake);
    }
}

/// One session, shared by its streams and its task.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    ended: watch::Sender<Option<LinkError>>,
}

impl Shared {
    pub(crate) fn new(role: Role, epoch: u32) -> Arc<Shared> {
        let state = State { mux: Mux::new(role, epoch), wakers: HashMap::new(), idle_task: None };
        Arc::new(Shared { state: Mutex::new(state), ended: watch::Sender::new(None) })
    }

    /// The state, or why the session has ended.
    pub(crate) fn lock(&self) -> (MutexGuard<'_, State>, Option<LinkError>) {
        // A panic under this lock is a bug; the table is consistent between two calls of the mux all the same.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.ended.borrow().clone();
        (state, ended)
    }

    /// Waits until the session has ended.
    pub(crate) async fn ended(&self) -> LinkError {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            // The sender lives in `self`, and the predicate asked for a reason.
            Ok(None) | Err(_) => LinkError::Dropped,
        }
    }

    /// Ends the session: every stream fails from now on. The first reason stays.
    pub(crate) fn end(&self, reason: LinkError) {
        let (mut state, ended) = self.lock();
        if ended.is_some() {
            return;
        }
        self.ended.send_replace(Some(reason));
        state.mux.abandon();
        let wakers: Vec<Wakers> = state.wakers.values_mut().map(std::mem::take).collect();
        drop(state);
        wakers.into_iter().flat_map(|w| [w.read, w.write]).flatten().for_each(Waker::wake);
    }

    /// Handles a frame and wakes those it concerns. Answers events that are not for a stream's holder.
    pub(crate) fn on_frame(&self, frame: Frame<'_>) -> Result<Option<Event>, Violation> {
        let (mut state, _) = self.lock();
        match state.mux.on_frame(frame)? {
            Some(Event::Readable { stream } | Event::Answered { stream }) => state.wake(stream, true, false),
            Some(Event::Broken { stream }) => state.wake(stream, true, true),
            event => return Ok(event),
        }
        Ok(None)
    }

    /// Appends what is to be sent. If that is nothing, the task is woken when there is something.
    pub(crate) fn transmit(&self, out: &mut Vec<u8>, cx: &Context<'_>) {
        let (mut state, _) = self.lock();
        let State { mux, wakers, .. } = &mut *state;
        mux.transmit(out, |stream| {
            if let Some(waker) = wakers.get_mut(&stream).and_then(|wakers| wakers.write.take()) {
                waker.wake();
            }
        });
        if out.is_empty() {
            state.idle_task = Some(cx.waker().clone());
        }
    }
}

/// What moved.
pub(crate) struct Exchanged {
    pub(crate) wrote: bool,
    /// The decoder has new input.
    pub(crate) read: bool,
}

/// The byte stream with its input and output buffers.
#[derive(Debug)]
pub(crate) struct Pump<Io> {
    io: Io,
    pub(crate) decoder: Decoder,
    /// Whole frames and records; `written` bytes of it are sent.
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Pump<Io> {
    pub(crate) fn new(io: Io, looks_for: HelloKind, out: Vec<u8>) -> Pump<Io> {
        Pump { io, decoder: Decoder::new(looks_for), out, written: 0, unflushed: false }
    }

    /// Writes one batch, as [`Pump::poll_write`], and reads what has come.
    pub(crate) fn exchange(
        &mut self,
        cx: &mut Context<'_>,
        refill: impl FnOnce(&mut Vec<u8>, &Context<'_>),
    ) -> Result<Exchanged, LinkError> {
        let wrote = match self.poll_write(cx, refill) {
            Poll::Ready(wrote) => wrote?,
            Poll::Pending => false,
        };
        match self.poll_read(cx) {
            Poll::Ready(Ok(0)) => Err(LinkError::Eof),
            Poll::Ready(read) => read.map(|_| Exchanged { wrote, read: true }),
            Poll::Pending => Ok(Exchanged { wrote, read: false }),
        }
    }

    /// Reads until there is nothing more to read, or no more room, so that small reads (a virtio-serial port gives a
    /// page at a time) are decoded together. Bytes read; 0 is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, LinkError>> {
        let mut total = 0;
        loop {
            let space = self.decoder.space();
            if space.is_empty() {
                return Poll::Ready(Ok(total));
            }
            let mut buf = ReadBuf::new(space);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Pending if total > 0 => return Poll::Ready(Ok(total)),
                Poll::Pending => return Poll::Pending,
                // An end or error behind bytes shows again at the next read.
                Poll::Ready(Err(_)) if total > 0 => return Poll::Ready(Ok(total)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) => {}
            }
            let count = buf.filled().len();
            self.decoder.filled(count);
            total += count;
            if count == 0 {
                return Poll::Ready(Ok(total));
            }
        }
    }

    /// Writes one batch, which `refill` appends when the last one is written. True if it wrote something; false if
    /// there is nothing to write, in which case `refill` sees to the wake-up.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        refill: impl FnOnce(&mut Vec<u8>, &Context<'_>),
    ) -> Poll<Result<bool, LinkError>> {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            refill(&mut self.out, cx);
        }
        if self.out.is_empty() {
            if self.unflushed {
                ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                self.unflushed = false;
            }
            return Poll::Ready(Ok(false));
        }
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.written..]))?;
        if count == 0 {
            return Poll::Ready(Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()));
        }
        self.written += count;
        self.unflushed = true;
        Poll::Ready(Ok(true))
    }
}

/// Repeats `round`, which says whether anything moved, until nothing does or the link ends. A busy link lets other tasks
/// run after some rounds.
pub(crate) fn poll_rounds(
    cx: &mut Context<'_>,
    mut round: impl FnMut(&mut Context<'_>) -> Result<bool, LinkError>,
) -> Poll<LinkError> {
    for _ in 0..ROUNDS {
        match round(cx) {
            Ok(true) => {}
            Ok(false) => return Poll::Pending,
            Err(reason) => return Poll::Ready(reason),
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// What a guest tells the host when it gives up a session because of `error`.
pub(crate) fn abort_code(error: &LinkError) -> Option<AbortCode> {
    match error {
        LinkError::Decode(_) => Some(AbortCode::NotAFrame),
        LinkError::Violation(_) => Some(AbortCode::Violation),
        _ => None,
    }
}
