//! `/sandboxes/{ref}/copy`.

use axum::response::Response;
use belljar_api::snapshot::CopiedSandboxes;
use futures_util::future::try_join_all;
use http::StatusCode;

use super::{Call, input};
use crate::{
    error::{ApiError, json},
    limits::COPIES_MAX,
    visible,
};

/// Waits as a create does. One that failed makes the whole answer a failure; each says how it stands.
pub(super) async fn copy(call: Call) -> Result<Response, ApiError> {
    let times = call.query.number("times", 1..=COPIES_MAX)?.unwrap_or(1);
    let key = input::idempotency_key(&call.headers)?;
    let wait = input::create_wait(&call.headers)?;
    let app = call.app.clone();
    let source = app.find(&call.namespace, call.param("ref")).await?;
    let copies = app.copy(&source, times, key).await?;
    let settled = try_join_all(copies.into_iter().map(|row| app.settled(row, wait))).await?;
    let failed = settled.iter().any(|(row, _)| row.ending().is_some());
    let pending = settled.iter().any(|(row, _)| row.ending().is_none() && !row.is_up());
    let status = match (failed, pending) {
        (true, _) => StatusCode::UNPROCESSABLE_ENTITY,
        (false, true) => StatusCode::GATEWAY_TIMEOUT,
        (false, false) => StatusCode::OK,
    };
    let sandboxes = settled.iter().map(|(row, in_time)| visible::created(row, true, &app.urls, !in_time)).collect();
    Ok(json(status, &CopiedSandboxes { source_sandbox_id: source.id.clone(), sandboxes }))
}
