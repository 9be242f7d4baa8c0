//! What runs in the test double's sandboxes: a small HTTP server.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::program;

/// Nobody listens here.
pub(super) const CLOSED_PORT: u16 = 9;
/// Speaks no HTTP.
pub(super) const GARBAGE_PORT: u16 = 7777;

/// Sends back what it gets.
pub(super) const ECHO_PORT: u16 = 7;

/// Ends its own direction at once and tells, by ending too, how much it got.
pub(super) const SINK_PORT: u16 = 8;

/// Serves one connection to a guest port.
pub(super) async fn serve(io: Upgraded, port: u16, end_events: CancellationToken, left: watch::Sender<usize>) {
    if port == ECHO_PORT {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(io));
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
        return;
    }
    if port == SINK_PORT {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(io));
        let _ = write.shutdown().await;
        let got = tokio::io::copy(&mut read, &mut tokio::io::sink()).await.unwrap_or(0);
        left.send_modify(|left| *left += usize::try_from(got).unwrap_or(0));
        return;
    }
    if port == GARBAGE_PORT {
        let mut io = TokioIo::new(io);
        let _ = io.write_all(b"\x00\x01garbage\r\n\r\n").await;
        let _ = io.shutdown().await;
        return;
    }
    let service = service_fn(move |request| {
        let (end_events, left) = (end_events.clone(), left.clone());
        async move {
            match request.uri().path() {
                "/api/v1/exec" => Ok(program::attach(request, left)),
                _ => answer(request, port, end_events).await,
            }
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
}

async fn answer(
    mut request: Request<Incoming>,
    port: u16,
    end_events: CancellationToken,
) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/echo" => Response::new(Body::new(request.into_body())),
        "/count" => {
            let mut body = request.into_body();
            let mut bytes = 0usize;
            while let Some(frame) = body.frame().await {
                bytes += frame.map_err(std::io::Error::other)?.data_ref().map_or(0, Bytes::len);
            }
            Response::new(Body::from(bytes.to_string()))
        }
        "/many" => {
            let chunk = Bytes::from(vec![7u8; 64 * 1024]);
            let chunks = futures_util::stream::iter((0..512).map(move |_| Ok::<_, Infallible>(chunk.clone())));
            Response::new(Body::from_stream(chunks))
        }
        "/events" => Response::builder()
            .header(header::CONTENT_TYPE, "text/event-stream")
            .body(events(end_events))
            .map_err(std::io::Error::other)?,
        "/ws" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(io) = upgrade.await else { return };
                let (mut read, mut write) = tokio::io::split(TokioIo::new(io));
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, "websocket")
                .body(Body::empty())
                .map_err(std::io::Error::other)?
        }
        "/close" => return Err(std::io::Error::other("the guest closes")),
        "/missing" => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .header("x-request-id", "forged")
            .header(header::CONNECTION, "x-hop")
            .header("x-hop", "1")
            .body(Body::from("nothing"))
            .map_err(std::io::Error::other)?,
        _ => Response::new(Body::from(describe(&request, port))),
    })
}

/// One event at once, the second when it is let go.
fn events(end: CancellationToken) -> Body {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(1);
    tokio::spawn(async move {
        let _ = sender.send(Bytes::from_static(b"data: {\"n\":1}\n\n")).await;
        end.cancelled().await;
        let _ = sender.send(Bytes::from_static(b"data: {\"n\":2}\n\n")).await;
    });
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    Body::from_stream(futures_util::StreamExt::map(stream, Ok::<_, Infallible>))
}

/// The request as the guest sees it.
fn describe(request: &Request<Incoming>, port: u16) -> String {
    let mut headers = serde_json::Map::new();
    for (name, value) in request.headers() {
        headers.insert(name.to_string(), value.to_str().unwrap_or_default().into());
    }
    let uri = request.uri().to_string();
    serde_json::json!({ "method": request.method().as_str(), "uri": uri, "port": port, "headers": headers }).to_string()
}
