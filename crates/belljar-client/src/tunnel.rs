//! A local TCP port that leads to a port on 127.0.0.1 of a sandbox: one WebSocket per connection.
//!
//! ```text
//! accept -> connect websocket -> pump both ways -> an end: an empty message, the other direction goes on
//!               \                       \-> both ends, or the peer's Close: done
//!                \-> refused: the local connection is closed
//! ```

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use belljar_api::tunnel::TCP_PATH;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_tungstenite::tungstenite::{self, Message, protocol::frame::coding::CloseCode};

use crate::{
    Error, Sandbox,
    limits::{CHUNK, PING_EVERY, TUNNEL_CONNECTIONS},
    websocket::Socket,
};

const WHAT: &str = "tunnel";

/// Pause after a failed accept: it fails for want of file descriptors, which come back only when something closes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A local listener whose connections end in a sandbox.
#[derive(Debug)]
pub struct Tunnel {
    listener: TcpListener,
    address: SocketAddr,
    sandbox: Sandbox,
    port: u16,
}

impl Sandbox {
    /// Listens on `local` (port 0: any free one) for connections to `port` on 127.0.0.1 of the sandbox. Nothing is
    /// accepted before [`Tunnel::serve`].
    pub async fn tunnel(&self, local: SocketAddr, port: u16) -> Result<Tunnel, Error> {
        let local_error = |source| Error::Local { what: format!("listening on {local}"), source };
        let listener = TcpListener::bind(local).await.map_err(local_error)?;
        let address = listener.local_addr().map_err(local_error)?;
        Ok(Tunnel { listener, address, sandbox: self.clone(), port })
    }

    /// Connects to `port` on 127.0.0.1 of the sandbox and pumps until one side ends. `CONNECTION_REFUSED` when
    /// nobody listens there.
    pub async fn forward(&self, stream: TcpStream, port: u16) -> Result<(), Error> {
        let socket = self.websocket(&format!("{TCP_PATH}?port={port}&half_close=true"), &[]).await?;
        pump(stream, socket).await
    }
}

impl Tunnel {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves connections for as long as it is polled; dropping it closes them all. `failed` hears of each that
    /// broke.
    pub async fn serve(self, failed: impl Fn(Error) + Send + Sync + 'static) {
        let failed = Arc::new(failed);
        let places = Arc::new(Semaphore::new(TUNNEL_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // The semaphore is never closed; were it, there would be nothing left to serve.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(source) => {
                    failed(Error::Local { what: WHAT.to_owned(), source });
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (sandbox, port, failed) = (self.sandbox.clone(), self.port, Arc::clone(&failed));
            connections.spawn(async move {
                if let Err(error) = sandbox.forward(stream, port).await {
                    failed(error);
                }
                drop(place);
            });
        }
    }
}

async fn pump(mut stream: TcpStream, socket: Socket) -> Result<(), Error> {
    let local = |source| Error::Local { what: WHAT.to_owned(), source };
    stream.set_nodelay(true).map_err(local)?;
    // What breaks off must not look like an orderly end; takes effect when this is dropped, too.
    stream.set_zero_linger().map_err(local)?;
    let (mut from_local, mut to_local) = stream.split();
    let (mut to_guest, mut from_guest) = socket.split();

    let ends = Ends::default();
    let result = {
        let up = async {
            let mut chunk = BytesMut::new();
            let mut pings = interval(PING_EVERY);
            pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut open = true;
            loop {
                // What was sent is let go by then, so that this is the same memory again.
                chunk.reserve(CHUNK);
                tokio::select! {
                    read = from_local.read_buf(&mut chunk), if open => {
                        let n = read.map_err(local)?;
                        // An empty message is the end: the guest may still have something to say.
                        to_guest.send(Message::binary(chunk.split().freeze())).await.map_err(broken)?;
                        if n == 0 {
                            open = false;
                            ends.one();
                        }
                    }
                    _ = pings.tick() => to_guest.send(Message::Ping(Bytes::new())).await.map_err(broken)?,
                }
            }
        };
        let down = async {
            while let Some(message) = from_guest.next().await {
                match message {
                    Ok(Message::Binary(bytes)) if bytes.is_empty() => {
                        to_local.shutdown().await.map_err(local)?;
                        ends.one();
                    }
                    Ok(Message::Binary(bytes)) => to_local.write_all(&bytes).await.map_err(local)?,
                    Ok(Message::Close(Some(frame))) if frame.code != CloseCode::Normal => {
                        return Err(Error::protocol(WHAT, frame.reason.as_str()));
                    }
                    Ok(Message::Close(_)) => break,
                    Ok(Message::Text(_)) => return Err(Error::protocol(WHAT, "a text message")),
                    Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                    Err(tungstenite::Error::ConnectionClosed) => break,
                    Err(error) => return Err(broken(error)),
                }
            }
            to_local.shutdown().await.map_err(local)
        };
        // Whoever breaks off ends the connection; `up` ends only in an error.
        tokio::select! {
            result = up => result,
            // The peer's Close came before both ends, or there is an error.
            result = down => result.map(|()| false),
            () = ends.both() => Ok(true),
        }
    };
    if result? {
        // Both directions are done; the guest waits for this.
        to_guest.send(Message::Close(None)).await.map_err(broken)?;
    }
    // What was written last may still be on its way.
    SockRef::from(&stream).set_linger(None).map_err(local)
}

/// How many directions have ended.
#[derive(Default)]
struct Ends {
    seen: AtomicUsize,
    second: Notify,
}

impl Ends {
    fn one(&self) {
        if self.seen.fetch_add(1, Ordering::Relaxed) == 1 {
            self.second.notify_one();
        }
    }

    async fn both(&self) {
        self.second.notified().await;
    }
}

fn broken(error: tungstenite::Error) -> Error {
    Error::Transport { what: WHAT.to_owned(), source: Box::new(error) }
}
