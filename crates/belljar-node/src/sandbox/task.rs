//! The task that owns one sandbox. See the drawing in the parent module.

use std::{future::Future, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use belljar_api::{
    log::level,
    node::{Command, CommandAck, NodeState},
    sandbox::TerminationReason,
};
use belljar_vmm::VmExit;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Handle, Mail, View,
    boot::{Booted, Plan, chain, undo},
    policy::{Decision, decide},
};
use crate::{
    Context,
    idle::{Activity, Suspicion},
    limits::{EXIT_GRACE, LINK_FAILURE_WINDOW, LINK_FAILURES_MAX, MAILBOX, RELINK_TIMEOUT, UNDO_PAUSE},
    logs::{LogFile, collector, file::now_ns},
    record::{Ending, Record, RecordError},
};

/// How a task begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Nothing is there yet.
    Boot,
    /// An earlier node process may have left a VM.
    Adopt,
}

/// Starts the task of a sandbox whose record is on disk. `changed` is told its id at every change of its view.
pub(crate) fn spawn(
    ctx: Arc<Context>,
    record: Record,
    log: LogFile,
    start: Start,
    changed: impl Fn(&str) + Send + 'static,
) -> Handle {
    let (mailbox, mail) = mpsc::channel(MAILBOX);
    let (view_sender, view) = watch::channel(View::of(&record, None));
    let (activity, suspicion) = (Activity::new(), Arc::new(Suspicion::default()));
    let handle = Handle { mailbox, view, activity: activity.clone(), suspicion: suspicion.clone() };
    let dir = ctx.storage.sandbox(&record.sandbox_id);
    let log = Arc::new(log);
    let task = Task {
        ctx: ctx.clone(),
        record,
        dir,
        mail,
        view: view_sender,
        activity,
        suspicion,
        log,
        changed: Box::new(changed),
    };
    ctx.tasks.spawn(ctx.leaving.clone().run_until_cancelled_owned(task.run(start)));
    handle
}

struct Task {
    ctx: Arc<Context>,
    record: Record,
    dir: PathBuf,
    mail: mpsc::Receiver<Mail>,
    view: watch::Sender<View>,
    activity: Activity,
    suspicion: Arc<Suspicion>,
    log: Arc<LogFile>,
    changed: Box<dyn Fn(&str) + Send>,
}

impl Task {
    async fn run(mut self, start: Start) {
        if !matches!(self.record.state, NodeState::Terminated { .. }) {
            let ending = match self.record.ending.clone() {
                Some(ending) => ending,
                None => self.live(start).await,
            };
            self.end(ending).await;
        }
        self.linger().await;
    }

    /// Boots or adopts, then runs, until there is a reason to end.
    async fn live(&mut self, start: Start) -> Ending {
        let begun = Instant::now();
        let plan = self.plan();
        let booted = match start {
            Start::Boot => self.unless_ended(async { plan.boot().await.map(Some) }).await,
            Start::Adopt => self.unless_ended(plan.adopt()).await,
        };
        match booted {
            Err(ending) => ending,
            Ok(Err(error)) => error.ending(),
            Ok(Ok(None)) => Ending::new(TerminationReason::VmmExited, "its VM was gone when the node came back"),
            Ok(Ok(Some(booted))) => {
                let verb = if start == Start::Boot { "started" } else { "found again" };
                self.note(level::INFO, &format!("{verb} in {} ms", begun.elapsed().as_millis()));
                self.running(booted).await
            }
        }
    }

    async fn running(&mut self, booted: Booted) -> Ending {
        let Booted { vm, mut link, mut session } = booted;
        self.activity.touch();
        let mut suspicions = self.suspicion.listen();
        let mut failures: Vec<Instant> = Vec::new();
        let exited = vm.clone();
        let mut exit = pin!(async move { exited.wait().await });
        loop {
            let collect = collector::collect(link.clone(), self.log.clone());
            let collector = AbortOnDropHandle::new(self.ctx.tasks.spawn(collect));
            self.record.state = NodeState::Running;
            self.publish(Some(link.clone()));
            let mut link_end = pin!(session);
            let trouble = loop {
                let timeout = self.idle_timeout();
                let network = self.record.spec.settings.network.allow_internet_access;
                let activity = self.activity.clone();
                tokio::select! {
                    biased;
                    exit = &mut exit => return ending_of(&exit),
                    reason = &mut link_end => break match reason {
                        Ok(reason) => format!("the link broke: {}", chain(&reason)),
                        Err(panic) => format!("the link broke: {panic}"),
                    },
                    Some(()) = suspicions.recv() => break "the agent accepts no connection".to_owned(),
                    mail = self.mail.recv() => if let Some(ending) = self.handle(mail).await { return ending },
                    () = activity.idle_for(timeout) => return self.idle_ending(timeout),
                }
                let wanted = self.record.spec.settings.network.allow_internet_access;
                if wanted != network
                    && let Err(error) = vm.set_network(wanted).await
                {
                    return Ending::new(TerminationReason::VmmExited, chain(&error));
                }
            };
            drop(collector);
            self.publish(None);
            self.note(level::WARN, &trouble);
            failures.retain(|at| at.elapsed() < LINK_FAILURE_WINDOW);
            failures.push(Instant::now());
            if failures.len() >= LINK_FAILURES_MAX {
                return Ending::new(TerminationReason::GuestUnresponsive, trouble);
            }
            let plan = self.plan();
            let runtime = self.ctx.images.find_runtime(&self.record.spec.image).unwrap_or_default();
            let relink = plan.attach(vm.clone(), &runtime, RELINK_TIMEOUT);
            match self.unless_ended(relink).await {
                Err(ending) => return ending,
                Ok(Err(error)) => {
                    // The link of a VM that ends breaks a moment before the end is noticed.
                    if let Ok(exit) = tokio::time::timeout(EXIT_GRACE, &mut exit).await {
                        return ending_of(&exit);
                    }
                    return Ending::new(TerminationReason::GuestUnresponsive, format!("{trouble}; {}", chain(&error)));
                }
                Ok(Ok(again)) => (link, session) = (again.link, again.session),
            }
        }
    }

    /// Runs `work`, but gives up on it as soon as a command ends the sandbox.
    async fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Ending> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                mail = self.mail.recv() => if let Some(ending) = self.handle(mail).await { return Err(ending) },
                result = &mut work => return Ok(result),
            }
        }
    }

    /// Takes one mail; answers the ending when it asks for one.
    async fn handle(&mut self, mail: Option<Mail>) -> Option<Ending> {
        match mail {
            Some(Mail::Command(command, reply)) => {
                self.take(&command, reply);
                self.record.ending.clone()
            }
            Some(Mail::End(ending)) => Some(ending),
            // The node itself is gone: leave the VM for the next one.
            None => std::future::pending().await,
        }
    }

    /// Takes a command; true when the sandbox is to be forgotten.
    fn take(&mut self, command: &Command, reply: oneshot::Sender<Result<CommandAck, RecordError>>) -> bool {
        let decision = decide(&self.record, command);
        let mut next = self.record.clone();
        next.generation = next.generation.max(command.generation);
        match &decision {
            Decision::Update(settings) => next.spec.settings = settings.clone(),
            Decision::End(reason) => next.ending = Some(Ending::new(*reason, "")),
            Decision::Stale | Decision::Nothing | Decision::Forget => {}
        }
        let ack = CommandAck { seq: command.seq, applied: decision != Decision::Stale };
        let forget = decision == Decision::Forget;
        if forget {
            self.forget();
        }
        let result = if next == self.record || forget { Ok(()) } else { next.save(&self.dir) };
        let saved = result.is_ok();
        if saved {
            self.record = next;
        }
        // A sender that went away asks again.
        let _ = reply.send(result.map(|()| ack));
        forget && saved
    }

    /// Undoes everything, in an order that a crash at any point lets the next start finish.
    async fn end(&mut self, ending: Ending) {
        self.note(if is_failure(ending.reason) { level::ERROR } else { level::INFO }, &describe(&ending));
        self.record.ending = Some(ending.clone());
        self.save();
        self.publish(None);
        let mut pause = UNDO_PAUSE.0;
        while let Err(error) = undo(&self.ctx, &self.dir).await {
            // Telling the end while the VM may live would free a place that is not free. The record stays, so that a
            // new node goes on here.
            tracing::error!(sandbox = self.record.sandbox_id, error = chain(&error), "cannot clean up after a sandbox");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(UNDO_PAUSE.1);
        }
        let at = i64::try_from(now_ns() / 1_000_000).unwrap_or(i64::MAX);
        self.record.state = NodeState::Terminated { reason: ending.reason, detail: ending.detail, at };
        self.save();
        self.publish(None);
    }

    /// Stays as a tombstone until the server has taken note.
    async fn linger(&mut self) {
        while let Some(mail) = self.mail.recv().await {
            match mail {
                Mail::Command(command, reply) => {
                    if self.take(&command, reply) {
                        return;
                    }
                }
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

    fn plan(&self) -> Plan {
        Plan {
            ctx: self.ctx.clone(),
            id: self.record.sandbox_id.clone(),
            dir: self.dir.clone(),
            spec: self.record.spec.clone(),
        }
    }

    /// Named sandboxes are kept: they will be put to sleep, and until that exists they stay awake.
    fn idle_timeout(&self) -> Duration {
        match &self.record.spec.settings {
            settings if settings.name.is_some() => Duration::ZERO,
            settings => Duration::from_secs(settings.timeout_secs),
        }
    }

    fn idle_ending(&self, timeout: Duration) -> Ending {
        Ending::new(TerminationReason::Timeout, format!("idle for {} s", timeout.as_secs()))
    }

    fn publish(&self, link: Option<belljar_link::Connector>) {
        self.view.send_replace(View::of(&self.record, link));
        (self.changed)(&self.record.sandbox_id);
    }

    fn save(&self) {
        if let Err(error) = self.record.save(&self.dir) {
            tracing::error!(sandbox = self.record.sandbox_id, error = chain(&error), "cannot write a sandbox's record");
        }
    }

    fn note(&self, level: u8, text: &str) {
        tracing::info!(sandbox = self.record.sandbox_id, "{text}");
        self.log.note(level, text);
    }
}

fn ending_of(exit: &VmExit) -> Ending {
    let reason = match exit {
        VmExit::GuestShutdown | VmExit::GuestReset | VmExit::GuestPanic { .. } => TerminationReason::GuestShutdown,
        VmExit::Process { .. } => TerminationReason::VmmExited,
    };
    Ending::new(reason, exit.to_string())
}

fn is_failure(reason: TerminationReason) -> bool {
    !reason.outcome().starts_with("Success")
}

fn describe(ending: &Ending) -> String {
    match ending.detail.as_str() {
        "" => format!("ends: {:?}", ending.reason),
        detail => format!("ends: {:?}: {detail}", ending.reason),
    }
}
