//! A client of QEMU's control protocol (QMP): one JSON object per line, over a Unix socket.
//!
//! Only what this crate needs: commands one at a time, and of the events those that tell why the guest stopped and how a
//! migration (saving or restoring a state) stands. A task reads; it ends with the connection or with the client.

use crate::child::known;
use crate::limits::{QMP_LINE_BYTES, QMP_REPLY};
use crate::supervise::ControlError;
use serde_json::{Value, json};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// What can go wrong on the control connection.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Reading or writing failed.
    #[error("QMP connection failed")]
    Io(#[from] io::Error),
    /// QEMU closed the connection, usually because it ended.
    #[error("QEMU closed the QMP connection")]
    Closed,
    /// A line that is longer than any QEMU sends us.
    #[error("QMP message longer than {QMP_LINE_BYTES} bytes")]
    TooLong,
    /// Not JSON, or not what QMP says.
    #[error("not a QMP message: {0}")]
    Malformed(String),
    /// QEMU refused a command.
    #[error("QEMU refused `{command}`: {class}: {description}")]
    Refused { command: &'static str, class: String, description: String },
    /// A state was not saved or restored.
    #[error("QEMU's migration {status}")]
    NotMigrated { status: String },
    /// No answer.
    #[error("QEMU did not answer `{command}` within {} s", QMP_REPLY.as_secs())]
    Silent { command: &'static str },
}

impl ControlError for QmpError {
    fn is_broken(&self) -> bool {
        matches!(self, Self::Closed | Self::Io(_))
    }
}

/// One message from QEMU.
#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Return {
        id: u64,
        value: Value,
    },
    Error {
        id: u64,
        class: String,
        description: String,
    },
    /// The machine stopped for good, and why: `guest-reset`, `guest-shutdown`, `guest-panic`, `host-...`.
    Shutdown {
        reason: String,
    },
    /// A migration got on: `setup`, `active`, .. `completed` or `failed`.
    Migration {
        status: String,
    },
    /// Any other event.
    Event,
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let malformed = || QmpError::Malformed(String::from_utf8_lossy(line).chars().take(200).collect());
    let mut message: Value = serde_json::from_slice(line).map_err(|_| malformed())?;
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let id = message.get("id").and_then(Value::as_u64);
    if message.get("QMP").is_some() {
        Ok(Message::Greeting)
    } else if let Some(event) = message.get("event").and_then(Value::as_str) {
        let data = |key: &str| message.get("data").map(|data| text(data, key)).unwrap_or_default();
        match event {
            "SHUTDOWN" => Ok(Message::Shutdown { reason: data("reason") }),
            "MIGRATION" => Ok(Message::Migration { status: data("status") }),
            _ => Ok(Message::Event),
        }
    } else if let Some(error) = message.get("error") {
        // Without an id it is about a line QEMU could not read; ours are all well-formed.
        let id = id.ok_or_else(malformed)?;
        Ok(Message::Error { id, class: text(error, "class"), description: text(error, "desc") })
    } else if let Some(value) = message.get_mut("return").map(Value::take) {
        Ok(Message::Return { id: id.ok_or_else(malformed)?, value })
    } else {
        Err(malformed())
    }
}

/// Reads one line without its end; `None` at the end of the stream. Never holds more than a line may have.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Vec<u8>>, QmpError> {
    let mut line = Vec::new();
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(None);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let take = end.unwrap_or(chunk.len());
        if line.len() + take > QMP_LINE_BYTES {
            return Err(QmpError::TooLong);
        }
        line.extend_from_slice(&chunk[..take]);
        reader.consume(end.map_or(take, |end| end + 1));
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

/// Who waits for an answer.
enum Waiting {
    Nobody,
    For {
        id: u64,
        answer: oneshot::Sender<Message>,
    },
    /// The connection is over; nobody needs to wait.
    Closed,
}

type Slot = Arc<Mutex<Waiting>>;

fn lock(slot: &Slot) -> MutexGuard<'_, Waiting> {
    // Nothing panics while holding the lock; a poisoned one is still whole.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    /// The one who waits for answer `wanted`, who then waits no more. Nobody when it is the late answer to a command that
    /// was given up.
    fn take(&mut self, wanted: u64) -> Option<oneshot::Sender<Message>> {
        match std::mem::replace(self, Self::Nobody) {
            Self::For { id, answer } if id == wanted => Some(answer),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// A connection in command mode.
pub(crate) struct Qmp {
    slot: Slot,
    /// Also makes commands wait for each other: QEMU serves them one by one.
    writer: tokio::sync::Mutex<(OwnedWriteHalf, u64)>,
    shutdown: watch::Receiver<Option<String>>,
    migration: watch::Receiver<Option<String>>,
    reader: JoinHandle<()>,
}

impl Drop for Qmp {
    /// QEMU serves one client at a time: a forgotten reader would keep the next one out.
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Waits for the greeting and enters command mode. Waits as long as it takes; callers bound it.
    pub(crate) async fn start(stream: UnixStream) -> Result<Self, QmpError> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::new(read);
        let greeting = read_line(&mut read).await?.ok_or(QmpError::Closed)?;
        if parse(&greeting)? != Message::Greeting {
            return Err(QmpError::Malformed("no greeting".to_owned()));
        }
        let slot: Slot = Arc::new(Mutex::new(Waiting::Nobody));
        let (stopped, shutdown) = watch::channel(None);
        let (migrated, migration) = watch::channel(None);
        let reader = tokio::spawn(read_all(read, Arc::clone(&slot), stopped, migrated));
        let this = Self { slot, writer: tokio::sync::Mutex::new((write, 0)), shutdown, migration, reader };
        this.command("qmp_capabilities", json!({})).await?;
        Ok(this)
    }

    /// Runs one command and returns its answer.
    pub(crate) async fn command(&self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let mut writer = self.writer.lock().await;
        writer.1 += 1;
        let id = writer.1;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let (tell, answer) = oneshot::channel();
        {
            let mut slot = lock(&self.slot);
            if matches!(*slot, Waiting::Closed) {
                return Err(QmpError::Closed);
            }
            *slot = Waiting::For { id, answer: tell };
        }
        let exchange = async {
            writer.0.write_all(line.as_bytes()).await?;
            answer.await.map_err(|_| QmpError::Closed)
        };
        match tokio::time::timeout(QMP_REPLY, exchange).await.map_err(|_| QmpError::Silent { command })?? {
            Message::Return { value, .. } => Ok(value),
            Message::Error { class, description, .. } => Err(QmpError::Refused { command, class, description }),
            Message::Greeting | Message::Shutdown { .. } | Message::Migration { .. } | Message::Event => {
                Err(QmpError::Malformed(format!("answer to `{command}`")))
            }
        }
    }

    /// Resolves with the reason when the guest has stopped for good; never when the connection ends first.
    pub(crate) async fn shutdown(&self) -> String {
        known(&self.shutdown).await
    }

    /// Waits until the one migration of this connection is over. It must have the capability `events`.
    pub(crate) async fn migrated(&self) -> Result<(), QmpError> {
        let mut migration = self.migration.clone();
        let over = |status: &Option<String>| matches!(status.as_deref(), Some("completed" | "failed" | "cancelled"));
        match migration.wait_for(over).await.map_err(|_| QmpError::Closed)?.as_deref() {
            Some("completed") => Ok(()),
            status => Err(QmpError::NotMigrated { status: status.unwrap_or_default().to_owned() }),
        }
    }
}

async fn read_all(
    mut read: impl AsyncBufRead + Unpin,
    slot: Slot,
    shutdown: watch::Sender<Option<String>>,
    migration: watch::Sender<Option<String>>,
) {
    loop {
        let message = match read_line(&mut read).await {
            Ok(Some(line)) => parse(&line),
            Ok(None) => break,
            Err(error) => Err(error),
        };
        match message {
            Ok(answer @ (Message::Return { id, .. } | Message::Error { id, .. })) => {
                if let Some(asker) = lock(&slot).take(id) {
                    // Whoever asked may have given up waiting.
                    let _ = asker.send(answer);
                }
            }
            Ok(Message::Shutdown { reason }) => drop(shutdown.send_replace(Some(reason))),
            Ok(Message::Migration { status }) => drop(migration.send_replace(Some(status))),
            Ok(Message::Greeting | Message::Event) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "QMP connection given up");
                break;
            }
        }
    }
    // Dropping the waiting sender tells the waiting command.
    *lock(&slot) = Waiting::Closed;
}

#[cfg(test)]
#[path = "qmp_test.rs"]
mod tests;
