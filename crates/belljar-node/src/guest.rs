//! Client of the guest agent's system API, one HTTP/1.1 connection per call over a link stream.
//!
//! The guest is hostile: every answer is capped in size and the caller bounds it in time.

use std::{future::Future, time::Duration};

use belljar_api::guest::{Configure, Configured, PROTOCOL, SYSTEM_PORT};
use belljar_link::Connector;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;

use crate::limits::{FREEZE_TIMEOUT, SYSTEM_ANSWER_MAX};

/// The agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error("the agent accepts no system connection: {0}")]
    Open(String),
    #[error("the agent broke off a system call")]
    Http(#[from] hyper::Error),
    #[error("the agent answered {status}: {body}")]
    Status { status: StatusCode, body: String },
    #[error("the agent's answer is not understood: {0}")]
    Answer(String),
    #[error("the agent did not answer within {0:?}")]
    Late(Duration),
    #[error(
        "the agent speaks system protocol {0}, this node speaks {PROTOCOL}; rebuild the initramfs with `cargo xtask guest`"
    )]
    Protocol(u32),
}

/// Gives the guest its identity, network and clock; user processes run only after it.
///
/// It also lets frozen processes go on. A guest that could not stir its random numbers refuses it.
pub(crate) async fn configure(link: &Connector, body: &Configure) -> Result<Configured, GuestError> {
    let body = post(link, "/v1/configure", body).await?;
    let configured: Configured = serde_json::from_slice(&body).map_err(|e| GuestError::Answer(e.to_string()))?;
    if configured.protocol != PROTOCOL {
        return Err(GuestError::Protocol(configured.protocol));
    }
    Ok(configured)
}

/// Stops every user process until the next [`configure`]; with `sync` what they wrote is on the disk then.
pub(crate) async fn freeze(link: &Connector, sync: bool) -> Result<(), GuestError> {
    within(FREEZE_TIMEOUT, post(link, "/v1/freeze", &serde_json::json!({ "sync": sync }))).await.map(drop)
}

/// Makes the machine small and quiet, before it is anybody's, when all of it has started.
pub(crate) async fn settle(link: &Connector, limit: Duration) -> Result<(), GuestError> {
    within(limit, post(link, "/v1/settle", &serde_json::json!({}))).await.map(drop)
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, GuestError>>) -> Result<T, GuestError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(GuestError::Late(limit)))
}

async fn post(link: &Connector, path: &str, body: &impl serde::Serialize) -> Result<Bytes, GuestError> {
    let json = serde_json::to_vec(body).map_err(|e| GuestError::Answer(e.to_string()))?;
    let request = Request::post(path).header("content-type", "application/json");
    let response = call(link, request, Bytes::from(json)).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), SYSTEM_ANSWER_MAX).collect().await;
    let body = body.map_err(|e| GuestError::Answer(e.to_string()))?.to_bytes();
    if status != StatusCode::OK {
        let body = String::from_utf8_lossy(&body).chars().take(300).collect();
        return Err(GuestError::Status { status, body });
    }
    Ok(body)
}

/// The endless JSON lines of the guest's log, from the line after `after` on.
pub(crate) async fn logs(link: &Connector, after: u64) -> Result<Incoming, GuestError> {
    let response = call(link, Request::get(format!("/v1/logs?after={after}")), Bytes::new()).await?;
    match response.status() {
        StatusCode::OK => Ok(response.into_body()),
        status => Err(GuestError::Status { status, body: String::new() }),
    }
}

async fn call(
    link: &Connector,
    request: http::request::Builder,
    body: Bytes,
) -> Result<Response<Incoming>, GuestError> {
    let stream = link.open(SYSTEM_PORT).await.map_err(|e| GuestError::Open(e.to_string()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's body, or when the caller drops it.
    tokio::spawn(connection);
    let request =
        request.header("host", "system").body(Full::new(body)).map_err(|e| GuestError::Answer(e.to_string()))?;
    Ok(sender.send_request(request).await?)
}
