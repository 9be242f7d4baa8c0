//! Accepts connections on every listener and serves HTTP/1.1 on them until the shutdown.

use std::{io, net::SocketAddr, sync::Arc};

use axum::Router;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::App,
    http::{edge::Edge, router},
    ingress::Outside,
    limits::{
        ACCEPT_PAUSE, CONNECTIONS_MAX, HEAD_BYTES_MAX, HEADER_READ_TIMEOUT, HEADERS_MAX, KEEP_ALIVE_AFTER,
        KEEP_ALIVE_PAUSE, KEEP_ALIVE_TRIES, SHUTDOWN_GRACE, UNACKNOWLEDGED_MAX,
    },
};

/// Serves until `shutdown` is cancelled and the open requests are done, or a grace period is over.
pub(crate) async fn serve(app: Arc<App>, listeners: Vec<TcpListener>, shutdown: CancellationToken) {
    let router = router(&app);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    for listener in listeners {
        let server = Server {
            app: Arc::clone(&app),
            router: router.clone(),
            places: Arc::clone(&places),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
            abort: abort.clone(),
        };
        tasks.spawn(async move { server.accept(listener).await });
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
    app: Arc<App>,
    router: Router,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    abort: CancellationToken,
}

impl Server {
    async fn accept(self, listener: TcpListener) {
        loop {
            let next = async {
                // A full house leaves further clients in the kernel's queue.
                let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
                Some((place, listener.accept().await))
            };
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = next => accepted,
            };
            match accepted {
                Some((place, Ok((stream, peer)))) => {
                    let server = self.clone();
                    self.tasks.spawn(async move { server.serve(stream, peer, place).await });
                }
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                None => return,
            }
        }
    }

    async fn serve(self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        if let Err(error) = set_up(&stream) {
            tracing::debug!(%error, "cannot set options of a connection");
        }
        let outside = Outside { peer: peer.ip(), place: Arc::new(place) };
        let edge = Edge { app: self.app, router: self.router, outside };
        let service = service_fn(move |request| {
            let edge = edge.clone();
            async move { Ok::<_, std::convert::Infallible>(edge.serve(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::pin!(connection);
        let mut leaving = false;
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, %error, "a connection ended");
                    }
                    return;
                }
                () = self.shutdown.cancelled(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.abort.cancelled() => return,
            }
        }
    }
}
