//! Keys, and the ratchet: every operation of the document refuses a caller without a key.

use belljar_api::error::code;
use http::{Request, StatusCode, header};
use serde_json::json;

use super::{Harness, check_error};
use crate::openapi::document;

/// Operations that need no API key. This list may only shrink.
const OPEN: &[&str] = &["get /healthz"];

#[tokio::test]
async fn every_operation_needs_a_key() {
    let (harness, _node) = Harness::with_node().await;
    let document = document();
    let mut called = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (verb, operation) in operations.as_object().expect("operations") {
            if OPEN.contains(&format!("{verb} {path}").as_str()) {
                continue;
            }
            called += 1;
            let path: String = path.replace("{ref}", "x").replace(['{', '}'], "");
            let is_guest = operation["tags"][0] == "guest";
            for token in [None, Some("Bearer belljar_wrong".to_owned()), Some(format!("Basic {}", harness.key))] {
                let mut request = Request::builder().method(verb.to_uppercase().as_str()).uri(&path);
                request = request.header(header::HOST, "localhost");
                if is_guest {
                    request = request.header("x-tensorlake-sandbox-id", "box");
                }
                if let Some(token) = &token {
                    request = request.header(header::AUTHORIZATION, token);
                }
                let reply = harness.ask(request, "").await;
                check_error(&reply, StatusCode::UNAUTHORIZED, code::UNAUTHENTICATED, "");
                assert_eq!(reply.headers[header::WWW_AUTHENTICATE], "Bearer");
            }
        }
    }
    assert!(called > 90, "{called}");
    let list = harness.get("/archived-sandboxes").await.json();
    assert_eq!(list["sandboxes"].as_array().map(Vec::len), Some(0), "something was done without a key");
}

#[tokio::test]
async fn every_route_of_the_document_is_there() {
    let harness = Harness::start().await;
    for (path, operations) in document()["paths"].as_object().expect("paths") {
        for (verb, operation) in operations.as_object().expect("operations") {
            let url = path.replace("{ref}", "x").replace(['{', '}'], "");
            let reply = match (operation["tags"][0].as_str(), path.as_str()) {
                (Some("guest"), _) | (_, "/node/v1/connect") => continue,
                _ => {
                    let request = harness.request(&verb.to_uppercase(), &url);
                    harness.ask(request.header("x-tensorlake-request-timeout-ms", 1), "").await
                }
            };
            let words = reply.json()["error"].as_str().unwrap_or_default().to_owned();
            assert!(!words.starts_with("no such route") && reply.status != 405, "{verb} {path}: {words}");
            let is_later = operation["tags"][0] == "not in this release";
            assert_eq!(reply.status == 501, is_later, "{verb} {path}: {}", reply.status);
        }
    }
}

#[tokio::test]
async fn the_server_itself_says_that_it_lives() {
    let harness = Harness::start().await;
    let reply = harness.ask(Request::get("/healthz").header(header::HOST, "localhost"), "").await;
    assert_eq!((reply.status, reply.json()), (200, json!({ "healthy": true })));
}

#[tokio::test]
async fn keys_come_and_go() {
    let harness = Harness::start().await;
    let me = harness.call("POST", "/platform/v1/keys/introspect", "").await.json();
    assert!(me["organizationId"].is_string() && me["projectId"].is_string(), "{me}");
    let first = me["id"].as_str().expect("id");
    let reply = harness.call("DELETE", &format!("/platform/v1/keys/{first}"), "").await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "only API key");

    let created = harness.call("POST", "/platform/v1/keys", r#"{"name":"ci"}"#).await;
    assert_eq!(created.status, 201);
    let (id, secret) = (created.json()["id"].clone(), created.json()["key"].as_str().expect("key").to_owned());
    let list = harness.get("/platform/v1/keys").await;
    assert_eq!(list.json()["items"].as_array().map(Vec::len), Some(2));
    assert!(!String::from_utf8_lossy(&list.body).contains(&secret), "a list shows a secret");
    let with = |key: String| {
        let request = Request::get("/sandboxes").header(header::HOST, "localhost");
        harness.ask(request.header(header::AUTHORIZATION, format!("Bearer {key}")), "")
    };
    assert_eq!(with(secret.clone()).await.status, 200);
    let path = format!("/platform/v1/keys/{}", id.as_str().expect("id"));
    assert_eq!(harness.call("DELETE", &path, "").await.status, 200);
    assert_eq!(with(secret).await.error(), (401, "UNAUTHENTICATED".into()));
    assert_eq!(harness.call("DELETE", &path, "").await.error(), (404, "NOT_FOUND".into()));

    let harness = harness.restart().await;
    assert_eq!(harness.get("/sandboxes").await.status, 200, "the key survives");
}
