//! One node, as the rest of the server sees it: typed calls over its connection.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::body::Body;
use belljar_api::{
    error::{ErrorBody, code},
    image::ImageInfo,
    log::{LogPage, LogProcessList},
    network::NetworkUse,
    node::{
        Command, CommandAck, Credentials, DeletedImage, GiveImage, ImportImage, LogQuery, NewImage, NodeHello,
        StoppedImport,
    },
    sandbox::NetworkConfig,
    snapshot::{Collected, SnapshotDiff, StorageUse},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    lines::Lines,
    stream::{self, BodyStream},
};
use crate::{
    error::ApiError,
    limits::{GUEST_CONNECT_TIMEOUT, IMAGE_NAMES_MAX, NODE_ANSWER_MAX, NODE_CALL_TIMEOUT, NODE_WORK_TIMEOUT},
    placement::ImagePresence,
};

/// Why a node did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NodeError {
    /// The connection failed or the node took too long.
    #[error("the node cannot be reached: {0}")]
    Transport(String),
    /// It answered with an error.
    #[error("the node answered {status}: {}", body.error)]
    Answer {
        /// Its status.
        status: StatusCode,
        /// What it said.
        body: ErrorBody,
    },
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Transport(text) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                code::SANDBOX_UNREACHABLE,
                format!("the node that has this cannot be reached ({text}); try again"),
            ),
            NodeError::Answer { status, body } => Self::new(status, &body.code, body.error),
        }
    }
}

/// How a client names an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageRef<'a> {
    /// By a name or an alias.
    Name(&'a str),
    /// By its id.
    Id(&'a str),
}

impl<'a> ImageRef<'a> {
    /// As the client wrote it.
    pub(crate) fn text(self) -> &'a str {
        match self {
            Self::Name(text) | Self::Id(text) => text,
        }
    }

    /// Its path on a node.
    fn path(self) -> String {
        let key = match self {
            Self::Name(_) => "name",
            Self::Id(_) => "id",
        };
        let value: String = url::form_urlencoded::byte_serialize(self.text().as_bytes()).collect();
        format!("/v1/images?{key}={value}")
    }
}

/// A connected node.
#[derive(Debug)]
pub(crate) struct NodeLink {
    hello: NodeHello,
    caller: Caller,
    wake: Notify,
    hung_up: CancellationToken,
    /// Names that the node is known to have. A removed image is noticed when the node makes the sandbox.
    images: Mutex<HashSet<String>>,
}

/// Sends requests over a node's connection.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    send: SendRequest<Body>,
    patience: Duration,
}

impl Caller {
    pub(super) fn new(send: SendRequest<Body>) -> Self {
        Self { send, patience: NODE_CALL_TIMEOUT }
    }

    /// The same connection, for answers that take their time.
    fn patient(&self) -> Self {
        Self { patience: NODE_WORK_TIMEOUT, ..self.clone() }
    }

    /// Sends a request and returns the head of the answer.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, NodeError> {
        let mut send = self.send.clone();
        let answer = async {
            send.ready().await?;
            send.send_request(request).await
        };
        match tokio::time::timeout(self.patience, answer).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(NodeError::Transport(error.to_string())),
            Err(_) => Err(NodeError::Transport(format!("no answer in {} s", self.patience.as_secs()))),
        }
    }

    /// Asks for JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, NodeError> {
        self.json(Method::GET, path, Body::empty()).await
    }

    /// Sends JSON and asks for JSON.
    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, NodeError> {
        self.json(Method::POST, path, text(body)?).await
    }

    async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, NodeError> {
        self.json(Method::PUT, path, text(body)?).await
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, NodeError> {
        let request = request(method, path, body)?;
        let response = self.send(request).await?;
        let status = response.status();
        let bytes = read(response).await?;
        if !status.is_success() {
            return Err(refusal(status, &bytes));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| NodeError::Transport(format!("its answer to {path} cannot be read: {error}")))
    }
}

/// A request to a node. The host name says nothing on this connection.
pub(super) fn request(method: Method, path: &str, body: Body) -> Result<Request<Body>, NodeError> {
    Request::builder()
        .method(method)
        .uri(format!("http://node{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| NodeError::Transport(error.to_string()))
}

fn text(body: &impl Serialize) -> Result<Body, NodeError> {
    serde_json::to_vec(body).map(Body::from).map_err(|error| NodeError::Transport(error.to_string()))
}

pub(super) async fn read(response: Response<Incoming>) -> Result<Bytes, NodeError> {
    let body = Limited::new(response.into_body(), NODE_ANSWER_MAX).collect();
    match tokio::time::timeout(NODE_CALL_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(NodeError::Transport(error.to_string())),
        Err(_) => Err(NodeError::Transport("its answer came too slowly".to_owned())),
    }
}

/// The error in an answer that is not a success.
pub(super) fn refusal(status: StatusCode, bytes: &[u8]) -> NodeError {
    let body = serde_json::from_slice(bytes)
        .unwrap_or_else(|_| ErrorBody::new(code::PROXY_ERROR, format!("the node answered {status} without words")));
    NodeError::Answer { status, body }
}

impl NodeLink {
    pub(super) fn new(hello: NodeHello, caller: Caller) -> Self {
        let images = hello.images.iter().map(|image| image.name.clone()).take(IMAGE_NAMES_MAX).collect();
        Self { hello, caller, wake: Notify::new(), hung_up: CancellationToken::new(), images: Mutex::new(images) }
    }

    /// Its id.
    pub(crate) fn id(&self) -> &str {
        &self.hello.node_id
    }

    /// What it said when it came.
    pub(crate) fn hello(&self) -> &NodeHello {
        &self.hello
    }

    /// Signalled when there is a command for it.
    pub(super) fn wake(&self) -> &Notify {
        &self.wake
    }

    /// Delivers a command.
    pub(super) async fn command(&self, command: &Command) -> Result<CommandAck, NodeError> {
        self.caller.post("/v1/commands", command).await
    }

    /// Its images, read anew.
    pub(crate) async fn images(&self) -> Result<Vec<ImageInfo>, NodeError> {
        self.caller.get("/v1/images").await
    }

    /// One image.
    pub(crate) async fn image(&self, which: ImageRef<'_>) -> Result<ImageInfo, NodeError> {
        let found = self.caller.get(&which.path()).await?;
        let mut known = self.known_images();
        if let ImageRef::Name(name) = which
            && known.len() < IMAGE_NAMES_MAX
        {
            known.insert(name.to_owned());
        }
        Ok(found)
    }

    /// Lets it make an image of a snapshot.
    pub(crate) async fn image_from_snapshot(&self, new: &NewImage) -> Result<ImageInfo, NodeError> {
        self.caller.patient().post("/v1/images/from-snapshot", new).await
    }

    /// Whether a build may make an image of this name; a refusal says why not.
    pub(crate) async fn check_image_name(&self, name: &str) -> Result<(), NodeError> {
        let name: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
        self.caller.get::<serde_json::Value>(&format!("/v1/images/name?name={name}")).await.map(drop)
    }

    /// Lets it put an image into a sandbox. It stops when this is dropped.
    pub(crate) async fn give_image(&self, give: &GiveImage) -> Result<(), NodeError> {
        self.caller.patient().post::<serde_json::Value>("/v1/images/give", give).await.map(drop)
    }

    /// Lets it import an image. Its lines are [`belljar_api::node::ImportReport`]s; the import is stopped when they are dropped.
    pub(crate) async fn import_image(&self, new: &ImportImage) -> Result<Lines, NodeError> {
        Lines::open(&self.caller, request(Method::POST, "/v1/images/import", text(new)?)?).await
    }

    /// Stops an import.
    pub(crate) async fn stop_import(&self, build_id: &str) -> Result<StoppedImport, NodeError> {
        self.caller.post(&format!("/v1/images/import/{build_id}/stop"), &serde_json::json!({})).await
    }

    /// Lets it remove an image.
    pub(crate) async fn delete_image(&self, which: ImageRef<'_>) -> Result<DeletedImage, NodeError> {
        let deleted = self.caller.patient().json(Method::DELETE, &which.path(), Body::empty()).await;
        // Which of the names that we know lead there, only the node can tell.
        self.known_images().clear();
        deleted
    }

    fn known_images(&self) -> MutexGuard<'_, HashSet<String>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has an image; asks only when the name is new.
    pub(crate) async fn image_presence(&self, name: &str) -> Result<ImagePresence, NodeError> {
        if self.known_images().contains(name) {
            return Ok(ImagePresence::Present);
        }
        match self.image(ImageRef::Name(name)).await {
            Ok(_) => Ok(ImagePresence::Present),
            Err(NodeError::Answer { status: StatusCode::NOT_FOUND, body }) => Ok(ImagePresence::Absent(body.error)),
            Err(error) => Err(error),
        }
    }

    /// Whether it can enforce a network policy now; a refusal says why not.
    pub(crate) async fn check_network(&self, network: &NetworkConfig) -> Result<(), NodeError> {
        self.caller.patient().post::<serde_json::Value>("/v1/network/check", network).await.map(drop)
    }

    /// Returns when the sandbox's command of this generation shows its effect.
    pub(crate) async fn done(&self, sandbox_id: &str, generation: u64) -> Result<(), NodeError> {
        self.caller.get::<serde_json::Value>(&format!("/v1/sandboxes/{sandbox_id}/done/{generation}")).await.map(drop)
    }

    /// What has passed through a sandbox's network.
    pub(crate) async fn network_use(&self, sandbox_id: &str) -> Result<NetworkUse, NodeError> {
        self.caller.get(&format!("/v1/network/{sandbox_id}")).await
    }

    /// Tells it what secrets there are.
    pub(crate) async fn credentials(&self, credentials: &Credentials) -> Result<(), NodeError> {
        self.caller.put::<serde_json::Value>("/v1/credentials", credentials).await.map(drop)
    }

    /// Ends its session: it dials again, and is told everything anew.
    pub(crate) fn hang_up(&self) {
        self.hung_up.cancel();
    }

    /// Cancelled by [`Self::hang_up`].
    pub(super) fn hung_up(&self) -> &CancellationToken {
        &self.hung_up
    }

    /// A page of a sandbox's log.
    pub(crate) async fn logs(&self, query: &LogQuery) -> Result<LogPage, NodeError> {
        self.caller.post("/v1/logs", query).await
    }

    /// The processes in a sandbox's log.
    pub(crate) async fn log_processes(&self, sandbox_id: &str) -> Result<LogProcessList, NodeError> {
        self.caller.get(&format!("/v1/logs/{sandbox_id}/processes")).await
    }

    /// What takes space on it.
    pub(crate) async fn storage(&self) -> Result<StorageUse, NodeError> {
        self.caller.patient().get("/v1/storage").await
    }

    /// Lets it remove what nothing needs.
    pub(crate) async fn collect_garbage(&self) -> Result<Collected, NodeError> {
        self.caller.patient().post("/v1/storage/gc", &serde_json::json!({})).await
    }

    /// What differs between two snapshots on it.
    pub(crate) async fn snapshot_diff(&self, id: &str, other: &str) -> Result<SnapshotDiff, NodeError> {
        self.caller.patient().get(&format!("/v1/snapshots/{id}/diff/{other}")).await
    }

    /// Opens a byte stream to a port of a sandbox.
    pub(crate) async fn connect(&self, sandbox_id: &str, port: u16) -> Result<BodyStream, NodeError> {
        let (writer, body) = stream::channel();
        let request = request(Method::POST, &format!("/v1/streams/{sandbox_id}/{port}"), Body::new(body))?;
        let open = async {
            let response = self.caller.send(request).await?;
            let status = response.status();
            if !status.is_success() {
                return Err(refusal(status, &read(response).await?));
            }
            Ok(BodyStream::new(response.into_body(), writer))
        };
        let late =
            || NodeError::Transport(format!("port {port} was not open in {} s", GUEST_CONNECT_TIMEOUT.as_secs()));
        tokio::time::timeout(GUEST_CONNECT_TIMEOUT, open).await.unwrap_or_else(|_| Err(late()))
    }
}
