//! One sandbox on this node: a task that owns it, a record on disk, a view for everybody else.
//!
//! ```text
//!  Create ──> starting ──(agent configured)──> running
//!               │  ^                              │
//!               │  └── the node restarts: adopt ──┤
//!               └───────────── an ending ─────────┴──> ending ──(VM gone, files gone)──> terminated ──Terminate──> forgotten
//! ```
//! An *ending* is: a `Terminate` command, the idle timeout, a boot that failed, the VM's own end, a guest that breaks
//! the link. It is on disk before anything is undone, so a crash in between finishes it at the next start.
//!
//! - [`policy`]: what a command changes; pure.
//! - [`boot`]: from nothing to an agent that answers, and back.
//! - [`task`]: the loop that owns the sandbox. VM and guest events outrank commands.

pub(crate) mod boot;
mod policy;
mod task;

use std::sync::Arc;

use belljar_api::node::{Command, CommandAck, NodeState, SandboxReport};
use belljar_link::Connector;
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use self::task::{Start, spawn};
use crate::{
    idle::{Activity, Suspicion},
    record::{Ending, Record, RecordError},
};

/// What a sandbox's task is asked.
pub(crate) enum Mail {
    /// A command from the server; answered once it is on disk.
    Command(Box<Command>, oneshot::Sender<Result<CommandAck, RecordError>>),
    /// The node ends everything.
    End(Ending),
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
    fn of(record: &Record, link: Option<Connector>) -> Self {
        let report = SandboxReport {
            sandbox_id: record.sandbox_id.clone(),
            generation: record.generation,
            state: record.state.clone(),
        };
        Self { report, namespace: record.spec.namespace.clone(), link }
    }

    pub(crate) fn is_terminated(&self) -> bool {
        matches!(self.report.state, NodeState::Terminated { .. })
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
