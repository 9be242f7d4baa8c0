//! `/images/v4`: the images on the connected nodes.

use std::collections::BTreeMap;

use axum::response::Response;
use belljar_api::{
    error::code,
    image::{ImageList, Pagination},
};
use http::StatusCode;

use super::Call;
use crate::{
    error::{ApiError, json},
    node_link::NodeError,
};

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let mut images = BTreeMap::new();
    for link in call.app.live.nodes.connected() {
        for image in link.images().await? {
            images.entry(image.name.clone()).or_insert(image);
        }
    }
    let items = images.into_values().collect();
    Ok(json(StatusCode::OK, &ImageList { items, pagination: Pagination::default() }))
}

pub(super) async fn get(call: Call) -> Result<Response, ApiError> {
    let name = call.param("name");
    let shown: String = name.chars().take(80).collect();
    let mut words = format!("no image is named {shown:?}: no node is connected that could have it");
    for link in call.app.live.nodes.connected() {
        match link.image(name).await {
            Ok(image) => return Ok(json(StatusCode::OK, &image)),
            Err(NodeError::Answer { status: StatusCode::NOT_FOUND, body }) => words = body.error,
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, words))
}
