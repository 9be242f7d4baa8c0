//! Starts an agent, speaks to it, and sees that it leaves nothing.

use std::{
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use belljar_api::{
    guest::{Configure, Configured, SYSTEM_PORT},
    image::RuntimeConfig,
    limits::AGENT_PORT,
    process::RunEvent,
};
use belljar_link::{ConnectOptions, Connector, LinkStream};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tempfile::TempDir;
use tokio::{net::UnixStream, time::timeout};

/// Longer than anything here takes; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An agent and the link to it.
pub(crate) struct Agent {
    child: Child,
    directory: TempDir,
    pub(crate) link: Connector,
}

impl Agent {
    /// Starts an agent that is not configured.
    pub(crate) async fn bare() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let socket = directory.path().join("link.sock");
        std::fs::create_dir(directory.path().join("home")).expect("home");
        let child = Command::new(env!("CARGO_BIN_EXE_belljar-guest"))
            .arg("--hosted")
            .arg("--listen")
            .arg(&socket)
            .arg("--root")
            .arg(directory.path().join("home"))
            .spawn()
            .expect("the agent starts");
        let link = connect(&socket).await;
        Self { child, directory, link }
    }

    /// Starts an agent that is a sandbox.
    pub(crate) async fn start() -> Self {
        let agent = Self::bare().await;
        agent.configure(&configuration()).await;
        agent
    }

    pub(crate) async fn configure(&self, wanted: &Configure) -> Configured {
        let answer = self.send(SYSTEM_PORT, request("POST", "/v1/configure", json(wanted))).await;
        assert_eq!(answer.status(), StatusCode::OK);
        parse(&body(answer).await)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.directory.path().join("home").canonicalize().expect("home")
    }

    /// Connects anew, as a node that was restarted; the old link ends.
    pub(crate) async fn reconnect(&mut self) {
        self.link = connect(&self.directory.path().join("link.sock")).await;
    }

    /// A connection of HTTP/1.1 to one of the agent's ports, and its one request.
    pub(crate) async fn send(&self, port: u16, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = self.link.open(port).await.expect("the port answers");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("http");
        tokio::spawn(connection.with_upgrades());
        timeout(PATIENCE, sender.send_request(request)).await.expect("in time").expect("an answer")
    }

    /// Asks the public API.
    pub(crate) async fn ask(&self, method: &str, path: &str, content: impl Into<Bytes>) -> (StatusCode, Bytes) {
        let answer = self.send(AGENT_PORT, request(method, path, content.into())).await;
        (answer.status(), body(answer).await)
    }

    /// Asks, and reads the answer as JSON after a look at the status.
    #[track_caller]
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        content: impl Serialize,
        expected: u16,
    ) -> impl Future<Output = T> {
        let (path, content) = (path.to_owned(), json(content));
        async move {
            let (status, answer) = self.ask(method, &path, content).await;
            assert_eq!(status.as_u16(), expected, "{method} {path}: {}", String::from_utf8_lossy(&answer));
            parse(&answer)
        }
    }

    /// Asks for what must be refused; gives status and code.
    pub(crate) async fn refused(&self, method: &str, path: &str, content: impl Into<Bytes>) -> (u16, String) {
        let (status, answer) = self.ask(method, path, content).await;
        let error: belljar_api::error::ErrorBody = parse(&answer);
        assert!(!error.error.is_empty());
        (status.as_u16(), error.code)
    }

    /// Runs `sh -c script` to its end.
    pub(crate) async fn sh(&self, script: &str) -> Vec<RunEvent> {
        self.run(serde_json::json!({"command": "sh", "args": ["-c", script]})).await
    }

    pub(crate) async fn run(&self, content: serde_json::Value) -> Vec<RunEvent> {
        let (status, answer) = self.ask("POST", "/api/v1/processes/run", json(content)).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer));
        events(&answer)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Agent {
    /// Ends the agent as its driver does, and looks whether anything of it is left.
    fn drop(&mut self) {
        let session_leaders = living_below(self.child.id());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("SIGTERM");
        let status = self.child.wait().expect("the agent ends");
        if std::thread::panicking() {
            return;
        }
        assert!(status.success(), "the agent ended with {status}");
        for pid in session_leaders {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            assert!(state.is_empty() || state.contains(") Z "), "process {pid} is left: {state}");
        }
        assert!(!self.directory.path().join("link.sock").exists());
    }
}

/// Children of a process, as the kernel lists them.
pub(crate) fn living_below(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

async fn connect(socket: &std::path::Path) -> Connector {
    let attempt = async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                // The agent has no way to say that its socket is there.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let stream = timeout(PATIENCE, attempt).await.expect("the agent listens");
    let (link, session) = belljar_link::connect(stream, ConnectOptions { timeout: PATIENCE }).await.expect("a link");
    tokio::spawn(session);
    link
}

/// What a sandbox is configured with unless a test says otherwise.
pub(crate) fn configuration() -> Configure {
    Configure {
        sandbox_id: "sandbox-1".to_owned(),
        rehearsal: false,
        life: 1,
        identity_token: "token".into(),
        mac: None,
        hostname: "sandbox-1".to_owned(),
        runtime: RuntimeConfig::default(),
        trust: None,
        entrypoint: None,
        network: None,
        wall_clock_ns: 0,
        entropy: "00".repeat(32),
    }
}

pub(crate) fn json(content: impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(&content).expect("JSON"))
}

#[track_caller]
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

pub(crate) fn request(method: &str, path: &str, content: Bytes) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).header("host", "sandbox").body(Full::new(content)).expect("a request")
}

pub(crate) async fn body(answer: Response<Incoming>) -> Bytes {
    timeout(PATIENCE, answer.into_body().collect()).await.expect("in time").expect("a whole body").to_bytes()
}

/// The `data:` of an event stream.
pub(crate) fn events(stream: &[u8]) -> Vec<RunEvent> {
    let text = std::str::from_utf8(stream).expect("UTF-8");
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(|data| parse(data.as_bytes())).collect()
}

/// Lines as `o:text` and `e:text`, then how it ended.
pub(crate) fn summary(events: &[RunEvent]) -> Vec<String> {
    use belljar_api::process::OutputStream::{Stderr, Stdout};
    let shown = |event: &RunEvent| match event {
        RunEvent::Line { line, stream: Some(Stdout), .. } => Some(format!("o:{line}")),
        RunEvent::Line { line, stream: Some(Stderr), .. } => Some(format!("e:{line}")),
        RunEvent::Line { line, stream: None, .. } => Some(line.clone()),
        RunEvent::Started { .. } => None,
        RunEvent::Ended { exit_code, signal, reason, .. } => {
            Some(format!("{reason} {}", exit_code.or(*signal).expect("one of both")))
        }
        RunEvent::Eof {} => Some("eof".to_owned()),
    };
    events.iter().filter_map(shown).collect()
}

/// Reads a body event by event.
pub(crate) struct EventReader {
    body: Incoming,
    buffer: Vec<u8>,
}

impl EventReader {
    pub(crate) fn new(answer: Response<Incoming>) -> Self {
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { body: answer.into_body(), buffer: Vec::new() }
    }

    pub(crate) async fn next(&mut self) -> Option<RunEvent> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = self.buffer.drain(..end + 2).collect();
                match events(&frame).pop() {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let frame = timeout(PATIENCE, self.body.frame()).await.expect("in time")?;
            self.buffer.extend_from_slice(frame.expect("a frame").data_ref().expect("data"));
        }
    }
}

/// A WebSocket to the public API; the status where it is refused.
pub(crate) async fn websocket(
    agent: &Agent,
    path: &str,
) -> Result<tokio_tungstenite::WebSocketStream<LinkStream>, u16> {
    let stream = agent.link.open(AGENT_PORT).await.expect("the port answers");
    let url = format!("ws://sandbox{path}");
    match timeout(PATIENCE, tokio_tungstenite::client_async(url, stream)).await.expect("in time") {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}
