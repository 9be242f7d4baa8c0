//! The host's side: makes the handshake, then opens streams. Any error ends the session; the caller decides whether
//! to connect again.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    core::{
        decoder::Item,
        hello::{Hello, HelloKind},
        mux::{Event, Full, Role},
    },
    error::{LinkError, OpenError},
    limits::VERSION,
    session::{Pump, Session, Shared, poll_rounds},
    stream::LinkStream,
};

/// How to connect.
#[derive(Debug, Clone, Copy)]
pub struct ConnectOptions {
    /// How long to wait for the guest agent's answer. It covers the boot of the guest where that is still under way.
    pub timeout: Duration,
}

/// Starts a session over `io` and waits for the guest's answer to it. Bytes of an earlier session that are still under
/// way are skipped. One HELLO is enough however late the guest starts to read.
///
/// # Errors
/// `io` fails or ends, the guest has another version, or no answer came in time.
pub async fn connect<Io>(io: Io, options: ConnectOptions) -> Result<(Connector, Session), LinkError>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let hello = Hello::random();
    let shared = Shared::new(Role::Host, hello.epoch);
    let pump = Pump::new(io, HelloKind::Ack, hello.preamble());
    let mut task = HostTask { pump, shared: Arc::clone(&shared), hello, established: false };
    let handshake = poll_fn(|cx| match task.poll(cx) {
        Poll::Ready(reason) => Poll::Ready(Err(reason)),
        Poll::Pending if task.established => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    });
    match tokio::time::timeout(options.timeout, handshake).await {
        Ok(result) => result?,
        Err(_) => return Err(LinkError::HandshakeTimeout(options.timeout)),
    }
    let session = Session::new(async move { poll_fn(|cx| task.poll(cx)).await });
    Ok((Connector { shared }, session))
}

/// Opens streams of one session. Clones are the same session.
#[derive(Debug, Clone)]
pub struct Connector {
    shared: Arc<Shared>,
}

impl Connector {
    /// Opens a stream to `port` of the guest and waits for the guest's answer. Dropping the future gives it up.
    ///
    /// # Errors
    /// The guest refuses, there are too many streams, or the session has ended.
    pub async fn open(&self, port: u16) -> Result<LinkStream, OpenError> {
        let mut stream = {
            let (mut state, ended) = self.shared.lock();
            if let Some(reason) = ended {
                return Err(OpenError::Ended { port, reason });
            }
            let id = state.mux.open(port).map_err(|Full| OpenError::TooManyStreams { port })?;
            state.wake_task();
            LinkStream::new(&self.shared, &mut state, id)
        };
        match poll_fn(|cx| stream.poll_answer(cx)).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(code)) => Err(OpenError::Refused { port, code }),
            Err(reason) => Err(OpenError::Ended { port, reason }),
        }
    }

    /// Waits until the session has ended, and says why. At once if it has.
    pub async fn closed(&self) -> LinkError {
        self.shared.ended().await
    }

    /// True once the session has ended: nothing can be opened any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().1.is_some()
    }
}

struct HostTask<Io> {
    pump: Pump<Io>,
    shared: Arc<Shared>,
    hello: Hello,
    established: bool,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> HostTask<Io> {
    /// Pending for as long as the session lives.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        poll_rounds(cx, |cx| self.round(cx)).map(|reason| {
            self.shared.end(reason.clone());
            reason
        })
    }

    /// True if anything moved.
    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkError> {
        let moved = self.pump.exchange(cx, |out, cx| self.shared.transmit(out, cx))?;
        if !moved.read {
            return Ok(moved.wrote);
        }
        while let Some(item) = self.pump.decoder.decode()? {
            match item {
                Item::Hello(ack) => self.on_ack(ack)?,
                Item::Frame(frame) => {
                    if let Some(Event::Aborted(code)) = self.shared.on_frame(frame)? {
                        return Err(LinkError::Aborted(code));
                    }
                }
            }
        }
        Ok(true)
    }

    fn on_ack(&mut self, ack: Hello) -> Result<(), LinkError> {
        if ack.nonce != self.hello.nonce || ack.epoch != self.hello.epoch {
            // To an earlier host. The hunt goes on.
            return Ok(());
        }
        if ack.version != VERSION {
            return Err(LinkError::Version { host: VERSION, guest: ack.version });
        }
        self.pump.decoder.begin(self.hello.epoch);
        self.established = true;
        Ok(())
    }
}

impl<Io> Drop for HostTask<Io> {
    fn drop(&mut self) {
        self.shared.end(LinkError::Dropped);
    }
}
