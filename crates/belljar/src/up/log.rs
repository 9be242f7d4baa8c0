//! What `belljar up` logs: to stderr in the foreground, to a file in the data directory when detached.
//!
//! The file is looked after at the start only: when it has grown large it becomes `belljar.log.1`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use tracing_subscriber::EnvFilter;

/// Bytes after which a start begins a new log file.
const ROTATE_AT: u64 = 16 * 1024 * 1024;
/// What is logged when nobody says otherwise.
const DEFAULT_FILTER: &str = "info";
/// Bytes at the end of the log that are looked through for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;

/// Where the log of a data directory is.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("log/belljar.log")
}

/// Opens the log, and puts an old one aside when it is large.
pub fn open(data_dir: &Path) -> io::Result<File> {
    let path = path(data_dir);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() >= ROTATE_AT) {
        fs::rename(&path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(&path)
}

/// The last lines of a log; empty when there is none.
pub fn tail(data_dir: &Path, lines: usize) -> Vec<String> {
    use io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<String> {
        let mut file = File::open(path(data_dir))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Begins to log, to `file` or to stderr. `filter` as [`crate::env_vars::LOG`] has it; a wrong one is reported, and the
/// default taken.
pub fn begin(filter: Option<&str>, file: Option<File>) {
    let parsed = filter.map(EnvFilter::try_new);
    let wrong = match &parsed {
        Some(Err(error)) => Some(error.to_string()),
        _ => None,
    };
    let filter = parsed.and_then(Result::ok).unwrap_or_else(|| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // Only `up` logs, and it begins once: a second subscriber is refused and changes nothing.
    let _ = match file {
        Some(file) => builder.with_ansi(false).with_writer(std::sync::Mutex::new(file)).try_init(),
        None => builder.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).try_init(),
    };
    if let Some(error) = wrong {
        tracing::warn!(error, "BELLJAR_LOG is not understood; logging with {DEFAULT_FILTER:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_large_log_is_put_aside_and_tails_are_short() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(tail(dir.path(), 3).is_empty());
        open(dir.path()).expect("open").write_all(b"a\nb\nc\nd\n").expect("write");
        open(dir.path()).expect("open").write_all(b"e\n").expect("write");
        assert_eq!(tail(dir.path(), 2), ["d", "e"]);
        OpenOptions::new().write(true).open(path(dir.path())).expect("open").set_len(ROTATE_AT).expect("grow");
        drop(open(dir.path()).expect("open"));
        assert_eq!(fs::metadata(path(dir.path())).expect("new").len(), 0);
        assert_eq!(fs::metadata(dir.path().join("log/belljar.log.1")).expect("old").len(), ROTATE_AT);
    }
}
