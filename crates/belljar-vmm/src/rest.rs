//! The HTTP interface of a VM process, on a Unix socket in its run directory: Firecracker and Cloud Hypervisor have one.
//!
//! Each call has a connection of its own, so that a call that was given up cannot be answered to the next one. Descriptors go
//! along with a call's first bytes (`SCM_RIGHTS`).

use crate::limits::{REST_BODY_BYTES, REST_REPLY};
use crate::run_dir::RunDir;
use crate::supervise::ControlError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The socket cannot be reached, or the connection broke: the process has ended, or is about to.
    #[error("its control socket does not answer")]
    Closed(#[source] io::Error),
    /// The process says no.
    #[error("it refused {call}: {message}")]
    Refused { call: String, message: String },
    /// It takes too long.
    #[error("it did not answer {call} within {} s", .limit.as_secs())]
    Silent { call: String, limit: Duration },
}

impl ControlError for RestError {
    fn is_broken(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

/// A socket that answers HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Rest {
    dir: Arc<RunDir>,
    socket: &'static str,
    /// How long one call may take.
    limit: Duration,
}

impl Rest {
    pub(crate) fn new(dir: Arc<RunDir>, socket: &'static str) -> Self {
        Self { dir, socket, limit: REST_REPLY }
    }

    /// The same, with so much more time for each call.
    pub(crate) fn patient(self, more: Duration) -> Self {
        Self { limit: self.limit + more, ..self }
    }

    /// Waits until the process has made its socket, and listens on it. For ever: the caller watches the process.
    pub(crate) async fn ready(&self) -> Result<(), RestError> {
        loop {
            self.dir.appears(self.socket).await.map_err(RestError::Closed)?;
            match self.dir.connect(self.socket).await {
                Ok(_) => return Ok(()),
                // Between making it and listening are two system calls.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => tokio::task::yield_now().await,
                Err(error) => return Err(RestError::Closed(error)),
            }
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, RestError> {
        self.call(Method::GET, path, None, None).await
    }

    /// A body that is null is none.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, RestError> {
        self.call(Method::PUT, path, Some(body), None).await
    }

    /// The same; the process gets a copy of the descriptor.
    pub(crate) async fn put_with(&self, path: &str, body: &Value, fd: BorrowedFd<'_>) -> Result<Value, RestError> {
        self.call(Method::PUT, path, Some(body), Some(fd)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Result<Value, RestError> {
        self.call(Method::PATCH, path, Some(body), None).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, RestError> {
        let call = format!("{method} {path}");
        match tokio::time::timeout(self.limit, self.exchange(method, path, body, fd)).await {
            Ok(Ok((status, answer))) if status.is_success() => Ok(answer),
            Ok(Ok((_, answer))) => Err(RestError::Refused { call, message: words(&answer) }),
            Ok(Err(error)) => Err(RestError::Closed(error)),
            Err(_) => Err(RestError::Silent { call, limit: self.limit }),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<(StatusCode, Value)> {
        let bytes = body.filter(|body| !body.is_null()).map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .header(CONTENT_LENGTH, bytes.len())
            .body(Full::new(Bytes::from(bytes)))
            .map_err(io::Error::other)?;
        let stream = TokioIo::new(Passing { stream: self.dir.connect(self.socket).await?, fd });
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
        let exchange = async move {
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), REST_BODY_BYTES).collect().await.map_err(io::Error::other)?;
            let bytes = body.to_bytes();
            // What is not JSON is an answer in words.
            let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
            drop(sender);
            Ok((status, serde_json::from_slice(&bytes).unwrap_or_else(|_| text())))
        };
        // Its end is the end of the sender; how it failed, the exchange is told.
        let (exchanged, _) = tokio::join!(exchange, connection);
        exchanged
    }
}

/// A connection whose first bytes take a descriptor along.
struct Passing<'a> {
    stream: UnixStream,
    fd: Option<BorrowedFd<'a>>,
}

fn send_with(stream: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

impl AsyncWrite for Passing<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(fd) = self.fd else { return Pin::new(&mut self.stream).poll_write(cx, bytes) };
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, || send_with(&self.stream, bytes, fd)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    self.fd = None;
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Passing<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

/// What an error's body says: `{"fault_message": "..."}`, a list of strings, or anything.
fn words(answer: &Value) -> String {
    let text = match answer {
        Value::Object(fields) => fields.get("fault_message").and_then(Value::as_str).map(str::to_owned),
        Value::Array(parts) => {
            Some(parts.iter().map(|part| part.as_str().unwrap_or_default()).collect::<Vec<_>>().join(": "))
        }
        Value::String(text) => Some(text.clone()),
        _ => None,
    };
    let text = text.unwrap_or_else(|| answer.to_string());
    text.chars().filter(|c| !c.is_control()).take(crate::limits::REST_WORDS).collect()
}
