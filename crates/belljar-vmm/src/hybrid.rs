//! The link to a guest agent over a hybrid vsock: one that the VM process shows to the host as Unix sockets.
//!
//! ```text
//! host  --connect vsock.sock, "CONNECT 1024\n"--> VM process --vsock 1024--> guest: "OK n\n", then its bytes; or the end
//! guest --vsock 1025 (the bell)--> VM process --connect vsock.sock_1025--> host, who tries again at once
//! ```
//! Format: Firecracker's `docs/vsock.md`; Cloud Hypervisor has the same. A guest rings once, when its agent begins to listen,
//! so that nobody has to ask a booting guest again and again.

use crate::error::VmmError;
use crate::limits::{RING_PATIENCE, VSOCK_ANSWER, VSOCK_ANSWER_BYTES};
use crate::run_dir::{BELL, RunDir, VSOCK};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Port on which the agent listens; on the next one it rings.
pub(crate) const LINK_PORT: u32 = 1024;

/// The way to one guest.
#[derive(Debug)]
pub(crate) struct Hybrid {
    dir: Arc<RunDir>,
    bell: UnixListener,
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
        Ok(Self { dir: Arc::clone(dir), bell: listen().map_err(failed)? })
    }

    /// Connects to the agent; waits until it listens. The caller limits how long, and watches the process.
    pub(crate) async fn connect(&self) -> Result<UnixStream, VmmError> {
        loop {
            match self.dial().await {
                Ok(Some(stream)) => return Ok(stream),
                Ok(None) => {}
                Err(source) => return Err(VmmError::Link { path: self.dir.file(VSOCK), source }),
            }
            // Whoever rings has no more to say.
            drop(tokio::time::timeout(RING_PATIENCE, self.bell.accept()).await);
        }
    }

    /// `None`: nobody listens, or the guest is not far enough to say so.
    async fn dial(&self) -> io::Result<Option<UnixStream>> {
        let mut stream = self.dir.connect(VSOCK).await?;
        let answered = async {
            stream.write_all(format!("CONNECT {LINK_PORT}\n").as_bytes()).await?;
            let mut line = Vec::new();
            // Byte by byte: what comes after the line is the agent's.
            while line.last() != Some(&b'\n') && (line.len() as u64) < VSOCK_ANSWER_BYTES {
                line.push(stream.read_u8().await?);
            }
            Ok(line)
        };
        match tokio::time::timeout(VSOCK_ANSWER, answered).await {
            Ok(Ok(line)) if line.starts_with(b"OK ") && line.ends_with(b"\n") => Ok(Some(stream)),
            Ok(Ok(_)) => Err(io::Error::new(io::ErrorKind::InvalidData, "it answers nonsense")),
            Ok(Err(error)) if ended(&error) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }
}

fn ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}
