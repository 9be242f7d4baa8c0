//! The virtio-serial port as a byte stream that tokio can use.
//!
//! While no host is connected the port reads as ended and polls as hung up. tokio's readiness is made for that to last:
//! it would spin. So a thread waits on an *edge-triggered* epoll of its own, where a hang-up is told once, and passes the
//! word on. Reading and writing themselves happen where the bytes are wanted: nothing is copied on the way, and a small
//! message waits for no other thread. The end of a host is hidden: the link finds the next one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::THREAD_STACK;

/// The device, and what is known of it.
pub(crate) struct Port {
    file: File,
    edges: Arc<Edges>,
}

/// Word from the thread.
#[derive(Default)]
struct Edges {
    reading: Direction,
    writing: Direction,
    /// The thread has failed: there will be no more word.
    over: AtomicBool,
}

/// Whether one direction may have become ready since it was last found not to be.
#[derive(Default)]
struct Direction {
    changed: AtomicBool,
    waker: AtomicWaker,
}

impl Direction {
    fn set(&self) {
        self.changed.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// True if there was a change since the last call; else the task is woken at the next.
    fn take(&self, cx: &Context<'_>) -> bool {
        if self.changed.swap(false, Ordering::Acquire) {
            return true;
        }
        self.waker.register(cx.waker());
        // It may have come before the waker was there.
        self.changed.swap(false, Ordering::Acquire)
    }

    /// Tries `work` until it does something or the device has nothing more to give. The word is taken back *before* each
    /// attempt, so that a change during one counts for the next.
    fn attempt<T>(&self, cx: &Context<'_>, mut work: impl FnMut() -> io::Result<Option<T>>) -> Poll<io::Result<T>> {
        while self.take(cx) {
            match work() {
                Ok(None) => {}
                Ok(Some(done)) => {
                    // There may be more.
                    self.changed.store(true, Ordering::Release);
                    return Poll::Ready(Ok(done));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.changed.store(true, Ordering::Release);
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    }
}

impl Port {
    /// Opens the device and starts its thread.
    pub(crate) fn open(device: &Path) -> io::Result<Self> {
        Self::open_for(OpenOptions::new().read(true).write(true), device)
    }

    fn open_for(options: &mut OpenOptions, device: &Path) -> io::Result<Self> {
        Self::new(options.custom_flags(libc::O_NONBLOCK).open(device)?)
    }

    fn new(file: File) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(&file, EpollEvent::new(interest, 0))?;
        let edges = Arc::new(Edges::default());
        let told = Arc::clone(&edges);
        let watch = move || {
            let error = watch(&epoll, &told);
            tracing::error!("link: {error}");
            told.over.store(true, Ordering::Release);
            told.reading.set();
            told.writing.set();
        };
        std::thread::Builder::new().name("link".to_owned()).stack_size(THREAD_STACK).spawn(watch)?;
        Ok(Self { file, edges })
    }
}

/// Passes each change on, until it fails.
fn watch(epoll: &Epoll, told: &Edges) -> Errno {
    let mut events = [EpollEvent::empty()];
    let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR;
    loop {
        match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return error,
        }
        if events[0].events().intersects(EpollFlags::EPOLLIN | gone) {
            told.reading.set();
        }
        if events[0].events().intersects(EpollFlags::EPOLLOUT | gone) {
            told.writing.set();
        }
    }
}

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut file = &self.file;
        let read = || match file.read(buffer.initialize_unfilled()) {
            // No host.
            Ok(0) => Ok(None),
            Ok(count) => {
                buffer.advance(count);
                Ok(Some(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        };
        match self.edges.reading.attempt(cx, read) {
            // The end: nobody would tell us of more.
            Poll::Pending if self.edges.over.load(Ordering::Acquire) => Poll::Ready(Ok(())),
            result => result,
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut file = &self.file;
        let write = || match file.write(bytes) {
            Ok(count) => Ok(Some(count)),
            // The queue is full, or there is no host.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe) => Ok(None),
            Err(error) => Err(error),
        };
        match self.edges.writing.attempt(cx, write) {
            Poll::Pending if self.edges.over.load(Ordering::Acquire) => {
                Poll::Ready(Err(io::Error::from(io::ErrorKind::BrokenPipe)))
            }
            result => result,
        }
    }

    /// What was written is on its way.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::{
        fcntl::OFlag,
        pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
        sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A device whose other end can go away and come back, as a virtio port: a terminal's master.
    fn device() -> (Port, std::path::PathBuf) {
        let master =
            posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).expect("a pty");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a slave");
        let name = ptsname_r(&master).expect("its name").into();
        (Port::new(File::from(OwnedFd::from(master))).expect("a port"), name)
    }

    fn other_end(path: &Path) -> File {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).expect("the other end");
        let mut raw = tcgetattr(&file).expect("a terminal");
        cfmakeraw(&mut raw);
        tcsetattr(&file, SetArg::TCSANOW, &raw).expect("raw");
        file
    }

    #[tokio::test]
    async fn a_host_that_goes_away_is_not_the_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        let mut port = Port::open_for(OpenOptions::new().read(true), &path).expect("a port");
        let mut got = [0; 4];
        for word in [b"here", b"back"] {
            let mut host = OpenOptions::new().write(true).open(&path).expect("a host");
            let writing = std::thread::spawn(move || host.write_all(word).expect("sent"));
            port.read_exact(&mut got).await.expect("read");
            assert_eq!(&got, word);
            writing.join().expect("the writer");
            let silence = tokio::time::timeout(std::time::Duration::from_millis(20), port.read(&mut got)).await;
            assert!(silence.is_err(), "{silence:?}");
        }
    }

    #[tokio::test]
    async fn more_than_fits_goes_both_ways() {
        let (mut port, path) = device();
        let mut host = other_end(&path);
        let big: Vec<u8> = (0..200_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let expected = big.clone();
        let sent = big.clone();
        let mut writer = host.try_clone().expect("a second handle");
        let writing = std::thread::spawn(move || writer.write_all(&sent).expect("sent"));
        let mut got = vec![0; big.len()];
        port.read_exact(&mut got).await.expect("read");
        writing.join().expect("the writer");
        assert!(got == expected);
        let reading = std::thread::spawn(move || {
            let mut got = vec![0; expected.len()];
            host.read_exact(&mut got).expect("read");
            (got, host)
        });
        port.write_all(&big).await.expect("written");
        assert!(reading.join().expect("the reader").0 == big);
    }
}
