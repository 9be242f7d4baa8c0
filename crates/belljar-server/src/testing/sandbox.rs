//! Sandboxes over HTTP: create, show, list, change, end, archive.

use belljar_api::{error::code, node::Op, sandbox::TerminationReason};
use http::StatusCode;
use serde_json::{Value, json};

use super::{Harness, check_error, node::Boot};

#[tokio::test]
async fn a_create_blocks_until_it_runs() {
    let (harness, node) = Harness::with_node().await;
    let reply = harness.call("POST", "/sandboxes", r#"{"name":"box-1","exposed_ports":[8080,80,80]}"#).await;
    let created = reply.json();
    assert_eq!((reply.status, &created["status"], &created["name"]), (200, &json!("running"), &json!("box-1")));
    let id = created["sandbox_id"].as_str().expect("id");
    assert_eq!(created["sandbox_url"], format!("http://{id}.sb.test:9443"));
    assert_eq!(created["ingress_endpoint"], "http://sb.test:9443");

    for path in
        [format!("/sandboxes/{id}"), "/sandboxes/box-1".into(), format!("/v1/namespaces/default/sandboxes/{id}")]
    {
        let info = harness.get(&path).await.json();
        assert_eq!((&info["id"], &info["status"]), (&json!(id), &json!("running")), "{path}");
        assert_eq!((&info["runtime"], &info["executor_id"]), (&json!("process"), &json!("node-1")));
        assert_eq!((&info["exposed_ports"], &info["timeout_secs"]), (&json!([80, 8080]), &json!(600)));
        assert_eq!(info["resources"]["memory_mb"], 1024);
        assert!(info.get("sandbox_id").is_none(), "both spellings");
    }
    let command = node.command(|c| matches!(c.op, Op::Create { .. })).await;
    assert_eq!((command.sandbox_id.as_str(), command.generation), (id, 1));
}

#[tokio::test]
async fn a_create_may_not_wait() {
    let (harness, node) = Harness::with_node().await;
    node.set_boot(Boot::Hang);
    let reply = harness.call("POST", "/sandboxes", r#"{"wait":false}"#).await;
    let accepted = reply.json();
    assert_eq!((reply.status, &accepted["state"]), (202, &json!("pending")));
    assert_eq!(accepted["pending_reason"], "waiting_for_container");
    assert!(accepted.get("status").is_none(), "both spellings");

    let request = harness
        .request("POST", "/sandboxes")
        .header("x-tensorlake-request-timeout-ms", "60")
        .header("x-tensorlake-request-timeout-grace-ms", "50");
    let reply = harness.ask(request, "").await;
    assert_eq!((reply.status, &reply.json()["status"]), (504, &json!("timeout")));
    let id = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
    assert_eq!(harness.get(&format!("/sandboxes/{id}")).await.json()["status"], "pending");
}

#[tokio::test]
async fn a_failed_create_says_why() {
    let (harness, node) = Harness::with_node().await;
    #[track_caller]
    fn check(reply: &super::Reply, reason: &str, words: &str) {
        let json = reply.json();
        assert_eq!((reply.status, &json["status"], &json["reason"]), (422, &json!("failed"), &json!(reason)));
        assert_eq!(json["termination_reason"], reason);
        let message = json["error_details"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "{message}");
        assert_eq!(json["sandbox_url"], Value::Null);
    }
    for wait in ["", r#","wait":false"#] {
        let reply = harness.call("POST", "/sandboxes", &format!(r#"{{"image":"nope"{wait}}}"#)).await;
        check(&reply, "ImageNotFound", "image not found: nope; there is debian-minimal");
    }
    let reply = harness.call("POST", "/sandboxes", r#"{"resources":{"cpus":64}}"#).await;
    check(&reply, "no_capacity", "64 cpus");
    let reply = harness.call("POST", "/sandboxes", r#"{"runtime":"firecracker"}"#).await;
    check(&reply, "ConfigurationError", "no node runs sandboxes with firecracker; there is process");
    let reply = harness.call("POST", "/sandboxes", r#"{"runtime":"gvisor"}"#).await;
    check_error(
        &reply,
        StatusCode::BAD_REQUEST,
        code::INVALID_ARGUMENT,
        "there is no \"gvisor\"; there are firecracker",
    );
    assert!(node.commands().is_empty(), "a node heard of it");
    node.set_boot(Boot::Fail(TerminationReason::StartupFailedInternalError, "the kernel did not boot"));
    let reply = harness.call("POST", "/sandboxes", "{}").await;
    check(&reply, "StartupFailedInternalError", "the kernel did not boot");
    let id = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
    let info = harness.get(&format!("/sandboxes/{id}")).await.json();
    assert_eq!((&info["status"], &info["outcome"]), (&json!("terminated"), &json!("Failure(ContainerStartupFailed)")));
    // The node keeps what it told until it is acknowledged.
    node.command(|c| matches!(c.op, Op::Terminate { .. })).await;
}

#[tokio::test]
async fn aliases_of_images_are_the_nodes_business() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"image":"tensorlake/debian-minimal"}"#).await;
    assert_eq!(harness.get(&format!("/sandboxes/{id}")).await.json()["image"], "tensorlake/debian-minimal");
}

#[tokio::test]
async fn names_are_unique_while_they_live() {
    let (harness, _node) = Harness::with_node().await;
    let first = harness.create(r#"{"name":"box"}"#).await;
    let other = harness.create("{}").await;
    for (method, path) in [("POST", "/sandboxes".to_owned()), ("PATCH", format!("/sandboxes/{other}"))] {
        let reply = harness.call(method, &path, r#"{"name":"box"}"#).await;
        check_error(&reply, StatusCode::CONFLICT, code::NAME_IN_USE, "\"box\"");
    }
    // Another namespace is another room.
    assert_eq!(harness.call("POST", "/v1/namespaces/n2/sandboxes", r#"{"name":"box"}"#).await.status, 200);
    assert_eq!(harness.get(&format!("/v1/namespaces/n2/sandboxes/{first}")).await.status, 404);

    assert_eq!(harness.call("DELETE", "/sandboxes/box", "").await.status, 200);
    let second = harness.create(r#"{"name":"box"}"#).await;
    assert_ne!(first, second);
    assert_eq!(harness.get("/sandboxes/box").await.json()["id"], second);
}

#[tokio::test]
async fn memory_is_handed_out_once_and_again_when_it_is_free() {
    let (harness, _node) = Harness::with_node().await;
    let big = r#"{"resources":{"memory_mb":3072}}"#;
    let first = harness.create(big).await;
    let reply = harness.call("POST", "/sandboxes", r#"{"resources":{"memory_mb":3072},"wait":false}"#).await;
    assert_eq!(reply.json()["pending_reason"], "no_resources_available");
    let second = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
    // The small one still fits beside the first.
    harness.create("{}").await;
    assert_eq!(harness.call("DELETE", &format!("/sandboxes/{first}"), "").await.status, 200);
    // 1024 MiB are taken by the small one; 3072 are free again.
    harness.until(&second, |info| info["status"] == "running").await;
}

#[tokio::test]
async fn without_a_node_it_waits_and_may_give_up() {
    let harness = Harness::start().await;
    let reply = harness.call("POST", "/sandboxes", r#"{"wait":false}"#).await;
    assert_eq!(reply.json()["pending_reason"], "no_executors_available");
    let waiting = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
    let reply = harness.call("POST", "/sandboxes", r#"{"max_pending_secs":0}"#).await;
    assert_eq!((reply.status, &reply.json()["termination_reason"]), (422, &json!("cancelled")));
    let reply = harness.call("POST", "/sandboxes", r#"{"image":"nope","wait":false}"#).await;
    let unknown = reply.json()["sandbox_id"].as_str().expect("id").to_owned();

    let node = super::node::FakeNode::new();
    node.connect(&harness).await;
    harness.until(&waiting, |info| info["status"] == "running").await;
    let info = harness.until(&unknown, |info| info["status"] == "terminated").await;
    assert_eq!(info["termination_reason"], "ImageNotFound");
}

#[tokio::test]
async fn a_patch_reaches_the_node_when_it_concerns_it() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let path = format!("/sandboxes/{id}");
    let body = r#"{"name":"box","timeout_secs":5,"network":{"allow_internet_access":false}}"#;
    let info = harness.call("PATCH", &path, body).await.json();
    assert_eq!((&info["name"], &info["timeout_secs"]), (&json!("box"), &json!(5)));
    assert_eq!(info["network_policy"]["allow_internet_access"], false);
    assert_eq!(info["network"], info["network_policy"]);
    let update = node.command(|c| matches!(c.op, Op::Update { .. })).await;
    let Op::Update { settings } = update.op else { unreachable!() };
    assert_eq!((settings.name.as_deref(), settings.timeout_secs), (Some("box"), 5));
    assert!(!settings.network.allow_internet_access);

    let info = harness.call("PATCH", "/sandboxes/box", r#"{"network":null,"exposed_ports":[80]}"#).await.json();
    assert_eq!((&info["network"], &info["exposed_ports"]), (&Value::Null, &json!([80])));
    let info = harness.call("PATCH", "/sandboxes/box", r#"{"exposed_ports":[],"auto_resume":false}"#).await.json();
    assert_eq!((&info["exposed_ports"], &info["auto_resume"]), (&json!([]), &json!(false)));
    // Ports are the server's business: there were three updates, not four.
    harness.call("DELETE", "/sandboxes/box", "").await;
    node.command(|c| matches!(c.op, Op::Terminate { .. })).await;
    assert_eq!(node.commands().iter().filter(|c| matches!(c.op, Op::Update { .. })).count(), 3);
    let reply = harness.call("PATCH", &path, r#"{"timeout_secs":1}"#).await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "has ended");
}

#[tokio::test]
async fn who_changes_a_network_is_answered_when_the_rules_hold() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    node.done.send_replace(1);
    let path = format!("/sandboxes/{id}");
    let answered = harness.call("PATCH", &path, r#"{"network":{"allow_internet_access":false}}"#);
    let mut answered = std::pin::pin!(answered);
    let update = tokio::select! {
        biased;
        reply = &mut answered => panic!("answered before the rules hold: {reply:?}"),
        update = node.command(|c| matches!(c.op, Op::Update { .. })) => update,
    };
    // The node has taken it; it is not in force yet.
    assert!(futures_util::poll!(&mut answered).is_pending());
    assert_eq!(harness.call("PATCH", &path, r#"{"timeout_secs":5}"#).await.status, 200, "others do not wait");
    node.done.send_replace(update.generation);
    assert_eq!(answered.await.status, 200);
}

#[tokio::test]
async fn a_change_is_answered_even_when_its_node_does_not_come_to_it() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    node.done.send_replace(1);
    let path = format!("/sandboxes/{id}");
    let body = r#"{"network":{"allow_internet_access":false}}"#;
    let taken = async {
        node.command(|c| matches!(c.op, Op::Update { .. })).await;
        // Its patience is the only thing left to wait for.
        tokio::time::pause();
    };
    let (reply, ()) = tokio::join!(harness.call("PATCH", &path, body), taken);
    assert_eq!(reply.json()["network"]["allow_internet_access"], false);
}

#[tokio::test]
async fn an_end_is_final_and_repeats() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(r#"{"name":"box"}"#).await;
    for _ in 0..2 {
        let reply = harness.call("DELETE", &format!("/sandboxes/{id}"), "").await;
        assert_eq!((reply.status, reply.body.len()), (200, 0));
    }
    let info = harness.get(&format!("/sandboxes/{id}")).await.json();
    assert_eq!((&info["status"], &info["termination_reason"]), (&json!("terminated"), &json!("user")));
    assert_eq!((&info["outcome"], &info["sandbox_url"]), (&json!("Success(UserTerminated)"), &Value::Null));
    assert_eq!(harness.get("/sandboxes/box").await.error(), (404, "SANDBOX_NOT_FOUND".into()));
    assert_eq!(harness.call("DELETE", "/sandboxes/box", "").await.error(), (404, "SANDBOX_NOT_FOUND".into()));
    // The second Terminate acknowledges the node's report; then it forgets.
    node.command(|c| matches!(c.op, Op::Terminate { .. }) && c.generation == 3).await;
    assert!(!node.has(&id));
}

#[tokio::test]
async fn lists_come_in_pages() {
    let (harness, node) = Harness::with_node().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(harness.create("{}").await);
    }
    node.set_boot(Boot::Hang);
    let all = |list: &Value| -> Vec<String> {
        list["sandboxes"].as_array().expect("list").iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
    };
    let list = harness.get("/sandboxes").await.json();
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    assert_eq!(sorted(all(&list)), sorted(ids.clone()));
    assert!(list.get("cursor").is_none());
    assert_eq!(all(&harness.get("/sandboxes?status=pending").await.json()).len(), 0);
    assert_eq!(all(&harness.get("/sandboxes?status=running").await.json()).len(), 4);
    assert_eq!(all(&harness.get("/sandboxes?status=suspended").await.json()).len(), 0);

    let first = harness.get("/sandboxes?limit=3").await.json();
    let cursor = first["cursor"].as_str().expect("cursor");
    let second = harness.get(&format!("/sandboxes?limit=3&cursor={cursor}")).await.json();
    assert_eq!((all(&first).len(), all(&second).len()), (3, 1));
    assert!(second.get("cursor").is_none());
    assert_eq!([all(&first), all(&second)].concat(), all(&list));

    for id in &ids {
        harness.call("DELETE", &format!("/sandboxes/{id}"), "").await;
    }
    assert_eq!(all(&harness.get("/sandboxes").await.json()).len(), 0);
    let first = harness.get("/archived-sandboxes?limit=3").await.json();
    assert!(first.get("prev_cursor").is_none());
    let next = first["next_cursor"].as_str().expect("next");
    let second = harness.get(&format!("/archived-sandboxes?limit=3&cursor={next}")).await.json();
    assert_eq!((all(&first).len(), all(&second).len()), (3, 1));
    assert!(second.get("next_cursor").is_none());
    let prev = second["prev_cursor"].as_str().expect("prev");
    let back = harness.get(&format!("/archived-sandboxes?limit=3&direction=backward&cursor={prev}")).await.json();
    assert_eq!(all(&back), all(&first));
    assert!(back.get("prev_cursor").is_none());

    let one = harness.get(&format!("/v1/namespaces/default/archived-sandboxes/{}", ids[0])).await.json();
    assert_eq!(one["archived_at"], one["terminated_at"]);
    assert_eq!(harness.get("/archived-sandboxes/nope").await.status, 404);
    assert_eq!(all(&harness.get("/sandboxes?status=terminated").await.json()).len(), 4);
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create("{}").await;
    let path = format!("/v1/namespaces/default/sandboxes/{id}");
    let logs = harness.get(&format!("{path}/logs?level=3&level=5&tail=3")).await.json();
    assert_eq!((&logs["logs"][0]["body"], &logs["logs"][0]["sandboxId"]), (&json!("hello"), &json!("x")));
    assert_eq!(harness.get(&format!("{path}/processes")).await.json(), json!({ "processes": [] }));
    node.disconnect(&harness).await;
    let reply = harness.get(&format!("{path}/logs")).await;
    check_error(&reply, StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, "node-1");
    let reply = harness.call("POST", "/sandboxes", r#"{"wait":false}"#).await;
    let unplaced = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
    assert_eq!(harness.get(&format!("/sandboxes/{unplaced}/logs")).await.json(), json!({ "logs": [] }));
}
