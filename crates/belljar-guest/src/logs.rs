//! The log: every captured line of every process, for the node to fetch and keep (`GET /v1/logs?after=N`).
//!
//! A bounded ring like [`crate::output`]'s; a reader that is too slow sees a gap in `seq`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use belljar_api::{guest::LogEvent, process::OutputStream};
use tokio::sync::watch;

use crate::{
    limits::{LINE_OVERHEAD, LOG_BYTES_MAX, LOG_COMMAND_MAX, LOG_LINE_MAX, LOG_LINES_MAX},
    sync::{lock, now_ns},
};

/// Which process a line comes from.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) handle: i64,
    pub(crate) pid: i64,
    pub(crate) command: String,
    pub(crate) managed_id: String,
    pub(crate) managed_name: String,
}

/// Program and arguments as one text, cut at [`LOG_COMMAND_MAX`].
pub(crate) fn command_line(command: &str, args: &[String]) -> String {
    let words = std::iter::once(command).chain(args.iter().map(String::as_str));
    let mut text = String::new();
    for word in words {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(word);
        if text.len() > 4 * LOG_COMMAND_MAX {
            break;
        }
    }
    text.chars().take(LOG_COMMAND_MAX).collect()
}

/// The log.
pub(crate) struct Logs {
    ring: Mutex<Ring>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Ring {
    entries: VecDeque<Entry>,
    last: u64,
    bytes: usize,
}

#[derive(Clone)]
struct Entry {
    seq: u64,
    timestamp_ns: u64,
    source: Arc<Source>,
    stream: OutputStream,
    line: Arc<str>,
}

impl Default for Logs {
    fn default() -> Self {
        Self { ring: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Logs {
    /// Appends a line.
    pub(crate) fn push(&self, source: &Arc<Source>, stream: OutputStream, line: &Arc<str>) {
        let mut ring = lock(&self.ring);
        ring.last += 1;
        let entry = Entry {
            seq: ring.last,
            timestamp_ns: now_ns(),
            source: Arc::clone(source),
            stream,
            line: if line.len() > LOG_LINE_MAX { Arc::from(cut(line)) } else { Arc::clone(line) },
        };
        ring.bytes += entry.line.len() + LINE_OVERHEAD;
        ring.entries.push_back(entry);
        while ring.entries.len() > LOG_LINES_MAX || ring.bytes > LOG_BYTES_MAX {
            let Some(oldest) = ring.entries.pop_front() else { break };
            ring.bytes -= oldest.line.len() + LINE_OVERHEAD;
        }
    }

    /// Appends a line of the agent's own about `command`, which did not even become a process.
    pub(crate) fn note(&self, command: &str, line: &str) {
        let source = Source { command: command.to_owned(), ..Source::default() };
        self.push(&Arc::new(source), OutputStream::Stderr, &Arc::from(line));
        self.announce();
    }

    /// Drops all lines: they are another sandbox's. The count goes on.
    pub(crate) fn forget(&self) {
        let mut ring = lock(&self.ring);
        ring.entries.clear();
        ring.bytes = 0;
    }

    /// Wakes the readers.
    pub(crate) fn announce(&self) {
        self.changed.send_replace(());
    }

    /// Reads from the line after `after`, without end.
    pub(crate) fn read(self: &Arc<Self>, after: u64) -> Reader {
        Reader { logs: Arc::clone(self), changed: self.changed.subscribe(), after }
    }
}

fn cut(line: &str) -> &str {
    let mut end = LOG_LINE_MAX;
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    &line[..end]
}

/// A reader of the log.
pub(crate) struct Reader {
    logs: Arc<Logs>,
    changed: watch::Receiver<()>,
    after: u64,
}

impl Reader {
    /// Waits for lines and takes up to `count` of them.
    pub(crate) async fn next(&mut self, count: usize) -> Vec<LogEvent> {
        loop {
            self.changed.mark_unchanged();
            let entries = self.take(count);
            if !entries.is_empty() || self.changed.changed().await.is_err() {
                return entries.iter().map(event).collect();
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<Entry> {
        let ring = lock(&self.logs.ring);
        // A reader that remembers a later line than there is remembers another life of the agent: give it everything.
        if self.after > ring.last {
            self.after = 0;
        }
        let first = ring.last - ring.entries.len() as u64;
        let skip = usize::try_from(self.after.saturating_sub(first)).unwrap_or(usize::MAX);
        let entries: Vec<_> = ring.entries.iter().skip(skip).take(count).cloned().collect();
        if let Some(last) = entries.last() {
            self.after = last.seq;
        }
        entries
    }
}

fn event(entry: &Entry) -> LogEvent {
    LogEvent {
        seq: entry.seq,
        timestamp_ns: entry.timestamp_ns,
        handle: entry.source.handle,
        pid: entry.source.pid,
        command: entry.source.command.clone(),
        managed_id: entry.source.managed_id.clone(),
        managed_name: entry.source.managed_name.clone(),
        stream: entry.stream,
        line: entry.line.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn old_lines_go_and_the_gap_shows() {
        let logs = Arc::new(Logs::default());
        let source = Arc::new(Source { handle: 7, ..Source::default() });
        for number in 0..LOG_LINES_MAX + 5 {
            logs.push(&source, OutputStream::Stderr, &Arc::from(number.to_string()));
        }
        let mut reader = logs.read(2);
        let first = reader.next(1).await;
        assert_eq!((first[0].seq, first[0].line.as_str(), first[0].handle), (6, "5", 7));
        assert_eq!(reader.next(2).await.iter().map(|event| event.seq).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(logs.read(1_000_000).next(1).await[0].seq, 6);
    }

    #[test]
    fn long_lines_and_commands_are_cut_between_characters() {
        let logs = Logs::default();
        logs.push(&Arc::default(), OutputStream::Stdout, &Arc::from("é".repeat(LOG_LINE_MAX)));
        assert_eq!(lock(&logs.ring).entries[0].line.len(), LOG_LINE_MAX);
        assert_eq!(command_line("a", &["é".repeat(3000)]).chars().count(), LOG_COMMAND_MAX);
        assert_eq!(command_line("ls", &["-l".to_owned(), "/".to_owned()]), "ls -l /");
    }
}
