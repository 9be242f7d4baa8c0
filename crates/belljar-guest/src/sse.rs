//! Server-sent events for `run` and `follow`: batches of lines, comments while there is nothing to say.

use std::{convert::Infallible, future::Future};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use belljar_api::process::RunEvent;
use bytes::Bytes;
use futures_util::stream;
use tokio::time::timeout;

use crate::{
    limits::{FOLLOW_CHUNK, KEEP_ALIVE},
    output::{Follower, Line},
    process::Process,
};

/// Written into a silent stream; clients skip comments.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// Frames of one kind of stream.
#[derive(Clone, Copy)]
pub(crate) enum Framing {
    /// `run`: only data.
    Plain,
    /// `follow`: `event: output` around lines; `with_stream` says which pipe they came from.
    Named { with_stream: bool },
}

impl Framing {
    fn line(self, out: &mut Vec<u8>, line: Line) {
        let stream = match self {
            Self::Plain | Self::Named { with_stream: true } => Some(line.stream),
            Self::Named { with_stream: false } => None,
        };
        if let Self::Named { .. } = self {
            out.extend_from_slice(b"event: output\n");
        }
        let (timestamp, offset) = (line.timestamp, Some(line.offset));
        data(out, &RunEvent::Line { line: line.text.to_string(), timestamp, stream, offset });
    }
}

/// Appends one `data:` frame.
pub(crate) fn data(out: &mut Vec<u8>, event: &RunEvent) {
    out.extend_from_slice(b"data: ");
    if let Err(error) = serde_json::to_writer(&mut *out, event) {
        // Strings and numbers into memory: there is nothing that could fail.
        tracing::error!("an event could not be written: {error}");
    }
    out.extend_from_slice(b"\n\n");
}

/// Answers with `first`, then every line of `follower`, then what `last` says.
pub(crate) fn respond<F>(first: Vec<u8>, framing: Framing, follower: Follower, last: F) -> Response
where
    F: Future<Output = Vec<u8>> + Send + 'static,
{
    let state = State { first: Some(first), framing, follower, last: Some(Box::pin(last)) };
    let chunks = stream::unfold(state, |mut state| async move {
        let chunk = state.next().await?;
        Some((Ok::<_, Infallible>(chunk), state))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(chunks)).into_response()
}

struct State<F> {
    first: Option<Vec<u8>>,
    framing: Framing,
    follower: Follower,
    last: Option<std::pin::Pin<Box<F>>>,
}

impl<F: Future<Output = Vec<u8>>> State<F> {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Some(Bytes::from(first));
        }
        self.last.as_ref()?;
        let lines = match timeout(KEEP_ALIVE, self.follower.next(FOLLOW_CHUNK)).await {
            Err(_) => return Some(Bytes::from_static(COMMENT)),
            Ok(lines) => lines,
        };
        let Some(lines) = lines else {
            return Some(Bytes::from(self.last.take()?.await));
        };
        let mut out = Vec::with_capacity(FOLLOW_CHUNK);
        for line in lines {
            self.framing.line(&mut out, line);
        }
        Some(Bytes::from(out))
    }
}

/// The last frame of `run`.
pub(crate) async fn end_of_run(process: std::sync::Arc<Process>) -> Vec<u8> {
    let end = process.ended().await;
    let reason = match end.exit {
        _ if end.timed_out => "timed_out",
        _ if end.oom_killed => "oom_killed",
        crate::reaper::Exit::Code(_) => "exited",
        crate::reaper::Exit::Signal(_) => "signaled",
    };
    let mut out = Vec::new();
    let event = RunEvent::Ended {
        exit_code: end.exit_code(),
        signal: end.signal(),
        oom_killed: end.oom_killed.then_some(true),
        reason: reason.to_owned(),
    };
    data(&mut out, &event);
    out
}

/// The last frame of `follow`.
pub(crate) async fn end_of_file() -> Vec<u8> {
    let mut out = b"event: eof\n".to_vec();
    data(&mut out, &RunEvent::Eof {});
    out
}
