//! `/platform/v1/users/me/ssh-keys` and `/platform/v1/ssh-gateway`.

use axum::response::Response;
use belljar_api::{
    error::code,
    ssh_key::{AddSshKey, SshKeyList},
};
use http::StatusCode;

use super::Call;
use crate::error::{ApiError, json};

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &SshKeyList { items: call.app.ssh_keys().await? }))
}

pub(super) async fn add(mut call: Call) -> Result<Response, ApiError> {
    let request: AddSshKey = call.json().await?;
    Ok(json(StatusCode::CREATED, &call.app.add_ssh_key(call.key_id, request).await?))
}

pub(super) async fn delete(call: Call) -> Result<StatusCode, ApiError> {
    let id = call.param("id");
    if call.app.delete_ssh_key(id).await? {
        return Ok(StatusCode::OK);
    }
    let shown: String = id.chars().take(80).collect();
    let words = format!("no SSH key has the id {shown:?}; GET /platform/v1/users/me/ssh-keys lists them");
    Err(ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, words))
}

pub(super) async fn gateway(call: Call) -> Result<Response, ApiError> {
    match call.app.live.ssh_gateway.get() {
        Some(gateway) => Ok(json(StatusCode::OK, gateway)),
        None => {
            let words = "this server does not listen for SSH; start it with --ssh-listen";
            Err(ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, words))
        }
    }
}
