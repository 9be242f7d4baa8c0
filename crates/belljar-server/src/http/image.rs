//! `/images/v4`: the images on the connected nodes.

use axum::response::Response;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use belljar_api::image::{ImageFromSnapshot, ImageList, Pagination};
use http::StatusCode;

use super::{Call, Query};
use crate::{
    app::image,
    error::{ApiError, json},
    limits::PAGE_MAX,
    node_link::ImageRef,
};

pub(super) async fn list(call: Call) -> Result<Response, ApiError> {
    let (size, after) = (call.query.number("page_size", 1..=PAGE_MAX)?.unwrap_or(PAGE_MAX), after(&call.query)?);
    let page = image::page(&call.app.images().await?, after.as_deref(), size);
    let next = page.next.map(|name| URL_SAFE_NO_PAD.encode(name));
    Ok(json(StatusCode::OK, &ImageList { items: page.items, pagination: Pagination { next } }))
}

pub(super) async fn get(call: Call) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &call.app.find_image(ImageRef::Name(call.param("name"))).await?))
}

pub(super) async fn get_by_id(call: Call) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &call.app.find_image(ImageRef::Id(call.param("id"))).await?))
}

pub(super) async fn from_snapshot(mut call: Call) -> Result<Response, ApiError> {
    let new: ImageFromSnapshot = call.json().await?;
    Ok(json(StatusCode::CREATED, &call.app.image_from_snapshot(&call.namespace, new).await?))
}

pub(super) async fn delete(call: Call) -> Result<StatusCode, ApiError> {
    call.app.delete_image(ImageRef::Name(call.param("name"))).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn delete_by_id(call: Call) -> Result<StatusCode, ApiError> {
    call.app.delete_image(ImageRef::Id(call.param("id"))).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The name that a cursor stands for. Names have slashes and colons, which not every client encodes in a query.
fn after(query: &Query) -> Result<Option<String>, ApiError> {
    let Some(cursor) = query.get("cursor") else { return Ok(None) };
    let name = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|name| String::from_utf8(name).ok());
    name.map(Some).ok_or_else(|| ApiError::invalid("cursor: use one from an earlier answer, unchanged"))
}
