//! Live copies over HTTP.

use belljar_api::{
    error::code,
    node::{Op, Origin},
    sandbox::TerminationReason,
};
use http::StatusCode;
use serde_json::{Value, json};

use super::{
    Harness, Reply, check_error,
    node::{Boot, Work},
};

impl Harness {
    async fn copy(&self, sandbox: &str, times: usize, key: Option<&str>) -> Reply {
        let mut request = self.request("POST", &format!("/sandboxes/{sandbox}/copy?times={times}"));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.ask(request, "").await
    }

    async fn live(&self) -> usize {
        self.get("/sandboxes").await.json()["sandboxes"].as_array().map_or(0, Vec::len)
    }
}

/// Their ids.
fn ids(reply: &Reply) -> Vec<String> {
    let json = reply.json();
    let copies = json["sandboxes"].as_array().expect("copies");
    copies.iter().map(|copy| copy["sandbox_id"].as_str().expect("id").to_owned()).collect()
}

/// What each says of itself.
fn words(reply: &Reply) -> Vec<Value> {
    reply.json()["sandboxes"].as_array().expect("copies").iter().map(|copy| copy["status"].clone()).collect()
}

#[tokio::test]
async fn copies_run_and_are_like_their_source() {
    let (harness, node) = Harness::with_node().await;
    let source = harness.create(r#"{"name":"box","timeout_secs":5,"exposed_ports":[80],"auto_resume":false}"#).await;
    let reply = harness.copy("box", 2, None).await;
    assert_eq!((reply.status, words(&reply)), (200, vec![json!("running"), json!("running")]));
    assert_eq!(reply.json()["source_sandbox_id"], source);
    for id in ids(&reply) {
        let info = harness.get(&format!("/sandboxes/{id}")).await.json();
        assert_eq!((&info["name"], &info["timeout_secs"]), (&Value::Null, &json!(5)));
        assert_eq!((&info["exposed_ports"], &info["auto_resume"]), (&json!([80]), &json!(true)));
        let reply = harness.call("POST", &format!("/sandboxes/{id}/suspend"), "").await;
        check_error(&reply, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, "without a name");
    }
    let command = node.command(|c| matches!(c.op, Op::Copy { .. })).await;
    let Op::Copy { copies } = command.op else { unreachable!() };
    assert_eq!((command.sandbox_id, command.generation, copies.len()), (source.clone(), 2, 2));
    assert!(copies.iter().all(|copy| copy.generation == 1 && !copy.spec.settings.suspends));
    let row = harness.app.store.sandbox(&ids(&reply)[0]).await.expect("store").expect("row");
    assert_eq!(row.origin, Origin::Copy { sandbox_id: source });
    // A copy is a sandbox like any other.
    let path = format!("/sandboxes/{}", ids(&reply)[1]);
    assert_eq!(harness.call("PATCH", &path, r#"{"name":"second"}"#).await.status, 200);
    assert_eq!(harness.call("POST", "/sandboxes/second/suspend?wait_ms=9000", "").await.status, 200);
    assert_eq!(words(&harness.copy(&ids(&reply)[0], 1, None).await), [json!("running")]);
}

#[tokio::test]
async fn the_memory_of_all_of_them_is_there_or_nothing_is_made() {
    let (harness, node) = Harness::with_node().await;
    harness.create(r#"{"name":"box"}"#).await;
    let reply = harness.copy("box", 4, None).await;
    check_error(&reply, StatusCode::CONFLICT, code::NO_RESOURCES, "4096 MiB of memory, and 3072 MiB are free");
    assert_eq!((harness.live().await, node.commands().len()), (1, 1));
    assert_eq!(harness.copy("box", 3, None).await.status, 200);
    assert_eq!(harness.live().await, 4);
}

#[tokio::test]
async fn only_what_runs_is_copied() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(r#"{"name":"box"}"#).await;
    node.disconnect(&harness).await;
    let away = harness.copy("box", 1, None).await;
    check_error(&away, StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, "node-1");
    node.connect(&harness).await;
    harness.call("POST", "/sandboxes/box/suspend?wait_ms=9000", "").await;
    let asleep = harness.copy("box", 1, None).await;
    check_error(&asleep, StatusCode::CONFLICT, code::CONFLICT, "resume it first");
    harness.call("DELETE", "/sandboxes/box", "").await;
    let ended = harness.copy(&id, 1, None).await;
    check_error(&ended, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, "terminated");
    assert_eq!(harness.copy("nope", 1, None).await.error(), (404, "SANDBOX_NOT_FOUND".into()));
}

#[tokio::test]
async fn failures_are_told_one_by_one() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    node.set_work(Work::Fail("the disk is full"));
    let reply = harness.copy(&id, 2, None).await;
    assert_eq!((reply.status, words(&reply)), (422, vec![json!("failed"), json!("failed")]));
    let first = &reply.json()["sandboxes"][0];
    assert_eq!(first["error_details"]["message"], "the disk is full");
    node.set_work(Work::Do);
    node.set_boot(Boot::Hang);
    let request = harness.request("POST", &format!("/sandboxes/{id}/copy"));
    let reply = harness.ask(request.header("x-tensorlake-request-timeout-ms", "30"), "").await;
    assert_eq!((reply.status, words(&reply)), (504, vec![json!("timeout")]));
    node.set_boot(Boot::Run);
    node.set_refuse(Some(StatusCode::BAD_REQUEST));
    let reply = harness.copy(&id, 1, None).await;
    assert_eq!((reply.status, words(&reply)), (422, vec![json!("failed")]));
    assert_eq!(reply.json()["sandboxes"][0]["termination_reason"], "ConfigurationError");
}

#[tokio::test]
async fn the_same_request_makes_the_same_copies() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let first = harness.copy(&id, 2, Some("a key")).await;
    let again = harness.copy(&id, 2, Some("a key")).await;
    assert_eq!((again.status, ids(&again), harness.live().await), (200, ids(&first), 3));
    let other = harness.create("{}").await;
    for (source, times) in [(&id, 1), (&other, 2)] {
        let reply = harness.copy(source, times, Some("a key")).await;
        check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "use a new key");
    }
    // It holds after a restart, without the node, and when the source has ended.
    harness.call("DELETE", &format!("/sandboxes/{id}"), "").await;
    let harness = harness.restart().await;
    assert_eq!(ids(&harness.copy(&id, 2, Some("a key")).await), ids(&first));
    let copies = node.commands().iter().filter(|c| matches!(c.op, Op::Copy { .. })).count();
    assert_eq!(copies, 1);
    let long = "x".repeat(256);
    for bad in ["", long.as_str()] {
        let reply = harness.copy(&other, 1, Some(bad)).await;
        check_error(&reply, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, "Idempotency-Key");
    }
}

#[tokio::test]
async fn a_copy_that_is_on_the_way_is_not_lost() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    // The node takes the command, and the connection breaks before it says so.
    node.set_break_next();
    let request = harness.request("POST", &format!("/sandboxes/{id}/copy?times=2"));
    let reply = harness.ask(request.header("x-tensorlake-request-timeout-ms", "1"), "").await;
    assert_eq!(reply.status, 504);
    node.command(|c| matches!(c.op, Op::Copy { .. })).await;
    node.disconnect(&harness).await;
    // One of them was lost before the node had a word of it on disk.
    let (kept, lost) = (ids(&reply)[0].clone(), ids(&reply)[1].clone());
    node.lose(&lost);
    node.connect(&harness).await;
    harness.until(&kept, |info| info["status"] == "running").await;
    let info = harness.get(&format!("/sandboxes/{lost}")).await.json();
    assert_ne!(info["termination_reason"], json!("node_lost"), "its command was still in the outbox");
    node.disconnect(&harness).await;
    node.connect(&harness).await;
    let info = harness.until(&lost, |info| info["status"] == "terminated").await;
    assert_eq!(info["termination_reason"], serde_json::to_value(TerminationReason::NodeLost).expect("reason"));
}
