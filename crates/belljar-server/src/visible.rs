//! What a user sees of a sandbox: computed here and nowhere else, from the durable row (which carries the node's last
//! report) and from whether nodes are connected.
//!
//! | row | nodes | seen as |
//! |---|---|---|
//! | waiting | none connected | pending, `no_executors_available` |
//! | waiting | some connected | pending, `no_resources_available` |
//! | waiting for the node that has its snapshot | that one away | pending, `no_executor_for_snapshot_location` |
//! | placed, not up yet | - | pending, `waiting_for_container` |
//! | placed, running | - | running: a node that is away goes on running it |
//! | placed, being put to sleep | - | suspending |
//! | placed, asleep or waking | - | suspended: the published clients know no word for waking |
//! | ended | - | terminated |

use belljar_api::sandbox::{
    CreatedSandbox, ErrorDetails, PendingReason, SandboxInfo, SandboxStatus, TerminationReason,
};

use crate::{
    config::Urls,
    life::{Phase, Reported, SandboxRow},
};

/// Which nodes are connected, as far as it matters to one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct World {
    /// One that could take it.
    pub(crate) has_node: bool,
    /// Driver of the row's own node, when it is known.
    pub(crate) driver: Option<String>,
}

/// Status and reason of a row.
pub(crate) fn status(row: &SandboxRow, has_node: bool) -> (SandboxStatus, Option<PendingReason>) {
    let waiting = || match &row.home {
        _ if has_node => PendingReason::NoResourcesAvailable,
        Some(_) => PendingReason::NoExecutorForSnapshotLocation,
        None => PendingReason::NoExecutorsAvailable,
    };
    match row.stage() {
        None if row.phase == Phase::Waiting => (SandboxStatus::Pending, Some(waiting())),
        None => (SandboxStatus::Terminated, None),
        Some(Reported::Unreported | Reported::Starting) => {
            (SandboxStatus::Pending, Some(PendingReason::WaitingForContainer))
        }
        Some(Reported::Running) => (SandboxStatus::Running, None),
        Some(Reported::Suspending) => (SandboxStatus::Suspending, None),
        Some(Reported::Suspended | Reported::Resuming) => (SandboxStatus::Suspended, None),
    }
}

/// The row as `GET` shows it.
pub(crate) fn info(row: &SandboxRow, world: World, urls: &Urls) -> SandboxInfo {
    let (status, pending_reason) = status(row, world.has_node);
    let ending = row.ending();
    let spec = &row.spec;
    SandboxInfo {
        id: row.id.clone(),
        namespace: row.namespace.clone(),
        status,
        image: spec.image.clone(),
        runtime: world.driver,
        resources: spec.resources.clone(),
        timeout_secs: spec.timeout_secs,
        entrypoint: spec.entrypoint.clone(),
        name: row.name.clone(),
        network_policy: spec.network.clone(),
        network: spec.network.clone(),
        pool_id: row.pool.as_ref().map(|pool| pool.pool_id.clone()),
        outcome: ending.map(|e| e.reason.outcome().to_owned()),
        termination_reason: ending.map(|e| e.reason),
        error_details: error_details(row),
        pending_reason,
        created_at: row.created_at,
        terminated_at: ending.map(|e| e.at),
        archived_at: None,
        allow_unauthenticated_access: spec.allow_unauthenticated_access,
        exposed_ports: spec.exposed_ports.clone(),
        ingress_endpoint: urls.ingress_endpoint(status),
        sandbox_url: urls.sandbox_url(status, &row.id),
        file_systems: Vec::new(),
        auto_resume: spec.auto_resume,
        executor_id: row.node_id().map(str::to_owned),
        secret_names: spec.secret_names(),
    }
}

/// The row as a blocking create answers it; `timed_out` when it is still pending at the deadline.
pub(crate) fn created(row: &SandboxRow, has_node: bool, urls: &Urls, timed_out: bool) -> CreatedSandbox {
    let (status, pending_reason) = status(row, has_node);
    let termination_reason = row.ending().map(|e| e.reason);
    let word = match status {
        SandboxStatus::Pending if timed_out => "timeout",
        SandboxStatus::Pending => "pending",
        // It came up; that it may sleep again by now is nothing that a create can say.
        SandboxStatus::Running | SandboxStatus::Suspending | SandboxStatus::Suspended => "running",
        SandboxStatus::Terminated if termination_reason == Some(TerminationReason::User) => "terminated",
        SandboxStatus::Terminated => "failed",
    };
    CreatedSandbox {
        sandbox_id: row.id.clone(),
        status: word.to_owned(),
        name: row.name.clone(),
        pending_reason,
        reason: termination_reason.map(wire_word),
        termination_reason,
        error_details: error_details(row),
        ingress_endpoint: urls.ingress_endpoint(status),
        sandbox_url: urls.sandbox_url(status, &row.id),
    }
}

/// Words on an ending that was not wished for.
fn error_details(row: &SandboxRow) -> Option<ErrorDetails> {
    let ending = row.ending()?;
    let words = match ending.reason {
        TerminationReason::User | TerminationReason::Timeout => return None,
        TerminationReason::ImageNotFound => "image not found",
        TerminationReason::NoCapacity => "no node is large enough for it",
        TerminationReason::Cancelled => "it was not running within max_pending_secs",
        TerminationReason::StartupFailedInternalError => "it did not start",
        TerminationReason::ConfigurationError => "the node cannot do what was asked for",
        TerminationReason::GuestShutdown => "the guest powered itself off, rebooted or panicked",
        TerminationReason::VmmExited => "the VM process ended",
        TerminationReason::OutOfMemory => "the VM process used more memory than it may",
        TerminationReason::GuestUnresponsive => "the guest stopped answering",
        TerminationReason::NodeLost => "its node lost it",
        TerminationReason::NoSpace => "the node's disk is full",
    };
    let message = if ending.detail.is_empty() { words.to_owned() } else { ending.detail.clone() };
    Some(ErrorDetails { message })
}

/// The wire spelling of a reason or a status.
pub(crate) fn wire_word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
#[path = "visible_test.rs"]
mod tests;
