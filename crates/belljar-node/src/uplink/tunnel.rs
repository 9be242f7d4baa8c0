//! `POST /v1/streams/{sandbox_id}/{port}`: the two bodies of an HTTP/2 exchange are a connection to a port of the guest.
//!
//! ```text
//! open --refused--> 4xx, 5xx
//!   \--> both directions --one ends in good order--> the other goes on --> done
//!            \--one breaks off, or the sandbox sleeps--> cut: both fail, on both sides
//! ```

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    extract::{Path, State},
    response::Response,
};
use belljar_api::error::code;
use belljar_link::{LinkStream, OpenError};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::StatusCode;
use hyper::body::Frame;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_util::{
    io::ReaderStream,
    sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned},
};

use super::api::failure;
use crate::{
    limits::{OPEN_TIMEOUT, SPLICE_BUFFER, WAKE_PATIENCE},
    sandbox::{Handle, NotAwake, View},
};

/// Opens the connection, answers, and carries in the background.
pub(super) async fn open(
    State(ctx): State<Arc<crate::Context>>,
    Path((id, port)): Path<(String, u16)>,
    body: Body,
) -> Response {
    if port == belljar_api::guest::SYSTEM_PORT {
        return failure(StatusCode::FORBIDDEN, code::FORBIDDEN, "the system port is the node's own");
    }
    let Some(handle) = ctx.registry.get(&id) else {
        return failure(StatusCode::NOT_FOUND, code::SANDBOX_NOT_FOUND, format!("this node has no sandbox {id}"));
    };
    // Before the look at the link: a sandbox that is about to sleep looks for this after it has taken the link away.
    let active = handle.activity.enter();
    let Ok(slot) = ctx.connections.clone().try_acquire_owned() else {
        return failure(StatusCode::TOO_MANY_REQUESTS, code::TOO_MANY, "too many connections on this node");
    };
    let stream = match connect(&handle, &id, port).await {
        Ok(stream) => stream,
        Err(response) => return response,
    };
    let (reader, writer) = tokio::io::split(stream);
    let (cut, outward_over) = (CancellationToken::new(), CancellationToken::new());
    let outward = Outward::new(reader, &cut, &outward_over);
    let mut view = handle.view.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = cut.cancelled() => {}
            () = both(body, writer, &outward_over) => {}
            // What a client now sends would not wake it; a new connection does.
            _ = view.wait_for(View::is_suspended) => {}
        }
        // Where both have ended nobody hears it.
        cut.cancel();
        drop((active, slot));
    });
    Response::new(Body::new(outward))
}

/// Carries to the guest, then waits for the end of the other direction; returns at once when the server breaks off.
async fn both(body: Body, mut writer: WriteHalf<LinkStream>, outward_over: &CancellationToken) {
    let mut body = body.into_data_stream();
    loop {
        match body.next().await {
            Some(Ok(bytes)) if writer.write_all(&bytes).await.is_ok() => {}
            // Who takes no more may still have something to say.
            Some(Ok(_)) => break,
            Some(Err(_)) => return,
            None => {
                let _ = writer.shutdown().await;
                break;
            }
        }
    }
    drop(body);
    outward_over.cancelled().await;
}

/// What comes from the guest.
struct Outward {
    bytes: ReaderStream<ReadHalf<LinkStream>>,
    is_cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Cuts the connection when this is dropped before its end: the client is gone.
    cut: Option<DropGuard>,
    over: CancellationToken,
}

impl Outward {
    fn new(reader: ReadHalf<LinkStream>, cut: &CancellationToken, over: &CancellationToken) -> Self {
        Self {
            bytes: ReaderStream::with_capacity(reader, SPLICE_BUFFER),
            is_cut: Box::pin(cut.clone().cancelled_owned()),
            cut: Some(cut.clone().drop_guard()),
            over: over.clone(),
        }
    }
}

impl hyper::body::Body for Outward {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.is_cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
        }
        match ready!(Pin::new(&mut self.bytes).poll_next(cx)) {
            Some(bytes) => Poll::Ready(Some(bytes.map(Frame::data))),
            None => {
                self.cut.take().map(DropGuard::disarm);
                self.over.cancel();
                Poll::Ready(None)
            }
        }
    }
}

/// Opens a stream to the port; wakes the sandbox where that is needed, also when it falls asleep right now.
async fn connect(handle: &Handle, id: &str, port: u16) -> Result<LinkStream, Response> {
    loop {
        let mut view = handle.view.clone();
        let sleeps = view.borrow().sleeps();
        if sleeps {
            let woken = tokio::time::timeout(WAKE_PATIENCE, handle.wake()).await;
            let late = || NotAwake::Failed(format!("it is not awake after {} s; try again", WAKE_PATIENCE.as_secs()));
            woken.unwrap_or_else(|_| Err(late())).map_err(|why| asleep(id, &why))?;
        }
        // A link that is just being made again, after a restart of this node or a hiccup, is worth waiting for.
        let settled = view.wait_for(|view| view.link.is_some() || view.is_terminated() || view.sleeps());
        let view = tokio::time::timeout(OPEN_TIMEOUT, settled).await.ok().and_then(Result::ok).map(|view| view.clone());
        if view.as_ref().is_some_and(View::sleeps) {
            continue;
        }
        let Some(link) = view.as_ref().and_then(|view| view.link.clone()) else {
            let terminated = view.is_some_and(|view| view.is_terminated());
            let code = if terminated { code::SANDBOX_NOT_RUNNING } else { code::SANDBOX_NOT_READY };
            let text = format!("the agent of sandbox {id} does not answer");
            return Err(failure(StatusCode::SERVICE_UNAVAILABLE, code, text));
        };
        let mut view = handle.view.clone();
        tokio::select! {
            biased;
            opened = tokio::time::timeout(OPEN_TIMEOUT, link.open(port)) => return match opened {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(OpenError::Ended { .. })) if handle.view.borrow().sleeps() => continue,
                Ok(Err(error)) => Err(refusal(&error, port)),
                Err(_) => {
                    handle.suspicion.raise();
                    let text = "the guest accepts no connection";
                    Err(failure(StatusCode::GATEWAY_TIMEOUT, code::READ_TIMEOUT, text))
                }
            },
            // It was put to sleep by command, so that nobody will answer.
            _ = view.wait_for(View::sleeps) => {}
        }
    }
}

fn asleep(id: &str, why: &NotAwake) -> Response {
    match why {
        NotAwake::Disabled => failure(
            StatusCode::SERVICE_UNAVAILABLE,
            code::SANDBOX_AUTO_RESUME_DISABLED,
            format!("sandbox {id} is suspended and is not to be woken by a request; resume it"),
        ),
        NotAwake::Failed(why) => failure(
            StatusCode::SERVICE_UNAVAILABLE,
            code::SANDBOX_NOT_READY,
            format!("sandbox {id} cannot be resumed now: {why}"),
        ),
        NotAwake::Ended => {
            failure(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_NOT_RUNNING, format!("sandbox {id} has ended"))
        }
    }
}

fn refusal(error: &OpenError, port: u16) -> Response {
    match error {
        OpenError::Refused { .. } => failure(
            StatusCode::BAD_GATEWAY,
            code::CONNECTION_REFUSED,
            format!("nothing listens on port {port} of the sandbox"),
        ),
        other => failure(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_NOT_READY, other.to_string()),
    }
}
