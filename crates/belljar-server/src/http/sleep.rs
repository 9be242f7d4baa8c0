//! `/sandboxes/{ref}/suspend`, `/resume`, `/rollback`. Without `wait_ms` the answer comes at once, as older clients expect it.

use axum::response::Response;
use belljar_api::snapshot::Rollback;
use http::StatusCode;

use super::{Call, input};
use crate::{
    app::sleep::Outcome,
    error::{ApiError, json},
    life::Order,
};

pub(super) async fn suspend(call: Call) -> Result<Response, ApiError> {
    order(call, Order::Suspend).await
}

pub(super) async fn resume(call: Call) -> Result<Response, ApiError> {
    order(call, Order::Resume).await
}

pub(super) async fn rollback(mut call: Call) -> Result<Response, ApiError> {
    let request: Rollback = call.json().await?;
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    let rollback = call.app.rollback_order(&row, &request.snapshot_id).await?;
    order(call, rollback).await
}

async fn order(call: Call, order: Order) -> Result<Response, ApiError> {
    let wait = input::state_wait(&call.query, &call.headers)?;
    let row = call.app.find(&call.namespace, call.param("ref")).await?;
    let (status, row) = match call.app.order(&row, order, wait).await? {
        Outcome::Reached(row) => (StatusCode::OK, row),
        Outcome::UnderWay(row) => (StatusCode::ACCEPTED, row),
    };
    Ok(json(status, &call.app.info(&row)))
}
