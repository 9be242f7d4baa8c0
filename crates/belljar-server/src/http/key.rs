//! `/platform/v1/keys`.

use axum::response::Response;
use belljar_api::{
    error::code,
    key::{CreateKey, Introspection, KeyInfo, KeyList},
};
use http::StatusCode;

use super::Call;
use crate::error::{ApiError, json};

/// The one organization and the one project of this release.
const ORGANIZATION_ID: &str = "org_default";
const PROJECT_ID: &str = "project_default";

/// Who the caller is; the body, which some clients send empty, is not read.
pub(super) async fn introspect(call: Call) -> Result<Response, ApiError> {
    let answer = Introspection {
        id: call.key_id,
        organization_id: ORGANIZATION_ID.to_owned(),
        project_id: PROJECT_ID.to_owned(),
    };
    Ok(json(StatusCode::OK, &answer))
}

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let keys = call.app.store.keys().await?;
    let items = keys.into_iter().map(|key| KeyInfo { id: key.id, name: key.name, created_at: key.created_at });
    Ok(json(StatusCode::OK, &KeyList { items: items.collect() }))
}

pub(super) async fn create(mut call: Call) -> Result<Response, ApiError> {
    let request: CreateKey = call.json().await?;
    Ok(json(StatusCode::CREATED, &call.app.create_key(request).await?))
}

pub(super) async fn delete(call: Call) -> Result<StatusCode, ApiError> {
    let id = call.param("id");
    if call.app.store.delete_key(id).await? {
        return Ok(StatusCode::OK);
    }
    let shown: String = id.chars().take(80).collect();
    let words = format!("no API key has the id {shown:?}; GET /platform/v1/keys lists them");
    Err(ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, words))
}
