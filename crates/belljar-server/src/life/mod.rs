//! A sandbox as the store keeps it, and every way in which it may change.
//!
//! ```text
//!  Waiting --place--> Unreported --report--> Starting --report--> Running <--report-- Suspending, Suspended, Resuming
//!     |                     |                    |                   |                            |
//!     |                     \--------------------+-------------------+----------------------------/
//!  terminate                                 terminate, report(Terminated), lost
//!     v                                                  v
//!  Ended{held: false} <--------------------------- Ended{held: true}   (held: until the node says it is gone)
//! ```
//!
//! A placed row keeps two things apart: what the node **reported**, and what was **asked** of it since. What was asked is
//! what counts ([`SandboxRow::stage`]) until the node has taken the command, which its report shows by its generation.
//! The node also moves by itself: it suspends what is idle and wakes what is used, and reports that.
//!
//! Every function here is pure: it takes a row and returns the next one with the command that the node must get. The
//! store applies a step in one transaction. Nothing here reads a clock, a lock or the store. [`user`] is what people
//! ask for, [`told`] what nodes say, [`refusal`] why something is not possible just now.

mod refusal;
mod told;
mod user;

use belljar_api::{
    node::{NodeState, Op, Origin, SandboxSpec, Settings},
    sandbox::{NetworkConfig, Resources, TerminationReason},
    secret::SecretRef,
};
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    refusal::Refusal,
    told::{declined, lost, refused, report},
    user::{Change, Order, change, claim, copy, order, place, snapshot, terminate},
};

/// One sandbox.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SandboxRow {
    /// See [`belljar_api::id`].
    pub(crate) id: String,
    /// Namespace.
    pub(crate) namespace: String,
    /// Unique per namespace among those that have not ended.
    pub(crate) name: Option<String>,
    /// What was asked for.
    pub(crate) spec: Spec,
    /// What it began as.
    pub(crate) origin: Origin,
    /// The only node that can make it: where its snapshot lies.
    pub(crate) home: Option<String>,
    /// Its place in a pool.
    pub(crate) pool: Option<Membership>,
    /// Counts the commands issued for it; the node ignores older ones.
    pub(crate) generation: u64,
    /// Where it stands.
    pub(crate) phase: Phase,
    /// Why the last thing that was asked of its node did not happen.
    pub(crate) trouble: Option<String>,
    /// Milliseconds since the epoch.
    pub(crate) created_at: i64,
    /// Milliseconds since the epoch of the first `Running` report.
    pub(crate) started_at: Option<i64>,
}

/// What was asked for; kept as JSON, so fields are only ever added, with a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Image name as asked for.
    pub(crate) image: String,
    /// Cpus, memory, disk.
    pub(crate) resources: Resources,
    /// Program that starts with it.
    pub(crate) entrypoint: Option<Vec<String>>,
    /// Idle seconds; 0 is none.
    pub(crate) timeout_secs: u64,
    /// Network policy; `None` is the default one.
    pub(crate) network: Option<NetworkConfig>,
    /// Whether exposed ports answer without a key.
    pub(crate) allow_unauthenticated_access: bool,
    /// Guest ports routed from outside.
    pub(crate) exposed_ports: Vec<u16>,
    /// Whether a proxied request wakes it.
    pub(crate) auto_resume: bool,
    /// Give up when not running after this many seconds.
    pub(crate) max_pending_secs: Option<u64>,
    /// Secrets that it uses.
    #[serde(default)]
    pub(crate) secrets: Vec<SecretRef>,
    /// What is to run it; `None`: whatever its node has.
    #[serde(default)]
    pub(crate) runtime: Option<String>,
    /// The server made it for itself, to build an image in. Lists leave it and its snapshots out unless they are asked.
    #[serde(default)]
    pub(crate) internal: bool,
}

impl Spec {
    /// Names of the secrets that it uses.
    pub(crate) fn secret_names(&self) -> Vec<String> {
        self.secrets.iter().map(|secret| secret.name.clone()).collect()
    }

    /// Whether it has GPUs: what is in them cannot be saved.
    pub(crate) fn has_gpus(&self) -> bool {
        !self.resources.gpu_configs.is_empty()
    }

    /// Whether it may only be where what leaves it is looked at.
    pub(crate) fn needs_egress_rules(&self) -> bool {
        !self.secrets.is_empty() || self.network.as_ref().is_some_and(NetworkConfig::has_rules)
    }
}

/// A sandbox of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    /// The pool.
    pub(crate) pool_id: String,
    /// Somebody has it. Until then it is nobody's business but the pool's.
    pub(crate) claimed: bool,
}

/// Where a sandbox stands, as far as the store knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No node has it yet.
    Waiting,
    /// A node has it, or will when it has taken the command from the outbox.
    Placed {
        /// The node.
        node_id: String,
        /// What the node said last.
        reported: Reported,
        /// What the node was asked since and has not taken yet.
        asked: Option<Asked>,
    },
    /// It ended for good.
    Ended {
        /// The node that had it.
        node_id: Option<String>,
        /// The node has not said yet that it is gone: its memory still counts.
        held: bool,
        /// Why and when.
        ending: Ending,
    },
}

/// What the node said last about a sandbox that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reported {
    /// Nothing yet.
    Unreported,
    /// It boots.
    Starting,
    /// Its agent answers.
    Running,
    /// It is being put to sleep.
    Suspending,
    /// It sleeps.
    Suspended,
    /// It wakes.
    Resuming,
}

/// Something that a node was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// What.
    pub(crate) wish: Wish,
    /// Generation of the command; a report of this one or a newer one answers it.
    pub(crate) generation: u64,
}

/// What a node can be asked to do to the state of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Put it to sleep.
    Suspend,
    /// Wake it.
    Resume,
    /// Put it back to a snapshot, awake.
    Rollback,
}

/// Why and when a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Why.
    pub(crate) reason: TerminationReason,
    /// More words, for people; may be empty.
    pub(crate) detail: String,
    /// Milliseconds since the epoch.
    pub(crate) at: i64,
}

/// A changed row, and what to tell which node about it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    /// The row to save.
    pub(crate) row: SandboxRow,
    /// The command for the outbox, with its node; its generation is the row's.
    pub(crate) send: Option<(String, Op)>,
}

impl Reported {
    /// What a state other than `Terminated` says.
    pub(crate) fn of(state: &NodeState) -> Option<Self> {
        Some(match state {
            NodeState::Starting => Self::Starting,
            NodeState::Running => Self::Running,
            NodeState::Suspending => Self::Suspending,
            NodeState::Suspended => Self::Suspended,
            NodeState::Resuming => Self::Resuming,
            NodeState::Terminated { .. } => return None,
        })
    }
}

impl Wish {
    /// How a sandbox stands whose node was asked for this.
    fn stage(self) -> Reported {
        match self {
            Self::Suspend => Reported::Suspending,
            Self::Resume | Self::Rollback => Reported::Resuming,
        }
    }
}

impl SandboxRow {
    /// The node that runs it or ran it.
    pub(crate) fn node_id(&self) -> Option<&str> {
        match &self.phase {
            Phase::Waiting => None,
            Phase::Placed { node_id, .. } => Some(node_id),
            Phase::Ended { node_id, .. } => node_id.as_deref(),
        }
    }

    /// The snapshot that it began as.
    pub(crate) fn snapshot_id(&self) -> Option<&str> {
        match &self.origin {
            Origin::Snapshot { snapshot_id, .. } => Some(snapshot_id),
            Origin::Image | Origin::Copy { .. } => None,
        }
    }

    /// How it stands on its node: what was asked, or else what was reported. `None` without a node or after the end.
    pub(crate) fn stage(&self) -> Option<Reported> {
        match &self.phase {
            Phase::Placed { asked: Some(asked), .. } => Some(asked.wish.stage()),
            Phase::Placed { reported, asked: None, .. } => Some(*reported),
            Phase::Waiting | Phase::Ended { .. } => None,
        }
    }

    /// The node whose memory it takes. One that sleeps takes none.
    pub(crate) fn held_by(&self) -> Option<&str> {
        match &self.phase {
            Phase::Waiting | Phase::Ended { held: false, .. } => None,
            Phase::Placed { .. } if self.stage() == Some(Reported::Suspended) => None,
            Phase::Placed { node_id, .. } => Some(node_id),
            Phase::Ended { node_id, held: true, .. } => node_id.as_deref(),
        }
    }

    /// How it ended, when it did.
    pub(crate) fn ending(&self) -> Option<&Ending> {
        match &self.phase {
            Phase::Waiting | Phase::Placed { .. } => None,
            Phase::Ended { ending, .. } => Some(ending),
        }
    }

    /// Whether its agent answers.
    pub(crate) fn is_running(&self) -> bool {
        self.stage() == Some(Reported::Running)
    }

    /// Whether it has come up and not ended: it runs, sleeps, or is between the two.
    pub(crate) fn is_up(&self) -> bool {
        self.stage().is_some_and(|stage| match stage {
            Reported::Unreported | Reported::Starting => false,
            Reported::Running | Reported::Suspending | Reported::Suspended | Reported::Resuming => true,
        })
    }

    /// Whether it waits in a pool for somebody to claim it.
    pub(crate) fn is_unclaimed(&self) -> bool {
        self.pool.as_ref().is_some_and(|pool| !pool.claimed)
    }

    /// Whether it can be put to sleep: it has a name, or was claimed from a pool, and all of it can be saved.
    pub(crate) fn suspends(&self) -> bool {
        let is_somebodys = self.name.is_some() || self.pool.as_ref().is_some_and(|pool| pool.claimed);
        is_somebodys && !self.spec.has_gpus()
    }

    fn settings(&self) -> Settings {
        Settings {
            name: self.name.clone(),
            suspends: self.suspends(),
            auto_resume: self.spec.auto_resume,
            timeout_secs: self.spec.timeout_secs,
            network: self.spec.network.clone().unwrap_or_default(),
        }
    }

    /// What a node needs to make it.
    fn sandbox_spec(&self) -> SandboxSpec {
        SandboxSpec {
            namespace: self.namespace.clone(),
            image: self.spec.image.clone(),
            resources: self.spec.resources.clone(),
            entrypoint: self.spec.entrypoint.clone(),
            secrets: self.spec.secrets.clone(),
            settings: self.settings(),
        }
    }

    fn sending(mut self, node_id: String, op: Op) -> Step {
        self.generation += 1;
        Step { row: self, send: Some((node_id, op)) }
    }
}

#[cfg(test)]
#[path = "life_test.rs"]
mod tests;
