//! How the files on the disks of two snapshots differ. Nothing is mounted: a reader in safe Rust walks both trees.
//!
//! A file whose size, owner, mode, time of change and time of creation are the same counts as the same; else its content is
//! read. What is not compared: directories' times, extended attributes, device numbers. Content that follows space which was reserved and never written
//! is not told apart, as the reader takes that space for content.
//!
//! The file systems are made by guests. Sizes are checked before the reader believes them, the walk is limited in time,
//! depth and entries, and runs in a thread of its own, at the lowest priority: should the reader hang in what a guest made
//! up, the caller gets its answer all the same, and no more than [`DIFFS_MAX`] such threads can come to be.

use std::{
    collections::BTreeMap,
    error::Error,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use belljar_api::snapshot::{DiffEntry, Difference, SnapshotDiff};
use ext4_view::{Ext4, File, Metadata, Path, Timestamp};

use super::{Vault, VaultError, ext4::SnapshotDisk};
use crate::{
    chain,
    limits::{DIFF_ENTRIES_MAX, DIFF_WALK_MAX, DIFFS_MAX},
};

/// Deepest directory: paths are at most 4096 bytes long.
const DEPTH_MAX: usize = 2000;
/// Largest directory, bytes: more than a million names.
const DIRECTORY_MAX: u64 = 64 << 20;
/// Longest target of a symbolic link, bytes.
const LINK_MAX: u64 = 4096;
/// Bytes of a file that are compared at once.
const PIECE: usize = 64 << 10;
/// How much longer than the walk itself the caller waits for its end.
const GRACE: Duration = Duration::from_secs(1);

type Failure = Box<dyn Error + Send + Sync>;
type Names = BTreeMap<Vec<u8>, Metadata>;

/// A diff that is being made; counts as long as its thread lives.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(running: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Self(running.clone());
        (running.fetch_add(1, Ordering::Relaxed) < DIFFS_MAX).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Vault {
    pub(super) fn diff_within(&self, first: &str, second: &str, time: Duration) -> Result<SnapshotDiff, VaultError> {
        let failed = |why: String| VaultError::Diff { first: first.to_owned(), second: second.to_owned(), why };
        let deadline = Instant::now() + time;
        let disk = |id| SnapshotDisk::new(&self.files, self.open_snapshot(id)?, id, deadline);
        let (old, new) = (disk(first)?, disk(second)?);
        if old.equals(&new) {
            return Ok(SnapshotDiff::default());
        }
        let slot = Slot::take(&self.diffs).ok_or_else(|| failed("others are being made; try again later".into()))?;
        let (sender, receiver) = mpsc::channel();
        let run = move || {
            // Of the thread alone.
            let _ = rustix::process::nice(19);
            let walked = panic::catch_unwind(AssertUnwindSafe(|| walk(old, new, deadline)));
            let result = walked.unwrap_or_else(|_| Err("a file system on them is damaged".into()));
            // Before the answer: whoever gets it may ask for the next diff at once.
            drop(slot);
            // Nobody may wait any more.
            let _ = sender.send(result.map_err(|error| chain(&*error)));
        };
        thread::Builder::new().name("diff".into()).spawn(run).map_err(|error| failed(error.to_string()))?;
        match receiver.recv_timeout(time + GRACE) {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(failed(format!("it takes longer than {} s", time.as_secs()))),
        }
    }
}

fn walk(old: SnapshotDisk, new: SnapshotDisk, deadline: Instant) -> Result<SnapshotDiff, Failure> {
    let (old, new) = (old.mount()?, new.mount()?);
    let walk = Walk { old, new, deadline, seen: 0, newest: None, recent: Vec::new(), diff: SnapshotDiff::default() };
    walk.run()
}

/// In which of the two a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Old,
    New,
    Both,
}

struct Walk {
    old: Ext4,
    new: Ext4,
    deadline: Instant,
    seen: usize,
    /// Latest change in the old tree: a later change of the same moment has the same time.
    newest: Option<Timestamp>,
    /// Files that look the same and were changed not long before that.
    recent: Vec<(Vec<u8>, Metadata)>,
    diff: SnapshotDiff,
}

impl Walk {
    fn run(mut self) -> Result<SnapshotDiff, Failure> {
        let mut dirs = vec![(Vec::new(), Side::Both, 0)];
        while let Some((path, side, depth)) = dirs.pop() {
            if depth > DEPTH_MAX {
                return Err(format!("directories are nested deeper than {DEPTH_MAX}").into());
            }
            let mut old = if side == Side::New { Names::new() } else { self.list(Side::Old, &path)? };
            let new = if side == Side::Old { Names::new() } else { self.list(Side::New, &path)? };
            for (name, new) in new {
                let path = join(&path, &name);
                if let Some(side) = self.compare(&path, old.remove(&name), Some(new))? {
                    dirs.push((path, side, depth + 1));
                }
            }
            for (name, old) in old {
                let path = join(&path, &name);
                if let Some(side) = self.compare(&path, Some(old), None)? {
                    dirs.push((path, side, depth + 1));
                }
            }
            if self.diff.entries.len() > DIFF_ENTRIES_MAX {
                break;
            }
        }
        self.check_recent()?;
        self.diff.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.diff.truncated = self.diff.entries.len() > DIFF_ENTRIES_MAX;
        self.diff.entries.truncate(DIFF_ENTRIES_MAX);
        Ok(self.diff)
    }

    fn list(&mut self, side: Side, path: &[u8]) -> Result<Names, Failure> {
        let fs = if side == Side::Old { &self.old } else { &self.new };
        let dir = if path.is_empty() { b"/" } else { path };
        let dir = Path::try_from(dir)?;
        if fs.symlink_metadata(dir)?.len() > DIRECTORY_MAX {
            return Err(format!("directory {} is too large", dir.display()).into());
        }
        let mut names = Names::new();
        for entry in fs.read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().as_ref().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            self.seen += 1;
            if self.seen > DIFF_WALK_MAX {
                return Err(format!("there are more than {DIFF_WALK_MAX} files").into());
            }
            self.check_time()?;
            names.insert(name, entry.metadata()?);
        }
        Ok(names)
    }

    fn check_time(&self) -> Result<(), Failure> {
        if Instant::now() < self.deadline { Ok(()) } else { Err("the time is up".into()) }
    }

    /// Notes how a path differs; answers on which side there is a directory to look into.
    fn compare(&mut self, path: &[u8], old: Option<Metadata>, new: Option<Metadata>) -> Result<Option<Side>, Failure> {
        self.newest = self.newest.max(old.as_ref().map(Metadata::modified));
        let difference = match (&old, &new) {
            (Some(old), Some(new)) => self.differs(path, old, new)?.then_some(Difference::Changed),
            (None, Some(_)) => Some(Difference::Added),
            (Some(_), None) => Some(Difference::Removed),
            (None, None) => None,
        };
        if let (Some(difference), Some(meta)) = (difference, new.as_ref().or(old.as_ref())) {
            self.note(path, difference, meta);
        }
        let is_dir = |meta: &Option<Metadata>| meta.as_ref().is_some_and(Metadata::is_dir);
        Ok(match (is_dir(&old), is_dir(&new)) {
            (true, true) => Some(Side::Both),
            (true, false) => Some(Side::Old),
            (false, true) => Some(Side::New),
            (false, false) => None,
        })
    }

    fn note(&mut self, path: &[u8], difference: Difference, meta: &Metadata) {
        let size_bytes = if meta.is_dir() { 0 } else { meta.len() };
        let path = String::from_utf8_lossy(path).into_owned();
        self.diff.entries.push(DiffEntry { path, difference, size_bytes });
    }

    fn differs(&mut self, path: &[u8], old: &Metadata, new: &Metadata) -> Result<bool, Failure> {
        let what = |meta: &Metadata| (meta.file_type(), meta.mode(), meta.uid(), meta.gid());
        if what(old) != what(new) {
            return Ok(true);
        }
        if old.is_symlink() {
            return Ok(old.len() != new.len() || self.link(Side::Old, path, old)? != self.link(Side::New, path, new)?);
        }
        if !old.file_type().is_regular_file() {
            return Ok(false);
        }
        if old.len() != new.len() {
            return Ok(true);
        }
        // The time of creation is there when times are finer than a second.
        if old.created().is_some() && old.created() == new.created() && old.modified() == new.modified() {
            if self.newest.is_none_or(|newest| is_just_before(old.modified(), newest)) {
                self.recent.push((path.to_vec(), new.clone()));
            }
            return Ok(false);
        }
        self.content_differs(path)
    }

    fn link(&self, side: Side, path: &[u8], meta: &Metadata) -> Result<Vec<u8>, Failure> {
        let fs = if side == Side::Old { &self.old } else { &self.new };
        if meta.len() > LINK_MAX {
            return Err(format!("symbolic link {} is too long", String::from_utf8_lossy(path)).into());
        }
        Ok(fs.read_link(Path::try_from(path)?)?.as_ref().to_vec())
    }

    fn content_differs(&self, path: &[u8]) -> Result<bool, Failure> {
        let path = Path::try_from(path)?;
        let (mut old, mut new) = (self.old.open(path)?, self.new.open(path)?);
        let (mut old_piece, mut new_piece) = (vec![0; PIECE], vec![0; PIECE]);
        loop {
            self.check_time()?;
            let length = fill(&mut old, &mut old_piece)?;
            if length != fill(&mut new, &mut new_piece)? || old_piece[..length] != new_piece[..length] {
                return Ok(true);
            }
            if length < PIECE {
                return Ok(false);
            }
        }
    }

    /// Reads the files that were changed in the old tree's last moments: their times prove nothing.
    fn check_recent(&mut self) -> Result<(), Failure> {
        let Some(newest) = self.newest else { return Ok(()) };
        for (path, meta) in std::mem::take(&mut self.recent) {
            if is_just_before(meta.modified(), newest) && self.content_differs(&path)? {
                self.note(&path, Difference::Changed, &meta);
            }
        }
        Ok(())
    }
}

/// Whether at most about a second lies between the two: clocks of file systems tick slowly.
fn is_just_before(time: Timestamp, newest: Timestamp) -> bool {
    time.seconds().saturating_add(1) >= newest.seconds()
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    [dir, b"/", name].concat()
}

/// Reads until the piece is full or the file ends.
fn fill(file: &mut File, piece: &mut [u8]) -> Result<usize, Failure> {
    let mut filled = 0;
    while filled < piece.len() {
        match file.read_bytes(&mut piece[filled..])? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}
