//! The data plane: routing, streaming, upgrades, and what is kept from a guest.

use axum::body::Body;
use belljar_api::{error::code, node::NodeState, sandbox::TerminationReason};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::{
    Harness, Reply, check_echo, check_error,
    guest::{CLOSED_PORT, GARBAGE_PORT},
    node::Boot,
};

impl Harness {
    async fn to(&self, sandbox: &str, port: Option<u16>, path: &str) -> Reply {
        let mut request = self.request("GET", path).header("x-tensorlake-sandbox-id", sandbox);
        if let Some(port) = port {
            request = request.header("x-tensorlake-sandbox-port", port);
        }
        self.ask(request, "").await
    }

    async fn without_key(&self, host: &str, path: &str) -> Reply {
        self.ask(Request::get(path).header(header::HOST, host), "").await
    }
}

#[tokio::test]
async fn every_way_to_name_a_sandbox_leads_to_it() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"name":"box-1","exposed_ports":[8080]}"#).await;
    for (host, port) in [
        (format!("{id}.local"), 9501),
        ("box-1.local:9443".to_owned(), 9501),
        (format!("{id}.sb.test"), 9501),
        (format!("8080-{id}.sb.test"), 8080),
        ("8080-box-1.localhost".to_owned(), 8080),
    ] {
        let request = Request::get("/x/a%2Fb?q=1+2&r=%20")
            .header(header::HOST, &host)
            .header(header::AUTHORIZATION, format!("Bearer {}", harness.key));
        let seen = harness.ask(request, "").await.json();
        assert_eq!((&seen["uri"], &seen["port"]), (&json!("/x/a%2Fb?q=1+2&r=%20"), &json!(port)), "{host}");
    }
    assert_eq!(harness.to("box-1", None, "/y").await.json()["port"], 9501);
    assert_eq!(harness.to(&id, Some(8080), "/y").await.json()["port"], 8080);
}

#[tokio::test]
async fn a_guest_never_sees_the_key() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    for port in [9501, 8080] {
        let request = harness
            .request("GET", "/")
            .header("x-tensorlake-sandbox-id", &id)
            .header("x-tensorlake-sandbox-port", port)
            .header("x-tensorlake-route-hint", "h")
            .header("x-forwarded-for", "9.9.9.9")
            .header("x-forwarded-organization-id", "o")
            .header("x-pty-token", "t");
        let reply = harness.ask(request, "").await;
        let text = String::from_utf8(reply.body.to_vec()).expect("text");
        assert!(!text.contains(&harness.key) && !text.contains("9.9.9.9") && !text.contains("tensorlake"), "{text}");
        let seen = reply.json();
        let host = if port == 9501 { "localhost:9501" } else { "localhost" };
        assert_eq!(seen["headers"]["host"], host);
        assert_eq!(seen["headers"]["x-forwarded-for"], "127.0.0.1");
        assert_eq!(seen["headers"]["x-forwarded-host"], "localhost");
        assert_eq!(seen["headers"]["x-pty-token"], "t");
        assert!(seen["headers"].get("x-forwarded-organization-id").is_none());
    }
}

#[tokio::test]
async fn answers_come_as_they_are() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let reply = harness.to(&id, None, "/missing").await;
    assert_eq!((reply.status, &reply.body[..]), (404, &b"nothing"[..]));
    assert_ne!(reply.headers["x-request-id"], "forged");
    assert!(!reply.headers.contains_key("x-hop"));

    let request =
        harness.request("POST", "/echo").header("x-tensorlake-sandbox-id", &id).header(header::EXPECT, "100-continue");
    assert_eq!(&harness.ask(request, "hello").await.body[..], b"hello");
}

#[tokio::test]
async fn connections_to_the_agent_are_used_again() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    for _ in 0..5 {
        harness.to(&id, None, "/").await;
        // Giving a connection back is a task of its own.
        tokio::task::yield_now().await;
    }
    assert!(*node.opened.borrow() < 5, "every request had its own connection");
    // A connection that the guest closed is noticed.
    check_error(&harness.to(&id, None, "/close").await, StatusCode::BAD_GATEWAY, code::CONNECTION_CLOSED, "closed");
    assert_eq!(harness.to(&id, None, "/").await.status, 200);
}

#[tokio::test]
async fn a_connection_on_which_a_body_was_refused_is_not_used_again() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    for _ in 0..5 {
        let request = harness.request("POST", "/missing").header("x-tensorlake-sandbox-id", &id);
        assert_eq!(harness.ask(request, "a body that nobody reads").await.status, 404);
        tokio::task::yield_now().await;
        assert_eq!(harness.to(&id, None, "/").await.status, 200);
    }
    assert!(*node.opened.borrow() >= 5, "{} connections", *node.opened.borrow());
}

#[tokio::test]
async fn ports_are_open_as_far_as_it_was_said() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"name":"box","exposed_ports":[8080,9,7777]}"#).await;
    let host = "8080-box.local";
    check_error(&harness.to(&id, Some(81), "/").await, StatusCode::FORBIDDEN, code::PORT_NOT_EXPOSED, "port 81");
    assert_eq!(harness.without_key(host, "/").await.error(), (401, "UNAUTHENTICATED".into()));

    let open = r#"{"allow_unauthenticated_access":true}"#;
    assert_eq!(harness.call("PATCH", "/sandboxes/box", open).await.status, 200);
    assert_eq!(harness.without_key(host, "/").await.status, 200);
    for host in ["box.local", "9501-box.local", "81-box.local", "8080-other.local"] {
        assert_eq!(harness.without_key(host, "/").await.error(), (401, "UNAUTHENTICATED".into()), "{host}");
    }
    // What the user's own program wants to know passes; our key does not, even where it is not needed.
    let basic = Request::get("/").header(header::HOST, host).header(header::AUTHORIZATION, "Basic eA==");
    assert_eq!(harness.ask(basic, "").await.json()["headers"]["authorization"], "Basic eA==");
    let key =
        harness.request("GET", "/").header("x-tensorlake-sandbox-id", &id).header("x-tensorlake-sandbox-port", 8080);
    assert!(harness.ask(key, "").await.json()["headers"].get("authorization").is_none());

    let refused = harness.to(&id, Some(CLOSED_PORT), "/").await;
    check_error(&refused, StatusCode::BAD_GATEWAY, code::CONNECTION_REFUSED, "port 9");
    let garbage = harness.to(&id, Some(GARBAGE_PORT), "/").await;
    check_error(&garbage, StatusCode::BAD_GATEWAY, code::PROXY_ERROR, "not HTTP");
}

#[tokio::test]
async fn what_cannot_be_reached_says_so() {
    let (harness, node) = Harness::with_node().await;
    let not_found = harness.to("nope", None, "/").await;
    check_error(&not_found, StatusCode::NOT_FOUND, code::SANDBOX_NOT_FOUND, "nope");
    let missing = harness.get("/api/v1/health").await;
    check_error(&missing, StatusCode::BAD_REQUEST, code::MISSING_SANDBOX_ID, "X-Tensorlake-Sandbox-Id");

    let gone = harness.create("{}").await;
    harness.call("DELETE", &format!("/sandboxes/{gone}"), "").await;
    let ended = harness.to(&gone, None, "/").await;
    check_error(&ended, StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_NOT_RUNNING, "ended (user)");

    let id = harness.create("{}").await;
    node.disconnect(&harness).await;
    let away = harness.to(&id, None, "/").await;
    check_error(&away, StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, "node-1");
    assert_eq!(away.headers[header::RETRY_AFTER], "1");
    // It runs all the same.
    assert_eq!(harness.get(&format!("/sandboxes/{id}")).await.json()["status"], "running");
}

#[tokio::test]
async fn a_request_waits_for_a_sandbox_that_boots() {
    let (harness, node) = Harness::with_node().await;
    for (state, status) in [
        (NodeState::Running, 200),
        (NodeState::Terminated { reason: TerminationReason::VmmExited, detail: String::new(), at: 1 }, 503),
    ] {
        node.set_boot(Boot::Hang);
        let reply = harness.call("POST", "/sandboxes", r#"{"wait":false}"#).await;
        let id = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
        node.command(|c| c.sandbox_id == id).await;
        let (reply, ()) = tokio::join!(harness.to(&id, None, "/"), async { node.set(&id, state) });
        assert_eq!(reply.status, status);
    }
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let chunk = Bytes::from(vec![1u8; 256 * 1024]);
    let chunks = futures_util::stream::iter((0..128).map(move |_| Ok::<_, std::convert::Infallible>(chunk.clone())));
    let request = harness.request("POST", "/count").header("x-tensorlake-sandbox-id", &id);
    assert_eq!(&harness.ask(request, Body::from_stream(chunks)).await.body[..], b"33554432");
    assert_eq!(harness.to(&id, None, "/many").await.body.len(), 32 * 1024 * 1024);
}

#[tokio::test]
async fn a_reader_that_stops_holds_the_guest_back() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let request = harness.request("GET", "/many").header("x-tensorlake-sandbox-id", &id);
    let mut response = harness.send(request.body(Body::empty()).expect("request")).await;
    // One frame is read, the rest stays where it is; other requests go on.
    assert!(response.body_mut().frame().await.is_some());
    assert_eq!(harness.to(&id, None, "/").await.status, 200);
    drop(response);
    assert_eq!(harness.to(&id, None, "/").await.status, 200);
}

#[tokio::test]
async fn clients_that_do_not_read_hold_up_nobody_else() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    let mut stalled = Vec::new();
    // More in all than any window that the connection to the node could sensibly have for one of them.
    for _ in 0..80 {
        let request = harness.request("GET", "/many").header("x-tensorlake-sandbox-id", &id);
        stalled.push(harness.send(request.body(Body::empty()).expect("request")).await);
    }
    for _ in 0..3 {
        let all = async { (harness.to(&id, None, "/").await.status, harness.create("{}").await) };
        let (status, _) = tokio::time::timeout(std::time::Duration::from_secs(20), all).await.expect("held up");
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn connections_to_a_users_port_are_used_again_and_a_stale_one_is_not_seen() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080,8081]}"#).await;
    for _ in 0..6 {
        for port in [8080, 8081] {
            assert_eq!(harness.to(&id, Some(port), "/").await.json()["port"], port);
            tokio::task::yield_now().await;
        }
    }
    assert!(*node.opened.borrow() < 8, "{} connections", *node.opened.borrow());
    // The guest closes while the connection lies unused; whoever comes next does not notice.
    for _ in 0..20 {
        assert_eq!(harness.to(&id, Some(8080), "/bye").await.status, 200);
        assert_eq!(harness.to(&id, Some(8080), "/").await.status, 200);
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_says_who_the_client_is() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"exposed_ports":[8080]}"#).await;
    for (from, expected) in
        [("127.0.0.1", ["127.0.0.1", "http", "localhost"]), ("127.9.0.1", ["8.8.8.8, 127.9.0.1", "https", "b.test"])]
    {
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket.bind(format!("{from}:0").parse().expect("address")).expect("bind");
        let stream = socket.connect(harness.addr).await.expect("connect");
        let (mut send, connection) =
            hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.expect("handshake");
        tokio::spawn(connection);
        let request = harness
            .request("GET", "/")
            .header("x-tensorlake-sandbox-id", &id)
            .header("x-tensorlake-sandbox-port", 8080)
            .header("x-forwarded-for", "1.1.1.1, 8.8.8.8")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-host", "b.test");
        let response = send.send_request(request.body(Body::empty()).expect("request")).await.expect("answer");
        let body = response.into_body().collect().await.expect("body").to_bytes();
        let seen: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let got = ["for", "proto", "host"].map(|what| seen["headers"][format!("x-forwarded-{what}")].clone());
        assert_eq!(got, expected, "{from}");
    }
}

#[tokio::test]
async fn events_come_one_by_one() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let request = harness.request("GET", "/events").header("x-tensorlake-sandbox-id", &id);
    let mut response = harness.send(request.body(Body::empty()).expect("request")).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let first = response.body_mut().frame().await.expect("frame").expect("data");
    assert_eq!(first.data_ref().map(|b| &b[..]), Some(&b"data: {\"n\":1}\n\n"[..]));
    // The second only comes now, so the first was not held back for it.
    node.end_events.cancel();
    let second = response.body_mut().frame().await.expect("frame").expect("data");
    assert_eq!(second.data_ref().map(|b| &b[..]), Some(&b"data: {\"n\":2}\n\n"[..]));
}

#[tokio::test]
async fn a_websocket_is_spliced() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let request = harness
        .request("GET", "/ws?token=t")
        .header("x-tensorlake-sandbox-id", &id)
        .header(header::CONNECTION, "keep-alive, Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::ORIGIN, "http://elsewhere");
    let response = harness.send(request.body(Body::empty()).expect("request")).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()[header::UPGRADE], "websocket");
    check_echo(response).await;
}

#[tokio::test]
async fn a_browser_may_ask_from_anywhere() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    for host in ["localhost".to_owned(), format!("{id}.local")] {
        let request = Request::builder()
            .method("OPTIONS")
            .uri("/api/v1/health")
            .header(header::HOST, &host)
            .header(header::ORIGIN, "http://elsewhere")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization");
        let reply = harness.ask(request, "").await;
        assert_eq!(
            (reply.status, &reply.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN]),
            (204, &"http://elsewhere".parse().unwrap())
        );
        assert_eq!(reply.headers[header::ACCESS_CONTROL_ALLOW_HEADERS], "authorization");
    }
    let request = harness.request("GET", "/sandboxes").header(header::ORIGIN, "http://elsewhere");
    assert_eq!(harness.ask(request, "").await.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "http://elsewhere");
}
