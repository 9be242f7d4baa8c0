//! All sandboxes of the node: found by id, told to the server.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use belljar_api::node::{Command, CommandAck, Op};
use tokio::sync::{broadcast, oneshot};

use crate::{
    Context, NodeError,
    limits::{REPORT_LAG, SANDBOXES_MAX},
    logs::LogFile,
    record::{Ending, Record, RecordError},
    sandbox::{Handle, Mail, Start, View, spawn},
};

/// The table of sandboxes.
#[derive(Debug)]
pub(crate) struct Registry {
    sandboxes: RwLock<HashMap<String, Handle>>,
    changes: broadcast::Sender<String>,
}

/// A command that could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("cannot make the directory or the log of the sandbox: {0}")]
    Directory(std::io::Error),
    #[error("this node holds {SANDBOXES_MAX} sandboxes already")]
    TooMany,
    #[error("{0:?} is not a sandbox id")]
    Id(String),
    #[error("the sandbox is just being forgotten; ask again")]
    Gone,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { sandboxes: RwLock::default(), changes: broadcast::Sender::new(REPORT_LAG) }
    }

    /// Starts a task for every record on disk.
    pub(crate) fn load(&self, ctx: &Arc<Context>) -> Result<(), NodeError> {
        let dir = ctx.storage.sandboxes();
        let entries = std::fs::read_dir(&dir).map_err(|source| NodeError::Io { path: dir.clone(), source })?;
        for entry in entries {
            let path = entry.map_err(|source| NodeError::Io { path: dir.clone(), source })?.path();
            let record = match Record::load(&path) {
                Ok(record) => record,
                Err(RecordError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    // Made, but never acknowledged: the server sends the command again.
                    std::fs::remove_dir_all(&path).map_err(|source| NodeError::Io { path, source })?;
                    continue;
                }
                Err(error) => {
                    // Left for a person: state is never thrown away because we cannot read it.
                    tracing::error!(%error, "a sandbox is left alone");
                    continue;
                }
            };
            if let Err(error) = self.start(ctx, record, Start::Adopt) {
                tracing::error!(%error, path = %path.display(), "a sandbox is left alone");
            }
        }
        Ok(())
    }

    fn start(&self, ctx: &Arc<Context>, record: Record, start: Start) -> Result<(), ApplyError> {
        let id = record.sandbox_id.clone();
        let log = LogFile::open(&ctx.storage.logs(), &id).map_err(ApplyError::Directory)?;
        let changes = self.changes.clone();
        // Nobody listening is fine: who listens later is told everything.
        let changed = move |id: &str| drop(changes.send(id.to_owned()));
        let handle = spawn(ctx.clone(), record, log, start, changed);
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).insert(id, handle);
        Ok(())
    }

    /// Takes a command; answers when it is on disk.
    pub(crate) async fn apply(&self, ctx: &Arc<Context>, command: Command) -> Result<CommandAck, ApplyError> {
        let (seq, id) = (command.seq, command.sandbox_id.clone());
        if !belljar_api::id::is_id(&id) {
            return Err(ApplyError::Id(id));
        }
        let Some(handle) = self.get(&id) else {
            return match command.op {
                Op::Create { spec } => {
                    self.create(ctx, Record::new(id, command.generation, spec))?;
                    Ok(CommandAck { seq, applied: true })
                }
                Op::Update { .. } | Op::Terminate { .. } => Ok(CommandAck { seq, applied: false }),
            };
        };
        let (reply, answer) = oneshot::channel();
        handle.mailbox.send(Mail::Command(Box::new(command), reply)).await.map_err(|_| ApplyError::Gone)?;
        Ok(answer.await.map_err(|_| ApplyError::Gone)??)
    }

    fn create(&self, ctx: &Arc<Context>, record: Record) -> Result<(), ApplyError> {
        if self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).len() >= SANDBOXES_MAX {
            return Err(ApplyError::TooMany);
        }
        let (dir, id) = (ctx.storage.sandbox(&record.sandbox_id), record.sandbox_id.clone());
        std::fs::create_dir_all(&dir).map_err(ApplyError::Directory)?;
        let result = record.save(&dir).map_err(ApplyError::from).and_then(|()| self.start(ctx, record, Start::Boot));
        match &result {
            Ok(()) => drop(self.changes.send(id)),
            Err(_) => drop(std::fs::remove_dir_all(&dir)),
        }
        result
    }

    pub(crate) fn get(&self, id: &str) -> Option<Handle> {
        self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub(crate) fn forget(&self, id: &str) {
        self.sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Every sandbox's view now, and the ids of those that change from now on.
    pub(crate) fn watch(&self) -> (Vec<View>, broadcast::Receiver<String>) {
        let changes = self.changes.subscribe();
        (self.views(), changes)
    }

    pub(crate) fn views(&self) -> Vec<View> {
        let sandboxes = self.sandboxes.read().unwrap_or_else(PoisonError::into_inner);
        sandboxes.values().map(|handle| handle.view.borrow().clone()).collect()
    }

    /// Ends every sandbox, waits until all are gone, and lets their tasks go.
    pub(crate) async fn end_all(&self, ending: &Ending) {
        let handles: Vec<Handle> =
            self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        // The first mail ends a sandbox that lives, the second its tombstone. A task that is gone needs neither.
        for _ in 0..2 {
            for handle in &handles {
                let _ = handle.mailbox.send(Mail::End(ending.clone())).await;
            }
        }
        for handle in handles {
            handle.mailbox.closed().await;
        }
    }
}
