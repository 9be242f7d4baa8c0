//! The data plane of one sandbox: what the agent inside its VM answers, reached through the server's proxy.
//!
//! Calls that the server says were not delivered (the sandbox boots, or its node is away for a moment) are replayed
//! for up to 30 seconds; uploads are not, because their body is read only once.

use belljar_api::{
    guest::{AgentInfo, Health},
    process::{OutputLines, ProcessInfo, ProcessList, RunProcess, SendSignal, SignalSent, StartProcess},
};
use bytes::Bytes;
use http::{HeaderValue, Method, header};

use crate::{
    Error, EventStream,
    transport::{Call, Plane, Transport, segment},
};

/// Which output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// Only stdout.
    Stdout,
    /// Only stderr.
    Stderr,
    /// Both, in the order in which they were written.
    Both,
}

impl OutputKind {
    fn path(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Both => "output",
        }
    }
}

/// The data plane of one sandbox. Cheap to clone; clones share connections.
///
/// `process` parameters are a pid in digits or the name of a managed process.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub(crate) transport: Transport,
    reference: String,
}

impl Sandbox {
    pub(crate) fn new(transport: Transport, reference: &str) -> Self {
        Self { transport, reference: reference.to_owned() }
    }

    /// The id or name that it was made with.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    pub(crate) fn plane(&self) -> Plane<'_> {
        Plane::Sandbox(&self.reference)
    }

    pub(crate) fn call(&self, method: Method, path: impl Into<String>) -> Call<'_> {
        Call::new(self.plane(), method, path)
    }

    /// Whether the agent answers.
    pub async fn health(&self) -> Result<Health, Error> {
        self.transport.json(self.call(Method::GET, "/api/v1/health")).await
    }

    /// The agent about itself.
    pub async fn info(&self) -> Result<AgentInfo, Error> {
        self.transport.json(self.call(Method::GET, "/api/v1/info")).await
    }

    /// Starts a process and returns at once.
    pub async fn start(&self, request: &StartProcess) -> Result<ProcessInfo, Error> {
        self.transport.json(self.call(Method::POST, "/api/v1/processes").json(request)?).await
    }

    /// The processes that run, and the last that ended.
    pub async fn processes(&self) -> Result<ProcessList, Error> {
        self.transport.json(self.call(Method::GET, "/api/v1/processes")).await
    }

    /// One process.
    pub async fn process(&self, process: &str) -> Result<ProcessInfo, Error> {
        self.transport.json(self.call(Method::GET, process_path(process, ""))).await
    }

    /// Kills a process with its whole group; stops a managed one for good.
    pub async fn kill(&self, process: &str) -> Result<(), Error> {
        self.transport.nothing(self.call(Method::DELETE, process_path(process, ""))).await
    }

    /// Sends a signal, 1 to 64, to a process and its whole group.
    pub async fn signal(&self, process: &str, signal: i32) -> Result<SignalSent, Error> {
        let call = self.call(Method::POST, process_path(process, "/signal")).json(&SendSignal { signal })?;
        self.transport.json(call).await
    }

    /// Starts a managed process again.
    pub async fn restart(&self, process: &str) -> Result<ProcessInfo, Error> {
        self.transport.json(self.call(Method::POST, process_path(process, "/restart"))).await
    }

    /// Writes to the stdin of a process that was started with a pipe. Waits while the pipe is full.
    pub async fn write_stdin(&self, process: &str, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let mut call = self.call(Method::POST, process_path(process, "/stdin"));
        call.body = Some(bytes.into());
        self.transport.nothing(call).await
    }

    /// Closes the stdin of a process: it reads end of file.
    pub async fn close_stdin(&self, process: &str) -> Result<(), Error> {
        self.transport.nothing(self.call(Method::POST, process_path(process, "/stdin/close"))).await
    }

    /// The lines that a process wrote so far.
    pub async fn output(&self, process: &str, kind: OutputKind) -> Result<OutputLines, Error> {
        let path = process_path(process, &format!("/{}", kind.path()));
        self.transport.json(self.call(Method::GET, path)).await
    }

    /// The lines that a process wrote, then those that it writes, until it ends.
    pub async fn follow(&self, process: &str, kind: OutputKind) -> Result<EventStream, Error> {
        let path = process_path(process, &format!("/{}/follow", kind.path()));
        self.events(self.call(Method::GET, path)).await
    }

    /// The same from a line on: `offset` is one more than that of the last one that came, of both outputs.
    pub async fn follow_from(&self, process: &str, offset: u64) -> Result<EventStream, Error> {
        let path = process_path(process, &format!("/output/follow?offset={offset}"));
        self.events(self.call(Method::GET, path)).await
    }

    /// Runs a program to its end, with stdin closed; its output comes as events. Dropping the stream does not
    /// promise to end the program: [`Sandbox::kill`] does.
    pub async fn run(&self, request: &RunProcess) -> Result<EventStream, Error> {
        self.events(self.call(Method::POST, "/api/v1/processes/run").json(request)?).await
    }

    async fn events(&self, call: Call<'_>) -> Result<EventStream, Error> {
        let call = call.header(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        let answer = self.transport.send(&call, |_| false).await?;
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(Error::protocol(call.what(), format!("content type {kind:?}, not text/event-stream")));
        }
        Ok(EventStream::new(call.what(), answer.into_body()))
    }
}

fn process_path(process: &str, rest: &str) -> String {
    format!("/api/v1/processes/{}{rest}", segment(process))
}
