//! The whole server on a real listener, with a node that is a test double: one file per area.

mod acme;
mod auth;
mod build;
mod copy;
mod dockerfile;
mod guest;
mod hostile;
mod http2;
mod image;
mod import;
mod ingress;
mod input;
mod node;
mod node_link;
pub(crate) mod node_state;
mod pebble;
mod pool;
mod program;
pub(crate) mod rows;
mod sandbox;
mod secret;
mod sleep;
mod smuggling;
mod snapshot;
mod speed;
mod ssh;
mod tls;
mod tunnel;

use std::{net::SocketAddr, path::Path, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use self::node::FakeNode;
use crate::{Listeners, Server, ServerConfig, acme::Issuer, app::App, prepare, tls::Tls};

pub(super) const NODE_TOKEN: &str = "belljar_node_of_the_tests_0123456789abcdef";

/// A running server.
pub(super) struct Harness {
    pub(super) addr: SocketAddr,
    /// The same in TLS, where there is a certificate.
    pub(super) tls_addr: SocketAddr,
    /// Where it listens for SSH.
    pub(super) ssh: SocketAddr,
    pub(super) key: String,
    pub(super) app: Arc<App>,
    /// What orders certificates, if anything does.
    pub(super) issuer: Option<Arc<Issuer>>,
    dir: tempfile::TempDir,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Status and error code.
    pub(super) fn error(&self) -> (u16, String) {
        (self.status, self.json()["code"].as_str().unwrap_or_default().to_owned())
    }
}

fn config(dir: &Path) -> ServerConfig {
    ServerConfig {
        database: dir.join("server.db"),
        secrets_key: dir.join("secrets.key"),
        sandbox_url_base: "http://localhost:9443".into(),
        ingress_domain: Some("sb.test".into()),
        tls: None,
        trusted_proxies: vec!["127.9.0.0/16".parse().expect("range")],
        default_image: "debian-minimal".into(),
        node_token: Some(NODE_TOKEN.into()),
    }
}

impl Harness {
    /// A new server with an empty store.
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let config = config(dir.path());
        Self::on(dir, config, None).await
    }

    /// A new server with a connected node.
    pub(super) async fn with_node() -> (Self, FakeNode) {
        let (harness, node) = (Self::start().await, FakeNode::new());
        node.connect(&harness).await;
        (harness, node)
    }

    async fn on(dir: tempfile::TempDir, config: ServerConfig, key: Option<String>) -> Self {
        Self::at(dir, config, key, "127.0.0.1:0").await
    }

    /// The same, with an address for TLS.
    async fn at(dir: tempfile::TempDir, config: ServerConfig, key: Option<String>, tls: &str) -> Self {
        let has_tls = config.tls.is_some();
        let server: Server = prepare(config).await.expect("server");
        assert_eq!(server.first_key().is_none(), key.is_some(), "the first key is made on the first start only");
        let key = key.or_else(|| server.first_key().map(str::to_owned)).expect("key");
        let app = Arc::clone(&server.app);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let addr = listener.local_addr().expect("address");
        let issuer = server.tls.as_ref().and_then(Tls::issuer);
        let tls = TcpListener::bind(tls).await.expect("listener");
        let tls_addr = tls.local_addr().expect("address");
        let tls = has_tls.then_some(tls).into_iter().collect();
        let listeners = Listeners { plain: vec![listener], tls, pipes: None };
        let for_ssh = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let ssh = for_ssh.local_addr().expect("address");
        let server = server.with_ssh(for_ssh, &dir.path().join("ssh-host-key")).expect("gateway");
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(listeners, async {
            let _ = stopped.await;
        }));
        Self { addr, tls_addr, ssh, key, app, issuer, dir, stop, task }
    }

    /// Stops the server; what it kept stays.
    async fn stop(self) -> (tempfile::TempDir, String) {
        let Self { key, app, dir, stop, task, .. } = self;
        let _ = stop.send(());
        task.await.expect("server");
        drop(app);
        (dir, key)
    }

    /// Stops the server and starts another one on the same store.
    pub(super) async fn restart(self) -> Self {
        let (dir, key) = self.stop().await;
        let config = config(dir.path());
        Self::on(dir, config, Some(key)).await
    }

    /// A request with the key.
    pub(super) fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key))
    }

    /// Sends a request over a connection of its own and returns the head of the answer.
    pub(super) async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        self.try_send(request).await.expect("answer")
    }

    async fn try_send(&self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        let stream = TcpStream::connect(self.addr).await.expect("connect");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await
    }

    /// Sends a request and reads the answer to its end.
    pub(super) async fn ask(&self, request: http::request::Builder, body: impl Into<Body>) -> Reply {
        let response = self.send(request.body(body.into()).expect("request")).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("body").to_bytes();
        assert!(parts.headers.contains_key("x-request-id"), "no request id");
        Reply { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(super) async fn get(&self, path: &str) -> Reply {
        self.ask(self.request("GET", path), Body::empty()).await
    }

    pub(super) async fn call(&self, method: &str, path: &str, body: &str) -> Reply {
        let request = self.request(method, path).header(header::CONTENT_TYPE, "application/json");
        self.ask(request, body.to_owned()).await
    }

    /// Creates a sandbox, which must come to run, and returns its id.
    pub(super) async fn create(&self, body: &str) -> String {
        let reply = self.call("POST", "/sandboxes", body).await;
        assert_eq!(reply.status, 200, "{:?}", reply.body);
        reply.json()["sandbox_id"].as_str().expect("id").to_owned()
    }

    /// Waits until a sandbox is no longer in the table or matches.
    pub(super) async fn until(&self, id: &str, matches: impl Fn(&Value) -> bool) -> Value {
        // The table tells every change; the store holds what to look at.
        let mut changes = self.app.live.table.get(id);
        loop {
            let info = self.get(&format!("/sandboxes/{id}")).await.json();
            if matches(&info) {
                return info;
            }
            let receiver = changes.as_mut().unwrap_or_else(|| panic!("it never came: {info}"));
            if receiver.changed().await.is_err() {
                changes = None;
            }
        }
    }
}

/// What may be said of every error.
#[track_caller]
pub(super) fn check_error(reply: &Reply, status: StatusCode, code: &str, words: &str) {
    let json = reply.json();
    let text = json["error"].as_str().unwrap_or_default();
    assert_eq!((reply.status, json["code"].as_str()), (status.as_u16(), Some(code)), "{text}");
    assert!(text.contains(words), "{text:?} does not say {words:?}");
}

/// A WebSocket to the test double's guest: it sends back what it gets, and when one side ends the other is told.
pub(super) async fn check_echo(response: Response<Incoming>) {
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.expect("upgrade"));
    io.write_all(b"to and fro").await.expect("write");
    let mut back = [0; 10];
    io.read_exact(&mut back).await.expect("read");
    assert_eq!(&back, b"to and fro");
    io.shutdown().await.expect("shutdown");
    assert_eq!(io.read(&mut back).await.expect("end"), 0);
}

impl Harness {
    /// Runs SQL on the store's writing connection, to break it.
    pub(super) async fn break_store(&self, sql: &'static str) {
        self.app.sqlite.execute(sql).await;
    }
}
