//! What a process wrote: lines in a bounded ring, with any number of followers.
//!
//! Writing never waits: when the ring is full the oldest lines go and are counted. A follower holds nothing but the
//! number of its next line, so one that is slow misses lines instead of costing memory. Lines are numbered from 0 over
//! both pipes together; the number is what `?offset=` takes.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use belljar_api::process::OutputStream;
use tokio::sync::watch;

use crate::{
    limits::{LINE_BYTES_MAX, LINE_OVERHEAD, OUTPUT_BYTES_MAX, OUTPUT_BYTES_SQUEEZED, OUTPUT_TOTAL_BYTES_MAX},
    sync::{lock, now_ms},
};

/// A line without its newline.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Its number.
    pub(crate) offset: u64,
    /// Milliseconds since the epoch.
    pub(crate) timestamp: i64,
    pub(crate) stream: OutputStream,
    pub(crate) text: Arc<str>,
}

/// Bytes kept by all outputs together.
#[derive(Default)]
pub(crate) struct Budget(AtomicUsize);

impl Budget {
    pub(crate) fn is_exceeded(&self) -> bool {
        self.0.load(Ordering::Relaxed) > OUTPUT_TOTAL_BYTES_MAX
    }
}

/// The output of one process, or of one managed process over its restarts.
pub(crate) struct Output {
    ring: Mutex<Ring>,
    budget: Arc<Budget>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Line>,
    next: u64,
    bytes: usize,
    dropped: [u64; 2],
    /// Number of the line at which the process ended. What its background writes later is kept too.
    finished_at: Option<u64>,
}

impl Ring {
    fn drop_oldest(&mut self) -> usize {
        let Some(line) = self.lines.pop_front() else { return 0 };
        let cost = cost(&line);
        self.bytes -= cost;
        self.dropped[index(line.stream)] += 1;
        cost
    }
}

fn cost(line: &Line) -> usize {
    line.text.len() + LINE_OVERHEAD
}

fn index(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => 1,
    }
}

impl Output {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { ring: Mutex::default(), budget, changed: watch::Sender::new(()) }
    }

    /// Appends a line.
    pub(crate) fn push(&self, stream: OutputStream, text: Arc<str>) {
        let mut ring = lock(&self.ring);
        let line = Line { offset: ring.next, timestamp: now_ms(), stream, text };
        ring.next += 1;
        ring.bytes += cost(&line);
        self.budget.0.fetch_add(cost(&line), Ordering::Relaxed);
        ring.lines.push_back(line);
        let most = if self.budget.is_exceeded() { OUTPUT_BYTES_SQUEEZED } else { OUTPUT_BYTES_MAX };
        while ring.bytes > most && ring.lines.len() > 1 {
            self.budget.0.fetch_sub(ring.drop_oldest(), Ordering::Relaxed);
        }
    }

    /// Wakes the followers; once per batch of lines rather than per line.
    pub(crate) fn announce(&self) {
        self.changed.send_replace(());
    }

    /// Says whether more will come. A managed process that starts again takes a `true` back.
    pub(crate) fn set_finished(&self, finished: bool) {
        let mut ring = lock(&self.ring);
        ring.finished_at = finished.then_some(ring.next);
        drop(ring);
        self.announce();
    }

    /// Drops all lines.
    pub(crate) fn forget(&self) {
        let mut ring = lock(&self.ring);
        while !ring.lines.is_empty() {
            self.budget.0.fetch_sub(ring.drop_oldest(), Ordering::Relaxed);
        }
    }

    /// Kept lines of one pipe or both, and how many were dropped.
    pub(crate) fn snapshot(&self, only: Option<OutputStream>) -> (Vec<Arc<str>>, u64) {
        let ring = lock(&self.ring);
        let wanted = |line: &&Line| only.is_none_or(|only| line.stream == only);
        let dropped = only.map_or(ring.dropped.iter().sum(), |only| ring.dropped[index(only)]);
        (ring.lines.iter().filter(wanted).map(|line| Arc::clone(&line.text)).collect(), dropped)
    }

    /// Follows from line `offset`.
    pub(crate) fn follow(self: &Arc<Self>, only: Option<OutputStream>, offset: u64) -> Follower {
        let known = lock(&self.ring).next;
        Follower { output: Arc::clone(self), changed: self.changed.subscribe(), next: offset, known, only }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.forget();
    }
}

/// A reader of an [`Output`].
pub(crate) struct Follower {
    output: Arc<Output>,
    changed: watch::Receiver<()>,
    next: u64,
    /// Lines there were when it began: it sees at least those, also of a process that ended before.
    known: u64,
    only: Option<OutputStream>,
}

impl Follower {
    /// Waits for lines and takes up to about `bytes_max` of them; `None` when there will be no more.
    pub(crate) async fn next(&mut self, bytes_max: usize) -> Option<Vec<Line>> {
        loop {
            self.changed.mark_unchanged();
            let (lines, finished) = self.take(bytes_max);
            if !lines.is_empty() {
                return Some(lines);
            }
            if finished || self.changed.changed().await.is_err() {
                return None;
            }
        }
    }

    fn take(&mut self, bytes_max: usize) -> (Vec<Line>, bool) {
        let ring = lock(&self.output.ring);
        // Something in the background may write for ever: the end is a line number, not silence.
        let end = ring.finished_at.map(|end| end.max(self.known));
        let first = ring.next - ring.lines.len() as u64;
        let skip = usize::try_from(self.next.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut taken = Vec::new();
        for line in ring.lines.iter().skip(skip).take_while(|line| end.is_none_or(|end| line.offset < end)) {
            if bytes >= bytes_max {
                return (taken, false);
            }
            self.next = line.offset + 1;
            if self.only.is_none_or(|only| line.stream == only) {
                bytes += cost(line);
                taken.push(line.clone());
            }
        }
        (taken, end.is_some())
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
pub(crate) struct LineSplitter {
    partial: Vec<u8>,
    /// The last line was cut for its length, so a newline that comes next ends *it* and not an empty line.
    was_cut: bool,
}

impl LineSplitter {
    /// Takes bytes and gives each line that is complete: at a newline, or at [`LINE_BYTES_MAX`].
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(Arc<str>)) {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.was_cut) && first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let room = LINE_BYTES_MAX - self.partial.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|&byte| byte == b'\n') {
                Some(end) if self.partial.is_empty() => {
                    line(text(&bytes[..end]));
                    bytes = &bytes[end + 1..];
                }
                Some(end) => {
                    self.partial.extend_from_slice(&bytes[..end]);
                    self.finish(&mut line);
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.partial.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.partial.len() == LINE_BYTES_MAX {
                        self.finish(&mut line);
                        self.was_cut = true;
                    }
                }
            }
        }
    }

    /// Gives what is left when the stream ended without a newline.
    pub(crate) fn finish(&mut self, mut line: impl FnMut(Arc<str>)) {
        if !self.partial.is_empty() {
            line(text(&self.partial));
            self.partial.clear();
        }
    }
}

fn text(bytes: &[u8]) -> Arc<str> {
    Arc::from(String::from_utf8_lossy(bytes))
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
