//! What the test double keeps, and what commands change: the node's half of the protocol in its simplest form.

use std::collections::BTreeMap;

use belljar_api::{
    error::code,
    image::ImageInfo,
    node::{Command, CopySpec, NodeState, Op, Report, SandboxReport, Settings, SnapshotReport, SnapshotState},
    sandbox::TerminationReason,
};

/// What it does with a `Create`, and with each copy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Boot {
    /// It runs at once.
    #[default]
    Run,
    /// It starts and stays so.
    Hang,
    /// It ends at once.
    Fail(TerminationReason, &'static str),
}

/// What it does with everything else that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Work {
    /// It is done at once.
    #[default]
    Do,
    /// It begins and goes on.
    Hang,
    /// It does not happen.
    Fail(&'static str),
}

/// An image as nodes tell of one.
pub(crate) fn image(name: &str) -> ImageInfo {
    ImageInfo {
        id: format!("image_{name}"),
        name: name.into(),
        snapshot_id: "blake3:00".into(),
        global: true,
        physical_size_bytes: 1,
        logical_size_bytes: 1,
        created_at: "2026-01-01T00:00:00Z".into(),
        updated_at: "2026-01-01T00:00:00Z".into(),
    }
}

/// One sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Fake {
    generation: u64,
    state: NodeState,
    trouble: Option<String>,
    auto_resume: bool,
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) sandboxes: BTreeMap<String, Fake>,
    pub(crate) snapshots: BTreeMap<String, SnapshotState>,
    pub(crate) boot: Boot,
    pub(crate) work: Work,
}

fn tell(id: &str, fake: &Fake) -> Report {
    Report::Sandbox(SandboxReport {
        sandbox_id: id.to_owned(),
        generation: fake.generation,
        state: fake.state.clone(),
        trouble: fake.trouble.clone(),
    })
}

fn tell_snapshot(id: &str, state: &SnapshotState) -> Report {
    Report::Snapshot(SnapshotReport { snapshot_id: id.to_owned(), state: state.clone() })
}

fn terminated(reason: TerminationReason, detail: &str) -> NodeState {
    NodeState::Terminated { reason, detail: detail.to_owned(), at: 1 }
}

impl State {
    /// Puts a sandbox into a state.
    pub(crate) fn set(&mut self, id: &str, state: NodeState) -> Report {
        let fake = self.sandboxes.entry(id.to_owned()).or_insert_with(|| Fake {
            generation: 1,
            state: NodeState::Starting,
            trouble: None,
            auto_resume: true,
        });
        fake.state = state;
        tell(id, fake)
    }

    /// Everything there is.
    pub(crate) fn account(&self) -> Vec<Report> {
        let sandboxes = self.sandboxes.iter().map(|(id, fake)| tell(id, fake));
        sandboxes.chain(self.snapshots.iter().map(|(id, state)| tell_snapshot(id, state))).collect()
    }

    /// A connection comes: one that sleeps wakes, or says why not.
    pub(crate) fn wake(&mut self, id: &str) -> Result<Vec<Report>, &'static str> {
        let fake = self.sandboxes.get_mut(id).expect("a connection to a sandbox that is not here");
        match fake.state {
            NodeState::Suspended if !fake.auto_resume => Err(code::SANDBOX_AUTO_RESUME_DISABLED),
            NodeState::Suspended => Ok(self.through(id, &[NodeState::Resuming, NodeState::Running])),
            _ => Ok(Vec::new()),
        }
    }

    fn through(&mut self, id: &str, states: &[NodeState]) -> Vec<Report> {
        states.iter().map(|state| self.set(id, state.clone())).collect()
    }

    fn boot(&mut self, id: &str, generation: u64, settings: &Settings) -> Vec<Report> {
        let state = match self.boot.clone() {
            Boot::Run => NodeState::Running,
            Boot::Hang => NodeState::Starting,
            Boot::Fail(reason, detail) => terminated(reason, detail),
        };
        let fake = Fake { generation, state: state.clone(), trouble: None, auto_resume: settings.auto_resume };
        self.sandboxes.insert(id.to_owned(), fake);
        vec![self.set(id, state)]
    }

    /// Takes a command over as a node does; returns what it tells then.
    pub(crate) fn apply(&mut self, command: &Command) -> Vec<Report> {
        let id = command.sandbox_id.as_str();
        match &command.op {
            Op::Create { spec, .. } if !self.sandboxes.contains_key(id) => {
                return self.boot(id, command.generation, &spec.settings);
            }
            Op::DeleteSnapshot => {
                self.snapshots.remove(id);
                return vec![tell_snapshot(id, &SnapshotState::Deleted)];
            }
            _ => {}
        }
        let Some(fake) = self.sandboxes.get_mut(id) else { return Vec::new() };
        if fake.generation >= command.generation {
            return Vec::new();
        }
        fake.generation = command.generation;
        fake.trouble = None;
        let (state, work) = (fake.state.clone(), self.work);
        match &command.op {
            Op::Update { settings } => fake.auto_resume = settings.auto_resume,
            Op::Terminate { .. } if matches!(state, NodeState::Terminated { .. }) => {
                self.sandboxes.remove(id);
                return Vec::new();
            }
            Op::Terminate { reason } => return self.through(id, &[terminated(*reason, "")]),
            Op::Suspend => return self.move_to(id, NodeState::Suspending, NodeState::Suspended),
            Op::Resume | Op::Rollback { .. } => return self.move_to(id, NodeState::Resuming, NodeState::Running),
            Op::Snapshot { snapshot_id, .. } => return self.snapshot(id, snapshot_id),
            Op::Copy { copies } => return self.copy(id, copies, work),
            Op::Create { .. } | Op::DeleteSnapshot => {}
        }
        self.through(id, &[state])
    }

    fn move_to(&mut self, id: &str, between: NodeState, goal: NodeState) -> Vec<Report> {
        match self.work {
            Work::Do => self.through(id, &[between, goal]),
            Work::Hang => self.through(id, &[between]),
            Work::Fail(words) => {
                let fake = self.sandboxes.get_mut(id).expect("sandbox");
                fake.trouble = Some(words.to_owned());
                vec![tell(id, fake)]
            }
        }
    }

    fn snapshot(&mut self, id: &str, snapshot_id: &str) -> Vec<Report> {
        let fake = &self.sandboxes[id];
        let completed = SnapshotState::Completed { size_bytes: 1000, rootfs_disk_bytes: 10 << 30 };
        let states = match self.work {
            Work::Do => vec![SnapshotState::InProgress, completed],
            Work::Hang => vec![SnapshotState::InProgress],
            Work::Fail(words) => vec![SnapshotState::Failed { error: words.to_owned() }],
        };
        let mut reports = vec![tell(id, fake)];
        reports.extend(states.iter().map(|state| tell_snapshot(snapshot_id, state)));
        self.snapshots.extend(states.into_iter().map(|state| (snapshot_id.to_owned(), state)));
        reports
    }

    fn copy(&mut self, id: &str, copies: &[CopySpec], work: Work) -> Vec<Report> {
        let mut reports = Vec::new();
        for copy in copies {
            let booted = self.boot(&copy.sandbox_id, copy.generation, &copy.spec.settings);
            reports.extend(match work {
                Work::Do | Work::Hang => booted,
                Work::Fail(words) => {
                    let state = terminated(TerminationReason::StartupFailedInternalError, words);
                    self.through(&copy.sandbox_id, &[state])
                }
            });
        }
        let fake = self.sandboxes.get_mut(id).expect("sandbox");
        if let Work::Fail(words) = work {
            fake.trouble = Some(words.to_owned());
        }
        reports.push(tell(id, fake));
        reports
    }
}
