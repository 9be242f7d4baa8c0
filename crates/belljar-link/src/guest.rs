//! The guest's side: waits for a host's HELLO, is offered streams, and starts over whenever another HELLO comes.
//!
//! ```text
//!            HELLO                        HELLO: old session ends, new one begins
//!  HUNTING ----------> session ---------------------------------+
//!     ^                  |  ^                                   |
//!     +------------------+  +-----------------------------------+
//!       bad input: the session ends, the host is sent ABORT
//! ```

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{
    core::{
        decoder::Item,
        frame::{self, Body, RefuseCode},
        hello::{Hello, HelloKind},
        mux::{Event, Role},
    },
    error::LinkError,
    limits::{MAX_STREAMS, VERSION},
    session::{Pump, Session, Shared, abort_code, poll_rounds},
    stream::LinkStream,
};

/// Serves hosts over `io`, one session after the other, until `io` ends or fails.
///
/// The end of `io` ends it. A transport that reads 0 bytes merely because the host is away must hide that.
pub fn serve<Io>(io: Io) -> (Acceptor, Session)
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (offers, offered) = mpsc::channel(MAX_STREAMS);
    let pump = Pump::new(io, HelloKind::Hello, Vec::new());
    let mut task = GuestTask { pump, current: None, reply: Vec::new(), offers };
    (Acceptor { offered }, Session::new(async move { poll_fn(|cx| task.poll(cx)).await }))
}

/// Gets the streams that hosts open.
#[derive(Debug)]
pub struct Acceptor {
    offered: mpsc::Receiver<Incoming>,
}

impl Acceptor {
    /// The next stream that a host wants; `None` when the link has ended. Offers that the host has withdrawn are
    /// skipped. Cancel safe.
    pub async fn accept(&mut self) -> Option<Incoming> {
        loop {
            let incoming = self.offered.recv().await?;
            if incoming.is_current() {
                return Some(incoming);
            }
        }
    }
}

/// A stream that the host wants. Dropping it refuses it with [`RefuseCode::Failed`].
#[derive(Debug)]
pub struct Incoming {
    /// Port that the host wants to reach.
    pub port: u16,
    stream: LinkStream,
}

impl Incoming {
    /// Connects it.
    #[must_use]
    pub fn accept(self) -> LinkStream {
        {
            let (mut state, _, id) = self.stream.shared();
            state.mux.accept(id);
            state.wake_task();
        }
        self.stream
    }

    /// Waits until the session is over that the stream is part of, and says why.
    pub fn session_ended(&self) -> impl Future<Output = LinkError> + Send + use<> {
        self.stream.session_ended()
    }

    /// Tells the host why not.
    pub fn refuse(self, code: RefuseCode) {
        let (mut state, _, id) = self.stream.shared();
        state.mux.refuse(id, code);
        state.wake_task();
    }

    fn is_current(&self) -> bool {
        let (state, ended, id) = self.stream.shared();
        ended.is_none() && state.mux.is_offered(id)
    }
}

struct GuestTask<Io> {
    pump: Pump<Io>,
    /// The session and its epoch.
    current: Option<(u32, Arc<Shared>)>,
    /// ACK and ABORT that are to be sent before anything else. Each HELLO replaces those to an earlier host.
    reply: Vec<u8>,
    offers: mpsc::Sender<Incoming>,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> GuestTask<Io> {
    /// Pending for as long as `io` lives.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        poll_rounds(cx, |cx| self.round(cx)).map(|reason| {
            self.end(&reason);
            reason
        })
    }

    /// True if anything moved. Fails only with `io`.
    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkError> {
        let Self { pump, current, reply, .. } = self;
        let moved = pump.exchange(cx, |out, cx| {
            out.append(reply);
            if let Some((_, shared)) = current {
                shared.transmit(out, cx);
            }
        })?;
        if !moved.read {
            return Ok(moved.wrote);
        }
        loop {
            match self.item() {
                Ok(true) => {}
                Ok(false) => return Ok(true),
                Err(reason) => {
                    tracing::warn!(error = %reason, "gave up the link session; waiting for the host");
                    self.end(&reason);
                }
            }
        }
    }

    /// Handles one item of the input; false if there is none. An error is the session's, not the link's.
    fn item(&mut self) -> Result<bool, LinkError> {
        let frame = match self.pump.decoder.decode()? {
            None => return Ok(false),
            Some(Item::Hello(hello)) => {
                self.on_hello(hello);
                return Ok(true);
            }
            Some(Item::Frame(frame)) => frame,
        };
        let Some((_, shared)) = &self.current else { return Ok(true) };
        if let Some(Event::Offered { stream, port }) = shared.on_frame(frame)? {
            let stream = LinkStream::new(shared, &mut shared.lock().0, stream);
            if let Err(error) = self.offers.try_send(Incoming { port, stream }) {
                let (code, incoming) = match error {
                    mpsc::error::TrySendError::Full(incoming) => (RefuseCode::TooManyStreams, incoming),
                    mpsc::error::TrySendError::Closed(incoming) => (RefuseCode::Refused, incoming),
                };
                incoming.refuse(code);
            }
        }
        Ok(true)
    }

    fn on_hello(&mut self, hello: Hello) {
        self.end(&LinkError::Superseded);
        self.reply.clear();
        Hello { version: VERSION, ..hello }.encode(HelloKind::Ack, &mut self.reply);
        if hello.version != VERSION {
            let error = LinkError::Version { host: hello.version, guest: VERSION };
            tracing::warn!(%error, "cannot talk to this host");
            return;
        }
        self.pump.decoder.begin(hello.epoch);
        self.current = Some((hello.epoch, Shared::new(Role::Guest, hello.epoch)));
    }

    /// Ends the current session, if there is one.
    fn end(&mut self, reason: &LinkError) {
        self.pump.decoder.hunt();
        let Some((epoch, shared)) = self.current.take() else { return };
        if let Some(code) = abort_code(reason) {
            frame::encode(&mut self.reply, epoch, 0, Body::Abort(code));
        }
        shared.end(reason.clone());
    }
}

impl<Io> Drop for GuestTask<Io> {
    fn drop(&mut self) {
        if let Some((_, shared)) = self.current.take() {
            shared.end(LinkError::Dropped);
        }
    }
}
