//! What a failed request answers: one type for every plane, turned into the wire's error body at the edge.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use belljar_api::error::{ErrorBody, code};
use http::{HeaderValue, StatusCode, header};

use crate::store::StoreError;

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
    pub(crate) message: String,
    /// Words for the log only; set for faults of ours.
    pub(crate) internal: Option<String>,
}

/// Travels in the extensions of a response, so that the edge can log it with the request's id.
#[derive(Debug, Clone)]
pub(crate) struct InternalError(pub(crate) String);

impl ApiError {
    /// An error that the caller can do something about.
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), internal: None }
    }

    /// 400 with a wrong value.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, message)
    }

    /// 404 for a sandbox.
    pub(crate) fn sandbox_not_found(reference: &str) -> Self {
        let message = format!("Sandbox not found: {reference:?}; GET /sandboxes lists those that are live");
        Self::new(StatusCode::NOT_FOUND, code::SANDBOX_NOT_FOUND, message)
    }

    /// 404 for a snapshot.
    pub(crate) fn snapshot_not_found(id: &str) -> Self {
        let shown: String = id.chars().take(80).collect();
        let message = format!("Snapshot not found: {shown:?}; GET /snapshots lists those that there are");
        Self::new(StatusCode::NOT_FOUND, code::SNAPSHOT_NOT_FOUND, message)
    }

    /// 404 for a pool.
    pub(crate) fn pool_not_found(id: &str) -> Self {
        let shown: String = id.chars().take(80).collect();
        let message = format!("Pool not found: {shown:?}; GET /sandbox-pools lists those that there are");
        Self::new(StatusCode::NOT_FOUND, code::POOL_NOT_FOUND, message)
    }

    /// 503: nothing was delivered, the node is away.
    pub(crate) fn unreachable(node_id: &str) -> Self {
        let message = format!("node {node_id}, which has this sandbox, is not connected; try again");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, message)
    }

    /// 500: a fault of ours; the text goes to the log only.
    pub(crate) fn internal(text: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL_ERROR, "internal error");
        error.internal = Some(text.into());
        error
    }
}

impl ApiError {
    /// The words for a person, where there is no HTTP answer to carry them. The text of a fault of ours goes to the log.
    pub(crate) fn told(self) -> String {
        if let Some(text) = self.internal {
            tracing::error!(error = text, "a connection failed");
        }
        self.message
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NameInUse(name) => Self::new(
                StatusCode::CONFLICT,
                code::NAME_IN_USE,
                format!("a live sandbox is named {name:?}; choose another name or terminate that one"),
            ),
            StoreError::Refused(refusal) if refusal.passes() => {
                Self::new(StatusCode::CONFLICT, code::CONFLICT, refusal.to_string())
            }
            StoreError::Refused(refusal) => Self::invalid(refusal.to_string()),
            StoreError::NoRoom { needed_mb, free_mb } => Self::new(
                StatusCode::CONFLICT,
                code::NO_RESOURCES,
                format!(
                    "this needs {needed_mb} MiB of memory, and {free_mb} MiB are free on the node: nothing was made; \
                     ask for fewer, or end or suspend some sandboxes"
                ),
            ),
            StoreError::NodeAway(node_id) => Self::unreachable(&node_id),
            StoreError::KeyReused => Self::new(
                StatusCode::CONFLICT,
                code::CONFLICT,
                "Idempotency-Key: another request was made under it in the last 24 hours; use a new key",
            ),
            StoreError::NoPool(id) => Self::pool_not_found(&id),
            StoreError::PoolInUse(id) => Self::new(
                StatusCode::CONFLICT,
                code::CONFLICT,
                format!("Cannot delete pool '{id}': active sandbox(es) are using it; terminate them first"),
            ),
            StoreError::PoolFull { id, max } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                code::TOO_MANY,
                format!("pool {id} has {max} sandboxes, its max_containers; terminate one, or raise the limit"),
            ),
            StoreError::TooMany { what, max } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                code::TOO_MANY,
                format!("there are {max} {what}, the most that this server keeps; remove some"),
            ),
            StoreError::LastKey => Self::new(
                StatusCode::CONFLICT,
                code::CONFLICT,
                "this is the only API key; create another one before removing it",
            ),
            StoreError::NoValue(name) => {
                Self::invalid(format!("value: there is no secret {name:?} yet, so it needs one; give its value"))
            }
            StoreError::KeyGone => {
                Self::new(StatusCode::UNAUTHORIZED, code::UNAUTHENTICATED, "this API key was removed just now")
            }
            StoreError::SshKeyKnown { name } => Self::new(
                StatusCode::CONFLICT,
                code::CONFLICT,
                format!("publicKey: this key is there already, named {name:?}; remove that one to add it anew"),
            ),
            StoreError::Full => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                code::NO_SPACE,
                "the server's disk is full: nothing was changed; free some space and try again",
            ),
            StoreError::Failed(text) => Self::internal(format!("store: {text}")),
            StoreError::Closed => Self::internal("store: its thread has ended"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: self.message, code: self.code };
        let mut response = json(self.status, &body);
        if let Some(text) = self.internal {
            response.extensions_mut().insert(InternalError(text));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON answer.
pub(crate) fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            let kind = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        // No type of the wire has a map with keys other than text, so this is a fault of ours.
        Err(error) => ApiError::internal(format!("cannot write an answer: {error}")).into_response(),
    }
}
