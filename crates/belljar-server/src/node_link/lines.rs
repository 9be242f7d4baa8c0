//! An answer of a node that goes on and on: JSON, a value a line. Used for reports, and for imports.

use axum::body::Body;
use bytes::BytesMut;
use futures_util::StreamExt;
use http::Request;
use http_body_util::BodyDataStream;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::{
    NodeError,
    link::{Caller, read, refusal},
};
use crate::limits::REPORT_LINE_MAX;

/// The lines of one answer. The node is told when this is dropped.
#[derive(Debug)]
pub(crate) struct Lines {
    body: BodyDataStream<Incoming>,
    buffer: BytesMut,
}

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The connection failed.
    #[error("{0}")]
    Broken(#[from] hyper::Error),
    /// A line makes no sense.
    #[error("a report cannot be read: {0}")]
    Unreadable(String),
    /// The node has said all.
    #[error("the node closed its reports")]
    Ended,
}

impl Lines {
    /// Asks for such an answer.
    pub(super) async fn open(caller: &Caller, request: Request<Body>) -> Result<Self, NodeError> {
        let response = caller.send(request).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(refusal(status, &read(response).await?));
        }
        Ok(Self { body: BodyDataStream::new(response.into_body()), buffer: BytesMut::new() })
    }

    /// The next one. It can be given up in the middle: nothing is lost.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, LineError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line).map_err(|error| LineError::Unreadable(error.to_string()));
            }
            if self.buffer.len() > REPORT_LINE_MAX {
                return Err(LineError::Unreadable(format!("a line of more than {REPORT_LINE_MAX} bytes")));
            }
            match self.body.next().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk?),
                None => return Err(LineError::Ended),
            }
        }
    }
}
