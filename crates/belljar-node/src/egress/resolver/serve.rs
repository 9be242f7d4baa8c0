//! The sockets on which the guest is answered.

use std::{io, sync::Arc, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Resolver, query::Transport, rate::Rate};
use crate::egress::{is_of_peer, limits};

/// What all queries of one sandbox share.
struct Desk {
    resolver: Resolver,
    rate: std::sync::Mutex<Rate>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Resolver {
    /// Answers on these sockets, which are bound already, keeps denied names denied and its memory on the disk, until `stop`. It has then let go
    /// of the sockets.
    pub(crate) async fn serve(
        &self,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
        stop: CancellationToken,
    ) -> io::Result<()> {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (udp, tcp) = (Arc::new(UdpSocket::from_std(udp)?), TcpListener::from_std(tcp)?);
        let rate = Rate::new(limits::QUERIES_PER_SECOND, limits::QUERIES_BURST, Instant::now());
        let desk = Arc::new(Desk {
            resolver: self.clone(),
            rate: std::sync::Mutex::new(rate),
            stop: stop.clone(),
            tasks: TaskTracker::new(),
        });
        let served = tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = self.keep_denied() => Ok(()),
            () = self.keep() => Ok(()),
            result = desk.serve_udp(udp) => result,
            result = desk.serve_tcp(tcp) => result,
        };
        desk.stop.cancel();
        desk.tasks.close();
        desk.tasks.wait().await;
        served
    }
}

impl Desk {
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(work));
    }

    fn in_time(&self) -> bool {
        self.rate.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take(Instant::now())
    }

    async fn serve_udp(self: &Arc<Self>, socket: Arc<UdpSocket>) -> io::Result<()> {
        // More than wait for upstream resolvers: what is remembered, or refused, is answered all the same.
        let slots = Arc::new(Semaphore::new(2 * limits::LOOKUPS_MAX));
        let mut buffer = vec![0; limits::QUERY_MAX + 1];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An ICMP error about an answer of ours.
                Err(error) if is_of_peer(&error) => continue,
                Err(error) => return Err(error),
            };
            let (Some(bytes), true) = (buffer.get(..length), self.in_time()) else { continue };
            let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
            let (this, socket, bytes) = (self.clone(), socket.clone(), bytes.to_vec());
            self.spawn(async move {
                let _slot = slot;
                if let Some(answer) = this.resolver.answer(&bytes, Transport::Udp).await {
                    // The guest asks again if it does not hear.
                    let _ = socket.send_to(&answer, from).await;
                }
            });
        }
    }

    async fn serve_tcp(self: &Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let slots = Arc::new(Semaphore::new(limits::TCP_CONNECTIONS_MAX));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) if is_of_peer(&error) => continue,
                Err(error) => return Err(error),
            };
            // One too many is closed.
            let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
            let this = self.clone();
            self.spawn(async move {
                // The guest may close it as it likes.
                let _ = this.connection(stream, slot).await;
            });
        }
    }

    /// Queries of one connection, one after the other.
    async fn connection(&self, mut stream: TcpStream, _slot: OwnedSemaphorePermit) -> io::Result<()> {
        let mut buffer = vec![0; limits::QUERY_MAX];
        loop {
            let length = usize::from(timeout(limits::TCP_IDLE, stream.read_u16()).await??);
            let Some(bytes) = buffer.get_mut(..length) else { return Ok(()) };
            timeout(limits::TCP_IDLE, stream.read_exact(bytes)).await??;
            if !self.in_time() {
                return Ok(());
            }
            let Some(answer) = self.resolver.answer(bytes, Transport::Tcp).await else { return Ok(()) };
            let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            timeout(limits::TCP_IDLE, stream.write_all(&framed)).await??;
        }
    }
}
