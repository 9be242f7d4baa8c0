//! The virtio-serial port as a byte stream that tokio can use.
//!
//! While no host is connected the port reads as ended and polls as hung up. tokio's readiness is made for that to last:
//! it would spin. So a thread for each direction waits on an *edge-triggered* epoll of its own, where a hang-up is
//! told once, and passes chunks through a short queue. The end of a host is hidden: the link finds the next one.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_util::sync::PollSender;

use crate::limits::{PORT_CHUNK, PORT_QUEUE, THREAD_STACK};

/// The two ends of the threads' queues.
pub(crate) struct Port {
    incoming: mpsc::Receiver<Bytes>,
    /// Rest of the chunk that is being read.
    chunk: Bytes,
    outgoing: PollSender<Bytes>,
}

impl Port {
    /// Opens the device and starts its threads.
    pub(crate) fn open(device: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(device)?;
        let file = Arc::new(file);
        let (to_link, incoming) = mpsc::channel(PORT_QUEUE);
        let (outgoing, from_link) = mpsc::channel(PORT_QUEUE);
        let readable = Edges::new(&file, EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP)?;
        let writable = Edges::new(&file, EpollFlags::EPOLLOUT | EpollFlags::EPOLLHUP)?;
        let reading = Arc::clone(&file);
        thread("link-in", move || read_all(&reading, &readable, &to_link))?;
        thread("link-out", move || write_all(&file, &writable, from_link))?;
        Ok(Self { incoming, chunk: Bytes::new(), outgoing: PollSender::new(outgoing) })
    }
}

fn thread(name: &'static str, work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let run = move || {
        if let Err(error) = work() {
            tracing::error!("{name}: {error}");
        }
    };
    std::thread::Builder::new().name(name.to_owned()).stack_size(THREAD_STACK).spawn(run).map(drop)
}

/// Waits for changes of a file's readiness.
struct Edges(Epoll);

impl Edges {
    fn new(file: &File, interest: EpollFlags) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(file, EpollEvent::new(interest | EpollFlags::EPOLLET, 0))?;
        Ok(Self(epoll))
    }

    /// Returns at the next change. One that came since the last call counts, so none is lost between a `read` that
    /// found nothing and this.
    fn wait(&self) -> io::Result<()> {
        loop {
            match self.0.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn read_all(mut file: &File, edges: &Edges, to_link: &mpsc::Sender<Bytes>) -> io::Result<()> {
    let mut buffer = vec![0; PORT_CHUNK];
    loop {
        // The driver gives a page at a time: gather, for fewer hand-overs.
        let mut filled = 0;
        let is_drained = loop {
            match file.read(&mut buffer[filled..]) {
                // No host.
                Ok(0) => break true,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if filled == buffer.len() {
                break false;
            }
        };
        if filled > 0 && to_link.blocking_send(Bytes::copy_from_slice(&buffer[..filled])).is_err() {
            return Ok(());
        }
        if is_drained {
            edges.wait()?;
        }
    }
}

fn write_all(mut file: &File, edges: &Edges, mut from_link: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(mut chunk) = from_link.blocking_recv() {
        while !chunk.is_empty() {
            match file.write(&chunk) {
                Ok(count) => chunk.advance(count),
                // The queue is full, or there is no host.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe) => {
                    edges.wait()?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

impl AsyncRead for Port {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.chunk.is_empty() {
            match ready!(self.incoming.poll_recv(cx)) {
                Some(chunk) => self.chunk = chunk,
                // The thread failed and said why: the end.
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.chunk.len().min(buffer.remaining());
        buffer.put_slice(&self.chunk.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Port {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outgoing.poll_reserve(cx)).map_err(gone)?;
        let count = bytes.len().min(PORT_CHUNK);
        self.outgoing.send_item(Bytes::copy_from_slice(&bytes[..count])).map_err(gone)?;
        Poll::Ready(Ok(count))
    }

    /// The thread writes what it has as soon as it can.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}
