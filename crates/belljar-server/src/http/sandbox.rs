//! `/sandboxes` and `/archived-sandboxes`.

use axum::response::Response;
use belljar_api::{
    id::is_id,
    sandbox::{AcceptedSandbox, ArchivedList, CreateSandbox, PatchSandbox, SandboxInfo, SandboxList, SandboxStatus},
};
use http::StatusCode;

use super::{Call, input};
use crate::{
    app::App,
    error::{ApiError, json},
    life::SandboxRow,
    limits::PAGE_DEFAULT,
    store::{Page, Place},
    visible,
};

pub(super) async fn create(mut call: Call) -> Result<Response, ApiError> {
    let request: CreateSandbox = call.json().await?;
    let wait = match request.wait {
        Some(false) => None,
        Some(true) | None => Some(input::create_wait(&call.headers)?),
    };
    let app = &call.app;
    let row = app.create(&call.namespace, request).await?;
    let (row, in_time) = match wait {
        None if row.ending().is_none() => return Ok(json(StatusCode::ACCEPTED, &accepted(app, &row))),
        None => (row, true),
        Some(wait) => app.settled(row, wait).await?,
    };
    Ok(created(app, &row, in_time))
}

/// The answer of what waited for a sandbox to start.
pub(super) fn created(app: &App, row: &SandboxRow, in_time: bool) -> Response {
    let has_node = app.has_node(row);
    let (status, _) = visible::status(row, has_node);
    let code = match status {
        SandboxStatus::Running | SandboxStatus::Suspending | SandboxStatus::Suspended => StatusCode::OK,
        SandboxStatus::Pending => StatusCode::GATEWAY_TIMEOUT,
        SandboxStatus::Terminated => StatusCode::UNPROCESSABLE_ENTITY,
    };
    json(code, &visible::created(row, has_node, &app.urls, !in_time))
}

fn accepted(app: &App, row: &SandboxRow) -> AcceptedSandbox {
    let (_, pending_reason) = visible::status(row, app.has_node(row));
    AcceptedSandbox { sandbox_id: row.id.clone(), name: row.name.clone(), state: "pending".to_owned(), pending_reason }
}

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let (limit, from, internal) = (call.query.limit()?, call.query.cursor()?, call.query.flag("internal")?);
    let status = match call.query.get("status") {
        None => None,
        Some("pending") => Some(SandboxStatus::Pending),
        Some("running") => Some(SandboxStatus::Running),
        Some("terminated") => return terminated(call, limit, from, internal).await,
        Some("suspending") => Some(SandboxStatus::Suspending),
        Some("suspended") => Some(SandboxStatus::Suspended),
        // Words of the wire that nothing is ever shown as here.
        Some("snapshotting" | "resuming") => {
            return Ok(json(StatusCode::OK, &SandboxList { sandboxes: Vec::new(), cursor: None }));
        }
        Some(other) => {
            let shown: String = other.chars().take(80).collect();
            let rule = "use pending, running, suspending, suspended or terminated";
            return Err(ApiError::invalid(format!("status: {shown:?} is none; {rule}")));
        }
    };
    let (rows, next) = call.app.list(&call.namespace, status, from, limit, internal).await?;
    let sandboxes = rows.iter().map(|row| call.app.info(row)).collect();
    Ok(json(StatusCode::OK, &SandboxList { sandboxes, cursor: next.as_ref().map(input::cursor) }))
}

/// `?status=terminated`: the archive in the form of a list.
async fn terminated(
    call: Call,
    limit: Option<usize>,
    from: Option<Place>,
    internal: bool,
) -> Result<Response, ApiError> {
    let limit = limit.unwrap_or(PAGE_DEFAULT);
    let page = Page { from, limit: limit + 1, internal, ..Page::default() };
    let mut rows = call.app.store.ended_sandboxes(&call.namespace, page).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let cursor = rows.last().filter(|_| more).map(|row| input::cursor(&archive_place(row)));
    let sandboxes = rows.iter().map(|row| call.app.info(row)).collect();
    Ok(json(StatusCode::OK, &SandboxList { sandboxes, cursor }))
}

pub(super) async fn get(call: Call) -> Result<Response, ApiError> {
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    Ok(json(StatusCode::OK, &call.app.info(&row)))
}

pub(super) async fn network_use(call: Call) -> Result<Response, ApiError> {
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    Ok(json(StatusCode::OK, &call.app.network_use(&row).await?))
}

pub(super) async fn patch(mut call: Call) -> Result<Response, ApiError> {
    let request: PatchSandbox = call.json().await?;
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    let row = call.app.patch(&row, request).await?;
    Ok(json(StatusCode::OK, &call.app.info(&row)))
}

pub(super) async fn delete(call: Call) -> Result<StatusCode, ApiError> {
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    call.app.terminate(&row).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn archived(call: Call) -> Result<Response, ApiError> {
    let limit = call.query.limit()?.unwrap_or(PAGE_DEFAULT);
    let from = call.query.cursor()?;
    let backward = match call.query.get("direction") {
        None | Some("forward") => false,
        Some("backward") => true,
        Some(_) => return Err(ApiError::invalid("direction: use forward or backward")),
    };
    // Backward from nowhere is the first page.
    let backward = backward && from.is_some();
    let has_from = from.is_some();
    let page = Page { from, backward, limit: limit + 1, internal: call.query.flag("internal")? };
    let mut rows = call.app.store.ended_sandboxes(&call.namespace, page).await?;
    let more = rows.len() > limit;
    if more && backward {
        rows.remove(0);
    }
    rows.truncate(limit);
    let place = |row: Option<&std::sync::Arc<SandboxRow>>| row.map(|row| input::cursor(&archive_place(row)));
    let list = ArchivedList {
        prev_cursor: place(rows.first()).filter(|_| if backward { more } else { has_from }),
        next_cursor: place(rows.last()).filter(|_| backward || more),
        sandboxes: rows.iter().map(|row| archive_info(&call.app, row)).collect(),
    };
    Ok(json(StatusCode::OK, &list))
}

pub(super) async fn get_archived(call: Call) -> Result<Response, ApiError> {
    let id = call.param("id");
    let row = if is_id(id) { call.app.store.sandbox(id).await? } else { None };
    let row = row
        .filter(|row| row.namespace == call.namespace && row.ending().is_some() && !row.is_unclaimed())
        .ok_or_else(|| ApiError::sandbox_not_found(id))?;
    Ok(json(StatusCode::OK, &archive_info(&call.app, &row)))
}

fn archive_info(app: &App, row: &SandboxRow) -> SandboxInfo {
    let mut info = app.info(row);
    info.archived_at = info.terminated_at;
    info
}

fn archive_place(row: &SandboxRow) -> Place {
    Place { at: row.ending().map_or(0, |ending| ending.at), id: row.id.clone() }
}
