//! One sandbox's log file: JSON lines, appended, cut by half when full.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use belljar_api::{guest::LogEvent, log::level, process::OutputStream};
use serde::{Deserialize, Serialize};

use crate::limits::{LOG_BYTES_MAX, LOG_RETENTION_DAYS};

/// One stored line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Counts up from 1 over the life of the sandbox.
    pub(crate) n: u64,
    /// UUID of the line.
    pub(crate) uuid: String,
    pub(crate) timestamp_ns: u64,
    pub(crate) level: u8,
    pub(crate) body: String,
    /// The process that wrote it; absent for the node's own lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<Process>,
}

/// The process of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// [`LogEvent::seq`]: where to go on after a restart.
    pub(crate) seq: u64,
    pub(crate) handle: i64,
    pub(crate) pid: i64,
    pub(crate) command: String,
    pub(crate) managed_id: String,
    pub(crate) managed_name: String,
    pub(crate) stream: OutputStream,
}

/// The open log of a sandbox.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    bytes: u64,
    next: u64,
    guest_seq: u64,
}

impl LogFile {
    /// Opens the log of `id` in `dir`, going on where it ended.
    pub(crate) fn open(dir: &Path, id: &str) -> io::Result<Self> {
        let path = path(dir, id);
        let (mut next, mut guest_seq) = (1, 0);
        if path.exists() {
            read(&path, |entry| {
                next = entry.n + 1;
                guest_seq = entry.process.map_or(guest_seq, |process| process.seq.max(guest_seq));
            })?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, state: Mutex::new(State { file, bytes, next, guest_seq }) })
    }

    /// Last line of the guest's log that is stored.
    pub(crate) fn guest_seq(&self) -> u64 {
        self.lock().guest_seq
    }

    /// Appends a line of the node's own.
    pub(crate) fn note(&self, level: u8, body: &str) {
        if let Err(error) = self.append(level, now_ns(), body.to_owned(), None) {
            tracing::warn!(%error, path = %self.path.display(), "cannot write a sandbox's log");
        }
    }

    /// Appends a line of the guest.
    pub(crate) fn store(&self, event: LogEvent) -> io::Result<()> {
        let level = match event.stream {
            OutputStream::Stdout => level::INFO,
            OutputStream::Stderr => level::ERROR,
        };
        let process = Process {
            seq: event.seq,
            handle: event.handle,
            pid: event.pid,
            command: event.command,
            managed_id: event.managed_id,
            managed_name: event.managed_name,
            stream: event.stream,
        };
        self.append(level, event.timestamp_ns, event.line, Some(process))
    }

    fn append(&self, level: u8, timestamp_ns: u64, body: String, process: Option<Process>) -> io::Result<()> {
        let mut state = self.lock();
        let seq = process.as_ref().map_or(state.guest_seq, |process| process.seq);
        let uuid = uuid::Uuid::new_v4().to_string();
        let mut line = serde_json::to_vec(&Entry { n: state.next, uuid, timestamp_ns, level, body, process })?;
        line.push(b'\n');
        if state.bytes + line.len() as u64 > LOG_BYTES_MAX {
            (state.file, state.bytes) = halve(&self.path)?;
        }
        state.file.write_all(&line)?;
        state.bytes += line.len() as u64;
        state.next += 1;
        state.guest_seq = seq;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Where the log of `id` is.
pub(crate) fn path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.jsonl"))
}

/// Reads a log, oldest line first. A line that was cut by a crash is passed over.
pub(crate) fn read(path: &Path, mut each: impl FnMut(Entry)) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(128 * 1024, File::open(path)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if let Ok(entry) = serde_json::from_slice(&line) {
            each(entry);
        }
        line.clear();
    }
    Ok(())
}

/// Drops the older half of the file.
fn halve(path: &Path) -> io::Result<(File, u64)> {
    let new = path.with_extension("jsonl.new");
    let mut skip = fs::metadata(path)?.len() / 2;
    let mut reader = BufReader::new(File::open(path)?);
    let mut writer = BufWriter::new(File::create(&new)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if skip == 0 {
            writer.write_all(&line)?;
        }
        skip = skip.saturating_sub(line.len() as u64);
        line.clear();
    }
    writer.flush()?;
    fs::rename(&new, path)?;
    let file = OpenOptions::new().append(true).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

/// Removes logs that nobody wrote to for the retention period, but for those of living sandboxes.
pub(crate) fn sweep(dir: &Path, alive: impl Fn(&str) -> bool) -> io::Result<()> {
    let retention = Duration::from_secs(u64::from(LOG_RETENTION_DAYS) * 24 * 3600);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_string_lossy();
        let age = entry.metadata()?.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if !alive(id.trim_end_matches(".jsonl")) && age.is_some_and(|age| age > retention) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
