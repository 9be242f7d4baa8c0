//! Why a sandbox cannot do what was asked of it, with the remedy.

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Only a named or claimed one sleeps.
    #[error("a sandbox without a name cannot be suspended; give it one with PATCH {{\"name\":...}} first")]
    Ephemeral,
    /// What is in a GPU cannot be saved.
    #[error(
        "the sandbox has GPUs, and what is in them cannot be saved, so it cannot be suspended, copied or put into a memory snapshot; take a filesystem snapshot"
    )]
    Gpus,
    /// It has not come up yet.
    #[error("the sandbox is not running yet; wait until it runs")]
    Pending,
    /// It has ended.
    #[error("the sandbox is terminated; create a new one")]
    Ended,
    /// It is on its way to sleep.
    #[error("the sandbox is being suspended; wait until it is suspended")]
    Suspending,
    /// It sleeps.
    #[error("the sandbox is suspended; resume it first")]
    Suspended,
    /// It has ended.
    #[error("Cannot snapshot a terminated sandbox")]
    SnapshotEnded,
    /// It has not come up yet.
    #[error("Cannot snapshot a sandbox that is not yet running; wait until it runs")]
    SnapshotPending,
    /// One at a time.
    #[error("Sandbox is already being snapshotted; wait until that snapshot is completed")]
    Snapshotting,
    /// It is on its way back.
    #[error("the sandbox is being resumed; wait until it runs")]
    Resuming,
}

impl Refusal {
    /// Whether the same request may succeed a little later, or after a resume. (That a second snapshot could, too, is not
    /// what the wire protocol says.)
    pub(crate) fn passes(self) -> bool {
        match self {
            Self::Ephemeral
            | Self::Gpus
            | Self::Pending
            | Self::Ended
            | Self::SnapshotEnded
            | Self::SnapshotPending
            | Self::Snapshotting => false,
            Self::Suspending | Self::Suspended | Self::Resuming => true,
        }
    }
}
