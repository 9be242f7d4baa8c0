//! How a failed request is answered: always JSON, always with a code.
//!
//! Also the extractors whose own refusals must look like that: [`JsonBody`] and [`Params`].

use std::io;

use axum::{
    Json,
    body::Body,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use belljar_api::{
    error::{ErrorBody, code},
    limits::JSON_BODY_MAX,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

/// A refusal: status, code of [`code`], words for a person.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// Stable code.
    pub(crate) code: &'static str,
    /// What was wrong and what to do.
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// 400 `INVALID_ARGUMENT`.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, message)
    }

    /// 404 `NOT_FOUND`.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code::NOT_FOUND, message)
    }

    /// 500 `INTERNAL_ERROR`.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL_ERROR, message)
    }

    /// 429 `TOO_MANY`.
    pub(crate) fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code::TOO_MANY, message)
    }

    /// 503 `SANDBOX_NOT_READY`: nothing has been done, and the client repeats the request.
    pub(crate) fn not_ready(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_NOT_READY, message)
    }

    /// What the kernel said about a path, as a refusal.
    pub(crate) fn from_path(path: &str, error: &io::Error) -> Self {
        // `FilesystemLoop` has no stable name in std.
        let is_loop = error.raw_os_error() == Some(libc::ELOOP);
        let (status, code) = match error.kind() {
            _ if is_loop => (StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT),
            io::ErrorKind::NotFound => (StatusCode::NOT_FOUND, code::NOT_FOUND),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                (StatusCode::FORBIDDEN, code::PERMISSION_DENIED)
            }
            io::ErrorKind::IsADirectory => (StatusCode::BAD_REQUEST, code::IS_DIRECTORY),
            io::ErrorKind::NotADirectory => (StatusCode::BAD_REQUEST, code::NOT_A_DIRECTORY),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (StatusCode::INSUFFICIENT_STORAGE, code::NO_SPACE)
            }
            io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => {
                (StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT)
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL_ERROR),
        };
        Self::new(status, code, format!("{path}: {error}"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody::new(self.code, self.message))).into_response()
    }
}

/// A JSON body of at most [`JSON_BODY_MAX`] bytes. The content type is not looked at: published clients leave it out.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        Ok(Self(parse(&read_limited(request.into_body()).await?)?))
    }
}

/// As [`JsonBody`], for requests that may leave the body out.
pub(crate) struct OptionalJsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned + Default, S: Sync> FromRequest<S> for OptionalJsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let bytes = read_limited(request.into_body()).await?;
        Ok(Self(if bytes.is_empty() { T::default() } else { parse(&bytes)? }))
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let at = if path == "." { String::new() } else { format!(" at `{path}`") };
        ApiError::invalid(format!("the JSON body is wrong{at}: {}", error.inner()))
    })?;
    json.end().map_err(|error| ApiError::invalid(format!("the JSON body is wrong: {error}")))?;
    Ok(value)
}

async fn read_limited(body: Body) -> Result<bytes::Bytes, ApiError> {
    match Limited::new(body, JSON_BODY_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            code::PAYLOAD_TOO_LARGE,
            format!("the JSON body is larger than {JSON_BODY_MAX} bytes"),
        )),
        Err(error) => Err(ApiError::invalid(format!("the body broke off: {error}"))),
    }
}

/// Query parameters.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(ApiError::invalid(error.body_text())),
        }
    }
}

/// Answers a path that is no route.
pub(crate) async fn unknown_route(request: Request) -> ApiError {
    ApiError::not_found(format!("no such route: {} {}", request.method(), request.uri().path()))
}

/// Answers a route that does not have the method.
pub(crate) async fn wrong_method(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        code::METHOD_NOT_ALLOWED,
        format!("{} does not answer {}", request.uri().path(), request.method()),
    )
}
