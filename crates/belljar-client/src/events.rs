//! The event streams of `run` and `follow`, read one event at a time.

use std::collections::VecDeque;

use belljar_api::process::RunEvent;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{Error, limits::IDLE_TIMEOUT, sse};

/// A live stream of [`RunEvent`]s. Dropping it closes the connection.
#[derive(Debug)]
pub struct EventStream {
    what: String,
    body: Incoming,
    parser: sse::Parser,
    ready: VecDeque<sse::Event>,
}

impl EventStream {
    pub(crate) fn new(what: String, body: Incoming) -> Self {
        Self { what, body, parser: sse::Parser::default(), ready: VecDeque::new() }
    }

    /// The next event; `None` when the server closed the stream. A stream of `run` that ends before
    /// [`RunEvent::Ended`] was cut short.
    pub async fn next(&mut self) -> Result<Option<RunEvent>, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                // Objects that are none of ours are additions of a newer server.
                match serde_json::from_str(&event.data) {
                    Ok(event) => return Ok(Some(event)),
                    Err(_) => continue,
                }
            }
            let frame = tokio::time::timeout(IDLE_TIMEOUT, self.body.frame())
                .await
                .map_err(|_| Error::Timeout { what: self.what.clone(), seconds: IDLE_TIMEOUT.as_secs() })?;
            let Some(frame) = frame else { return Ok(None) };
            let frame =
                frame.map_err(|source| Error::Transport { what: self.what.clone(), source: Box::new(source) })?;
            if let Some(bytes) = frame.data_ref() {
                let ready = &mut self.ready;
                self.parser
                    .push(bytes, |event| ready.push_back(event))
                    .map_err(|error| Error::protocol(&self.what, error.to_string()))?;
            }
        }
    }
}
