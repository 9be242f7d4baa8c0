//! The node's routes, see [`belljar_api::node`].

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, State},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use belljar_api::{
    error::{ErrorBody, code},
    node::{Command, Credentials, DeletedImage, GiveImage, ImportImage, LogQuery, NewImage, NodeHello, Report},
    sandbox::NetworkConfig,
};
use belljar_image::{ImageError, Which};
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::tunnel;
use crate::{
    Context, account, blocking, chain,
    images::{self, ImportError, NewImageError, SandboxFileError, is_not_found},
    limits::{COMMAND_MAX, CREDENTIALS_MAX},
    logs, network,
    registry::{ApplyError, Changed},
    snapshots::SnapshotError,
    vault::VaultError,
};

pub(super) fn router(ctx: Arc<Context>) -> Router {
    Router::new()
        .route("/v1/hello", get(hello))
        .route("/v1/commands", post(command))
        .route("/v1/reports", get(reports))
        .route("/v1/images", get(images).delete(delete_image))
        .route("/v1/images/from-snapshot", post(image_from_snapshot))
        .route("/v1/images/name", get(check_image_name))
        .route("/v1/images/give", post(give_image))
        .route("/v1/images/import", post(import_image))
        .route("/v1/images/import/{id}/stop", post(stop_import))
        .route("/v1/storage", get(usage))
        .route("/v1/storage/gc", post(gc))
        .route("/v1/snapshots/{id}/diff/{other}", get(diff))
        .route("/v1/credentials", put(credentials).layer(DefaultBodyLimit::max(CREDENTIALS_MAX)))
        .route("/v1/network/check", post(check_network))
        .route("/v1/network/{id}", get(network_use))
        .route("/v1/sandboxes/{id}/done/{generation}", get(done))
        .route("/v1/streams/{id}/{port}", post(tunnel::open))
        .route("/v1/logs", post(log_page))
        .route("/v1/logs/{id}/processes", get(log_processes))
        .layer(DefaultBodyLimit::max(COMMAND_MAX))
        .with_state(ctx)
}

/// An error answer.
pub(super) fn failure(status: StatusCode, code: &str, text: impl Into<String>) -> Response {
    (status, Json(ErrorBody::new(code, text))).into_response()
}

fn internal(error: &dyn std::error::Error) -> Response {
    failure(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL_ERROR, chain(error))
}

async fn hello(State(ctx): State<Arc<Context>>) -> Response {
    match ctx.images.list() {
        Ok(images) => Json(NodeHello {
            node_id: ctx.node_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            driver: ctx.driver.kind().to_string(),
            capacity: ctx.capacity.clone(),
            egress_rules: ctx.network.is_enforced(),
            images,
        })
        .into_response(),
        Err(error) => internal(&error),
    }
}

async fn command(State(ctx): State<Arc<Context>>, Json(command): Json<Command>) -> Response {
    match ctx.registry.apply(&ctx, command).await {
        Ok(ack) => Json(ack).into_response(),
        Err(error @ (ApplyError::Id(_) | ApplyError::Copies(_))) => {
            failure(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, error.to_string())
        }
        Err(error @ ApplyError::TooMany) => failure(StatusCode::TOO_MANY_REQUESTS, code::TOO_MANY, error.to_string()),
        // 5xx: the server tries again.
        Err(
            error @ (ApplyError::Record(_) | ApplyError::Directory(_) | ApplyError::Gone | ApplyError::Snapshot(_)),
        ) => internal(&error),
    }
}

/// Everything first, then what changes; told anew from the start when the reader lags too far behind.
async fn reports(State(ctx): State<Arc<Context>>) -> Response {
    let (sender, receiver) = mpsc::channel::<Bytes>(64);
    tokio::spawn(async move {
        'resync: loop {
            let (views, mut changes) = ctx.registry.watch();
            let sandboxes = views.into_iter().map(|view| Report::Sandbox(view.report));
            let snapshots = ctx.snapshots.reports().into_iter().map(Report::Snapshot);
            let all = sandboxes.chain(snapshots).chain([Report::Synced]);
            for report in all {
                if sender.send(line(&report)).await.is_err() {
                    return;
                }
            }
            loop {
                let change = tokio::select! {
                    () = sender.closed() => return,
                    change = changes.recv() => match change {
                        Ok(change) => change,
                        Err(RecvError::Lagged(_)) => continue 'resync,
                        Err(RecvError::Closed) => return,
                    },
                };
                let report = match change {
                    Changed::Sandbox(id) => {
                        ctx.registry.get(&id).map(|handle| Report::Sandbox(handle.view.borrow().report.clone()))
                    }
                    Changed::Snapshot(id) => ctx.snapshots.report(&id).map(Report::Snapshot),
                };
                let Some(report) = report else { continue };
                if sender.send(line(&report)).await.is_err() {
                    return;
                }
            }
        }
    });
    lines(receiver, std::convert::identity)
}

/// An answer that goes on for as long as there is something to tell.
fn lines<T: Send + 'static>(receiver: mpsc::Receiver<T>, line: impl Fn(T) -> Bytes + Send + 'static) -> Response {
    let body = ReceiverStream::new(receiver).map(move |it| Ok::<_, Infallible>(line(it)));
    ([(http::header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response()
}

fn line(report: &impl Serialize) -> Bytes {
    // Reports hold nothing that JSON cannot say; an empty line would be skipped by the reader.
    let mut text = serde_json::to_vec(report).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

#[derive(Deserialize)]
struct ImageQuery {
    name: Option<String>,
    id: Option<String>,
}

impl ImageQuery {
    fn which(&self) -> Option<Which<'_>> {
        match self {
            Self { name: Some(name), .. } => Some(Which::Name(name)),
            Self { name: None, id: Some(id) } => Some(Which::Id(id)),
            Self { name: None, id: None } => None,
        }
    }
}

async fn images(State(ctx): State<Arc<Context>>, Query(query): Query<ImageQuery>) -> Response {
    let answer = match query.which() {
        Some(which) => ctx.images.find(which).map(|image| Json(image).into_response()),
        None => ctx.images.list().map(|images| Json(images).into_response()),
    };
    answer.unwrap_or_else(|error| image_failure(&error))
}

async fn delete_image(State(ctx): State<Arc<Context>>, Query(query): Query<ImageQuery>) -> Response {
    let this = ctx.clone();
    let deleted = blocking(move || {
        let Some(which) = query.which() else { return Ok(None) };
        this.images.delete(which, &this.storage).map(Some)
    });
    match deleted.await {
        Ok(Some(names)) => Json(DeletedImage { names }).into_response(),
        Ok(None) => failure(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, "say which image: name or id"),
        Err(error) => image_failure(&error),
    }
}

async fn image_from_snapshot(State(ctx): State<Arc<Context>>, Json(new): Json<NewImage>) -> Response {
    match images::publish(&ctx, new).await {
        Ok(image) => Json(image).into_response(),
        Err(error) if error.is_no_space() => failure(StatusCode::INSUFFICIENT_STORAGE, code::NO_SPACE, chain(&error)),
        Err(NewImageError::Snapshot(SnapshotError::Vault(error @ VaultError::NotFound { .. }))) => {
            failure(StatusCode::NOT_FOUND, code::SNAPSHOT_NOT_FOUND, error.to_string())
        }
        Err(
            error @ (NewImageError::Memory { .. }
            | NewImageError::Store(ImageError::BadName { .. } | ImageError::BadRequest(_))),
        ) => failure(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, error.to_string()),
        Err(error @ NewImageError::Store(ImageError::Busy { .. })) => {
            failure(StatusCode::CONFLICT, code::CONFLICT, error.to_string())
        }
        Err(NewImageError::Store(error)) => image_failure(&error),
        Err(error @ NewImageError::Stopping) => {
            failure(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, error.to_string())
        }
        Err(error @ (NewImageError::Snapshot(_) | NewImageError::Storage(_))) => internal(&error),
    }
}

/// Whether a build may make an image of this name.
async fn check_image_name(Query(query): Query<ImageQuery>) -> Response {
    match images::check_name(query.name.as_deref().unwrap_or_default()) {
        Ok(name) => Json(serde_json::json!({ "name": name })).into_response(),
        Err(error @ ImageError::Managed { .. }) => failure(StatusCode::FORBIDDEN, code::FORBIDDEN, error.to_string()),
        Err(error) => failure(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, error.to_string()),
    }
}

async fn give_image(State(ctx): State<Arc<Context>>, Json(give): Json<GiveImage>) -> Response {
    match images::give(&ctx, give).await {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(error @ SandboxFileError::NotHere(_)) => {
            failure(StatusCode::NOT_FOUND, code::SANDBOX_NOT_FOUND, error.to_string())
        }
        Err(SandboxFileError::Image(error)) => image_failure(&error),
        Err(error) => internal(&error),
    }
}

async fn import_image(State(ctx): State<Arc<Context>>, Json(new): Json<ImportImage>) -> Response {
    match images::begin(&ctx, new) {
        Ok(reports) => lines(reports, |report| line(&report)),
        Err(error @ ImportError::Twice(_)) => failure(StatusCode::CONFLICT, code::CONFLICT, error.to_string()),
        Err(error @ ImportError::TooMany) => failure(StatusCode::TOO_MANY_REQUESTS, code::TOO_MANY, error.to_string()),
    }
}

async fn stop_import(State(ctx): State<Arc<Context>>, Path(id): Path<String>) -> Response {
    match ctx.imports.stop(&id) {
        Some(stopped) => Json(stopped).into_response(),
        None => failure(StatusCode::NOT_FOUND, code::NOT_FOUND, format!("no import for build {id} is under way")),
    }
}

fn image_failure(error: &ImageError) -> Response {
    match error {
        error if is_not_found(error) => failure(StatusCode::NOT_FOUND, code::NOT_FOUND, chain(error)),
        ImageError::Managed { .. } => failure(StatusCode::FORBIDDEN, code::FORBIDDEN, chain(error)),
        error => internal(error),
    }
}

async fn usage(State(ctx): State<Arc<Context>>) -> Response {
    let this = ctx.clone();
    match blocking(move || account::usage(&this)).await {
        Ok(usage) => Json(usage).into_response(),
        Err(error) => internal(&error),
    }
}

async fn gc(State(ctx): State<Arc<Context>>) -> Response {
    let this = ctx.clone();
    match blocking(move || account::collect(&this)).await {
        Ok(collected) => Json(collected).into_response(),
        Err(error) => internal(&error),
    }
}

async fn diff(State(ctx): State<Arc<Context>>, Path((id, other)): Path<(String, String)>) -> Response {
    let vault = ctx.snapshots.vault.clone();
    match blocking(move || vault.diff(&id, &other)).await {
        Ok(diff) => Json(diff).into_response(),
        Err(error @ VaultError::NotFound { .. }) => {
            failure(StatusCode::NOT_FOUND, code::SNAPSHOT_NOT_FOUND, error.to_string())
        }
        Err(error) => internal(&error),
    }
}

async fn credentials(State(ctx): State<Arc<Context>>, Json(credentials): Json<Credentials>) -> Response {
    match ctx.safe.replace(credentials) {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(error) => failure(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, chain(&error)),
    }
}

async fn check_network(State(ctx): State<Arc<Context>>, Json(wanted): Json<NetworkConfig>) -> Response {
    match network::check(&ctx, &wanted).await {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(error) => failure(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, chain(&error)),
    }
}

async fn network_use(State(ctx): State<Arc<Context>>, Path(id): Path<String>) -> Response {
    let used = match ctx.registry.get(&id) {
        Some(handle) => handle.tell().await,
        None => None,
    };
    match used {
        Some(used) => Json(used).into_response(),
        None => failure(
            StatusCode::NOT_FOUND,
            code::NOT_FOUND,
            "nothing is counted for this sandbox now: it is not awake, or its node has no network namespaces",
        ),
    }
}

async fn done(State(ctx): State<Arc<Context>>, Path((id, generation)): Path<(String, u64)>) -> Response {
    if let Some(handle) = ctx.registry.get(&id) {
        handle.has_done(generation).await;
    }
    Json(serde_json::json!({})).into_response()
}

async fn log_page(State(ctx): State<Arc<Context>>, Json(query): Json<LogQuery>) -> Response {
    let id = query.sandbox_id.clone();
    if let Some(handle) = ctx.registry.get(&id) {
        handle.tell().await;
    }
    let namespace = ctx.registry.get(&id).map_or_else(String::new, |handle| handle.view.borrow().namespace.clone());
    from_file(&ctx, &id, move |path| logs::page(path, &namespace, &query)).await
}

async fn log_processes(State(ctx): State<Arc<Context>>, Path(id): Path<String>) -> Response {
    from_file(&ctx, &id, logs::processes).await
}

async fn from_file<T: Serialize + Send + 'static>(
    ctx: &Context,
    id: &str,
    read: impl FnOnce(&std::path::Path) -> std::io::Result<T> + Send + 'static,
) -> Response {
    if !belljar_api::id::is_id(id) {
        return failure(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, format!("{id:?} is not a sandbox id"));
    }
    let path = logs::file::path(&ctx.storage.logs(), id);
    match tokio::task::spawn_blocking(move || read(&path)).await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(error)) => internal(&error),
        Err(panic) => internal(&panic),
    }
}
