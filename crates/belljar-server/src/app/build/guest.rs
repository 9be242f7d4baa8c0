//! The builder's agent, asked as any client would ask it: files in, programs run, output followed.
//!
//! What it answers has a bound: whatever a Dockerfile runs may have taken the guest over. Called by [`super::dockerfile`].

use std::{collections::BTreeMap, io, time::Duration};

use belljar_api::{
    limits::AGENT_PORT,
    process::{ProcessInfo, ProcessStatus, RunEvent, RunProcess, StartProcess, UserSpec},
};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio_util::io::ReaderStream;

use crate::{
    app::App,
    ingress::{self, Target},
    limits::{BUILDER_ANSWER_MAX, BUILDER_LINE_MAX, BUILDER_OUTPUT_MAX, BUILDER_RETRIES, COMMAND_RETRY},
};

/// The builder does not do what it is asked.
#[derive(Debug, thiserror::Error)]
#[error("the builder {what}")]
pub(super) struct GuestError {
    what: String,
}

fn gone(why: impl std::fmt::Display) -> GuestError {
    GuestError { what: format!("cannot be reached: {why}") }
}

/// A program that ran to its end.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) ok: bool,
    /// What it wrote, both outputs, the end of it.
    pub(super) output: String,
}

type Body = BoxBody<Bytes, io::Error>;

/// See the module.
pub(super) struct Guest<'a> {
    app: &'a App,
    target: Target,
}

impl<'a> Guest<'a> {
    pub(super) fn new(app: &'a App, sandbox_id: &str) -> Self {
        Self { app, target: Target { sandbox: sandbox_id.to_owned(), port: AGENT_PORT } }
    }

    /// Writes a file.
    pub(super) async fn put_file(&self, path: &str, content: impl Into<Bytes>) -> Result<(), GuestError> {
        self.call(Method::PUT, &with_path("/api/v1/files", path), full(content)).await.map(drop)
    }

    /// Unpacks a tar archive into a directory.
    pub(super) async fn unpack(&self, path: &str, archive: tokio::fs::File) -> Result<(), GuestError> {
        const CHUNK: usize = 256 * 1024;
        let frames = ReaderStream::with_capacity(archive, CHUNK);
        let frames = futures_util::StreamExt::map(frames, |bytes| bytes.map(Frame::data));
        let body = BodyExt::boxed(StreamBody::new(frames));
        self.call(Method::PUT, &with_path("/api/v1/archive", path), body).await.map(drop)
    }

    /// Runs a shell's command line as root, to its end.
    pub(super) async fn sh(&self, line: &str) -> Result<Ran, GuestError> {
        let run = RunProcess {
            command: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), line.to_owned()],
            user: Some(root()),
            ..RunProcess::default()
        };
        let response = self.call(Method::POST, "/api/v1/processes/run", json(&run)?).await?;
        let mut events = Events::new(response);
        let mut output = String::new();
        loop {
            match events.next().await? {
                Some(RunEvent::Line { line, .. }) => {
                    output.push_str(&line);
                    output.push('\n');
                    if output.len() > BUILDER_OUTPUT_MAX {
                        return Err(GuestError { what: "says more than it can have to say".to_owned() });
                    }
                }
                Some(RunEvent::Ended { exit_code, .. }) => return Ok(Ran { ok: exit_code == Some(0), output }),
                Some(RunEvent::Started { .. } | RunEvent::Eof {}) => {}
                None => return Err(gone("it broke off")),
            }
        }
    }

    /// Starts a program as root, with more environment; gives its process id.
    pub(super) async fn start(
        &self,
        command: &str,
        args: Vec<String>,
        env: BTreeMap<String, String>,
    ) -> Result<i64, GuestError> {
        let start = StartProcess {
            command: command.to_owned(),
            args,
            env,
            user: Some(root()),
            working_dir: Some("/".to_owned()),
            ..StartProcess::default()
        };
        let response = self.call(Method::POST, "/api/v1/processes", json(&start)?).await?;
        Ok(whole::<ProcessInfo>(response).await?.pid)
    }

    /// Gives every line of a program's output to `each`, until it has ended; gives how it did. A connection that breaks
    /// off is made again where it was.
    pub(super) async fn follow(&self, pid: i64, mut each: impl FnMut(&str)) -> Result<ProcessInfo, GuestError> {
        let (mut next, mut failures) = (0_u64, 0);
        loop {
            let before = next;
            let followed = self.follow_from(pid, &mut next, &mut each).await;
            let error = match followed {
                Ok(()) => match self.ended(pid).await {
                    Ok(info) => return Ok(info),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            failures = if next > before { 0 } else { failures + 1 };
            if failures >= BUILDER_RETRIES {
                return Err(error);
            }
            tokio::time::sleep(COMMAND_RETRY).await;
        }
    }

    async fn follow_from(&self, pid: i64, next: &mut u64, each: &mut impl FnMut(&str)) -> Result<(), GuestError> {
        let path = format!("/api/v1/processes/{pid}/output/follow?offset={next}");
        let mut events = Events::new(self.call(Method::GET, &path, full(Bytes::new())).await?);
        loop {
            match events.next().await? {
                Some(RunEvent::Line { line, offset, .. }) => {
                    *next = offset.map_or(*next, |offset| offset) + 1;
                    each(&line);
                }
                Some(RunEvent::Eof {}) => return Ok(()),
                Some(RunEvent::Started { .. } | RunEvent::Ended { .. }) => {}
                None => return Err(gone("it broke off")),
            }
        }
    }

    /// How a process ended whose output has: a moment may lie between the two.
    async fn ended(&self, pid: i64) -> Result<ProcessInfo, GuestError> {
        const PAUSE: Duration = Duration::from_millis(50);
        for _ in 0..BUILDER_RETRIES * 10 {
            let path = format!("/api/v1/processes/{pid}");
            let info: ProcessInfo = whole(self.call(Method::GET, &path, full(Bytes::new())).await?).await?;
            if info.status != ProcessStatus::Running {
                return Ok(info);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(GuestError { what: "closed its output and goes on".to_owned() })
    }

    async fn call(&self, method: Method, path: &str, body: Body) -> Result<Response<Incoming>, GuestError> {
        let stream = ingress::open(self.app, &self.target).await.map_err(|error| gone(error.told()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
        // Ends with the answer, or when we let go of it.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "agent")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(gone)?;
        let response = sender.send_request(request).await.map_err(gone)?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(refusal(status, response).await),
        }
    }
}

async fn refusal(status: StatusCode, response: Response<Incoming>) -> GuestError {
    let body = Limited::new(response.into_body(), BUILDER_ANSWER_MAX).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let words = serde_json::from_slice::<belljar_api::error::ErrorBody>(&body).map(|body| body.error);
    GuestError { what: format!("answered {status}: {}", words.unwrap_or_default()) }
}

async fn whole<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, GuestError> {
    let body = Limited::new(response.into_body(), BUILDER_ANSWER_MAX).collect().await.map_err(gone)?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| GuestError { what: format!("is not understood: {error}") })
}

fn root() -> UserSpec {
    UserSpec::Text("root".to_owned())
}

fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed()
}

fn json(value: &impl serde::Serialize) -> Result<Body, GuestError> {
    serde_json::to_vec(value).map(full).map_err(gone)
}

fn with_path(route: &str, path: &str) -> String {
    let path: String = url::form_urlencoded::byte_serialize(path.as_bytes()).collect();
    format!("{route}?path={path}")
}

/// The server-sent events of a process.
struct Events {
    body: Incoming,
    buffer: BytesMut,
}

impl Events {
    fn new(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), buffer: BytesMut::new() }
    }

    async fn next(&mut self) -> Result<Option<RunEvent>, GuestError> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if let Some(data) = line.strip_prefix(b"data:")
                    && let Ok(event) = serde_json::from_slice(data)
                {
                    return Ok(Some(event));
                }
            }
            if self.buffer.len() > BUILDER_LINE_MAX {
                return Err(GuestError { what: "wrote a line without an end".to_owned() });
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(bytes) = frame.map_err(gone)?.into_data() {
                        self.buffer.extend_from_slice(&bytes);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}
