//! A rough guard on the figures that the server alone decides; the benchmark proper is elsewhere.

use std::time::{Duration, Instant};

use axum::body::Body;
use http::header;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Harness, node::Boot};

/// Far above the target of 5 ms: this is an unoptimized build on a shared machine.
const CREATE_P50_MAX: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_create_is_accepted_in_milliseconds() {
    let (harness, node) = Harness::with_node().await;
    node.set_boot(Boot::Hang);
    let stream = TcpStream::connect(harness.addr).await.expect("connect");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(connection);
    let mut times = Vec::new();
    for _ in 0..60 {
        let request = harness.request("POST", "/sandboxes").header(header::CONTENT_TYPE, "application/json");
        let start = Instant::now();
        let response = sender.send_request(request.body(Body::from(r#"{"wait":false}"#)).expect("request")).await;
        let response = response.expect("answer");
        assert_eq!(response.status(), 202);
        response.into_body().collect().await.expect("body");
        times.push(start.elapsed());
    }
    times.sort();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("create, wait:false: p50 {p50:?}, p99 {p99:?}");
    assert!(p50 <= CREATE_P50_MAX, "p50 {p50:?}");
}
