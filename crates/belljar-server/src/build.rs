//! An image build as the store keeps it, and every way in which it may change.
//!
//! ```text
//! Pending ──step──► Running ──done──► Succeeded
//!    │                 │  │
//!    │                 │  └─builder─► Running      the sandbox of a Dockerfile is known
//!    ├─────────────────┼──failed────► Failed      also: its node or this server went
//!    └─────────────────┴──stopped───► Cancelled
//! ```
//! What is over stays as it is: whoever comes first decides, and a late report changes nothing.
//!
//! Pure, like [`crate::life`]. [`crate::app::build`] has the node do the work; the row outlives that and the image.

use belljar_api::{
    build::{BuildInfo, BuildKind, BuildPhase, BuildStatus, CancelOutcome},
    image::ImageInfo,
};

/// One build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuildRow {
    /// `build_` and an id.
    pub(crate) id: String,
    /// What it is built of.
    pub(crate) kind: BuildKind,
    /// Idempotency key of the request.
    pub(crate) request_id: Option<String>,
    /// SHA-256 of the request, without credentials.
    pub(crate) fingerprint: [u8; 32],
    /// Name of the image.
    pub(crate) name: String,
    /// Where it comes from; empty for a Dockerfile.
    pub(crate) image_ref: String,
    /// Which node makes it.
    pub(crate) node_id: String,
    /// Where it stands.
    pub(crate) standing: Standing,
    /// The sandbox that a Dockerfile is built in.
    pub(crate) builder_sandbox_id: Option<String>,
    /// Milliseconds since the epoch; when a build of a Dockerfile has to be over.
    pub(crate) deadline: Option<i64>,
    /// Milliseconds since the epoch.
    pub(crate) created_at: i64,
    /// Milliseconds since the epoch.
    pub(crate) updated_at: i64,
}

/// Where a build stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its node has not begun.
    Pending,
    /// Its node has got so far.
    Running(BuildPhase),
    /// The image is there.
    Succeeded(Box<ImageInfo>),
    /// There is none, for this reason.
    Failed(String),
    /// There is none, as was asked for.
    Cancelled,
}

/// What happens to a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its node has got so far.
    Step(BuildPhase),
    /// It is built in this sandbox.
    Builder(String),
    /// The image is there.
    Done(Box<ImageInfo>),
    /// It will not be, for this reason.
    Failed(String),
    /// It was stopped.
    Stopped,
}

/// What becomes of a request for a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is a new one.
    New,
    /// The same request came before, and this came of it.
    Same(BuildRow),
    /// Another request came under its key.
    Mismatch,
    /// This one makes an image of the same name.
    InProgress(BuildRow),
}

/// A snapshot of a builder, with the layers of the builds before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BuildCache {
    /// The snapshot.
    pub(crate) snapshot_id: String,
    /// Id of the image that it was made with: another one's layers may not be understood.
    pub(crate) builder_image: String,
}

/// Decides about a new build, given the one that has its key and the one that makes its name.
pub(crate) fn admit(new: &BuildRow, same_key: Option<BuildRow>, same_name: Option<BuildRow>) -> Admission {
    match (same_key, same_name) {
        // First: a repeated request finds its own build, which makes its name.
        (Some(before), _) if before.fingerprint == new.fingerprint => Admission::Same(before),
        (Some(_), _) => Admission::Mismatch,
        (None, Some(active)) => Admission::InProgress(active),
        (None, None) => Admission::New,
    }
}

impl BuildRow {
    /// The row after an event; `None` when that changes nothing.
    pub(crate) fn after(&self, event: Event, at: i64) -> Option<Self> {
        let mut builder_sandbox_id = self.builder_sandbox_id.clone();
        let standing = match (&self.standing, event) {
            (Standing::Succeeded(_) | Standing::Failed(_) | Standing::Cancelled, _) => return None,
            (Standing::Running(now), Event::Step(phase)) if phase <= *now => return None,
            (Standing::Pending | Standing::Running(_), Event::Step(phase)) => Standing::Running(phase),
            (now @ (Standing::Pending | Standing::Running(_)), Event::Builder(id)) => {
                builder_sandbox_id = Some(id);
                now.clone()
            }
            (Standing::Pending | Standing::Running(_), Event::Done(image)) => Standing::Succeeded(image),
            (Standing::Pending | Standing::Running(_), Event::Failed(error)) => Standing::Failed(error),
            (Standing::Pending | Standing::Running(_), Event::Stopped) => Standing::Cancelled,
        };
        Some(Self { standing, builder_sandbox_id, updated_at: at, ..self.clone() })
    }

    /// Its status, as clients see it.
    pub(crate) fn status(&self) -> BuildStatus {
        match self.standing {
            Standing::Pending => BuildStatus::Pending,
            Standing::Running(_) => BuildStatus::Running,
            Standing::Succeeded(_) => BuildStatus::Succeeded,
            Standing::Failed(_) => BuildStatus::Failed,
            Standing::Cancelled => BuildStatus::Cancelled,
        }
    }

    /// What a cancellation has come to, once it is over. `is_ours`: it was not when the cancellation came.
    pub(crate) fn cancel_outcome(&self, is_ours: bool) -> Option<CancelOutcome> {
        match self.standing {
            Standing::Pending | Standing::Running(_) => None,
            Standing::Succeeded(_) => Some(CancelOutcome::AlreadyCompleted),
            Standing::Failed(_) => Some(CancelOutcome::AlreadyFailed),
            Standing::Cancelled if is_ours => Some(CancelOutcome::Cancelled),
            Standing::Cancelled => Some(CancelOutcome::AlreadyCancelled),
        }
    }

    fn first_phase(&self) -> BuildPhase {
        match self.kind {
            BuildKind::Dockerfile => BuildPhase::AwaitingContext,
            BuildKind::Import => BuildPhase::StartingBuilder,
        }
    }

    /// As clients see it. The builder is shown once the program in it runs: those that see it look for that, and give up
    /// soon.
    pub(crate) fn info(&self) -> BuildInfo {
        let (phase, result, error) = match &self.standing {
            Standing::Pending => (self.first_phase(), None, None),
            Standing::Running(phase) => (*phase, None, None),
            Standing::Succeeded(image) => (BuildPhase::Finished, Some((**image).clone()), None),
            Standing::Failed(error) => (BuildPhase::Finished, None, Some(error.clone())),
            Standing::Cancelled => (BuildPhase::Finished, None, None),
        };
        BuildInfo {
            build_id: self.id.clone(),
            kind: self.kind,
            name: self.name.clone(),
            status: self.status(),
            phase,
            attempt_no: 1,
            client_request_id: self.request_id.clone(),
            builder_sandbox_id: self.builder_sandbox_id.clone().filter(|_| phase >= BuildPhase::Executing),
            operation_deadline_ms: self.deadline,
            created_at_ms: self.created_at,
            updated_at_ms: self.updated_at,
            result,
            error,
        }
    }
}

#[cfg(test)]
#[path = "build_test.rs"]
pub(crate) mod tests;
