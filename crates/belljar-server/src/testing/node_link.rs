//! Node connections: what survives a broken one, and a restart of the server.

use belljar_api::{
    node::{CONNECT_PATH, NodeState, Op, UPGRADE},
    sandbox::TerminationReason,
};
use http::{Request, StatusCode, header};
use serde_json::json;

use super::{
    Harness,
    node::{Boot, FakeNode},
};

#[tokio::test]
async fn a_command_that_was_not_acknowledged_is_delivered_again() {
    let (harness, node) = Harness::with_node().await;
    node.set_break_next();
    let reply = harness.call("POST", "/sandboxes", r#"{"wait":false}"#).await;
    let id = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
    node.command(|c| c.sandbox_id == id).await;
    // The node took it and the server does not know.
    node.disconnect(&harness).await;
    node.connect(&harness).await;
    harness.until(&id, |info| info["status"] == "running").await;
    let reply = harness.call("DELETE", &format!("/sandboxes/{id}"), "").await;
    assert_eq!(reply.status, 200);
    node.command(|c| matches!(c.op, Op::Terminate { .. }) && c.sandbox_id == id).await;
    let creates: Vec<_> = node.commands().into_iter().filter(|c| matches!(c.op, Op::Create { .. })).collect();
    assert_eq!(creates.len(), 2);
    assert_eq!(creates[0], creates[1], "the repetition is the same command");
}

#[tokio::test]
async fn a_node_that_lost_a_sandbox_ends_it() {
    let (harness, node) = Harness::with_node().await;
    let (lost, kept) = (harness.create("{}").await, harness.create("{}").await);
    node.disconnect(&harness).await;
    node.lose(&lost);
    // This one was made while the node was away: its command is still to come, so it is not lost.
    let reply = harness.call("POST", "/sandboxes", r#"{"wait":false}"#).await;
    let new = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
    node.connect(&harness).await;
    let info = harness.until(&lost, |info| info["status"] == "terminated").await;
    assert_eq!(info["termination_reason"], "node_lost");
    harness.until(&new, |info| info["status"] == "running").await;
    assert_eq!(harness.get(&format!("/sandboxes/{kept}")).await.json()["status"], "running");
}

#[tokio::test]
async fn an_end_while_the_node_was_away_reaches_it() {
    let (harness, node) = Harness::with_node().await;
    let (ours, its) = (harness.create("{}").await, harness.create("{}").await);
    node.disconnect(&harness).await;
    harness.call("DELETE", &format!("/sandboxes/{ours}"), "").await;
    node.set(&its, NodeState::Terminated { reason: TerminationReason::Timeout, detail: String::new(), at: 5 });
    node.connect(&harness).await;
    let info = harness.until(&its, |info| info["status"] == "terminated").await;
    assert_eq!((&info["termination_reason"], &info["terminated_at"]), (&json!("timeout"), &json!(5)));
    assert_eq!(info["outcome"], "Success(Timeout)");
    node.command(|c| c.sandbox_id == its && matches!(c.op, Op::Terminate { .. })).await;
    node.command(|c| c.sandbox_id == ours && c.generation == 3).await;
    assert!(!node.has(&ours) && !node.has(&its));
    // All of the memory is free again.
    harness.create(r#"{"resources":{"memory_mb":4096}}"#).await;
}

#[tokio::test]
async fn a_node_gives_up_what_no_row_knows() {
    let harness = Harness::start().await;
    let node = FakeNode::new();
    node.set("5gm9wex8dm6ko1ed441ya", NodeState::Running);
    node.connect(&harness).await;
    let command = node.command(|c| c.sandbox_id == "5gm9wex8dm6ko1ed441ya").await;
    assert_eq!(command.op, Op::Terminate { reason: TerminationReason::NodeLost });
}

#[tokio::test]
async fn rows_and_commands_survive_a_restart_of_the_server() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(r#"{"name":"box"}"#).await;
    node.disconnect(&harness).await;
    assert_eq!(harness.call("PATCH", "/sandboxes/box", r#"{"timeout_secs":7}"#).await.status, 200);
    let reply = harness.call("POST", "/sandboxes", r#"{"wait":false}"#).await;
    let waiting = reply.json()["sandbox_id"].as_str().expect("id").to_owned();

    let harness = harness.restart().await;
    let info = harness.get("/sandboxes/box").await.json();
    assert_eq!((&info["id"], &info["status"], &info["timeout_secs"]), (&json!(id), &json!("running"), &json!(7)));
    assert_eq!(info["runtime"], "process", "known though the node is away");
    node.connect(&harness).await;
    harness.until(&waiting, |info| info["status"] == "running").await;
    let update = node.command(|c| matches!(c.op, Op::Update { .. })).await;
    assert_eq!((update.sandbox_id, update.generation), (id.clone(), 2));
    let request = harness.request("GET", "/").header("x-tensorlake-sandbox-id", "box");
    assert_eq!(harness.ask(request, "").await.status, 200, "routes are back");
}

#[tokio::test]
async fn a_newer_connection_replaces_the_older() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    node.connect(&harness).await;
    let request = harness.request("GET", "/").header("x-tensorlake-sandbox-id", &id);
    assert_eq!(harness.ask(request, "").await.status, 200);
    harness.create("{}").await;
    assert_eq!(node.commands().len(), 2, "a command went over both");
}

#[tokio::test]
async fn a_refused_command_is_not_repeated() {
    let (harness, node) = Harness::with_node().await;
    node.set_refuse(Some(StatusCode::BAD_REQUEST));
    let reply = harness.call("POST", "/sandboxes", "{}").await;
    assert_eq!((reply.status, &reply.json()["reason"]), (422, &json!("ConfigurationError")));
    assert_eq!(reply.json()["error_details"]["message"], "the node refuses");
    node.set_refuse(None);
    harness.create(r#"{"resources":{"memory_mb":4096}}"#).await;
    assert_eq!(node.commands().len(), 1);
}

#[tokio::test]
async fn a_node_that_cannot_just_now_is_asked_again() {
    let (harness, node) = Harness::with_node().await;
    node.set_refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    node.set_boot(Boot::Run);
    let reply = harness.call("POST", "/sandboxes", r#"{"wait":false}"#).await;
    let id = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
    node.set_refuse(None);
    harness.until(&id, |info| info["status"] == "running").await;
}

#[tokio::test]
async fn only_a_node_of_our_protocol_connects() {
    let harness = Harness::start().await;
    for (token, protocol, status) in
        [(harness.key.as_str(), UPGRADE, 401), ("", UPGRADE, 401), (super::NODE_TOKEN, "belljar-node/9", 400)]
    {
        let request = Request::post(CONNECT_PATH)
            .header(header::HOST, "server")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, protocol);
        assert_eq!(harness.ask(request, "").await.status, status, "{protocol}");
    }
}
