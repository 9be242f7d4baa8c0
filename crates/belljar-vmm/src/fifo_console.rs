//! The console of a VM process that writes it to a pipe: the last of it, kept here while we live.
//!
//! The pipe has a name, and whoever opens it opens both its ends: the VM process never finds it closed, and what a guest says
//! while nobody of us lives waits in it, as far as there is room. The VM process drops the rest.

use crate::error::VmmError;
use crate::limits::CONSOLE_BYTES;
use crate::run_dir::{CONSOLE, CONSOLE_FIFO, RunDir};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

/// See the module.
#[derive(Debug)]
pub(crate) struct FifoConsole {
    dir: Arc<RunDir>,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    pipe: Receiver,
    tail: Mutex<Tail>,
}

#[derive(Debug)]
struct Tail {
    text: VecDeque<u8>,
    /// What comes from now on is for the next reader.
    closed: bool,
}

impl FifoConsole {
    /// Of a pipe that is there, with what an earlier one of us had read of it.
    pub(crate) fn open(dir: &Arc<RunDir>) -> Result<Self, VmmError> {
        let pipe = dir.open_fifo(CONSOLE_FIFO)?;
        let tail = dir.tail(CONSOLE, CONSOLE_BYTES as u64).unwrap_or_default();
        let shared = Arc::new(Shared { pipe, tail: Mutex::new(Tail { text: tail.into(), closed: false }) });
        let reading = Arc::clone(&shared);
        let reader = tokio::spawn(async move {
            // Its end would be an error: we have the other end open, too.
            while reading.pipe.readable().await.is_ok() {
                reading.drain();
            }
        });
        Ok(Self { dir: Arc::clone(dir), shared, reader })
    }

    /// What was said last, up to now.
    pub(crate) fn read(&self) -> Vec<u8> {
        self.shared.drain();
        self.shared.tail().text.iter().copied().collect()
    }

    /// Leaves it to the next one, unless the directory was cleared.
    pub(crate) fn close(&self) {
        self.reader.abort();
        let text = self.read();
        self.shared.tail().closed = true;
        if self.dir.has(CONSOLE_FIFO)
            && let Err(error) = self.dir.write(CONSOLE, &text)
        {
            tracing::warn!(%error, "the console of a VM begins anew");
        }
    }
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drain(&self) {
        let mut tail = self.tail();
        let mut buffer = [0; 4096];
        while !tail.closed {
            match self.pipe.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => tail.text.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
            let excess = tail.text.len().saturating_sub(CONSOLE_BYTES);
            tail.text.drain(..excess);
        }
    }
}

impl Drop for FifoConsole {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
