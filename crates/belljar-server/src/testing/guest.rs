//! What runs in the test double's sandboxes: a small HTTP server.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::{hostile, program};
use crate::node_link::BodyStream;

/// Nobody listens here.
pub(super) const CLOSED_PORT: u16 = 9;
/// Speaks no HTTP.
pub(super) const GARBAGE_PORT: u16 = 7777;

/// Breaks off in the middle of an answer, when it gets a byte.
pub(super) const CUT_PORT: u16 = 6;

/// Sends back what it gets.
pub(super) const ECHO_PORT: u16 = 7;

/// Ends its own direction at once and tells, by ending too, how much it got.
pub(super) const SINK_PORT: u16 = 8;

/// Serves one connection to a guest port.
pub(super) async fn serve(io: BodyStream, port: u16, end_events: CancellationToken, left: watch::Sender<usize>) {
    if port == ECHO_PORT {
        let (mut read, mut write) = tokio::io::split(io);
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
        return;
    }
    if port == SINK_PORT {
        let (mut read, mut write) = tokio::io::split(io);
        let _ = write.shutdown().await;
        let got = tokio::io::copy(&mut read, &mut tokio::io::sink()).await.unwrap_or(0);
        left.send_modify(|left| *left += usize::try_from(got).unwrap_or(0));
        return;
    }
    if port == CUT_PORT {
        let mut io = io;
        let _ = io.write_all(b"HTTP/1.0 200 OK\r\n\r\nhalf").await;
        // Once the client has heard it, which it says.
        let _ = io.read_u8().await;
        return;
    }
    if port == GARBAGE_PORT {
        let mut io = io;
        let _ = io.write_all(b"\x00\x01garbage\r\n\r\n").await;
        let _ = io.shutdown().await;
        return;
    }
    if let Some(bytes) = hostile::script(port) {
        return hostile::play(io, bytes).await;
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
    // As a gRPC server with a port for both would.
    let both = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = both.serve_connection_with_upgrades(TokioIo::new(io), service).await;
}

/// Answers as a gRPC server does: what came, and how it went in the trailers.
fn grpc(request: Request<Incoming>) -> Response<Body> {
    let seen = format!("{:?} te={:?}", request.version(), request.headers().get(header::TE));
    let theirs = Arc::new(Mutex::new(Vec::new()));
    let names = Arc::clone(&theirs);
    let frames = http_body_util::BodyStream::new(request.into_body()).filter_map(move |frame| {
        let data = frame.map(|frame| match frame.into_trailers() {
            Ok(map) => {
                names.lock().expect("names").extend(map.keys().map(ToString::to_string));
                None
            }
            Err(data) => Some(data),
        });
        std::future::ready(data.transpose())
    });
    let end = futures_util::stream::once(async move {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("value"));
        trailers.insert("x-seen", seen.parse().expect("value"));
        trailers.insert("x-trailers", theirs.lock().expect("names").join(",").parse().expect("value"));
        Ok(hyper::body::Frame::trailers(trailers))
    });
    let mut response = Response::new(Body::new(http_body_util::StreamBody::new(frames.chain(end))));
    response.headers_mut().insert(header::CONTENT_TYPE, "application/grpc".parse().expect("value"));
    response
}

async fn answer(
    mut request: Request<Incoming>,
    port: u16,
    end_events: CancellationToken,
) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/pkg.Echo/Echo" => grpc(request),
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
        // Says nothing of it, and closes all the same.
        "/bye" => {
            let hold = Bytes::from_static(b"bye");
            let frames = futures_util::stream::iter([Ok(hold), Err(std::io::Error::other("the guest closes"))]);
            Response::builder()
                .header(header::CONTENT_LENGTH, 3)
                .body(Body::from_stream(frames))
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
