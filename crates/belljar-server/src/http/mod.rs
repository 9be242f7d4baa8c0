//! The lifecycle and platform API over HTTP: the router, and what every handler gets.
//!
//! A handler turns one [`Call`] into an answer. It checks the form of what came in; what is done lies in [`crate::app`].

mod build;
mod copy;
pub(crate) mod edge;
mod image;
mod input;
mod key;
mod log;
mod pool;
mod sandbox;
mod secret;
mod sleep;
mod snapshot;
mod ssh_key;
mod storage;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{RawPathParams, Request, State},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use belljar_api::error::code;
use http::{HeaderMap, StatusCode};

pub(crate) use self::input::Query;
use crate::{
    app::App,
    error::ApiError,
    routes::{Op, Scope, routes},
};

/// Namespace of the flat paths.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// The key that a request carried; put there by the edge.
#[derive(Debug, Clone)]
pub(crate) struct KeyId(pub(crate) String);

/// One request to a handler.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) namespace: String,
    pub(crate) params: Vec<(String, String)>,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) key_id: String,
    pub(crate) body: Body,
}

impl Call {
    fn new(app: Arc<App>, params: &RawPathParams, request: Request) -> Result<Self, ApiError> {
        let params: Vec<(String, String)> = params.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let namespace = match params.iter().find(|(name, _)| name == "ns") {
            Some((_, namespace)) => input::check_namespace(namespace)?,
            None => DEFAULT_NAMESPACE.to_owned(),
        };
        let (parts, body) = request.into_parts();
        let key_id = parts.extensions.get::<KeyId>().map(|key| key.0.clone()).unwrap_or_default();
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        Ok(Self { app, namespace, params, query, headers: parts.headers, key_id, body })
    }

    /// A part of the path, decoded.
    pub(crate) fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// The JSON body.
    pub(crate) async fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        input::json(&self.headers, std::mem::take(&mut self.body)).await
    }
}

/// Every route of the table, with its handler.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let Some(handler) = handler(route.op, route.verb.filter()) else { continue };
        let paths = match route.scope {
            Scope::Lifecycle => vec![route.path.to_owned(), format!("/v1/namespaces/{{ns}}{}", route.path)],
            Scope::Host | Scope::Guest => vec![axum_path(route.path)],
        };
        for path in paths {
            router = router.route(&path, handler.clone());
        }
    }
    router
        .fallback(|request: Request| async move {
            let words = format!("no such route: {} {}", request.method(), request.uri().path());
            ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, words)
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let words = format!("{} is not possible on {}", request.method(), request.uri().path());
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, code::METHOD_NOT_ALLOWED, words)
        })
        .with_state(Arc::clone(app))
}

/// Image names contain slashes: the document says `{name}`, the router needs `{*name}`.
fn axum_path(path: &str) -> String {
    path.replace("{name}", "{*name}")
}

fn handler(op: Op, method: MethodFilter) -> Option<MethodRouter<Arc<App>>> {
    Some(match op {
        Op::CreateSandbox => call(method, sandbox::create),
        Op::ListSandboxes => call(method, sandbox::list),
        Op::GetSandbox => call(method, sandbox::get),
        Op::PatchSandbox => call(method, sandbox::patch),
        Op::DeleteSandbox => call(method, sandbox::delete),
        Op::SuspendSandbox => call(method, sleep::suspend),
        Op::ResumeSandbox => call(method, sleep::resume),
        Op::RollbackSandbox => call(method, sleep::rollback),
        Op::CopySandbox => call(method, copy::copy),
        Op::TakeSnapshot => call(method, snapshot::take),
        Op::ListSnapshots => call(method, snapshot::list),
        Op::ListSandboxSnapshots => call(method, snapshot::list_of_sandbox),
        Op::GetSnapshot => call(method, snapshot::get),
        Op::DeleteSnapshot => call(method, snapshot::delete),
        Op::DiffSnapshots => call(method, snapshot::diff),
        Op::ShowTree => call(method, snapshot::tree),
        Op::GetNetworkUse => call(method, sandbox::network_use),
        Op::CreatePool => call(method, pool::create),
        Op::ListPools => call(method, pool::list),
        Op::GetPool => call(method, pool::get),
        Op::ReplacePool => call(method, pool::replace),
        Op::DeletePool => call(method, pool::delete),
        Op::ClaimSandbox => call(method, pool::claim),
        Op::ShowStorage => call(method, storage::show),
        Op::CollectGarbage => call(method, storage::collect),
        Op::ListArchived => call(method, sandbox::archived),
        Op::GetArchived => call(method, sandbox::get_archived),
        Op::GetLogs => call(method, log::lines),
        Op::GetLogProcesses => call(method, log::processes),
        Op::IntrospectKey => call(method, key::introspect),
        Op::ListKeys => call(method, key::list),
        Op::CreateKey => call(method, key::create),
        Op::DeleteKey => call(method, key::delete),
        Op::ListSshKeys => call(method, ssh_key::list),
        Op::AddSshKey => call(method, ssh_key::add),
        Op::DeleteSshKey => call(method, ssh_key::delete),
        Op::ShowSshGateway => call(method, ssh_key::gateway),
        Op::ListSecrets => call(method, secret::list),
        Op::PutSecrets => call(method, secret::put),
        Op::GetSecret => call(method, secret::get),
        Op::DeleteSecret => call(method, secret::delete),
        Op::ListImages => call(method, image::list),
        Op::GetImage => call(method, image::get),
        Op::GetImageById => call(method, image::get_by_id),
        Op::ImageFromSnapshot => call(method, image::from_snapshot),
        Op::DeleteImage => call(method, image::delete),
        Op::DeleteImageById => call(method, image::delete_by_id),
        Op::StartBuild => call(method, build::start),
        Op::GetBuild => call(method, build::get),
        Op::CancelBuild => call(method, build::cancel),
        Op::SealContext => call(method, build::seal),
        Op::NotYet(words) => call(method, move |_: Call| async move { Err::<Response, _>(not_implemented(words)) }),
        // Answered before the router, or by the guest.
        Op::Health | Op::ConnectNode | Op::PutContext | Op::Guest => return None,
    })
}

/// A route's method and handler.
fn call<F, Fut, A>(method: MethodFilter, handle: F) -> MethodRouter<Arc<App>>
where
    F: Fn(Call) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<A, ApiError>> + Send + 'static,
    A: IntoResponse + Send + 'static,
{
    on(method, move |State(app): State<Arc<App>>, params: RawPathParams, request: Request| async move {
        handle(Call::new(app, &params, request)?).await.map(IntoResponse::into_response)
    })
}

fn not_implemented(words: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_IMPLEMENTED, code::NOT_IMPLEMENTED, words)
}
