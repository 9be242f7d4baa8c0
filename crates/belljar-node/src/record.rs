//! What the node remembers of a sandbox: one small JSON file in the sandbox's own directory.
//!
//! It is written before a command is acknowledged and read back at the node's start; there is no other database.
//! The VM's own state (pid, sockets) is the driver's business and lies beside it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use belljar_api::{
    image::RuntimeConfig,
    node::{NodeState, Origin, SandboxSpec},
    sandbox::TerminationReason,
};
use belljar_vmm::PciDevice;
use serde::{Deserialize, Serialize};

use crate::storage::StorageError;

/// First field of the file: what it is.
const MAGIC: &str = "belljar-sandbox";
/// Version of the file's format.
const VERSION: u32 = 2;
/// Oldest version that is still read: what it lacks has defaults.
const VERSION_MIN: u32 = 1;
/// Name of the file in the sandbox's directory.
const FILE: &str = "record.json";
/// Largest file that is read back, bytes.
const SIZE_MAX: u64 = 8 * 1024 * 1024;

/// The durable part of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    magic: String,
    version: u32,
    /// Id of the sandbox.
    pub sandbox_id: String,
    /// Generation of the last command that was taken.
    pub generation: u64,
    /// What to run.
    pub spec: SandboxSpec,
    /// Set once the sandbox has to end; the end itself may still be under way.
    pub ending: Option<Ending>,
    /// Where it stands. `Suspended` is the word on disk that makes the directory `sleep` the truth; every other one makes
    /// it the VM process. What is only under way (`Suspending`, `Resuming`) is never written.
    pub state: NodeState,
    /// What it began as.
    #[serde(default)]
    pub origin: Origin,
    /// Number of its memory's present life; a random one for each restore, so that no two are alike.
    #[serde(default)]
    pub life: u64,
    /// What the sandbox proves itself with.
    #[serde(default)]
    pub identity_token: String,
    /// ENV, WORKDIR, USER of its image, kept since the image may go.
    #[serde(default)]
    pub runtime: Option<RuntimeConfig>,
    /// The last snapshot that was taken of it, or that it was put back to.
    #[serde(default)]
    pub last_snapshot: Option<String>,
    /// Devices of the host that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_through: Vec<PciDevice>,
    /// Why the last thing that was asked for did not happen.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// Why a sandbox has to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ending {
    /// Why.
    pub reason: TerminationReason,
    /// More words; may be empty.
    pub detail: String,
}

impl Ending {
    pub(crate) fn new(reason: TerminationReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// A record that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The file system said no.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// So did the storage.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Not JSON, or not ours.
    #[error("{path} is not a sandbox record of this release: {why}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Record {
    pub(crate) fn new(sandbox_id: String, generation: u64, spec: SandboxSpec, origin: Origin) -> Self {
        let magic = MAGIC.to_owned();
        let token: [u8; 32] = rand::random();
        Self {
            magic,
            version: VERSION,
            sandbox_id,
            generation,
            spec,
            ending: None,
            state: NodeState::Starting,
            origin,
            life: rand::random(),
            identity_token: token.iter().map(|byte| format!("{byte:02x}")).collect(),
            runtime: None,
            last_snapshot: None,
            passed_through: Vec::new(),
            trouble: None,
        }
    }

    /// Writes the record to `dir` so that a crash leaves the old or the new one.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), RecordError> {
        let path = dir.join(FILE);
        let io = |operation| {
            let path = path.display().to_string();
            move |source| RecordError::Io { operation, path, source }
        };
        let text = serde_json::to_vec(self).map_err(|e| io("encode")(e.into()))?;
        let temporary = dir.join(".record.json.new");
        let mut file = File::create(&temporary).map_err(io("create"))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(io("write"))?;
        fs::rename(&temporary, &path).map_err(io("rename"))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync the directory of"))
    }

    /// Reads the record of the sandbox directory `dir`.
    pub(crate) fn load(dir: &Path) -> Result<Self, RecordError> {
        let path = dir.join(FILE);
        let shown = path.display().to_string();
        let io = |source| RecordError::Io { operation: "read", path: shown.clone(), source };
        let damaged = |why: String| RecordError::Damaged { path: shown.clone(), why };
        if fs::metadata(&path).map_err(io)?.len() > SIZE_MAX {
            return Err(damaged("it is too large".into()));
        }
        let record: Self = serde_json::from_slice(&fs::read(&path).map_err(io)?).map_err(|e| damaged(e.to_string()))?;
        match (record.magic.as_str(), record.version) {
            (MAGIC, VERSION_MIN..=VERSION) => Ok(Self { version: VERSION, ..record }),
            (MAGIC, newer) => Err(damaged(format!("it has version {newer}, this release knows {VERSION}"))),
            _ => Err(damaged("its magic is missing".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use belljar_api::{
        node::Settings,
        sandbox::{NetworkConfig, ResourcesRequest},
    };

    use super::*;

    fn record() -> Record {
        let spec = SandboxSpec {
            namespace: "default".into(),
            image: "belljar/debian".into(),
            resources: ResourcesRequest::default().resolve().expect("defaults"),
            entrypoint: None,
            secrets: Vec::new(),
            settings: Settings {
                name: None,
                suspends: false,
                auto_resume: true,
                timeout_secs: 600,
                network: NetworkConfig::default(),
            },
        };
        Record::new("a".repeat(21), 1, spec, Origin::Image)
    }

    #[test]
    fn a_record_comes_back_and_a_strange_one_does_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let record = record();
        record.save(dir.path()).expect("save");
        assert_eq!(Record::load(dir.path()).expect("load"), record);

        for (bytes, expected) in
            [(&b"{"[..], "EOF"), (b"{}", "missing field"), (br#"{"magic":"belljar-sandbox"}"#, "missing field")]
        {
            fs::write(dir.path().join(FILE), bytes).expect("write");
            let error = Record::load(dir.path()).expect_err("damaged");
            assert!(error.to_string().contains(expected), "{error}");
        }
        let newer = Record { version: VERSION + 1, ..record };
        fs::write(dir.path().join(FILE), serde_json::to_vec(&newer).expect("json")).expect("write");
        assert!(Record::load(dir.path()).expect_err("newer").to_string().contains("has version 3"));
    }
}
