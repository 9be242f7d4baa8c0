//! One link, from its handshake to its end: each stream goes to the API or the port that it asks for.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use axum::{Extension, Router};
use belljar_api::{guest::SYSTEM_PORT, limits::AGENT_PORT};
use belljar_link::{Incoming, LinkStream};
use hyper::{server::conn::http1, upgrade::Upgraded};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    agent::{Agent, router},
    connect::{connect_local, splice},
    limits::STREAMS_MAX,
    system::{self, Accepted},
};

/// Both APIs and the permits of their streams.
#[derive(Clone)]
pub(crate) struct Service {
    public: Router,
    system: Router,
    permits: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(agent: &Arc<Agent>) -> Self {
        Self { public: router(agent), system: system::router(agent), permits: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }

    /// Serves a link until its peer is gone. Streams that are under way end with it, processes do not.
    pub(crate) async fn serve_link(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (mut acceptor, link) = belljar_link::serve(io);
        // Dropped with us when another link takes over.
        let link = AbortOnDropHandle::new(tokio::spawn(link));
        while let Some(incoming) = acceptor.accept().await {
            match Arc::clone(&self.permits).try_acquire_owned() {
                Ok(permit) => drop(tokio::spawn(self.clone().serve_stream(incoming, permit))),
                Err(_) => incoming.refuse(belljar_link::RefuseCode::TooManyStreams),
            }
        }
        match link.await {
            // Every restore ends one, and waits for what is written to the console.
            Ok(reason) => tracing::debug!("{reason}"),
            Err(error) => tracing::error!("the link's task: {error}"),
        }
    }

    /// Serves a stream for as long as its session lives: a request whose answer nobody can get would otherwise wait for
    /// its event, perhaps in a copy of this machine.
    async fn serve_stream(self, incoming: Incoming, _permit: OwnedSemaphorePermit) {
        let session_ended = incoming.session_ended();
        tokio::select! {
            () = self.converse(incoming) => {}
            _ = session_ended => {}
        }
    }

    async fn converse(self, incoming: Incoming) {
        match incoming.port {
            SYSTEM_PORT => {
                let accepted = Extension(Accepted(Instant::now()));
                serve_http(incoming.accept(), self.system.layer(accepted)).await;
            }
            AGENT_PORT => serve_http(incoming.accept(), self.public).await,
            port => match connect_local(port).await {
                Ok(tcp) => {
                    if let Err(error) = splice(&mut incoming.accept(), tcp).await {
                        tracing::debug!("a connection to port {port} broke off: {error}");
                    }
                }
                Err(_) => incoming.refuse(belljar_link::RefuseCode::Refused),
            },
        }
    }
}

async fn serve_http(stream: LinkStream, router: Router) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .half_close(true)
        .serve_connection(TokioIo::new(Polite::new(stream)), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!("a connection broke off: {error}");
    }
}

/// A stream that ends like a socket when it is dropped: what was written is still sent. A bare [`LinkStream`] takes a
/// drop for a failure and is reset, and a WebSocket's Close would be lost with it.
pub(crate) struct Polite {
    stream: LinkStream,
    is_cut: bool,
}

impl Polite {
    fn new(stream: LinkStream) -> Self {
        Self { stream, is_cut: false }
    }

    /// The stream of a request that changed the protocol; `None` when bytes of the new one came before it was answered.
    pub(crate) fn of(upgraded: Upgraded) -> Option<Self> {
        let parts = upgraded.downcast::<TokioIo<Self>>().ok()?;
        parts.read_buf.is_empty().then(|| parts.io.into_inner())
    }

    /// Drops it as one that broke off.
    pub(crate) fn cut(mut self) {
        self.is_cut = true;
    }
}

impl Drop for Polite {
    fn drop(&mut self) {
        if !self.is_cut {
            // Only marks the end and never waits. A stream that has already failed has nothing to send.
            let _ = Pin::new(&mut self.stream).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl AsyncRead for Polite {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Polite {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
