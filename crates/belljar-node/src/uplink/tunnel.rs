//! `CONNECT {sandbox_id}:{port}`: an HTTP/2 stream becomes a connection to a port of the guest.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use belljar_api::error::code;
use belljar_link::OpenError;
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;

use super::api::failure;
use crate::{
    Context,
    limits::{OPEN_TIMEOUT, SPLICE_BUFFER},
};

/// Opens the connection, answers, and splices in the background.
pub(super) async fn open(ctx: Arc<Context>, mut request: Request<Body>) -> Response {
    let target = request.uri().authority().and_then(|it| Some((it.host().to_owned(), it.port_u16()?)));
    let Some((id, port)) = target else {
        return failure(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, "CONNECT wants {sandbox_id}:{port}");
    };
    if port == belljar_api::guest::SYSTEM_PORT {
        return failure(StatusCode::FORBIDDEN, code::FORBIDDEN, "the system port is the node's own");
    }
    let Some(handle) = ctx.registry.get(&id) else {
        return failure(StatusCode::NOT_FOUND, code::SANDBOX_NOT_FOUND, format!("this node has no sandbox {id}"));
    };
    let mut view = handle.view.clone();
    // A link that is just being made again, after a restart of this node or a hiccup, is worth waiting for.
    let settled = view.wait_for(|view| view.link.is_some() || view.is_terminated());
    let view = tokio::time::timeout(OPEN_TIMEOUT, settled).await.ok().and_then(Result::ok).map(|view| view.clone());
    let Some(link) = view.as_ref().and_then(|view| view.link.clone()) else {
        let terminated = view.is_some_and(|view| view.is_terminated());
        let code = if terminated { code::SANDBOX_NOT_RUNNING } else { code::SANDBOX_NOT_READY };
        return failure(StatusCode::SERVICE_UNAVAILABLE, code, format!("the agent of sandbox {id} does not answer"));
    };
    let Ok(slot) = ctx.connections.clone().try_acquire_owned() else {
        return failure(StatusCode::TOO_MANY_REQUESTS, code::TOO_MANY, "too many connections on this node");
    };
    let active = handle.activity.enter();
    let mut stream = match tokio::time::timeout(OPEN_TIMEOUT, link.open(port)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return refusal(&error, port),
        Err(_) => {
            handle.suspicion.raise();
            return failure(StatusCode::GATEWAY_TIMEOUT, code::READ_TIMEOUT, "the guest accepts no connection");
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let mut upgraded = TokioIo::new(upgraded);
            // Either side's failure is seen by the other as its end; there is nobody else to tell.
            let _ = copy_bidirectional_with_sizes(&mut upgraded, &mut stream, SPLICE_BUFFER, SPLICE_BUFFER).await;
        }
        drop((active, slot));
    });
    Response::new(Body::empty())
}

fn refusal(error: &OpenError, port: u16) -> Response {
    match error {
        OpenError::Refused { .. } => failure(
            StatusCode::BAD_GATEWAY,
            code::CONNECTION_REFUSED,
            format!("nothing listens on port {port} of the sandbox"),
        ),
        other => failure(StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_NOT_READY, other.to_string()),
    }
}
