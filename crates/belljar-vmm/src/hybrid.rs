//! The link to a guest agent over a hybrid vsock: one that the VM process shows to the host as Unix sockets.
//!
//! ```text
//! host  --connect vsock.sock, "CONNECT 1024\n"--> VM process --vsock 1024--> guest: "OK n\n", then its bytes; or the end
//! guest --vsock 1025 (the bell)--> VM process --connect vsock.sock_1025--> host, who tries again at once
//! ```
//! Format: Firecracker's `docs/vsock.md`; Cloud Hypervisor has the same. A guest rings once, when its agent begins to listen,
//! so that nobody has to ask a booting guest again and again.
//!
//! The VM process numbers its ends of connections from [`FIRST_PORT`] on, each process anew. A guest that goes on in another one
//! still takes the link that it had for open, unless the program tells it otherwise, and then takes no notice of a connection
//! that is asked for under the same number. So that number is kept with the saved state, and passed over.

use crate::error::VmmError;
use crate::limits::{RING_PATIENCE, VSOCK_ANSWER, VSOCK_ANSWER_BYTES};
use crate::run_dir::{BELL, RunDir, VSOCK};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Port on which the agent listens; on the next one it rings.
pub(crate) const LINK_PORT: u32 = 1024;

/// Nobody listens on it in a guest.
const NOBODYS_PORT: u32 = 1;

/// The host's end of the first connection that a VM process is asked for.
const FIRST_PORT: u32 = 1 << 30;

/// The way to one guest.
#[derive(Debug)]
pub(crate) struct Hybrid {
    dir: Arc<RunDir>,
    bell: UnixListener,
    /// Connections asked for.
    dials: AtomicU32,
    /// The host's end of the latest link; 0 before the first.
    port: AtomicU32,
    /// That of the link that the guest had in another process.
    earlier: Option<u32>,
}

impl Hybrid {
    /// Before the VM process starts, or of one that runs.
    pub(crate) fn new(dir: &Arc<RunDir>) -> Result<Self, VmmError> {
        dir.remove(BELL)?;
        let bell = dir.listen(BELL)?;
        let listen = || {
            bell.set_nonblocking(true)?;
            UnixListener::from_std(bell)
        };
        let failed = |source| VmmError::RunDir { operation: "listen on", path: dir.file(BELL), source };
        let bell = listen().map_err(failed)?;
        Ok(Self { dir: Arc::clone(dir), bell, dials: AtomicU32::new(0), port: AtomicU32::new(0), earlier: None })
    }

    /// The way to a guest that had its link at this end when it was saved. Of a process that nobody has connected to.
    pub(crate) fn of_saved(self, earlier: Option<u32>) -> Self {
        Self { earlier, ..self }
    }

    /// The host's end of the latest link.
    pub(crate) fn port(&self) -> Option<u32> {
        Some(self.port.load(Ordering::Relaxed)).filter(|port| *port != 0)
    }

    /// Connects to the agent; waits until it listens. The caller limits how long, and watches the process.
    pub(crate) async fn connect(&self) -> Result<UnixStream, VmmError> {
        let failed = |source| VmmError::Link { path: self.dir.file(VSOCK), source };
        loop {
            if self.earlier == Some(FIRST_PORT + self.dials.load(Ordering::Relaxed)) {
                // The guest's kernel refuses it.
                drop(self.dial(NOBODYS_PORT).await.map_err(failed)?);
            }
            if let Some((stream, port)) = self.dial(LINK_PORT).await.map_err(failed)? {
                self.port.store(port, Ordering::Relaxed);
                return Ok(stream);
            }
            // Whoever rings has no more to say.
            drop(tokio::time::timeout(RING_PATIENCE, self.bell.accept()).await);
        }
    }

    /// A connection to a port of the guest, and the number of the host's end of it. `None`: nobody listens, or the guest is not
    /// far enough to say so.
    async fn dial(&self, to: u32) -> io::Result<Option<(UnixStream, u32)>> {
        let mut stream = self.dir.connect(VSOCK).await?;
        self.dials.fetch_add(1, Ordering::Relaxed);
        let answered = async {
            stream.write_all(format!("CONNECT {to}\n").as_bytes()).await?;
            let mut line = Vec::new();
            // Byte by byte: what comes after the line is the agent's.
            while line.last() != Some(&b'\n') && (line.len() as u64) < VSOCK_ANSWER_BYTES {
                line.push(stream.read_u8().await?);
            }
            Ok(line)
        };
        match tokio::time::timeout(VSOCK_ANSWER, answered).await {
            Ok(Ok(line)) => match number(&line) {
                Some(port) => Ok(Some((stream, port))),
                None => Err(io::Error::new(io::ErrorKind::InvalidData, "it answers nonsense")),
            },
            Ok(Err(error)) if ended(&error) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }
}

/// The number of the host's end that an answer tells.
fn number(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line).ok()?.strip_prefix("OK ")?.strip_suffix('\n')?.parse().ok()
}

fn ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};

    /// A VM process with a guest that takes its link at `stale` for open. Tells on which ports of the guest it was asked for
    /// connections.
    async fn process(listener: tokio::net::UnixListener, stale: Option<u32>, asked: Arc<std::sync::Mutex<Vec<u32>>>) {
        let mut ignored = Vec::new();
        for number in FIRST_PORT.. {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let port = line.strip_prefix("CONNECT ").unwrap().trim_end().parse().unwrap();
            asked.lock().unwrap().push(port);
            match port {
                LINK_PORT if stale == Some(number) => ignored.push(stream),
                LINK_PORT => stream.write_all(format!("OK {number}\n").as_bytes()).await.unwrap(),
                _ => {}
            }
        }
    }

    /// It connects at the first attempt, having asked for these ports.
    async fn check(stale: Option<u32>, expected: &[u32], port: u32) {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let temporary = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let dir = Arc::new(RunDir::open(temporary.path()).unwrap());
        let listener = dir.listen(VSOCK).unwrap();
        listener.set_nonblocking(true).unwrap();
        let asked = Arc::default();
        let process = tokio::spawn(process(UnixListener::from_std(listener).unwrap(), stale, Arc::clone(&asked)));
        let link = Hybrid::new(&dir).unwrap().of_saved(stale);
        assert_eq!(link.port(), None);
        link.connect().await.unwrap();
        assert_eq!((asked.lock().unwrap().as_slice(), link.port()), (expected, Some(port)), "{stale:?}");
        process.abort();
    }

    #[tokio::test]
    async fn a_number_that_the_guest_takes_for_open_is_passed_over() {
        check(None, &[LINK_PORT], FIRST_PORT).await;
        check(Some(FIRST_PORT), &[NOBODYS_PORT, LINK_PORT], FIRST_PORT + 1).await;
        check(Some(FIRST_PORT + 1), &[LINK_PORT], FIRST_PORT).await;
    }

    #[test]
    fn an_answer_has_a_number() {
        assert_eq!(number(b"OK 1073741824\n"), Some(FIRST_PORT));
        for nonsense in [&b"OK\n"[..], b"OK \n", b"OK -1\n", b"OK 4294967296\n", b"OK 1", b"NO 1\n", b"OK \xff\n"] {
            assert_eq!(number(nonsense), None);
        }
    }
}
