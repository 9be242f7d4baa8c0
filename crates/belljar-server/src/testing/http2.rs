//! HTTP/2 clients: multiplexing, gRPC to the guest and back, WebSockets, and limits.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
    ext::Protocol,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinHandle};

use super::{Harness, check_echo};

/// An HTTP/2 connection with prior knowledge.
struct Client {
    send: SendRequest<Body>,
    key: String,
    /// Ends with the connection.
    connection: JoinHandle<hyper::Result<()>>,
}

impl Client {
    async fn connect(harness: &Harness) -> Self {
        let stream = TcpStream::connect(harness.addr).await.expect("connect");
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (send, connection) = builder.handshake(TokioIo::new(stream)).await.expect("handshake");
        Self { send, key: harness.key.clone(), connection: tokio::spawn(connection) }
    }

    fn request(&self, method: Method, host: &str, path: &str) -> http::request::Builder {
        let key = format!("Bearer {}", self.key);
        Request::builder().method(method).uri(format!("http://{host}{path}")).header(header::AUTHORIZATION, key)
    }

    async fn send(&self, request: Request<Body>) -> Response<Incoming> {
        self.send.clone().send_request(request).await.expect("answer")
    }

    async fn get(&self, host: &str, path: &str) -> (StatusCode, Bytes) {
        let response = self.send(self.request(Method::GET, host, path).body(Body::empty()).expect("request")).await;
        (response.status(), response.into_body().collect().await.expect("body").to_bytes())
    }
}

/// A gRPC call: its messages, then trailers of the client's own.
fn call(client: &Client, host: &str, trailers: HeaderMap) -> Request<Body> {
    let frames = [Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"one"))), Ok(Frame::trailers(trailers))];
    client
        .request(Method::POST, host, "/pkg.Echo/Echo")
        .header(header::CONTENT_TYPE, "application/grpc+proto")
        .header(header::TE, "trailers")
        .body(Body::new(StreamBody::new(futures_util::stream::iter(frames))))
        .expect("request")
}

#[tokio::test]
async fn requests_share_a_connection_and_reach_both_planes() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    let client = Client::connect(&harness).await;
    let (own, port) = (format!("{id}.sb.test"), format!("8080-{id}.sb.test:99"));
    let (agent, user, list) =
        tokio::join!(client.get(&own, "/x%2Fy?a=b+c"), client.get(&port, "/"), client.get("localhost", "/sandboxes"));
    assert_eq!([agent.0, user.0, list.0], [StatusCode::OK; 3]);
    let seen: serde_json::Value = serde_json::from_slice(&agent.1).expect("JSON");
    assert_eq!((&seen["uri"], &seen["port"]), (&"/x%2Fy?a=b+c".into(), &9501.into()));
    let seen: serde_json::Value = serde_json::from_slice(&user.1).expect("JSON");
    assert_eq!((&seen["port"], &seen["headers"]["x-forwarded-host"]), (&8080.into(), &port.as_str().into()));
    assert_eq!(seen["headers"]["host"], port.as_str());
    assert!(!String::from_utf8_lossy(&user.1).contains(&harness.key));
    // The same rules as over HTTP/1.1.
    let closed = client.get(&format!("81-{id}.sb.test"), "/").await;
    assert_eq!(closed.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn grpc_goes_through_whole() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    let (client, host) = (Client::connect(&harness).await, format!("8080-{id}.sb.test"));
    let before = *node.opened.borrow();
    for _ in 0..3 {
        let trailers = HeaderMap::from_iter([
            (header::HeaderName::from_static("x-forwarded-for"), "9.9.9.9".parse().expect("value")),
            (header::HeaderName::from_static("x-client-checksum"), "7".parse().expect("value")),
        ]);
        let response = client.send(call(&client, &host, trailers)).await;
        assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
        let body = response.into_body().collect().await.expect("body");
        let trailers = body.trailers().cloned().expect("trailers");
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["x-seen"], "HTTP/2.0 te=Some(\"trailers\")");
        assert_eq!(trailers["x-trailers"], "x-client-checksum");
        assert_eq!(body.to_bytes(), "one");
    }
    assert_eq!(*node.opened.borrow() - before, 1, "calls of one client share a connection to the guest");
}

#[tokio::test]
async fn messages_of_a_call_go_both_ways_one_by_one() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    let client = Client::connect(&harness).await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let request = client
        .request(Method::POST, &format!("8080-{id}.sb.test"), "/pkg.Echo/Echo")
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(Body::from_stream(stream))
        .expect("request");
    let mut response = client.send(request).await;
    for n in 0..3u8 {
        sender.send(Ok(Bytes::from(vec![n; 4]))).await.expect("sent");
        let frame = response.body_mut().frame().await.expect("frame").expect("data");
        assert_eq!(frame.into_data().expect("data"), vec![n; 4]);
    }
    drop(sender);
    let last = response.body_mut().frame().await.expect("frame").expect("trailers");
    assert!(last.is_trailers());
}

#[tokio::test]
async fn a_websocket_over_http2_is_one_for_the_guest() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let client = Client::connect(&harness).await;
    let connect = |path: &str, protocol: &'static str| {
        let mut request = client
            .request(Method::CONNECT, &format!("{id}.sb.test"), path)
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .body(Body::empty())
            .expect("request");
        request.extensions_mut().insert(Protocol::from_static(protocol));
        request
    };
    let response = client.send(connect("/ws", "websocket")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key(header::SEC_WEBSOCKET_ACCEPT));
    check_echo(response).await;
    // What is no WebSocket there is none here, and other protocols are not carried.
    assert_eq!(client.send(connect("/echo", "websocket")).await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(client.send(connect("/ws", "other")).await.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn an_answer_that_is_not_read_lets_go_of_the_sandbox_and_nothing_else() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let (client, host) = (Client::connect(&harness).await, format!("{id}.sb.test"));
    let get = |path| client.send(client.request(Method::GET, &host, path).body(Body::empty()).expect("request"));
    let mut closed = node.closed.subscribe();
    // Here it is the guest that has nothing to say, for as long as the other one lies.
    let mut events = get("/events").await;
    assert!(events.body_mut().frame().await.expect("frame").is_ok());
    let unread = get("/many").await;
    closed.wait_for(|closed| *closed == 1).await.expect("let go");
    node.end_events.cancel();
    assert!(events.body_mut().frame().await.expect("frame").is_ok());
    // Who reads on after all is not told that this was all of it, and the connection serves further requests.
    assert!(unread.into_body().collect().await.is_err());
    assert_eq!(client.get(&host, "/").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_the_connection_goes_on() {
    let (harness, _node) = Harness::with_node().await;
    let client = Client::connect(&harness).await;
    let large = client.request(Method::GET, "localhost", "/sandboxes").header("x-a", "a".repeat(100 * 1024));
    let refused = client.send.clone().send_request(large.body(Body::empty()).expect("request")).await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status() == 431));
    assert_eq!(client.get("localhost", "/sandboxes").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_connection_that_is_not_used_is_closed() {
    let (harness, _node) = Harness::with_node().await;
    let client = Client::connect(&harness).await;
    assert_eq!(client.get("localhost", "/healthz").await.0, StatusCode::OK);
    client.connection.await.expect("connection").expect("an orderly end");
}
