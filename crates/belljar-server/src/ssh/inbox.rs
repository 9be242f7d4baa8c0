//! What a client sent over a channel and nobody has taken yet.
//!
//! russh hands data over as it reads it and must never be made to wait, since it would stop every other channel with
//! it. So this takes whatever comes; the channel's window bounds it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    arrived: Notify,
    closing: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    ended: bool,
    closed: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, data: &[u8]) {
        let mut state = self.lock();
        if !state.ended {
            state.bytes.extend_from_slice(data);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.arrived.notify_one();
    }

    /// Nothing more will come, and nothing more is wanted.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        (state.ended, state.closed) = (true, true);
        drop(state);
        self.arrived.notify_one();
        self.closing.notify_one();
    }

    /// Waits until nothing more is wanted. For one waiter.
    pub(super) async fn closed(&self) {
        while !self.lock().closed {
            self.closing.notified().await;
        }
    }

    /// Waits for bytes and takes at most so many; `None` at the end. For one reader.
    pub(super) async fn take(&self, most: usize) -> Option<Bytes> {
        loop {
            {
                let mut state = self.lock();
                if !state.bytes.is_empty() {
                    let count = state.bytes.len().min(most);
                    return Some(state.bytes.split_to(count).freeze());
                }
                if state.ended {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn bytes_come_in_order_and_then_the_end() {
        let inbox = Arc::new(Inbox::default());
        let reader = Arc::clone(&inbox);
        let read = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(bytes) = reader.take(3).await {
                assert!(bytes.len() <= 3);
                all.extend_from_slice(&bytes);
            }
            all
        });
        for chunk in ["hello", "", " ", "world"] {
            inbox.push(chunk.as_bytes());
            tokio::task::yield_now().await;
        }
        inbox.end();
        inbox.push(b"too late");
        assert_eq!(read.await.expect("reader"), b"hello world");
    }
}
