//! Connections to guest ports, and which protocol they speak.
//!
//! **HTTP/1.1**, whatever the client speaks, with one exception: a gRPC call (`content-type: application/grpc…`) that
//! came over HTTP/2 goes to a user's port as **HTTP/2 with prior knowledge** (h2c), because gRPC is nothing else. The
//! calls of one client connection to one port share one connection to the guest.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::body::GuestBody;
use crate::{
    limits::{
        CLIENT_CONNECTION_WINDOW, CLIENT_STREAM_WINDOW, GUEST_IDLE, HEAD_BYTES_MAX, HEADERS_MAX, NODE_PING,
        NODE_PING_TIMEOUT, STREAM_SEND_BUFFER,
    },
    node_link::BodyStream,
};

/// A connection on which requests are sent one after the other.
pub(super) type Http1 = http1::SendRequest<GuestBody>;

/// Speaks HTTP/1.1 on a fresh stream.
pub(super) async fn http1(stream: BodyStream) -> hyper::Result<Http1> {
    let (sender, connection) = http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a guest connection ended");
        }
    });
    Ok(sender)
}

/// An HTTP/2 connection to a guest. It ends when nobody holds it any more.
#[derive(Debug, Clone)]
pub(super) struct Grpc(Arc<http2::SendRequest<GuestBody>>);

impl Grpc {
    async fn open(stream: BodyStream) -> hyper::Result<Self> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(CLIENT_STREAM_WINDOW)
            .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            .max_send_buf_size(STREAM_SEND_BUFFER)
            .keep_alive_interval(NODE_PING)
            .keep_alive_timeout(NODE_PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a guest connection ended");
            }
        });
        Ok(Self(Arc::new(sender)))
    }

    /// A handle to send one request with.
    pub(super) fn sender(&self) -> http2::SendRequest<GuestBody> {
        (*self.0).clone()
    }

    /// Lets go of it after the time for which unused connections are kept.
    pub(super) fn linger(self) {
        // Another call holds it; the last one sees to its end.
        if Arc::strong_count(&self.0) > 1 {
            return;
        }
        tokio::spawn(async move {
            tokio::time::sleep(GUEST_IDLE).await;
            drop(self);
        });
    }
}

type Shared = HashMap<(String, u16), Weak<http2::SendRequest<GuestBody>>>;

/// The HTTP/2 connections to guests that one client connection has under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct GrpcConnections(Arc<Mutex<Shared>>);

impl GrpcConnections {
    /// The one to a port of a sandbox, if it still takes calls.
    pub(super) fn get(&self, sandbox_id: &str, port: u16) -> Option<Grpc> {
        let shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = shared.get(&(sandbox_id.to_owned(), port))?.upgrade()?;
        (!sender.is_closed()).then_some(Grpc(sender))
    }

    /// Speaks HTTP/2 on a fresh stream and remembers it.
    pub(super) async fn open(&self, sandbox_id: &str, port: u16, stream: BodyStream) -> hyper::Result<Grpc> {
        let connection = Grpc::open(stream).await?;
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|_, sender| sender.strong_count() > 0);
        shared.insert((sandbox_id.to_owned(), port), Arc::downgrade(&connection.0));
        Ok(connection)
    }
}
