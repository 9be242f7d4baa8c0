//! `/images/v4/builds`.

use axum::response::Response;
use belljar_api::build::{BuildInProgress, CancelBuild, SealContext, StartBuild, StartedBuild};
use http::StatusCode;

use super::{Call, input::idempotency_key};
use crate::{
    app::build::Started,
    error::{ApiError, json},
};

/// The same answer to a request that comes again.
pub(super) async fn start(mut call: Call) -> Result<Response, ApiError> {
    let key = idempotency_key(&call.headers)?;
    let start: StartBuild = call.json().await?;
    Ok(match call.app.start_build(start, key).await? {
        Started::Build(row) => {
            let context_upload = call.app.context_upload(&row.id);
            json(StatusCode::CREATED, &StartedBuild { build: row.info(), context_upload })
        }
        Started::InProgress(active) => json(StatusCode::CONFLICT, &BuildInProgress::new(&active.info())),
    })
}

pub(super) async fn get(call: Call) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &call.app.find_build(call.param("id")).await?.info()))
}

pub(super) async fn cancel(mut call: Call) -> Result<Response, ApiError> {
    let which: CancelBuild = call.json().await?;
    Ok(json(StatusCode::OK, &call.app.cancel_build(which).await?))
}

pub(super) async fn seal(mut call: Call) -> Result<Response, ApiError> {
    let seal: SealContext = call.json().await?;
    Ok(json(StatusCode::OK, &call.app.seal_context(call.param("id"), seal).await?.info()))
}
