//! A node that is a test double: it speaks the node protocol over a real connection and does what it is told. What a
//! command changes is in [`super::node_state`].

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::body::Body;
use belljar_api::{
    error::{ErrorBody, code},
    image::ImageInfo,
    log::{LogLine, LogPage, LogProcessList},
    node::{
        CONNECT_PATH, Capacity, Command, CommandAck, Credentials, DeletedImage, NewImage, NodeHello, NodeState, Op,
        Report, SandboxSpec, SnapshotReport, SnapshotState, UPGRADE,
    },
    snapshot::{Collected, DiffEntry, Difference, SnapshotDiff, StorageUse},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::{broadcast, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(super) use super::node_state::{Boot, Work};
use super::{
    Harness, NODE_TOKEN, guest,
    import::Imports,
    node_state::{State, image},
};
use crate::node_link::{BodyStream, channel};

pub(super) const NODE_ID: &str = "node-1";

/// Keeps what a node keeps on disk; connections come and go.
#[derive(Clone)]
pub(crate) struct FakeNode {
    inner: Arc<Mutex<Inner>>,
    reports: broadcast::Sender<Report>,
    /// Commands taken so far.
    taken: watch::Sender<Vec<Command>>,
    connection: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// Guest connections opened so far.
    pub(super) opened: watch::Sender<usize>,
    /// Those of them that have ended.
    pub(super) closed: watch::Sender<usize>,
    pub(super) end_events: CancellationToken,
    /// Attached programs that were left or have ended so far.
    pub(super) left: watch::Sender<usize>,
    pub(super) imports: Imports,
    /// Generation up to which commands show their effect.
    pub(super) done: watch::Sender<u64>,
}

struct Inner {
    state: State,
    images: Vec<String>,
    capacity: Capacity,
    egress_rules: bool,
    /// What it was told last.
    credentials: Option<Credentials>,
    /// Answer to commands instead of taking them.
    refuse: Option<StatusCode>,
    /// Take the next command but let the connection break before the acknowledgement.
    break_next: bool,
}

impl FakeNode {
    pub(super) fn new() -> Self {
        let inner = Inner {
            state: State::default(),
            images: vec!["debian-minimal".into()],
            capacity: Capacity { cpus: 4.0, memory_mb: 4096, gpus: Vec::new() },
            egress_rules: false,
            credentials: None,
            refuse: None,
            break_next: false,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            reports: broadcast::Sender::new(1024),
            taken: watch::Sender::new(Vec::new()),
            connection: Arc::default(),
            opened: watch::Sender::new(0),
            closed: watch::Sender::new(0),
            end_events: CancellationToken::new(),
            left: watch::Sender::new(0),
            imports: Imports::new(),
            done: watch::Sender::new(u64::MAX),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("node")
    }

    pub(super) fn set_boot(&self, boot: Boot) {
        self.lock().state.boot = boot;
    }

    pub(super) fn set_work(&self, work: Work) {
        self.lock().state.work = work;
    }

    pub(super) fn set_refuse(&self, status: Option<StatusCode>) {
        self.lock().refuse = status;
    }

    pub(super) fn set_egress_rules(&self, enforced: bool) {
        self.lock().egress_rules = enforced;
    }

    /// What it was told about secrets last.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        self.lock().credentials.clone()
    }

    /// What it was to make of a sandbox.
    pub(super) fn spec(&self, id: &str) -> SandboxSpec {
        let of = |command: Command| match command.op {
            Op::Create { spec, .. } if command.sandbox_id == id => Some(spec),
            Op::Copy { copies } => copies.into_iter().find(|copy| copy.sandbox_id == id).map(|copy| copy.spec),
            _ => None,
        };
        self.commands().into_iter().find_map(of).expect("it was to be made")
    }

    pub(super) fn set_break_next(&self) {
        self.lock().break_next = true;
    }

    /// Forgets a sandbox without a word.
    pub(super) fn lose(&self, id: &str) {
        self.lock().state.sandboxes.remove(id);
        self.lock().state.snapshots.remove(id);
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.lock().state.sandboxes.contains_key(id)
    }

    /// Puts a sandbox into a state and tells so.
    pub(super) fn set(&self, id: &str, state: NodeState) {
        let report = self.lock().state.set(id, state);
        let _ = self.reports.send(report);
    }

    /// Puts a sandbox into a state and tells nobody.
    pub(super) fn set_quietly(&self, id: &str, state: NodeState) {
        let _ = self.lock().state.set(id, state);
    }

    /// Puts a snapshot into a state and tells so.
    pub(super) fn set_snapshot(&self, id: &str, state: SnapshotState) {
        self.lock().state.snapshots.insert(id.to_owned(), state.clone());
        let _ = self.reports.send(Report::Snapshot(SnapshotReport { snapshot_id: id.to_owned(), state }));
    }

    /// Waits for the first command that matches.
    pub(super) async fn command(&self, matches: impl Fn(&Command) -> bool) -> Command {
        let mut taken = self.taken.subscribe();
        let found = taken.wait_for(|commands| commands.iter().any(&matches)).await.expect("node");
        found.iter().find(|command| matches(command)).cloned().expect("command")
    }

    pub(super) fn commands(&self) -> Vec<Command> {
        self.taken.borrow().clone()
    }

    /// Breaks the connection and waits until the server has noticed.
    pub(super) async fn disconnect(&self, harness: &Harness) {
        let connection = self.connection.lock().expect("connection").take();
        if let Some(connection) = connection {
            connection.abort();
            let _ = connection.await;
        }
        while harness.app.live.nodes.any() {
            tokio::task::yield_now().await;
        }
    }

    /// Connects and waits until the server counts it as connected.
    pub(super) async fn connect(&self, harness: &Harness) {
        let before = harness.app.live.nodes.get(NODE_ID);
        self.dial(harness).await;
        loop {
            match (&before, harness.app.live.nodes.get(NODE_ID)) {
                (Some(before), Some(now)) if !Arc::ptr_eq(before, &now) => return,
                (None, Some(_)) => return,
                _ => tokio::task::yield_now().await,
            }
        }
    }

    async fn dial(&self, harness: &Harness) {
        let stream = TcpStream::connect(harness.addr).await.expect("connect");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.expect("handshake");
        let dialing = tokio::spawn(connection.with_upgrades());
        let request = Request::post(CONNECT_PATH)
            .header(header::HOST, "server")
            .header(header::AUTHORIZATION, format!("Bearer {NODE_TOKEN}"))
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, UPGRADE)
            .body(Body::empty())
            .expect("request");
        let response = sender.send_request(request).await.expect("answer");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let io = hyper::upgrade::on(response).await.expect("upgrade");
        let _ = dialing.await;
        let node = self.clone();
        let serving = tokio::spawn(async move {
            let broken = CancellationToken::new();
            let token = broken.clone();
            let service = service_fn(move |request| {
                let (node, broken) = (node.clone(), token.clone());
                async move { Ok::<_, Infallible>(node.answer(request, &broken).await) }
            });
            let connection =
                hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
            tokio::select! {
                _ = connection => {}
                () = broken.cancelled() => {}
            }
        });
        *self.connection.lock().expect("connection") = Some(serving);
    }

    async fn answer(&self, request: Request<Incoming>, broken: &CancellationToken) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (_, path) if path.starts_with("/v1/streams/") => self.open(request),
            (_, "/v1/hello") => json(StatusCode::OK, &self.hello()),
            (_, "/v1/commands") => {
                let body = request.into_body().collect().await.expect("body").to_bytes();
                let command = serde_json::from_slice(&body).expect("command");
                self.take(command, broken).await
            }
            (&Method::PUT, "/v1/credentials") => {
                let body = request.into_body().collect().await.expect("body").to_bytes();
                self.lock().credentials = Some(serde_json::from_slice(&body).expect("credentials"));
                json(StatusCode::OK, &serde_json::json!({}))
            }
            (_, "/v1/reports") => self.account(),
            (&Method::DELETE, "/v1/images") => self.delete_image(request.uri().query()),
            (&Method::POST, "/v1/images/from-snapshot") => {
                let body = request.into_body().collect().await.expect("body").to_bytes();
                self.make_image(&serde_json::from_slice(&body).expect("an image"))
            }
            (&Method::POST, "/v1/images/import") => {
                let body = request.into_body().collect().await.expect("body").to_bytes();
                self.imports.begin(serde_json::from_slice(&body).expect("an import"))
            }
            (&Method::POST, path) if path.starts_with("/v1/images/import/") => {
                self.imports.stop(path.split('/').nth(4).expect("a build"))
            }
            (_, "/v1/images/name") => match request.uri().query() {
                Some("name=belljar%2Fdebian") => {
                    json(StatusCode::FORBIDDEN, &ErrorBody::new(code::FORBIDDEN, "is ours"))
                }
                _ => json(StatusCode::OK, &serde_json::json!({})),
            },
            (_, "/v1/images") => self.images(request.uri().query()),
            (_, "/v1/logs") => json(StatusCode::OK, &logs()),
            (&Method::GET, "/v1/storage") => json(StatusCode::OK, &storage()),
            (&Method::POST, "/v1/storage/gc") => json(StatusCode::OK, &collected()),
            (_, path) if path.starts_with("/v1/snapshots/") => json(StatusCode::OK, &difference()),
            (_, path) if path.starts_with("/v1/sandboxes/") => {
                let generation: u64 = path.rsplit('/').next().and_then(|word| word.parse().ok()).expect("a generation");
                self.done.subscribe().wait_for(|done| *done >= generation).await.expect("node");
                json(StatusCode::OK, &serde_json::json!({}))
            }
            (_, path) if path.ends_with("/processes") => json(StatusCode::OK, &LogProcessList::default()),
            (_, path) => json(StatusCode::NOT_FOUND, &ErrorBody::new(code::NOT_FOUND, path)),
        }
    }

    fn hello(&self) -> NodeHello {
        let inner = self.lock();
        NodeHello {
            node_id: NODE_ID.into(),
            version: "1".into(),
            driver: "process".into(),
            capacity: inner.capacity.clone(),
            egress_rules: inner.egress_rules,
            images: inner.images.iter().map(|name| image(name)).collect(),
        }
    }

    fn images(&self, query: Option<&str>) -> Response<Body> {
        let inner = self.lock();
        match wanted(query).as_deref() {
            None => json(StatusCode::OK, &inner.images.iter().map(|name| image(name)).collect::<Vec<_>>()),
            // An alias, as nodes know some.
            Some("tensorlake/debian-minimal") => json(StatusCode::OK, &image("debian-minimal")),
            Some(name) if inner.images.iter().any(|known| known == name) => json(StatusCode::OK, &image(name)),
            Some(name) => no_image(name),
        }
    }

    fn delete_image(&self, query: Option<&str>) -> Response<Body> {
        let images = &mut self.lock().images;
        match wanted(query) {
            Some(name) if name == "debian-minimal" => {
                json(StatusCode::FORBIDDEN, &ErrorBody::new(code::FORBIDDEN, "that one is mine"))
            }
            Some(name) if images.contains(&name) => {
                images.retain(|known| *known != name);
                json(StatusCode::OK, &DeletedImage { names: vec![name] })
            }
            name => no_image(&name.unwrap_or_default()),
        }
    }

    fn make_image(&self, new: &NewImage) -> Response<Body> {
        if new.name == "busy" {
            return json(StatusCode::CONFLICT, &ErrorBody::new(code::CONFLICT, "it is being made"));
        }
        self.add_images(&[&new.name]);
        json(StatusCode::OK, &ImageInfo { global: new.public, ..image(&new.name) })
    }

    /// Gives it more images.
    pub(super) fn add_images(&self, names: &[&str]) {
        self.lock().images.extend(names.iter().map(|&name| name.to_owned()));
    }

    async fn take(&self, command: Command, broken: &CancellationToken) -> Response<Body> {
        if let Some(status) = self.lock().refuse {
            return json(status, &ErrorBody::new(code::INVALID_ARGUMENT, "the node refuses"));
        }
        let reports = self.lock().state.apply(&command);
        self.taken.send_modify(|taken| taken.push(command.clone()));
        if std::mem::take(&mut self.lock().break_next) {
            broken.cancel();
            return std::future::pending().await;
        }
        for report in reports {
            let _ = self.reports.send(report);
        }
        json(StatusCode::OK, &CommandAck { seq: command.seq, applied: true })
    }

    fn account(&self) -> Response<Body> {
        let changes = self.reports.subscribe();
        let mut first = self.lock().state.account();
        first.push(Report::Synced);
        let live = stream::unfold(changes, |mut changes| async {
            let report = changes.recv().await.ok()?;
            Some((report, changes))
        });
        let lines = stream::iter(first).chain(live).map(|report| {
            let mut line = serde_json::to_vec(&report).expect("report");
            line.push(b'\n');
            Ok::<_, Infallible>(Bytes::from(line))
        });
        Response::new(Body::from_stream(lines))
    }

    fn open(&self, request: Request<Incoming>) -> Response<Body> {
        let (id, port) = request.uri().path()["/v1/streams/".len()..].split_once('/').expect("a sandbox and a port");
        let port = port.parse().expect("port");
        if port == guest::CLOSED_PORT {
            let words = format!("nobody listens on port {port}");
            return json(StatusCode::BAD_GATEWAY, &ErrorBody::new(code::CONNECTION_REFUSED, words));
        }
        match self.lock().state.wake(id) {
            Ok(reports) => reports.into_iter().for_each(|report| drop(self.reports.send(report))),
            Err(code) => {
                return json(StatusCode::SERVICE_UNAVAILABLE, &ErrorBody::new(code, "it does not wake by itself"));
            }
        }
        self.opened.send_modify(|opened| *opened += 1);
        let (end_events, left, closed) = (self.end_events.clone(), self.left.clone(), self.closed.clone());
        let (writer, body) = channel();
        let io = BodyStream::new(request.into_body(), writer);
        tokio::spawn(async move {
            guest::serve(io, port, end_events, left).await;
            closed.send_modify(|closed| *closed += 1);
        });
        Response::new(Body::new(body))
    }
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    crate::error::json(status, value)
}

fn no_image(name: &str) -> Response<Body> {
    let words = format!("image not found: {name}; there is debian-minimal");
    json(StatusCode::NOT_FOUND, &ErrorBody::new(code::NOT_FOUND, words))
}

/// The name that a request about images has. An image's id is here its name with something before it.
fn wanted(query: Option<&str>) -> Option<String> {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).find_map(|(key, value)| match &*key {
        "name" => Some(value.into_owned()),
        "id" => Some(value.strip_prefix("image_").unwrap_or("?").to_owned()),
        _ => None,
    })
}

fn storage() -> StorageUse {
    StorageUse { node_id: NODE_ID.into(), total_bytes: 100, free_bytes: 40, ..StorageUse::default() }
}

fn collected() -> Collected {
    Collected { node_id: NODE_ID.into(), freed_bytes: 7, removed_files: 1 }
}

fn difference() -> SnapshotDiff {
    let entry = DiffEntry { path: "/etc/x".into(), difference: Difference::Added, size_bytes: 3 };
    SnapshotDiff { entries: vec![entry], truncated: false }
}

fn logs() -> LogPage {
    let line = LogLine {
        timestamp: 1,
        uuid: "00000000-0000-4000-8000-000000000000".into(),
        namespace: "default".into(),
        application: String::new(),
        sandbox_id: "x".into(),
        resource_attributes: Vec::new(),
        body: "hello".into(),
        log_attributes: "{}".into(),
        allocations: Vec::new(),
        function_runs: Vec::new(),
        level: 3,
        retention: 7,
    };
    LogPage { logs: vec![line], next_token: None }
}
