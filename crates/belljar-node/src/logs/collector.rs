//! Copies the guest's log stream into its file for as long as the link stands.
//!
//! Backpressure reaches the guest: what does not fit into its ring while nobody reads is dropped there, and counted.

use std::sync::Arc;

use belljar_api::{guest::LogEvent, log::level};
use belljar_link::Connector;
use http_body_util::BodyExt;

use super::LogFile;
use crate::{guest, limits::LOG_LINE_MAX};

/// Runs until the stream ends, or until the guest sends what is no log line.
pub(crate) async fn collect(link: Connector, log: Arc<LogFile>) {
    let mut body = match guest::logs(&link, log.guest_seq()).await {
        Ok(body) => body,
        Err(error) => return tracing::debug!(%error, "no log stream"),
    };
    let mut rest: Vec<u8> = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        let mut start = 0;
        while let Some(end) = rest[start..].iter().position(|&byte| byte == b'\n').map(|at| start + at) {
            if !store(&log, &rest[start..end]) {
                return;
            }
            start = end + 1;
        }
        rest.drain(..start);
        if rest.len() > LOG_LINE_MAX {
            return log.note(level::WARN, "the guest sent an overlong log line; its log is no longer collected");
        }
    }
}

fn store(log: &LogFile, line: &[u8]) -> bool {
    let Ok(event) = serde_json::from_slice::<LogEvent>(line) else {
        log.note(level::WARN, "the guest sent a damaged log line; its log is no longer collected");
        return false;
    };
    let expected = log.guest_seq() + 1;
    if event.seq > expected {
        log.note(level::WARN, &format!("{} lines were dropped", event.seq - expected));
    }
    log.store(event).inspect_err(|error| tracing::warn!(%error, "cannot write a sandbox's log")).is_ok()
}
