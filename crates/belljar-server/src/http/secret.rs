//! `/platform/v1/secrets`.

use axum::response::Response;
use belljar_api::{
    error::code,
    secret::{PutSecrets, SecretList, SecretPage},
};
use http::StatusCode;

use super::Call;
use crate::error::{ApiError, json};

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let items = call.app.secrets().await?;
    Ok(json(StatusCode::OK, &SecretList { items, pagination: SecretPage::default() }))
}

pub(super) async fn put(mut call: Call) -> Result<Response, ApiError> {
    match call.json().await? {
        PutSecrets::Many(list) => {
            let items = call.app.put_secrets(list).await?;
            Ok(json(StatusCode::OK, &SecretList { items, pagination: SecretPage::default() }))
        }
        PutSecrets::One(secret) => {
            let put = call.app.put_secrets(vec![secret]).await?;
            Ok(json(StatusCode::OK, &put.first()))
        }
    }
}

pub(super) async fn get(call: Call) -> Result<Response, ApiError> {
    let reference = call.param("id");
    let found = call.app.secrets().await?.into_iter().find(|secret| secret.id == reference || secret.name == reference);
    Ok(json(StatusCode::OK, &found.ok_or_else(|| missing(reference))?))
}

pub(super) async fn delete(call: Call) -> Result<StatusCode, ApiError> {
    let reference = call.param("id");
    if call.app.delete_secret(reference).await? { Ok(StatusCode::OK) } else { Err(missing(reference)) }
}

fn missing(reference: &str) -> ApiError {
    let shown: String = reference.chars().take(80).collect();
    let words = format!("no secret has the id or name {shown:?}; GET /platform/v1/secrets lists them");
    ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, words)
}
