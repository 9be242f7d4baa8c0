//! What a resolver remembers, beyond the life of its process: a file in the home of the VM that it answers.
//!
//! ```text
//! something is learnt --a moment later, all of it--> file --another node process takes the VM over--> remembered
//!                                                     |---- the sandbox wakes, or is copied -------> what is open yet
//!                                                     \---- damaged, or of another format ---------> nothing
//! ```
//! Without it, a change of policy would not know which addresses belong to the names that a wildcard allows, and would cut
//! their connections. What is learnt in the last moment before a node is killed is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{Resolver, Shared};
use crate::{blocking, egress::limits};

/// Another number is another format.
const VERSION: u32 = 1;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// The one that was used last comes last.
    names: Vec<KeptName>,
}

/// A name as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptName {
    pub(super) name: String,
    /// Names that it led through.
    pub(super) chain: BTreeSet<String>,
    /// Its addresses, and until when each is open: seconds since the epoch.
    pub(super) open_until: BTreeMap<Ipv4Addr, u64>,
}

/// One moment, on the clock that timers go by and on the one that outlives a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) since_epoch: Duration,
}

impl Moment {
    pub(super) fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { now: Instant::now(), since_epoch }
    }
}

/// What the VM has been through since the file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// It runs on, and its connections are open.
    RanOn,
    /// It stood still, or is a copy: it has no connections, and may have the addresses that are still open.
    StoodStill,
}

/// Where a resolver's memory is kept. Nothing is written once it is closed, so that the directory can go.
#[derive(Debug, Default)]
pub(super) struct Place(Mutex<Option<PathBuf>>);

impl Place {
    pub(super) fn open(&self, file: &Path) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(file.to_owned());
    }

    /// Waits for a write that is under way.
    pub(super) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn write(&self, names: Vec<KeptName>) -> io::Result<()> {
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.as_ref().map_or(Ok(()), |file| write(file, names))
    }
}

impl Resolver {
    /// Remembers what `file` says, if there is one, and keeps there what it learns while it serves.
    pub(crate) fn remember(&self, file: &Path, since: Since) {
        match read(file) {
            Ok(names) => self.shared.memory().recall(names, Moment::now(), since),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(file = %file.display(), %error, "a resolver's memory is lost"),
        }
        self.shared.place.open(file);
    }

    /// Writes what it remembers to another file. Blocking.
    pub(crate) fn tell(&self, file: &Path) -> io::Result<()> {
        write(file, self.shared.memory().told(Moment::now()))
    }

    /// Keeps nothing any more.
    pub(crate) fn forget_place(&self) {
        self.shared.place.close();
    }

    /// Runs until it is dropped.
    pub(super) async fn keep(&self) {
        loop {
            self.shared.learnt.notified().await;
            // A program's start asks for many names.
            sleep(limits::KEEP_PAUSE).await;
            let shared = self.shared.clone();
            if let Err(error) = blocking(move || shared.keep()).await {
                tracing::warn!(%error, "a resolver's memory is not kept");
            }
        }
    }
}

impl Shared {
    fn keep(&self) -> io::Result<()> {
        let names = self.memory().told(Moment::now());
        self.place.write(names)
    }
}

fn read(file: &Path) -> io::Result<Vec<KeptName>> {
    let content: Content = serde_json::from_slice(&fs::read(file)?)?;
    if content.version == VERSION { Ok(content.names) } else { Err(io::Error::other("it has another format")) }
}

/// It is never half written.
fn write(file: &Path, names: Vec<KeptName>) -> io::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, serde_json::to_vec(&Content { version: VERSION, names })?)?;
    fs::rename(&new, file)
}
