//! All sandboxes of the node: found by id, told to the server.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use belljar_api::node::{Command, CommandAck, CopySpec, Op, Origin};
use tokio::sync::{broadcast, oneshot};

use crate::{
    Context, NodeError,
    limits::{COPIES_MAX, REPORT_LAG, SANDBOXES_MAX},
    logs::LogFile,
    record::{Ending, Record, RecordError},
    sandbox::{Forked, Handle, Mail, Order, Start, View, spawn},
    snapshots::SnapshotError,
};

/// The table of sandboxes.
#[derive(Debug)]
pub(crate) struct Registry {
    sandboxes: RwLock<HashMap<String, Handle>>,
    changes: broadcast::Sender<Changed>,
}

/// What the server is told anew.
#[derive(Debug, Clone)]
pub(crate) enum Changed {
    /// The sandbox with this id.
    Sandbox(String),
    /// The snapshot with this id.
    Snapshot(String),
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
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("{0} copies at once; at most {COPIES_MAX}")]
    Copies(usize),
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { sandboxes: RwLock::default(), changes: broadcast::Sender::new(REPORT_LAG) }
    }

    /// Where changes are announced.
    pub(crate) fn changes(&self) -> broadcast::Sender<Changed> {
        self.changes.clone()
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
            ctx.gpus.note(&record.sandbox_id, &record.passed_through);
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
        let changed = move |id: &str| drop(changes.send(Changed::Sandbox(id.to_owned())));
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
        if command.op == Op::DeleteSnapshot {
            ctx.snapshots.delete(ctx, &id).await?;
            return Ok(CommandAck { seq, applied: true });
        }
        let handle = self.get(&id);
        let seats = match &command.op {
            // A source that has taken it already has made them: those that are not there any more have ended.
            Op::Copy { .. } if handle.as_ref().is_some_and(|it| it.has_taken(command.generation)) => Vec::new(),
            Op::Copy { copies } => self.seat(ctx, &id, copies)?,
            _ => Vec::new(),
        };
        let Some(handle) = handle else {
            if let Op::Snapshot { snapshot_id, .. } = &command.op
                && ctx.snapshots.begin(snapshot_id)
            {
                ctx.snapshots.fail(snapshot_id, "the sandbox is not on this node any more".to_owned());
            }
            return match command.op {
                Op::Create { spec, origin } => {
                    self.create(ctx, Record::new(id, command.generation, spec, origin), Start::Boot)?;
                    Ok(CommandAck { seq, applied: true })
                }
                _ => Ok(CommandAck { seq, applied: false }),
            };
        };
        let (reply, answer) = oneshot::channel();
        let order = Box::new(Order { command, seats, reply });
        handle.mailbox.send(Mail::Command(order)).await.map_err(|_| ApplyError::Gone)?;
        Ok(answer.await.map_err(|_| ApplyError::Gone)??)
    }

    /// Makes the copies of a sandbox, as far as they are not there yet, and lets them wait for what they begin as. When
    /// that never comes they end, each with its reason.
    fn seat(
        &self,
        ctx: &Arc<Context>,
        source: &str,
        copies: &[CopySpec],
    ) -> Result<Vec<oneshot::Sender<Forked>>, ApplyError> {
        if copies.len() > COPIES_MAX {
            return Err(ApplyError::Copies(copies.len()));
        }
        let mut seats = Vec::new();
        for copy in copies.iter().filter(|copy| self.get(&copy.sandbox_id).is_none()) {
            if !belljar_api::id::is_id(&copy.sandbox_id) {
                return Err(ApplyError::Id(copy.sandbox_id.clone()));
            }
            let origin = Origin::Copy { sandbox_id: source.to_owned() };
            let record = Record::new(copy.sandbox_id.clone(), copy.generation, copy.spec.clone(), origin);
            let (seat, waiting) = oneshot::channel();
            self.create(ctx, record, Start::Copy(waiting))?;
            seats.push(seat);
        }
        Ok(seats)
    }

    fn create(&self, ctx: &Arc<Context>, record: Record, start: Start) -> Result<(), ApplyError> {
        if self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).len() >= SANDBOXES_MAX {
            return Err(ApplyError::TooMany);
        }
        let (dir, id) = (ctx.storage.sandbox(&record.sandbox_id), record.sandbox_id.clone());
        std::fs::create_dir_all(&dir).map_err(ApplyError::Directory)?;
        let result = record.save(&dir).map_err(ApplyError::from).and_then(|()| self.start(ctx, record, start));
        match &result {
            Ok(()) => drop(self.changes.send(Changed::Sandbox(id))),
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

    /// Lets sleeping sandboxes give back the memory that they still hold.
    pub(crate) fn release(&self) {
        for handle in self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).values() {
            if handle.view.borrow().sleeps() {
                // A full mailbox means that it is about to do something else.
                let _ = handle.mailbox.try_send(Mail::Release);
            }
        }
    }

    /// Every sandbox's view now, and the ids of those that change from now on.
    pub(crate) fn watch(&self) -> (Vec<View>, broadcast::Receiver<Changed>) {
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
