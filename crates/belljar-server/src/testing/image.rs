//! The catalogue: pages, names, ids, removal.

use belljar_api::error::code;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Harness, Reply, check_error};

const IMAGES: &str = "/images/v4/images";

/// Names in an answer, and where the next page is.
fn names(reply: &Reply) -> (Vec<String>, Value) {
    assert_eq!(reply.status, 200);
    let list = reply.json();
    let items = list["items"].as_array().expect("items").iter();
    let names = items.map(|item| item["name"].as_str().expect("name").to_owned()).collect();
    (names, list["pagination"]["next"].clone())
}

#[tokio::test]
async fn a_catalogue_is_read_page_by_page() {
    let (harness, node) = Harness::with_node().await;
    node.add_images(&["team/tool:v2", "alp", "team/tool"]);
    let all = ["alp", "debian-minimal", "team/tool", "team/tool:v2"];
    for query in ["", "?page_size=100", "?page_size=4"] {
        let (found, next) = names(&harness.get(&format!("{IMAGES}{query}")).await);
        assert_eq!((found.as_slice(), next), (all.map(str::to_owned).as_slice(), Value::Null), "{query}");
    }
    let (mut seen, mut path) = (Vec::new(), format!("{IMAGES}?page_size=1"));
    loop {
        let (found, next) = names(&harness.get(&path).await);
        assert_eq!(found.len(), 1);
        seen.extend(found);
        let Some(cursor) = next.as_str() else { break };
        assert!(cursor.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "{cursor}");
        path = format!("{IMAGES}?page_size=1&cursor={cursor}");
    }
    assert_eq!(seen, all);
    for (query, words) in [("page_size=0", "page_size: \"0\""), ("page_size=x", "1 to 1000"), ("cursor=*", "cursor")] {
        let reply = harness.get(&format!("{IMAGES}?{query}")).await;
        check_error(&reply, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, words);
    }
}

#[tokio::test]
async fn an_image_is_found_by_name_alias_and_id() {
    let (harness, node) = Harness::with_node().await;
    node.add_images(&["team/tool:v2", "alp"]);
    for path in ["name/team/tool:v2", "name/tensorlake/debian-minimal", "name/alp", "image_alp"] {
        let reply = harness.get(&format!("{IMAGES}/{path}")).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.json()["created_at"].is_string(), "{path}");
    }
    for path in ["name/a/b", "image_nope", "nope", "name/Nope"] {
        let reply = harness.get(&format!("{IMAGES}/{path}")).await;
        check_error(&reply, StatusCode::NOT_FOUND, code::NOT_FOUND, "there is debian-minimal");
    }
    node.disconnect(&harness).await;
    let reply = harness.get(&format!("{IMAGES}/name/alp")).await;
    check_error(&reply, StatusCode::NOT_FOUND, code::NOT_FOUND, "no node is connected");
    assert_eq!(harness.get(IMAGES).await.json()["items"], json!([]));
}

#[tokio::test]
async fn a_deleted_image_makes_no_sandbox_and_keeps_those_that_live() {
    let (harness, node) = Harness::with_node().await;
    node.add_images(&["team/tool:v2", "alp"]);
    let id = harness.create(r#"{"image":"alp"}"#).await;
    for path in ["name/alp", "image_team%2Ftool:v2"] {
        let path = format!("{IMAGES}/{path}");
        let reply = harness.call("DELETE", &path, "").await;
        assert_eq!((reply.status, reply.body.len()), (204, 0), "{path}");
        let again = harness.call("DELETE", &path, "").await;
        check_error(&again, StatusCode::NOT_FOUND, code::NOT_FOUND, "there is debian-minimal");
    }
    assert_eq!(harness.get(&format!("/sandboxes/{id}")).await.json()["status"], "running");
    // What was known of the node's images is not believed any more.
    let reply = harness.call("POST", "/sandboxes", r#"{"image":"alp"}"#).await;
    assert_eq!((reply.status, &reply.json()["termination_reason"]), (422, &json!("ImageNotFound")));
    let reply = harness.call("DELETE", &format!("{IMAGES}/name/debian-minimal"), "").await;
    check_error(&reply, StatusCode::FORBIDDEN, code::FORBIDDEN, "mine");
    harness.create("{}").await;
    node.disconnect(&harness).await;
    let reply = harness.call("DELETE", &format!("{IMAGES}/name/alp"), "").await;
    check_error(&reply, StatusCode::NOT_FOUND, code::NOT_FOUND, "no node is connected");
}

#[tokio::test]
async fn an_image_is_made_of_a_filesystem_snapshot() {
    let (harness, node) = Harness::with_node().await;
    let from = format!("{IMAGES}/from-snapshot");
    let sandbox = harness.create("{}").await;
    let mut snapshots = Vec::new();
    for kind in ["filesystem", "memory"] {
        let body = format!(r#"{{"snapshot_type":"{kind}"}}"#);
        let taken = harness.call("POST", &format!("/sandboxes/{sandbox}/snapshot"), &body).await.json();
        let id = taken["snapshot_id"].as_str().expect("id").to_owned();
        let info = harness.get(&format!("/snapshots/{id}?wait_ms=60000")).await.json();
        assert_eq!(info["status"], "completed");
        snapshots.push(id);
    }
    let ask = async |name: &str, snapshot: &str| {
        let body = json!({ "name": name, "snapshot_id": snapshot, "public": true }).to_string();
        harness.call("POST", &from, &body).await
    };
    let reply = ask("mine", &snapshots[0]).await;
    assert_eq!((reply.status, &reply.json()["name"], &reply.json()["global"]), (201, &json!("mine"), &json!(true)));
    harness.create(r#"{"image":"mine"}"#).await;

    let (bad, invalid) = (StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT);
    check_error(&ask("mine", &snapshots[1]).await, bad, invalid, "take a filesystem snapshot");
    let unknown = ask("mine", "5gm9wex8dm6ko1ed441ya").await;
    check_error(&unknown, StatusCode::NOT_FOUND, code::SNAPSHOT_NOT_FOUND, "GET /snapshots");
    check_error(&ask("busy", &snapshots[0]).await, StatusCode::CONFLICT, code::CONFLICT, "being made");
    check_error(&harness.call("POST", &from, r#"{"name":"x"}"#).await, bad, invalid, "missing field `snapshot_id`");
    node.disconnect(&harness).await;
    let away = ask("mine", &snapshots[0]).await;
    check_error(&away, StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, "not connected");
}
