//! Rows as tests need them.

use belljar_api::{
    node::Origin,
    sandbox::{Resources, TerminationReason},
};

use crate::life::{Ending, Phase, Reported, SandboxRow, Spec};

/// A small machine.
pub(crate) fn spec() -> Spec {
    Spec {
        image: "debian-minimal".into(),
        resources: Resources {
            cpus: 1.0,
            memory_mb: 1024,
            disk_mb: 10240,
            ephemeral_disk_mb: 10240,
            gpu_configs: Vec::new(),
        },
        entrypoint: None,
        timeout_secs: 600,
        network: None,
        allow_unauthenticated_access: false,
        exposed_ports: Vec::new(),
        auto_resume: true,
        max_pending_secs: None,
        secrets: Vec::new(),
        runtime: None,
        internal: false,
    }
}

/// One without a name, in the phase given.
pub(crate) fn row(id: &str, phase: Phase) -> SandboxRow {
    SandboxRow {
        id: id.into(),
        namespace: "default".into(),
        name: None,
        spec: spec(),
        origin: Origin::Image,
        home: None,
        pool: None,
        generation: 0,
        phase,
        trouble: None,
        created_at: 1,
        started_at: None,
    }
}

/// On node `n`, as that reported it.
pub(crate) fn placed(reported: Reported) -> Phase {
    Phase::Placed { node_id: "n".into(), reported, asked: None }
}

/// An end without words.
pub(crate) fn ending(reason: TerminationReason) -> Ending {
    Ending { reason, detail: String::new(), at: 9 }
}

/// Ended on node `n` by the user.
pub(crate) fn ended(held: bool) -> Phase {
    Phase::Ended { node_id: Some("n".into()), held, ending: ending(TerminationReason::User) }
}
