//! `/snapshots`, `/sandboxes/{ref}/snapshot`, `/sandboxes/{ref}/snapshots`, `/tree`.

use axum::response::Response;
use belljar_api::snapshot::{AcceptedSnapshot, CreateSnapshot, SnapshotList, Tree};
use http::StatusCode;

use super::{Call, input};
use crate::{
    error::{ApiError, json},
    limits::PAGE_MAX,
    snapshot::SnapshotRow,
    store::{Page, Place},
};

pub(super) async fn take(mut call: Call) -> Result<Response, ApiError> {
    let request: CreateSnapshot = call.json().await?;
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    let taken = call.app.take_snapshot(&row, request.snapshot_type.unwrap_or_default()).await?;
    let info = taken.info();
    Ok(json(StatusCode::ACCEPTED, &AcceptedSnapshot { snapshot_id: info.id, status: info.status }))
}

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let internal = call.query.flag("internal")?;
    page(call, None, internal).await
}

pub(super) async fn list_of_sandbox(call: Call) -> Result<Response, ApiError> {
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    page(call, Some(row.id.clone()), true).await
}

async fn page(call: Call, sandbox_id: Option<String>, internal: bool) -> Result<Response, ApiError> {
    let (limit, from) = (call.query.limit()?.unwrap_or(PAGE_MAX), call.query.cursor()?);
    let page = Page { from, limit: limit + 1, internal, ..Page::default() };
    let mut rows = call.app.store.snapshots(&call.namespace, sandbox_id.as_deref(), page).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let last = rows.last().filter(|_| more).map(|row| Place { at: row.created_at, id: row.id.clone() });
    let snapshots = rows.iter().map(SnapshotRow::info).collect();
    Ok(json(StatusCode::OK, &SnapshotList { snapshots, cursor: last.as_ref().map(input::cursor) }))
}

pub(super) async fn get(call: Call) -> Result<Response, ApiError> {
    let wait = input::state_wait(&call.query, &call.headers)?;
    let row = call.app.settled_snapshot(&call.namespace, call.param("id"), wait).await?;
    Ok(json(StatusCode::OK, &row.info()))
}

pub(super) async fn delete(call: Call) -> Result<StatusCode, ApiError> {
    call.app.delete_snapshot(&call.namespace, call.param("id")).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn diff(call: Call) -> Result<Response, ApiError> {
    let diff = call.app.snapshot_diff(&call.namespace, call.param("id"), call.param("other")).await?;
    Ok(json(StatusCode::OK, &diff))
}

pub(super) async fn tree(call: Call) -> Result<Response, ApiError> {
    let nodes = call.app.tree(&call.namespace, call.query.flag("internal")?).await?;
    Ok(json(StatusCode::OK, &Tree { nodes }))
}
