//! The task that owns one sandbox. See the drawing in the parent module.

use std::{collections::VecDeque, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use belljar_api::{
    image::RuntimeConfig,
    log::level,
    network::NetworkUse,
    node::{NodeState, Origin},
    sandbox::TerminationReason,
    snapshot::SnapshotType,
};
use belljar_vmm::VmExit;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Forked, Handle, Mail, NotAwake, View,
    boot::{BootError, Booted, Plan, Source, undo},
    mail::Work,
};
use crate::{
    Context, chain,
    idle::{Activity, Suspicion},
    limits::{EXIT_GRACE, LINK_FAILURE_WINDOW, LINK_FAILURES_MAX, MAILBOX, RELINK_TIMEOUT, UNDO_PAUSE},
    logs::{LogFile, collector, file::now_ns},
    record::{Ending, Record},
};

/// How a task begins.
#[derive(Debug)]
pub(crate) enum Start {
    /// Nothing is there yet.
    Boot,
    /// It is a copy, and waits for what it is made from.
    Copy(oneshot::Receiver<Forked>),
    /// An earlier node process may have left a VM.
    Adopt,
}

/// Starts the task of a sandbox whose record is on disk. `changed` is told its id at every change of its view.
pub(crate) fn spawn(
    ctx: Arc<Context>,
    record: Record,
    log: LogFile,
    start: Start,
    changed: impl Fn(&str) + Send + Sync + 'static,
) -> Handle {
    let (mailbox, mail) = mpsc::channel(MAILBOX);
    let (view_sender, view) = watch::channel(View::of(&record, record.state.clone(), None));
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
        last_snapshot: None,
        wakers: Vec::new(),
        deferred: VecDeque::new(),
        held_back: None,
        link_failures: Vec::new(),
        vm_left: false,
    };
    ctx.spawn(task.run(start));
    handle
}

pub(super) struct Task {
    pub(super) ctx: Arc<Context>,
    pub(super) record: Record,
    pub(super) dir: PathBuf,
    pub(super) mail: mpsc::Receiver<Mail>,
    view: watch::Sender<View>,
    pub(super) activity: Activity,
    suspicion: Arc<Suspicion>,
    log: Arc<LogFile>,
    changed: Box<dyn Fn(&str) + Send + Sync>,
    /// The last snapshot that was taken of the present VM process.
    pub(super) last_snapshot: Option<String>,
    /// Who waits until the agent answers.
    pub(super) wakers: Vec<oneshot::Sender<Result<(), NotAwake>>>,
    /// What was asked for at a moment when it could not be done; comes before everything else that is asked.
    pub(super) deferred: VecDeque<Work>,
    /// Generation that is told while a command that was taken shows no effect yet.
    pub(super) held_back: Option<u64>,
    /// When the link broke lately.
    link_failures: Vec<Instant>,
    /// It sleeps, and a VM process that should be gone may still be there.
    pub(super) vm_left: bool,
}

/// Where the sandbox stands, with what exists then.
pub(super) enum Stage {
    /// The agent answers.
    Awake(Booted),
    /// It is asked something that it cannot go on beside.
    Asked(Work, Booted),
    /// `sleep` is complete. The VM process may still be there, at a standstill, with its link.
    Asleep(Option<Booted>),
    /// It has to end.
    Over(Ending),
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

    /// Boots or adopts, then lives through wake and sleep, until there is a reason to end.
    async fn live(&mut self, start: Start) -> Ending {
        let mut stage = match self.begin(start).await {
            Ok(stage) => stage,
            Err(ending) => return ending,
        };
        loop {
            stage = match stage {
                Stage::Awake(booted) => self.awake(booted).await,
                Stage::Asked(work, booted) => self.do_awake(work, booted).await,
                Stage::Asleep(resident) => self.asleep(resident).await,
                Stage::Over(ending) => return ending,
            };
        }
    }

    async fn begin(&mut self, start: Start) -> Result<Stage, Ending> {
        let begun = Instant::now();
        let (verb, booted) = match start {
            Start::Boot => ("started", self.make().await?),
            Start::Copy(seat) => ("copied", self.make_copy(seat).await?),
            Start::Adopt if self.record.state == NodeState::Suspended => return Ok(self.adopt_asleep().await),
            Start::Adopt => {
                self.drop_standstills().await;
                let plan = self.plan();
                match self.unless_ended(async move { plan.adopt().await }).await? {
                    Ok(Some(booted)) => ("found again", Ok(booted)),
                    // Nobody was told that it ran.
                    Ok(None) if self.record.state == NodeState::Starting => ("started", self.make_again().await?),
                    Ok(None) => {
                        let detail = "its VM was gone when the node came back";
                        return Err(Ending::new(TerminationReason::VmmExited, detail));
                    }
                    Err(error) => ("found again", Err(error)),
                }
            }
        };
        let booted = booted.map_err(|error| error.ending())?;
        self.note(level::INFO, &format!("{verb} in {} ms", begun.elapsed().as_millis()));
        self.activity.touch();
        Ok(Stage::Awake(booted))
    }

    /// What an earlier node process began and did not finish.
    async fn make_again(&mut self) -> Result<Result<Booted, BootError>, Ending> {
        if let Err(error) = undo(&self.ctx, &self.dir).await {
            return Ok(Err(error));
        }
        self.make().await
    }

    /// From its image or from a snapshot.
    async fn make(&mut self) -> Result<Result<Booted, BootError>, Ending> {
        match self.ctx.gpus.claim(&self.record.sandbox_id, &self.record.spec.resources.gpu_configs) {
            // On disk before there is a VM that has them.
            Ok(devices) if devices != self.record.passed_through => {
                self.record.passed_through = devices;
                self.save();
            }
            Ok(_) => {}
            Err(missing) => return Ok(Err(BootError::Gpus(missing))),
        }
        let (source, opened) = match self.record.origin.clone() {
            Origin::Image => (Source::Image, None),
            Origin::Copy { .. } => return Ok(Err(BootError::Origin("the source of the copy is gone".to_owned()))),
            Origin::Snapshot { snapshot_id, kind } => {
                let ctx = self.ctx.clone();
                let id = snapshot_id.clone();
                let opened = match self.unless_ended(async move { ctx.snapshots.open(&id).await }).await? {
                    Ok(opened) => opened,
                    Err(error) if error.is_no_space() => {
                        return Err(Ending::new(TerminationReason::NoSpace, chain(&error)));
                    }
                    Err(error) => return Ok(Err(BootError::Origin(chain(&error)))),
                };
                self.record.runtime = Some(opened.meta.runtime.clone());
                self.record.last_snapshot = Some(snapshot_id.clone());
                let source = match kind {
                    SnapshotType::Memory => Source::Still(opened.dir()),
                    SnapshotType::Filesystem => Source::Disk(opened.dir()),
                };
                (source, Some(opened))
            }
        };
        let plan = self.plan();
        let booted = self.unless_ended(async move { plan.start(source).await }).await?;
        // The files had to stay in the cache until here.
        drop(opened);
        Ok(booted)
    }

    /// From a standstill of another sandbox.
    async fn make_copy(&mut self, seat: oneshot::Receiver<Forked>) -> Result<Result<Booted, BootError>, Ending> {
        let seed = match self.unless_ended(seat).await? {
            Ok(Ok(seed)) => seed,
            Ok(Err(why)) => return Ok(Err(BootError::Origin(why))),
            Err(_) => return Ok(Err(BootError::Origin("the source of the copy is gone".to_owned()))),
        };
        self.record.runtime = Some(seed.runtime.clone());
        let plan = self.plan();
        let source = Source::Still(seed.still.dir().to_owned());
        let booted = self.unless_ended(async move { plan.start(source).await }).await?;
        drop(seed);
        Ok(booted)
    }

    async fn awake(&mut self, mut booted: Booted) -> Stage {
        let mut suspicions = self.suspicion.listen();
        let exited = booted.vm.clone();
        let mut exit = pin!(async move { exited.wait().await });
        // The settings may be others than those that it was started with, and nobody may meet the old rules.
        if let Err(ending) = self.apply_network(&mut booted).await {
            return Stage::Over(ending);
        }
        if self.record.runtime.is_none() || self.record.state != NodeState::Running {
            self.record.runtime = Some(booted.runtime.clone());
            self.record.state = NodeState::Running;
            self.save();
        }
        self.stop_holding_back();
        self.publish(NodeState::Running, Some(booted.link.clone()));
        self.answer_wakers(&Ok(()));
        // Whoever waits for the sandbox comes first; what it has logged is kept in the guest.
        let collect = collector::collect(booted.link.clone(), self.log.clone());
        let _collector = AbortOnDropHandle::new(self.ctx.tasks.spawn(collect));
        loop {
            let timeout = self.idle_timeout();
            let activity = self.activity.clone();
            let work = tokio::select! {
                biased;
                exit = &mut exit => return Stage::Over(ending_of(&exit)),
                reason = &mut booted.session => {
                    let trouble = match reason {
                        Ok(reason) => format!("the link broke: {}", chain(&reason)),
                        Err(panic) => format!("the link broke: {panic}"),
                    };
                    return self.relink(booted, trouble).await;
                }
                Some(()) = suspicions.recv() => {
                    return self.relink(booted, "the agent accepts no connection".to_owned()).await;
                }
                work = self.next_work() => work,
                () = activity.idle_for(timeout) => Work::Idle(timeout),
            };
            match work {
                Work::Nothing | Work::Release => {}
                Work::Settings => {
                    if let Err(ending) = self.apply_network(&mut booted).await {
                        return Stage::Over(ending);
                    }
                    self.republish();
                }
                Work::Tell(reply) => {
                    if let Some(passed) = self.note_blocked(&booted).await {
                        let _ = reply.send(passed);
                    }
                }
                Work::Resume => self.publish(NodeState::Running, Some(booted.link.clone())),
                // Whoever asked may have gone.
                Work::Wake(reply) => drop(reply.send(Ok(()))),
                // Whoever waits for the VM here holds it, and it may have to be let go.
                work => return Stage::Asked(work, booted),
            }
        }
    }

    /// Does what an awake sandbox is asked. Afterwards its link may be another one.
    async fn do_awake(&mut self, work: Work, booted: Booted) -> Stage {
        match work {
            Work::Nothing | Work::Settings | Work::Release | Work::Tell(_) | Work::Resume | Work::Wake(_) => {
                Stage::Awake(booted)
            }
            Work::End(ending) => {
                self.note_blocked(&booted).await;
                Stage::Over(ending)
            }
            Work::Idle(timeout) if !self.record.spec.settings.suspends => {
                let detail = format!("idle for {} s", timeout.as_secs());
                Stage::Over(Ending::new(TerminationReason::Timeout, detail))
            }
            Work::Idle(_) => self.fall_asleep(booted, true).await,
            Work::Suspend => self.fall_asleep(booted, false).await,
            Work::Snapshot(id, kind) => self.snapshot(booted, id, kind).await,
            Work::Copy(seats) => self.copy(booted, seats).await,
            Work::Rollback(id) => self.rollback(Some(booted), id).await,
        }
    }

    /// Writes to the log what its rules have blocked lately; answers what has passed.
    pub(super) async fn note_blocked(&self, booted: &Booted) -> Option<NetworkUse> {
        match booted.gate.as_ref()?.look().await {
            Ok((lines, passed)) => {
                lines.iter().for_each(|line| self.log.note(level::WARN, line));
                Some(passed)
            }
            Err(error) => {
                tracing::warn!(
                    sandbox = self.record.sandbox_id,
                    error = chain(&error),
                    "what was blocked is not known"
                );
                None
            }
        }
    }

    /// Gives the VM the network that the settings allow now.
    pub(super) async fn apply_network(&mut self, booted: &mut Booted) -> Result<(), Ending> {
        if let Some(gate) = &mut booted.gate {
            let wanted = self.record.spec.settings.network.clone();
            if gate.differs(&wanted)
                && let Err(error) = gate.change(&self.ctx, &wanted).await
            {
                self.trouble("its network cannot be changed", &chain(&error));
            }
            return Ok(());
        }
        let wanted = self.record.spec.settings.network.allow_internet_access;
        if booted.network != wanted {
            let set = booted.vm.set_network(wanted).await;
            set.map_err(|error| Ending::new(TerminationReason::VmmExited, chain(&error)))?;
            booted.network = wanted;
        }
        Ok(())
    }

    /// Makes the link anew, with a guest that may stand still. One that loses it too often has to end.
    pub(super) async fn relink(&mut self, booted: Booted, trouble: String) -> Stage {
        self.note(level::WARN, &trouble);
        self.link_failures.retain(|at| at.elapsed() < LINK_FAILURE_WINDOW);
        self.link_failures.push(Instant::now());
        if self.link_failures.len() >= LINK_FAILURES_MAX {
            return Stage::Over(Ending::new(TerminationReason::GuestUnresponsive, trouble));
        }
        self.link_anew(booted, trouble).await
    }

    /// The same where nobody is to blame. `why` is for the case that it cannot be made.
    pub(super) async fn link_anew(&mut self, booted: Booted, why: String) -> Stage {
        let Booted { vm, link, session, runtime, network, gate } = booted;
        drop((link, session));
        self.publish(NodeState::Running, None);
        let (plan, again, pauses) = (self.plan(), vm.clone(), self.ctx.driver.capabilities().snapshots);
        let relink = async move {
            if pauses {
                again.resume().await?;
            }
            plan.attach(again, gate, runtime, None, RELINK_TIMEOUT).await
        };
        match self.unless_ended(relink).await {
            Err(ending) => Stage::Over(ending),
            Ok(Ok(booted)) => Stage::Awake(Booted { network, ..booted }),
            Ok(Err(error)) => {
                // The link of a VM that ends breaks a moment before the end is noticed.
                if let Ok(exit) = tokio::time::timeout(EXIT_GRACE, vm.wait()).await {
                    return Stage::Over(ending_of(&exit));
                }
                let detail = format!("{why}; {}", chain(&error));
                Stage::Over(Ending::new(TerminationReason::GuestUnresponsive, detail))
            }
        }
    }

    /// Undoes everything, in an order that a crash at any point lets the next start finish.
    async fn end(&mut self, ending: Ending) {
        self.note(if is_failure(ending.reason) { level::ERROR } else { level::INFO }, &describe(&ending));
        self.record.ending = Some(ending.clone());
        self.save();
        self.publish(self.record.state.clone(), None);
        self.answer_wakers(&Err(NotAwake::Ended));
        while let Some(work) = self.deferred.pop_front() {
            self.refuse(work, "the sandbox has ended");
        }
        self.held_back = None;
        let mut pause = UNDO_PAUSE.0;
        while let Err(error) = undo(&self.ctx, &self.dir).await {
            // Telling the end while the VM may live would free a place that is not free. The record stays, so that a
            // new node goes on here.
            tracing::error!(sandbox = self.record.sandbox_id, error = chain(&error), "cannot clean up after a sandbox");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(UNDO_PAUSE.1);
        }
        self.ctx.gpus.release(&self.record.sandbox_id);
        self.record.passed_through.clear();
        let at = i64::try_from(now_ns() / 1_000_000).unwrap_or(i64::MAX);
        self.record.state = NodeState::Terminated { reason: ending.reason, detail: ending.detail, at };
        self.save();
        self.publish(self.record.state.clone(), None);
    }

    pub(super) fn plan(&self) -> Plan {
        Plan {
            ctx: self.ctx.clone(),
            id: self.record.sandbox_id.clone(),
            dir: self.dir.clone(),
            spec: self.record.spec.clone(),
            life: self.record.life,
            identity_token: self.record.identity_token.clone(),
            runtime: self.record.runtime.clone(),
            passed_through: self.record.passed_through.clone(),
        }
    }

    /// What its image said, as its guest was told.
    pub(super) fn runtime(&self) -> RuntimeConfig {
        self.record.runtime.clone().unwrap_or_default()
    }

    fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.record.spec.settings.timeout_secs)
    }

    pub(super) fn publish(&self, state: NodeState, link: Option<belljar_link::Connector>) {
        let mut view = View::of(&self.record, state, link);
        if let Some(generation) = self.held_back {
            view.report.generation = generation;
        }
        self.view.send_replace(view);
        (self.changed)(&self.record.sandbox_id);
    }

    /// Tells the generation and the trouble anew; where the sandbox stands is as it was.
    pub(super) fn republish(&self) {
        let (state, link) = {
            let view = self.view.borrow();
            (view.report.state.clone(), view.link.clone())
        };
        self.publish(state, link);
    }

    pub(super) fn save(&self) {
        let point = self.ctx.faults.point("record").map_err(|error| chain(&error));
        if let Err(error) = point.and_then(|()| self.record.save(&self.dir).map_err(|error| chain(&error))) {
            tracing::error!(sandbox = self.record.sandbox_id, error, "cannot write a sandbox's record");
        }
    }

    /// Keeps in mind, and tells, why something that was asked for did not happen.
    pub(super) fn trouble(&mut self, what: &str, why: &str) {
        self.note(level::WARN, &format!("{what}: {why}"));
        self.record.trouble = Some(why.to_owned());
    }

    pub(super) fn note(&self, level: u8, text: &str) {
        tracing::info!(sandbox = self.record.sandbox_id, "{text}");
        self.log.note(level, text);
    }
}

fn ending_of(exit: &VmExit) -> Ending {
    let reason = match exit {
        VmExit::GuestShutdown | VmExit::GuestReset | VmExit::GuestPanic { .. } => TerminationReason::GuestShutdown,
        VmExit::OutOfMemory => TerminationReason::OutOfMemory,
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
