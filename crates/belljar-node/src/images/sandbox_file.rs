//! Files of a running sandbox, for images on their way into it and out of it: a base image that a Dockerfile builds on,
//! and what became of that.
//!
//! The guest's agent is asked, as any client would. The guest is hostile: what it gives has a bound, and is only ever kept
//! in a file without a name. Called by [`super::import`] and the uplink.

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
};

use belljar_api::{
    limits::AGENT_PORT,
    node::{GiveImage, SandboxFile},
};
use belljar_image::{ImageError, Packing, Store};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited, StreamBody, combinators::BoxBody};
use hyper::{Method, Request, Response, StatusCode, body::Frame, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use crate::{
    Context, blocking,
    limits::{BUILT_ARCHIVE_MAX, GIVEN_CHUNK, GIVEN_CHUNKS, SYSTEM_ANSWER_MAX},
};

/// A file that did not come or go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxFileError {
    /// It is not on this node, or does not run.
    #[error("sandbox {0} does not run here")]
    NotHere(String),
    /// Its agent broke off, or ended.
    #[error("the agent of sandbox {id} broke off: {why}")]
    Broken {
        /// The sandbox.
        id: String,
        /// Why.
        why: String,
    },
    /// The agent refuses.
    #[error("the agent of sandbox {id} answered {status}: {body}")]
    Refused {
        /// The sandbox.
        id: String,
        /// Its status.
        status: StatusCode,
        /// What it said.
        body: String,
    },
    /// It is larger than anything that is wanted.
    #[error("{path} of sandbox {id} has more than {BUILT_ARCHIVE_MAX} bytes")]
    TooLarge {
        /// The sandbox.
        id: String,
        /// The file.
        path: String,
    },
    /// The store has no such image, or no room.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// This machine's disk.
    #[error("cannot keep what a sandbox gives")]
    Disk(#[source] io::Error),
}

type Body = BoxBody<Bytes, io::Error>;

/// Brings a file of a sandbox into one without a name.
pub(super) async fn fetch(ctx: &Arc<Context>, store: &Store, from: &SandboxFile) -> Result<File, SandboxFileError> {
    let id = &from.sandbox_id;
    let body = Empty::new().map_err(|never| match never {}).boxed();
    let response = call(ctx, Method::GET, "/api/v1/files", from, body).await?;
    let length = response.headers().get(http::header::CONTENT_LENGTH);
    let length = length.and_then(|text| text.to_str().ok()?.parse::<u64>().ok()).unwrap_or(BUILT_ARCHIVE_MAX);
    let too_large = || SandboxFileError::TooLarge { id: id.clone(), path: from.path.clone() };
    if length > BUILT_ARCHIVE_MAX {
        return Err(too_large());
    }
    let store = store.clone();
    let file = blocking(move || store.scratch(length)).await?;
    let mut to = tokio::fs::File::from_std(file);
    let (mut body, mut left) = (response.into_body(), length);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| SandboxFileError::Broken { id: id.clone(), why: error.to_string() })?;
        let Ok(bytes) = frame.into_data() else { continue };
        left = left.checked_sub(bytes.len() as u64).ok_or_else(too_large)?;
        tokio::io::AsyncWriteExt::write_all(&mut to, &bytes).await.map_err(SandboxFileError::Disk)?;
    }
    tokio::io::AsyncWriteExt::flush(&mut to).await.map_err(SandboxFileError::Disk)?;
    Ok(to.into_std().await)
}

/// Puts an image into a sandbox, in the OCI layout, with a layer that is not packed. Stops when it is dropped.
pub(crate) async fn give(ctx: &Arc<Context>, give: GiveImage) -> Result<(), SandboxFileError> {
    let store = Store::open(&ctx.images.store)?;
    // Before anything is read: an image that is not there is no matter of the sandbox.
    store.lookup(&give.name)?;
    let (sender, receiver) = mpsc::channel(GIVEN_CHUNKS);
    let body = StreamBody::new(ReceiverStream::new(receiver).map(|chunk: io::Result<Bytes>| chunk.map(Frame::data)));
    let name = give.name.clone();
    let exported = blocking(move || {
        let mut to = Chunks { chunk: Vec::with_capacity(GIVEN_CHUNK), sender };
        let exported = store.export(&name, Packing::None, &mut to, &mut |_| {});
        match &exported {
            Ok(_) => to.flush().map_err(SandboxFileError::Disk),
            Err(error) => {
                // What has gone so far must not look like all of it.
                let _ = to.sender.blocking_send(Err(io::Error::other(error.to_string())));
                exported.map(drop).map_err(SandboxFileError::from)
            }
        }
    });
    let (exported, given) =
        tokio::join!(exported, call(ctx, Method::PUT, "/api/v1/archive", &give.to, BodyExt::boxed(body)));
    // If both failed, one has broken off the other, and the sandbox says more of its side.
    given?;
    exported
}

/// Writes into a request's body.
struct Chunks {
    chunk: Vec<u8>,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= GIVEN_CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(GIVEN_CHUNK));
        self.sender.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Asks the agent for a file, or gives it one, or what is in an archive.
async fn call(
    ctx: &Context,
    method: Method,
    route: &str,
    file: &SandboxFile,
    body: Body,
) -> Result<Response<Incoming>, SandboxFileError> {
    let id = &file.sandbox_id;
    let not_here = || SandboxFileError::NotHere(id.clone());
    let handle = ctx.registry.get(id).ok_or_else(not_here)?;
    let _active = handle.activity.enter();
    let link = handle.view.borrow().link.clone().ok_or_else(not_here)?;
    let broken = |why: String| SandboxFileError::Broken { id: id.clone(), why };
    let stream = link.open(AGENT_PORT).await.map_err(|error| broken(error.to_string()))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
    // Ends with the answer's body, or when the caller drops it.
    tokio::spawn(connection);
    let path: String = url::form_urlencoded::byte_serialize(file.path.as_bytes()).collect();
    let request = Request::builder()
        .method(method)
        .uri(format!("{route}?path={path}"))
        .header(http::header::HOST, "agent")
        .body(body)
        .map_err(|error| broken(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = Limited::new(response.into_body(), SYSTEM_ANSWER_MAX).collect().await;
    let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).chars().take(300).collect());
    Err(SandboxFileError::Refused { id: id.clone(), status, body: body.unwrap_or_default() })
}
