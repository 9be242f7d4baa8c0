//! `/sandbox-pools`.

use axum::response::Response;
use belljar_api::pool::{CreatedPool, PoolList, PoolRequest};
use http::StatusCode;
use serde::Deserialize;

use super::{Call, input, sandbox};
use crate::error::{ApiError, json};

/// Body of a claim; may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Claim {
    file_systems: Vec<serde_json::Value>,
}

pub(super) async fn create(mut call: Call) -> Result<Response, ApiError> {
    let request: PoolRequest = call.json().await?;
    let pool = call.app.create_pool(&call.namespace, request).await?;
    Ok(json(StatusCode::OK, &CreatedPool { pool_id: pool.id, namespace: pool.namespace }))
}

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let pools = call.app.store.pools(Some(&call.namespace)).await?;
    let pools = pools.iter().map(|pool| call.app.pool_info(pool)).collect();
    Ok(json(StatusCode::OK, &PoolList { pools }))
}

pub(super) async fn get(call: Call) -> Result<Response, ApiError> {
    let pool = call.app.find_pool(&call.namespace, call.param("id")).await?;
    Ok(json(StatusCode::OK, &call.app.pool_info(&pool)))
}

pub(super) async fn replace(mut call: Call) -> Result<Response, ApiError> {
    let request: PoolRequest = call.json().await?;
    let pool = call.app.find_pool(&call.namespace, call.param("id")).await?;
    let pool = call.app.change_pool(&pool, request).await?;
    Ok(json(StatusCode::OK, &call.app.pool_info(&pool)))
}

pub(super) async fn delete(call: Call) -> Result<StatusCode, ApiError> {
    let pool = call.app.find_pool(&call.namespace, call.param("id")).await?;
    call.app.delete_pool(&pool).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn claim(mut call: Call) -> Result<Response, ApiError> {
    let request: Claim = call.json().await?;
    if !request.file_systems.is_empty() {
        return Err(ApiError::invalid("file_systems: this release has no mounts; leave the field out"));
    }
    let wait = input::create_wait(&call.headers)?;
    let pool = call.app.find_pool(&call.namespace, call.param("id")).await?;
    let row = call.app.claim(&pool).await?;
    let (row, in_time) = call.app.settled(row, wait).await?;
    Ok(sandbox::created(&call.app, &row, in_time))
}
