//! What a sandbox's task is asked: it takes commands and tells what is left to do, now or when it can be done.
//!
//! A command is on disk before it is acknowledged. One that changes where the sandbox stands, or how it is set, is told to
//! the server only together with what it does (`Task::held_back`): a report with its generation and the old state would say
//! that it was in vain, and one before new rules hold would let somebody rely on them too early.

use std::{future::Future, pin::pin, time::Duration};

use belljar_api::{network::NetworkUse, node::CommandAck, sandbox::TerminationReason, snapshot::SnapshotType};
use tokio::sync::oneshot;

use super::{
    Forked, Mail, NotAwake, Order,
    policy::{Decision, decide},
    task::Task,
};
use crate::{
    limits::DEFERRED_MAX,
    record::{Ending, Record, RecordError},
};

/// What a mail asks of the task beyond what taking it did.
#[derive(Debug)]
pub(super) enum Work {
    Nothing,
    /// The settings in the record are new.
    Settings,
    End(Ending),
    /// Nobody used it for so long.
    Idle(Duration),
    Suspend,
    Resume,
    Wake(oneshot::Sender<Result<(), NotAwake>>),
    Release,
    /// See [`Mail::Tell`].
    Tell(oneshot::Sender<NetworkUse>),
    Snapshot(String, SnapshotType),
    Copy(Vec<oneshot::Sender<Forked>>),
    Rollback(String),
}

impl Task {
    /// The next thing to do: what had to wait first. Dropping the future loses nothing.
    pub(super) async fn next_work(&mut self) -> Work {
        let work = match self.deferred.pop_front() {
            Some(work) => work,
            None => {
                let mail = self.mail.recv().await;
                self.handle(mail).await
            }
        };
        self.stop_holding_back();
        work
    }

    /// Lets the next report tell how far commands were taken, if none of them waits.
    pub(super) fn stop_holding_back(&mut self) {
        if self.deferred.is_empty() {
            self.held_back = None;
        }
    }

    /// Runs `work`, but gives up on it as soon as a command ends the sandbox. What else is asked meanwhile waits until
    /// there is a running sandbox to do it with.
    pub(super) async fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Ending> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                mail = self.mail.recv() => match self.handle(mail).await {
                    Work::End(ending) => return Err(ending),
                    Work::Wake(reply) => self.wakers.push(reply),
                    // Settings come into force before it is shown as awake.
                    Work::Nothing | Work::Settings | Work::Release | Work::Tell(_) | Work::Idle(_) => {}
                    other if self.deferred.len() < DEFERRED_MAX => self.deferred.push_back(other),
                    other => self.refuse(other, "too much is asked of it before it runs"),
                },
                result = &mut work => return Ok(result),
            }
        }
    }

    /// Takes one mail; answers what it asks for.
    async fn handle(&mut self, mail: Option<Mail>) -> Work {
        match mail {
            Some(Mail::Command(order)) => self.take(*order),
            Some(Mail::End(ending)) => Work::End(ending),
            Some(Mail::Wake(reply)) => Work::Wake(reply),
            Some(Mail::Release) => Work::Release,
            Some(Mail::Tell(reply)) => Work::Tell(reply),
            // The node itself is gone: leave the VM for the next one.
            None => std::future::pending().await,
        }
    }

    /// Takes a command: on disk first, then acknowledged; what is left to do comes back.
    fn take(&mut self, order: Order) -> Work {
        let Order { command, seats, reply } = order;
        let decision = decide(&self.record, &command);
        let mut next = self.record.clone();
        next.generation = next.generation.max(command.generation);
        if !matches!(decision, Decision::Stale | Decision::Nothing) {
            next.trouble = None;
        }
        match &decision {
            Decision::Update(settings) => next.spec.settings = settings.clone(),
            Decision::End(reason) => next.ending = Some(Ending::new(*reason, "")),
            Decision::Refuse(why) => next.trouble = Some((*why).to_owned()),
            Decision::Stale
            | Decision::Nothing
            | Decision::Forget
            | Decision::Suspend
            | Decision::Resume
            | Decision::Snapshot(..)
            | Decision::Copy
            | Decision::Rollback(_) => {}
        }
        let ack = CommandAck { seq: command.seq, applied: decision != Decision::Stale };
        let forget = decision == Decision::Forget;
        if forget {
            self.forget();
        }
        let changed = next != self.record && !forget;
        let result = if changed { self.keep(&next) } else { Ok(()) };
        let saved = result.is_ok();
        let before = self.record.generation;
        if saved {
            self.record = next;
        }
        // A sender that went away asks again.
        let _ = reply.send(result.map(|()| ack));
        if !saved {
            return Work::Nothing;
        }
        let work = self.work_of(decision, seats);
        if matches!(work, Work::Settings | Work::Suspend | Work::Resume | Work::Rollback(_)) {
            self.held_back.get_or_insert(before);
        } else if changed {
            self.republish();
        }
        work
    }

    fn keep(&self, next: &Record) -> Result<(), RecordError> {
        self.ctx.faults.point("command: record")?;
        next.save(&self.dir)
    }

    fn work_of(&mut self, decision: Decision, seats: Vec<oneshot::Sender<Forked>>) -> Work {
        match decision {
            Decision::End(_) => self.record.ending.clone().map_or(Work::Nothing, Work::End),
            Decision::Forget => Work::End(Ending::new(TerminationReason::User, "")),
            Decision::Suspend => Work::Suspend,
            Decision::Resume => Work::Resume,
            Decision::Snapshot(id, kind) if self.ctx.snapshots.begin(&id) => Work::Snapshot(id, kind),
            Decision::Copy => Work::Copy(seats),
            Decision::Rollback(id) => Work::Rollback(id),
            Decision::Refuse(why) => {
                tell_seats(seats, why);
                Work::Nothing
            }
            Decision::Update(_) => Work::Settings,
            Decision::Stale | Decision::Nothing | Decision::Snapshot(..) => Work::Nothing,
        }
    }

    /// Tells whoever waits for this that it will not happen.
    pub(super) fn refuse(&mut self, work: Work, why: &str) {
        match work {
            Work::Nothing | Work::Settings | Work::End(_) | Work::Release | Work::Tell(_) | Work::Idle(_) => {}
            Work::Wake(reply) => drop(reply.send(Err(NotAwake::Failed(why.to_owned())))),
            Work::Snapshot(id, _) => self.ctx.snapshots.fail(&id, why.to_owned()),
            Work::Copy(seats) => tell_seats(seats, why),
            Work::Suspend | Work::Resume | Work::Rollback(_) => {
                self.stop_holding_back();
                self.trouble("not done", why);
                self.republish();
            }
        }
    }

    /// Tells everybody who waits for the agent how that went.
    pub(super) fn answer_wakers(&mut self, answer: &Result<(), NotAwake>) {
        for waker in self.wakers.drain(..) {
            // Whoever asked may have gone.
            let _ = waker.send(answer.clone());
        }
    }

    /// Stays as a tombstone until the server has taken note.
    pub(super) async fn linger(&mut self) {
        while let Some(mail) = self.mail.recv().await {
            match mail {
                Mail::Command(order) => match self.take(*order) {
                    Work::End(_) => return,
                    other => self.refuse(other, "the sandbox has ended"),
                },
                Mail::Wake(reply) => drop(reply.send(Err(NotAwake::Ended))),
                Mail::Release | Mail::Tell(_) => {}
                Mail::End(_) => return,
            }
        }
    }

    fn forget(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "cannot remove an ended sandbox");
        }
        self.ctx.forget(&self.record.sandbox_id);
    }
}

fn tell_seats(seats: Vec<oneshot::Sender<Forked>>, why: &str) {
    for seat in seats {
        // A copy that was ended meanwhile does not want to know.
        let _ = seat.send(Err(why.to_owned()));
    }
}
