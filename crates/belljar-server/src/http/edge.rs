//! The outermost layer: every request of every listener comes in here.
//!
//! It gives the request an id, decides whether it belongs to a sandbox, a node or the API, asks for the key, and sees
//! to it that every answer carries the id and every fault of ours is in the log under it.

use std::sync::Arc;

use axum::{Router, body::Body, response::IntoResponse};
use belljar_api::{
    error::{ErrorBody, code},
    node::CONNECT_PATH,
};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tower::ServiceExt;

use super::{KeyId, input};
use crate::{
    app::{App, build::context},
    error::{ApiError, InternalError, json},
    ingress::{self, Outside},
    node_link,
    routes::HEALTH_PATH,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Serves the requests of one connection.
#[derive(Clone)]
pub(crate) struct Edge {
    pub(crate) app: Arc<App>,
    pub(crate) router: Router,
    pub(crate) outside: Outside,
}

impl Edge {
    /// Answers one request, whatever happens.
    pub(crate) async fn serve(self, request: Request<Incoming>) -> Response<Body> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        // The path only: a query may hold a token.
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut response = self.route(request).await.unwrap_or_else(IntoResponse::into_response);
        if let Some(InternalError(text)) = response.extensions_mut().remove::<InternalError>() {
            tracing::error!(request_id = id, %method, path, error = text, "a request failed");
            let body =
                ErrorBody::new(code::INTERNAL_ERROR, format!("internal error; it is in the log as request {id}"));
            response = json(response.status(), &body);
        }
        tracing::debug!(request_id = id, %method, path, status = response.status().as_u16(), "request");
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().entry(REQUEST_ID).or_insert(value);
        }
        response
    }

    async fn route(self, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        let origin = request.headers().get(header::ORIGIN).cloned();
        refuse_connect(&request)?;
        let host = ingress::host(request.uri(), request.headers())?;
        let target = ingress::find(host.as_ref(), request.headers(), self.app.ingress_domain.as_deref())?;
        if let Some(target) = target {
            // What a user's port says about origins is the user's own; the agent is ours.
            if request.method() == Method::OPTIONS && target.is_agent() {
                return Ok(preflight(&request));
            }
            let is_agent = target.is_agent();
            let mut response = ingress::forward(&self.app, &target, host, self.outside.clone(), request).await;
            if is_agent {
                // Ours, also when a guest wrote one.
                response.headers_mut().remove(REQUEST_ID);
                response.headers_mut().remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
                ingress::allow_origin(origin.as_ref(), &mut response);
            }
            return Ok(response);
        }
        if request.method() == Method::OPTIONS {
            return Ok(preflight(&request));
        }
        let mut response = self.own(request).await.unwrap_or_else(IntoResponse::into_response);
        ingress::allow_origin(origin.as_ref(), &mut response);
        Ok(response)
    }

    /// A request to the server itself.
    async fn own(self, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
        match request.uri().path() {
            HEALTH_PATH if matches!(*request.method(), Method::GET | Method::HEAD) => {
                return Ok(json(StatusCode::OK, &serde_json::json!({ "healthy": true })));
            }
            CONNECT_PATH => return node_link::accept(&self.app, self.outside.peer.is_here, request),
            path if *request.method() == Method::PUT => {
                if let Some(id) = context::of_path(path).map(str::to_owned) {
                    return context::receive(&self.app, &id, request).await.map(IntoResponse::into_response);
                }
            }
            _ => {}
        }
        let (mut parts, body) = request.into_parts();
        let body = input::whole(body).await?;
        let key_id = self.app.live.keys.check(&parts.headers)?;
        let body = body.ok_or_else(input::too_large)?;
        if parts.uri.path().starts_with("/api/v1/") {
            let words = "this request names no sandbox: set the X-Tensorlake-Sandbox-Id header or `Host: {id}.local`";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, code::MISSING_SANDBOX_ID, words));
        }
        parts.extensions.insert(KeyId(key_id));
        let request = Request::from_parts(parts, Body::from(body));
        // A router cannot fail.
        Ok(self.router.oneshot(request).await.unwrap_or_else(|never| match never {}))
    }
}

/// Refuses what would make a proxy for anything of us.
fn refuse_connect(request: &Request<Incoming>) -> Result<(), ApiError> {
    if request.method() == Method::CONNECT && !ingress::is_websocket(request) {
        let words = "CONNECT is for proxies, and for WebSockets over HTTP/2; use `belljar tunnel` to reach a port";
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, code::METHOD_NOT_ALLOWED, words));
    }
    Ok(())
}

/// Tells a browser that any origin may ask, with any header: it is the key that lets a request in.
fn preflight(request: &Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    if let Some(wanted) = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    ingress::allow_origin(request.headers().get(header::ORIGIN), &mut response);
    response
}
