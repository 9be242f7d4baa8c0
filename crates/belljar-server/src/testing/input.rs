//! Bad input: each line gets its status, its code and words that help, and leaves no row behind.

use belljar_api::{error::code, limits::JSON_BODY_MAX};
use http::{StatusCode, header};

use super::{Harness, check_error};

#[tokio::test]
async fn bad_input_is_named() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let one = format!("/sandboxes/{id}");
    let (invalid, bad) = (code::INVALID_ARGUMENT, StatusCode::BAD_REQUEST);
    for (method, path, body, words) in [
        ("POST", "/sandboxes", r#"{"name":"Box"}"#, "name: name \"Box\" is not allowed"),
        ("POST", "/sandboxes", r#"{"resources":{"cpus":0.1}}"#, "resources.cpus"),
        ("POST", "/sandboxes", r#"{"resources":{"memory_mb":1}}"#, "resources.memory_mb"),
        ("POST", "/sandboxes", r#"{"exposed_ports":[9501]}"#, "reserved"),
        ("POST", "/sandboxes", r#"{"network":{"deny_out":["1.2.3.4/8"]}}"#, "network.deny_out: \"1.2.3.4/8\""),
        ("POST", "/sandbox-pools", r#"{"network":{"allow_out":["*"]}}"#, "network.allow_out: \"*\""),
        ("POST", "/sandboxes", r#"{"snapshot_id":"x","image":"y"}"#, "image: a snapshot brings"),
        ("POST", &format!("{one}/copy?times=0"), "", "times: \"0\""),
        ("POST", &format!("{one}/copy?times=101"), "", "times: \"101\""),
        ("POST", &format!("{one}/snapshot"), r#"{"snapshot_type":"odd"}"#, "snapshot_type: unknown variant"),
        ("POST", &format!("{one}/rollback"), "", "missing field `snapshot_id`"),
        ("POST", "/sandbox-pools", r#"{"warm_containers":2,"max_containers":1}"#, "warm_containers: 2 is over"),
        ("POST", "/sandbox-pools", r#"{"max_containers":0}"#, "max_containers: 0"),
        ("POST", "/sandbox-pools", r#"{"max_containers":100000}"#, "over 1000"),
        ("POST", "/sandbox-pools", r#"{"secret_names":["x"]}"#, "secret_names"),
        ("GET", "/snapshots?cursor=x", "", "cursor"),
        ("POST", "/sandboxes", r#"{"image":"a b"}"#, "image: \"a b\""),
        ("POST", "/sandboxes", r#"{"timeout_secs":"x"}"#, "timeout_secs: invalid type"),
        ("POST", "/sandboxes", r#"{"name":"#, "not JSON"),
        ("POST", "/v1/namespaces/A%2Fb/sandboxes", "{}", "namespace \"A/b\""),
        ("POST", &format!("{one}/suspend?wait_ms=x"), "", "wait_ms: \"x\""),
        ("POST", &format!("{one}/suspend"), "", "without a name"),
        ("GET", "/sandboxes?status=odd", "", "status: \"odd\""),
        ("GET", "/sandboxes?limit=0", "", "limit"),
        ("GET", "/sandboxes?cursor=x", "", "cursor"),
        ("GET", "/archived-sandboxes?direction=up", "", "direction"),
        ("PATCH", &one, r#"{"name":"-"}"#, "name"),
        ("PATCH", &one, r#"{"resources":{"cpus":2}}"#, "resize"),
        ("PATCH", &one, r#"{"network":{"allow_out":["a b"]}}"#, "network.allow_out: \"a b\""),
        ("PATCH", &one, r#"{"auto_resume":false}"#, "needs a name"),
        ("PATCH", &one, r#"{"network":7}"#, "network: invalid type"),
        ("GET", "/sandboxes/x/logs?level=9", "", "level"),
        ("POST", "/platform/v1/keys", r#"{"name":" "}"#, "name"),
        ("POST", "/platform/v1/keys", "", "missing field `name`"),
    ] {
        check_error(&harness.call(method, path, body).await, bad, invalid, words);
    }
    let reply =
        harness.ask(harness.request("POST", "/sandboxes").header("x-tensorlake-request-timeout-ms", "x"), "").await;
    check_error(&reply, bad, invalid, "milliseconds");
    assert_eq!(node.commands().len(), 1, "a node heard of a bad request");
    assert_eq!(harness.get("/sandboxes").await.json()["sandboxes"].as_array().map(Vec::len), Some(1));
    assert_eq!(harness.get("/archived-sandboxes").await.json()["sandboxes"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn the_frame_of_a_request_is_checked_too() {
    let harness = Harness::start().await;
    let large = "x".repeat(JSON_BODY_MAX + 1);
    let request = || harness.request("POST", "/sandboxes").header(header::CONTENT_TYPE, "application/json");
    let reply = harness.ask(request(), large.clone()).await;
    check_error(&reply, StatusCode::PAYLOAD_TOO_LARGE, code::PAYLOAD_TOO_LARGE, "1048576 bytes");
    let chunks = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(large)]);
    let reply = harness.ask(request(), axum::body::Body::from_stream(chunks)).await;
    check_error(&reply, StatusCode::PAYLOAD_TOO_LARGE, code::PAYLOAD_TOO_LARGE, "1048576 bytes");

    let request = harness.request("POST", "/sandboxes").header(header::CONTENT_TYPE, "text/plain");
    let reply = harness.ask(request, "{}").await;
    check_error(&reply, StatusCode::UNSUPPORTED_MEDIA_TYPE, code::UNSUPPORTED_MEDIA_TYPE, "text/plain");

    let reply = harness.get("/nope").await;
    check_error(&reply, StatusCode::NOT_FOUND, code::NOT_FOUND, "GET /nope");
    let reply = harness.call("PUT", "/sandboxes", "{}").await;
    check_error(&reply, StatusCode::METHOD_NOT_ALLOWED, code::METHOD_NOT_ALLOWED, "PUT");
    for path in ["/sandboxes/nope", "/sandboxes/5gm9wex8dm6ko1ed441ya"] {
        let reply = harness.get(path).await;
        check_error(&reply, StatusCode::NOT_FOUND, code::SANDBOX_NOT_FOUND, "Sandbox not found");
    }
    let reply = harness.call("POST", "/sandboxes/x/file_systems", "").await;
    check_error(&reply, StatusCode::NOT_IMPLEMENTED, code::NOT_IMPLEMENTED, "later release");
}

#[tokio::test]
async fn a_broken_store_changes_nothing_and_is_named() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    harness.break_store("PRAGMA query_only = 1").await;
    for (method, path) in [
        ("POST", "/sandboxes".to_owned()),
        ("DELETE", format!("/sandboxes/{id}")),
        ("POST", format!("/sandboxes/{id}/copy?times=2")),
        ("POST", format!("/sandboxes/{id}/snapshot")),
        ("POST", "/sandbox-pools".to_owned()),
    ] {
        let reply = harness.call(method, &path, "{}").await;
        let request_id = reply.headers["x-request-id"].to_str().expect("id");
        check_error(&reply, StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL_ERROR, request_id);
        assert!(!reply.json()["error"].as_str().unwrap_or_default().contains("readonly"), "internals leak");
    }
    let list = harness.get("/sandboxes").await.json();
    let rows = list["sandboxes"].as_array().expect("list");
    assert_eq!((rows.len(), &rows[0]["status"]), (1, &serde_json::json!("running")));
    assert_eq!(harness.get("/snapshots").await.json()["snapshots"], serde_json::json!([]));
    assert_eq!(harness.get("/sandbox-pools").await.json()["pools"], serde_json::json!([]));
}

#[tokio::test]
async fn a_full_disk_is_named() {
    let harness = Harness::start().await;
    harness.break_store("PRAGMA max_page_count = 1").await;
    let body = format!(r#"{{"entrypoint":["{}"],"wait":false}}"#, "x".repeat(500_000));
    let reply = harness.call("POST", "/sandboxes", &body).await;
    check_error(&reply, StatusCode::INSUFFICIENT_STORAGE, code::NO_SPACE, "nothing was changed");
    assert_eq!(harness.get("/sandboxes").await.json()["sandboxes"].as_array().map(Vec::len), Some(0));
    harness.break_store("PRAGMA max_page_count = 1000000").await;
    assert_eq!(harness.call("POST", "/sandboxes", &body).await.status, 202);
}
