//! One sandbox on this node: a task that owns it, a record on disk, a view for everybody else.
//!
//! ```text
//!  Create ──> starting ──(agent configured)──> running ──(Suspend, idle)──> suspending ──(durable)──> suspended
//!               │  ^                            │  ^                            │ └─(failed: goes on)─> running   │
//!               │  └── the node restarts ───────┤  └──(agent configured)── resuming <──(Resume, a connection)────┤
//!               └─────────────── an ending ─────┴──> ending ──(VM gone, files gone)──> terminated ──Terminate──> forgotten
//! ```
//! An *ending* is: a `Terminate` command, the idle timeout, a boot that failed, the VM's own end, a guest that breaks
//! the link. It is on disk before anything is undone, so a crash in between finishes it at the next start.
//!
//! Sleep has two points of no return, both one write of the record. With the word `suspended` the directory `sleep`, whole
//! and durable by then, is the truth, and whatever VM process there is is only a short cut. With the word `running` the VM
//! process is. A crash on either side of such a point leaves the other state, complete.
//!
//! - [`policy`]: what a command changes; pure.
//! - [`mail`]: taking commands, and keeping what comes at a bad moment for later.
//! - [`boot`]: from nothing or from a standstill to an agent that answers, and back.
//! - [`frozen`]: a VM at a standstill, as files.
//! - [`task`]: the loop that owns the sandbox. VM and guest events outrank commands.
//! - [`sleep`]: what the task does to put it to sleep and to wake it.
//! - [`fork`]: what the task does for snapshots, copies and rollback.

pub(crate) mod boot;
mod changes;
mod fork;
pub(crate) mod frozen;
pub(crate) mod linked;
mod mail;
mod policy;
mod sleep;
mod task;

use std::sync::Arc;

use belljar_api::{
    image::RuntimeConfig,
    network::NetworkUse,
    node::{Command, CommandAck, NodeState, SandboxReport},
};
use belljar_link::Connector;
use tokio::sync::{mpsc, oneshot, watch};

use self::frozen::Scratch;
pub(crate) use self::task::{Start, spawn};
use crate::{
    idle::{Activity, Suspicion},
    limits::TELL_PATIENCE,
    record::{Ending, Record, RecordError},
};

/// What a sandbox's task is asked.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A command from the server; answered once it is on disk.
    Command(Box<Order>),
    /// A connection wants in: answered when the agent answers, or with why it does not.
    Wake(oneshot::Sender<Result<(), NotAwake>>),
    /// Somebody wants to know what passes through its network: what was blocked is written to its log, and what has passed
    /// is answered, if it is awake and rules hold.
    Tell(oneshot::Sender<NetworkUse>),
    /// Host memory is short: a sleeping sandbox that holds some gives it back.
    Release,
    /// The node ends everything.
    End(Ending),
}

/// A command, with what belongs to it.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) command: Command,
    /// Where the copies of a `Copy` wait for what they are made from. A dropped one is told that there is nothing.
    pub(crate) seats: Vec<oneshot::Sender<Forked>>,
    pub(crate) reply: oneshot::Sender<Result<CommandAck, RecordError>>,
}

/// What a copy is made from.
pub(crate) type Forked = Result<Seed, String>;

/// A standstill of the source of copies; gone with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Seed {
    pub(crate) still: Arc<Scratch>,
    pub(crate) runtime: RuntimeConfig,
}

/// Why a sleeping sandbox does not wake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotAwake {
    /// Its owner does not want connections to wake it.
    Disabled,
    /// It was tried.
    Failed(String),
    /// It has ended, or is about to.
    Ended,
}

/// What others may know of a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) report: SandboxReport,
    pub(crate) namespace: String,
    /// Set while the agent answers.
    pub(crate) link: Option<Connector>,
}

impl View {
    fn of(record: &Record, state: NodeState, link: Option<Connector>) -> Self {
        let report = SandboxReport {
            sandbox_id: record.sandbox_id.clone(),
            generation: record.generation,
            state,
            trouble: record.trouble.clone(),
        };
        Self { report, namespace: record.spec.namespace.clone(), link }
    }

    pub(crate) fn is_terminated(&self) -> bool {
        matches!(self.report.state, NodeState::Terminated { .. })
    }

    /// It is asleep, with everything on the disk.
    pub(crate) fn is_suspended(&self) -> bool {
        self.report.state == NodeState::Suspended
    }

    /// Nothing will make it answer but a wake.
    pub(crate) fn sleeps(&self) -> bool {
        match self.report.state {
            NodeState::Suspending | NodeState::Suspended | NodeState::Resuming => true,
            NodeState::Starting | NodeState::Running | NodeState::Terminated { .. } => false,
        }
    }
}

/// Reaches a sandbox's task and sees its view. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) mailbox: mpsc::Sender<Mail>,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) activity: Activity,
    pub(crate) suspicion: Arc<Suspicion>,
}

impl Handle {
    /// Whether a command of this generation is on disk already.
    pub(crate) fn has_taken(&self, generation: u64) -> bool {
        self.view.borrow().report.generation >= generation
    }

    /// Waits until a command of this generation shows its effect, or the sandbox is gone.
    pub(crate) async fn has_done(&self, generation: u64) {
        // Who told has gone: so has the sandbox.
        let _ = self.view.clone().wait_for(|view| view.report.generation >= generation).await;
    }

    /// Has what was blocked written to its log; answers what has passed. One that is busy tells it to the next who asks.
    pub(crate) async fn tell(&self) -> Option<NetworkUse> {
        let (reply, told) = oneshot::channel();
        self.mailbox.try_send(Mail::Tell(reply)).ok()?;
        tokio::time::timeout(TELL_PATIENCE, told).await.ok()?.ok()
    }

    /// Wakes the sandbox if it sleeps, and waits until its agent answers.
    pub(crate) async fn wake(&self) -> Result<(), NotAwake> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(Mail::Wake(reply)).await.map_err(|_| NotAwake::Ended)?;
        answer.await.unwrap_or(Err(NotAwake::Ended))
    }
}
