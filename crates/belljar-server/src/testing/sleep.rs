//! Suspend and resume over HTTP, and requests to a sandbox that sleeps.

use belljar_api::{
    error::code,
    node::{NodeState, Op},
};
use http::StatusCode;
use serde_json::{Value, json};

use super::{
    Harness, Reply, check_error,
    node::{Boot, FakeNode, Work},
};

const NAMED: &str = r#"{"name":"box"}"#;

impl Harness {
    async fn order(&self, what: &str, wait_ms: u32) -> Reply {
        self.call("POST", &format!("/sandboxes/box/{what}?wait_ms={wait_ms}"), "").await
    }

    async fn status(&self) -> Value {
        self.get("/sandboxes/box").await.json()["status"].clone()
    }

    async fn ask_guest(&self) -> Reply {
        self.ask(self.request("GET", "/").header("x-tensorlake-sandbox-id", "box"), "").await
    }

    async fn asleep() -> (Self, FakeNode, String) {
        let (harness, node) = Self::with_node().await;
        let id = harness.create(NAMED).await;
        assert_eq!(harness.order("suspend", 9000).await.status, 200);
        (harness, node, id)
    }
}

#[track_caller]
fn check(reply: &Reply, status: u16, word: &str) {
    assert_eq!((reply.status, &reply.json()["status"]), (status, &json!(word)), "{:?}", reply.body);
}

#[tokio::test]
async fn it_sleeps_and_wakes_on_request() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(NAMED).await;
    check(&harness.order("suspend", 9000).await, 200, "suspended");
    check(&harness.order("suspend", 9000).await, 200, "suspended");
    let info = harness.get("/sandboxes/box").await.json();
    assert_eq!((&info["id"], &info["status"]), (&json!(id), &json!("suspended")));
    assert!(info["sandbox_url"].is_string() && info["ingress_endpoint"].is_string(), "clients refuse it without a URL");
    let list = harness.get("/sandboxes?status=suspended").await.json();
    assert_eq!(list["sandboxes"].as_array().map(Vec::len), Some(1));
    check(&harness.order("resume", 9000).await, 200, "running");
    check(&harness.order("resume", 0).await, 200, "running");
    let sent = node.commands().iter().filter(|c| matches!(c.op, Op::Suspend | Op::Resume)).count();
    assert_eq!(sent, 2, "what is there already was asked of the node");
}

#[tokio::test]
async fn without_a_wait_the_answer_comes_at_once() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(NAMED).await;
    node.set_work(Work::Hang);
    check(&harness.call("POST", "/sandboxes/box/suspend", "").await, 202, "suspending");
    check(&harness.order("suspend", 20).await, 202, "suspending");
    let reply = harness.order("resume", 20).await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "being suspended");
    node.set(&id, NodeState::Suspended);
    check(&harness.order("suspend", 9000).await, 200, "suspended");
    check(&harness.order("resume", 20).await, 202, "suspended");
    let reply = harness.order("suspend", 20).await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "being resumed");
    let (reply, ()) = tokio::join!(harness.order("resume", 9000), async { node.set(&id, NodeState::Running) });
    check(&reply, 200, "running");
}

#[tokio::test]
async fn the_clients_own_limit_bounds_the_wait() {
    let (harness, node) = Harness::with_node().await;
    harness.create(NAMED).await;
    node.set_work(Work::Hang);
    let request = harness
        .request("POST", "/sandboxes/box/suspend?wait_ms=30000")
        .header("x-tensorlake-request-timeout-ms", "60")
        .header("x-tensorlake-request-timeout-grace-ms", "50");
    check(&harness.ask(request, "").await, 202, "suspending");
}

#[tokio::test]
async fn what_did_not_happen_says_why() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(NAMED).await;
    node.set_work(Work::Fail("the disk is full"));
    let reply = harness.order("suspend", 9000).await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "the disk is full");
    assert_eq!(harness.status().await, "running");
    node.set_work(Work::Hang);
    let (reply, ()) = tokio::join!(harness.order("suspend", 9000), async {
        node.command(|c| matches!(c.op, Op::Suspend) && c.generation == 3).await;
        node.set(&id, NodeState::Running);
    });
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "meanwhile");
    node.set_refuse(Some(StatusCode::BAD_REQUEST));
    let reply = harness.order("suspend", 9000).await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "the node refuses");
    node.set_refuse(None);
    node.set_work(Work::Do);
    check(&harness.order("suspend", 9000).await, 200, "suspended");
    node.set_work(Work::Fail("the file is damaged"));
    let reply = harness.order("resume", 9000).await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "the file is damaged");
    assert_eq!(harness.status().await, "suspended");
}

#[tokio::test]
async fn only_what_runs_and_has_a_name_sleeps() {
    let (harness, node) = Harness::with_node().await;
    let (bad, invalid) = (StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT);
    let id = harness.create("{}").await;
    let path = format!("/sandboxes/{id}/suspend?wait_ms=9000");
    check_error(&harness.call("POST", &path, "").await, bad, invalid, "without a name");
    assert_eq!(harness.call("PATCH", &format!("/sandboxes/{id}"), NAMED).await.status, 200);
    check(&harness.call("POST", &path, "").await, 200, "suspended");
    assert_eq!(harness.call("DELETE", "/sandboxes/box", "").await.status, 200);
    for what in ["suspend", "resume"] {
        let ended = harness.call("POST", &format!("/sandboxes/{id}/{what}"), "").await;
        check_error(&ended, bad, invalid, "terminated");
        let unknown = harness.call("POST", &format!("/sandboxes/nope/{what}"), "").await;
        check_error(&unknown, StatusCode::NOT_FOUND, code::SANDBOX_NOT_FOUND, "nope");
    }
    node.set_boot(Boot::Hang);
    harness.call("POST", "/sandboxes", r#"{"name":"box","wait":false}"#).await;
    for what in ["suspend", "resume"] {
        check_error(&harness.order(what, 0).await, bad, invalid, "not running yet");
    }
}

#[tokio::test]
async fn a_request_wakes_it() {
    let (harness, node, id) = Harness::asleep().await;
    assert_eq!(harness.ask_guest().await.status, 200);
    harness.until(&id, |info| info["status"] == "running").await;
    // The node put it to sleep by itself: the connection that was kept is not used again.
    let opened = *node.opened.borrow();
    node.set(&id, NodeState::Suspended);
    harness.until(&id, |info| info["status"] == "suspended").await;
    assert_eq!(harness.ask_guest().await.status, 200);
    assert_eq!(*node.opened.borrow(), opened + 1);
}

#[tokio::test]
async fn one_that_may_not_wake_by_itself_does_not() {
    let (harness, node, id) = Harness::asleep().await;
    assert_eq!(harness.call("PATCH", "/sandboxes/box", r#"{"auto_resume":false}"#).await.status, 200);
    let reply = harness.ask_guest().await;
    check_error(&reply, StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_AUTO_RESUME_DISABLED, "resume it first");
    assert_eq!(*node.opened.borrow(), 0, "the node was asked");
    assert_eq!(harness.status().await, "suspended");
    check(&harness.order("resume", 9000).await, 200, "running");
    assert_eq!(harness.ask_guest().await.status, 200);
    // The node knows better than the server whether it sleeps now; its answer passes.
    node.set_quietly(&id, NodeState::Suspended);
    harness.app.live.guests.forget(&id);
    let reply = harness.ask_guest().await;
    check_error(&reply, StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_AUTO_RESUME_DISABLED, "by itself");
}

#[tokio::test]
async fn what_sleeps_takes_no_memory_and_can_be_changed() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"name":"box","resources":{"memory_mb":3072}}"#).await;
    assert_eq!(harness.order("suspend", 9000).await.status, 200);
    harness.create(r#"{"resources":{"memory_mb":3072}}"#).await;
    let info = harness.call("PATCH", "/sandboxes/box", r#"{"timeout_secs":5,"name":"other"}"#).await.json();
    assert_eq!((&info["status"], &info["timeout_secs"]), (&json!("suspended"), &json!(5)));
    let harness = harness.restart().await;
    assert_eq!(harness.get("/sandboxes/other").await.json()["status"], "suspended");
    assert_eq!(harness.get(&format!("/sandboxes/{id}")).await.json()["name"], "other");
}

#[tokio::test]
async fn a_node_that_lost_one_asleep_ends_it() {
    let (harness, node, id) = Harness::asleep().await;
    node.disconnect(&harness).await;
    node.lose(&id);
    node.connect(&harness).await;
    let info = harness.until(&id, |info| info["status"] == "terminated").await;
    assert_eq!(info["termination_reason"], "node_lost");
}
