//! The pipes between a process and the agent.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc};

use belljar_api::process::{OutputMode, OutputStream, StdinMode};
use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{net::unix::pipe, task::yield_now};

use crate::{
    logs::{Logs, Source},
    output::{LineSplitter, Output},
};

/// What a closed stdin reads and a discarded output writes.
const NULL: &str = "/dev/null";

/// A child's stdin, and our end of it.
pub(crate) fn stdin(mode: StdinMode) -> io::Result<(OwnedFd, Option<pipe::Sender>)> {
    match mode {
        StdinMode::Closed => Ok((File::open(NULL)?.into(), None)),
        StdinMode::Pipe => {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            Ok((reader, Some(pipe::Sender::from_owned_fd(writer)?)))
        }
    }
}

/// A child's stdout or stderr, and our end of it.
pub(crate) fn output(mode: OutputMode) -> io::Result<(OwnedFd, Option<pipe::Receiver>)> {
    match mode {
        OutputMode::Discard => Ok((File::options().write(true).open(NULL)?.into(), None)),
        OutputMode::Capture => {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            Ok((writer, Some(pipe::Receiver::from_owned_fd(reader)?)))
        }
    }
}

/// One of the pipes from a process.
pub(crate) struct Pipe {
    stream: OutputStream,
    /// `None` when the other end is closed.
    receiver: Option<pipe::Receiver>,
    splitter: LineSplitter,
}

impl Pipe {
    pub(crate) fn new(stream: OutputStream, receiver: Option<pipe::Receiver>) -> Self {
        Self { stream, receiver, splitter: LineSplitter::default() }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.receiver.is_some()
    }

    /// Waits for bytes and files them; a closed pipe waits for ever.
    pub(crate) async fn pass_on(&mut self, buffer: &mut [u8], sink: &Sink<'_>) {
        let Some(receiver) = &self.receiver else { return std::future::pending().await };
        let read = match receiver.readable().await {
            Ok(()) => receiver.try_read(buffer),
            Err(error) => Err(error),
        };
        let mut is_flood = false;
        match read {
            Ok(0) => self.close(sink),
            Ok(count) => {
                is_flood = count == buffer.len();
                self.splitter.feed(&buffer[..count], |line| sink.push(self.stream, line));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => self.close(sink),
        }
        sink.announce();
        // tokio counts no turns for pipes: a program that writes without end would keep everybody else waiting.
        if is_flood {
            yield_now().await;
        }
    }

    fn close(&mut self, sink: &Sink<'_>) {
        self.receiver = None;
        self.flush(sink);
    }

    /// Files what came without a newline.
    pub(crate) fn flush(&mut self, sink: &Sink<'_>) {
        self.splitter.finish(|line| sink.push(self.stream, line));
    }
}

/// Where lines go: to the process's own output and to the log.
pub(crate) struct Sink<'a> {
    pub(crate) output: &'a Output,
    pub(crate) logs: &'a Logs,
    pub(crate) source: Arc<Source>,
}

impl Sink<'_> {
    fn push(&self, stream: OutputStream, line: Arc<str>) {
        self.logs.push(&self.source, stream, &line);
        self.output.push(stream, line);
    }

    pub(crate) fn announce(&self) {
        self.output.announce();
        self.logs.announce();
    }
}
