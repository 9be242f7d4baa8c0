//! `CONNECT {sandbox_id}:{port}`: an HTTP/2 stream becomes a connection to a port of the guest.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{body::Body, response::Response};
use belljar_api::error::code;
use belljar_link::{LinkStream, OpenError};
use http::{Request, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    time::{Sleep, sleep},
};

use super::api::failure;
use crate::{
    limits::{CUT_GRACE, OPEN_TIMEOUT, SPLICE_BUFFER, WAKE_PATIENCE},
    sandbox::{Handle, NotAwake, View},
};

/// Opens the connection, answers, and splices in the background.
pub(super) async fn open(ctx: Arc<crate::Context>, mut request: Request<Body>) -> Response {
    let target = request.uri().authority().and_then(|it| Some((it.host().to_owned(), it.port_u16()?)));
    let Some((id, port)) = target else {
        return failure(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, "CONNECT wants {sandbox_id}:{port}");
    };
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
    let mut stream = match connect(&handle, &id, port).await {
        Ok(stream) => stream,
        Err(response) => return response,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let mut view = handle.view.clone();
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let mut upgraded = Far { io: TokioIo::new(upgraded), ended: None };
            let copied = copy_bidirectional_with_sizes(&mut upgraded, &mut stream, SPLICE_BUFFER, SPLICE_BUFFER);
            tokio::select! {
                // Either side's failure is seen by the other as its end; there is nobody else to tell.
                _ = copied => {}
                // What a client now sends would not wake it; a new connection does.
                _ = view.wait_for(View::is_suspended) => {}
            }
        }
        drop((active, slot));
    });
    Response::new(Body::empty())
}

/// The server's end of a connection. Of a stream that was reset hyper tells the reader only that nothing more comes, as of
/// one that was half closed; but a client that is gone must not keep the sandbox awake until the guest says something, and
/// what was cut off must not look to the guest like an orderly end.
///
/// The writing side does learn of a reset, from a task of hyper's own that has to have its turn first. Of an orderly end
/// there is no second word to wait for; hence a time ([`CUT_GRACE`]), and no event.
struct Far {
    io: TokioIo<Upgraded>,
    /// Runs since the reader was told so.
    ended: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Far {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended.is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            if buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        ready!(self.ended.get_or_insert_with(|| Box::pin(sleep(CUT_GRACE))).as_mut().poll(cx));
        // The writing side does know of a reset. Where it is not ready there was none.
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Far {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
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
