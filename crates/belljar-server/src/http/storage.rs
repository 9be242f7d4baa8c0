//! `/platform/v1/storage`.

use axum::response::Response;
use belljar_api::snapshot::{CollectedList, StorageList};
use http::StatusCode;

use super::Call;
use crate::error::{ApiError, json};

pub(super) async fn show(call: Call) -> Result<Response, ApiError> {
    let nodes = call.app.storage().await?;
    Ok(json(StatusCode::OK, &StorageList { nodes }))
}

pub(super) async fn collect(call: Call) -> Result<Response, ApiError> {
    let nodes = call.app.collect_garbage().await?;
    Ok(json(StatusCode::OK, &CollectedList { nodes }))
}
