//! Accepts connections on every listener, and has them served until the shutdown. What is served lies in
//! [`crate::serve`].

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::App,
    http::router,
    ingress::Peer,
    limits::{
        ACCEPT_PAUSE, CONNECTIONS_MAX, KEEP_ALIVE_AFTER, KEEP_ALIVE_PAUSE, KEEP_ALIVE_TRIES, SHUTDOWN_GRACE,
        TLS_HANDSHAKE_TIMEOUT, UNACKNOWLEDGED_MAX,
    },
    serve::Service,
    tls::Acceptor,
};

/// Where the server listens.
#[derive(Debug, Default)]
pub struct Listeners {
    /// These speak HTTP.
    pub plain: Vec<TcpListener>,
    /// These speak HTTPS; they need the configuration's source of certificates.
    pub tls: Vec<TcpListener>,
    /// Ends of pipes in memory, on which this process's own node speaks HTTP.
    pub pipes: Option<mpsc::Receiver<DuplexStream>>,
}

impl From<Vec<TcpListener>> for Listeners {
    fn from(plain: Vec<TcpListener>) -> Self {
        Self { plain, ..Self::default() }
    }
}

/// Serves until `shutdown` is cancelled and the open requests are done, or a grace period is over.
pub(crate) async fn serve(
    app: Arc<App>,
    listeners: Listeners,
    acceptor: Option<Acceptor>,
    shutdown: CancellationToken,
) {
    let router = router(&app);
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    let service = Service { app, router, shutdown: shutdown.clone(), abort: abort.clone() };
    let server = Server { service, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), tasks: tasks.clone() };
    for listener in listeners.plain {
        let server = server.clone();
        tasks.spawn(async move { server.accept(listener, None).await });
    }
    for listener in listeners.tls {
        let (server, acceptor) = (server.clone(), acceptor.clone());
        tasks.spawn(async move { server.accept(listener, acceptor).await });
    }
    if let Some(pipes) = listeners.pipes {
        tasks.spawn(async move { server.take(pipes).await });
    }
    shutdown.cancelled().await;
    tasks.close();
    if tokio::time::timeout(SHUTDOWN_GRACE, tasks.wait()).await.is_err() {
        abort.cancel();
        tasks.wait().await;
    }
}

/// Small answers go out at once, and a client that vanished without a word is noticed.
pub(crate) fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let alive =
        TcpKeepalive::new().with_time(KEEP_ALIVE_AFTER).with_interval(KEEP_ALIVE_PAUSE).with_retries(KEEP_ALIVE_TRIES);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&alive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))
}

#[derive(Clone)]
struct Server {
    service: Service,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Server {
    async fn accept(self, listener: TcpListener, tls: Option<Acceptor>) {
        loop {
            let next = async {
                // A full house leaves further clients in the kernel's queue.
                let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
                Some((place, listener.accept().await))
            };
            let accepted = tokio::select! {
                () = self.service.shutdown.cancelled() => return,
                accepted = next => accepted,
            };
            match accepted {
                Some((place, Ok((stream, peer)))) => {
                    let (server, tls) = (self.clone(), tls.clone());
                    self.tasks.spawn(async move { server.serve(stream, tls, peer, place).await });
                }
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                None => return,
            }
        }
    }

    /// What [`Self::accept`] is for sockets.
    async fn take(self, mut pipes: mpsc::Receiver<DuplexStream>) {
        loop {
            let next = async { Some((pipes.recv().await?, Arc::clone(&self.places).acquire_owned().await.ok()?)) };
            let taken = tokio::select! {
                () = self.service.shutdown.cancelled() => return,
                taken = next => taken,
            };
            let Some((pipe, place)) = taken else { return };
            let peer = Peer { address: Ipv4Addr::LOCALHOST.into(), is_tls: false, is_here: true };
            let service = self.service.clone();
            self.tasks.spawn(async move { service.plain(pipe, peer, place).await });
        }
    }

    async fn serve(self, stream: TcpStream, tls: Option<Acceptor>, peer: SocketAddr, place: OwnedSemaphorePermit) {
        if let Err(error) = set_up(&stream) {
            tracing::debug!(%error, "cannot set options of a connection");
        }
        let address = peer.ip();
        let Some(tls) = tls else {
            return self.service.plain(stream, Peer { address, is_tls: false, is_here: false }, place).await;
        };
        let peer = Peer { address, is_tls: true, is_here: false };
        match tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(None)) => tracing::debug!(peer = %address, "a look at a proof for the ACME server"),
            Ok(Ok(Some(stream))) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                self.service.http2(stream, peer, place).await;
            }
            Ok(Ok(Some(stream))) => self.service.http1(stream, peer, place).await,
            Ok(Err(error)) => tracing::debug!(peer = %address, %error, "a TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %address, "a TLS handshake took too long"),
        }
    }
}
