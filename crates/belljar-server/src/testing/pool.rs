//! Pools over HTTP: they fill themselves, hand out what is warm, and rest when nothing starts.

use belljar_api::{
    error::code,
    node::{NodeState, Op},
    sandbox::TerminationReason,
};
use http::StatusCode;
use serde_json::{Value, json};

use super::{Harness, Reply, check_error, node::Boot};

impl Harness {
    async fn make_pool(&self, body: &str) -> String {
        let reply = self.call("POST", "/sandbox-pools", body).await;
        assert_eq!((reply.status, &reply.json()["namespace"]), (200, &json!("default")), "{:?}", reply.body);
        reply.json()["pool_id"].as_str().expect("id").to_owned()
    }

    async fn pool(&self, id: &str) -> Value {
        self.get(&format!("/sandbox-pools/{id}")).await.json()
    }

    async fn claim_from(&self, id: &str) -> Reply {
        self.call("POST", &format!("/sandbox-pools/{id}/sandboxes"), "").await
    }

    /// Waits until the containers of a pool are these: `w` warm and running, `b` warm and pending, `c` claimed.
    async fn until_pool(&self, id: &str, expected: &str) -> Value {
        loop {
            let pool = self.pool(id).await;
            if kinds(&pool) == expected {
                return pool;
            }
            // Each look is a round trip, so this lets the rest go on.
            tokio::task::yield_now().await;
        }
    }
}

fn kinds(pool: &Value) -> String {
    let kind = |one: &Value| match (one["sandbox_id"].is_null(), one["state"].as_str()) {
        (false, _) => 'c',
        (true, Some("running")) => 'w',
        (true, _) => 'b',
    };
    let mut kinds: Vec<char> = pool["containers"].as_array().expect("containers").iter().map(kind).collect();
    kinds.sort_unstable();
    kinds.into_iter().collect()
}

#[tokio::test]
async fn a_warm_one_is_handed_out_and_replaced() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.make_pool(r#"{"warm_containers":1,"max_containers":3,"timeout_secs":30}"#).await;
    let pool = harness.until_pool(&id, "w").await;
    let warm = pool["containers"][0]["id"].as_str().expect("id").to_owned();
    assert_eq!((&pool["id"], &pool["timeout_secs"], &pool["max_containers"]), (&json!(id), &json!(30), &json!(3)));
    assert!(pool.get("pool_id").is_none(), "both spellings");
    // Until it is claimed it is nobody's.
    assert_eq!(harness.get("/sandboxes").await.json()["sandboxes"], json!([]));
    assert_eq!(harness.get(&format!("/sandboxes/{warm}")).await.status, 404);
    assert_eq!(harness.call("DELETE", &format!("/sandboxes/{warm}"), "").await.status, 404);
    let request = harness.request("GET", "/").header("x-tensorlake-sandbox-id", &warm);
    assert_eq!(harness.ask(request, "").await.status, 404);
    let create = node.command(|c| c.sandbox_id == warm).await;
    let Op::Create { spec, .. } = create.op else { panic!("not a create") };
    assert_eq!((spec.settings.timeout_secs, spec.settings.suspends), (0, false));

    let claimed = harness.claim_from(&id).await;
    assert_eq!((claimed.status, &claimed.json()["status"]), (200, &json!("running")));
    assert_eq!(claimed.json()["sandbox_id"], warm);
    let update = node.command(|c| c.sandbox_id == warm && matches!(c.op, Op::Update { .. })).await;
    let Op::Update { settings } = update.op else { unreachable!() };
    assert_eq!((settings.timeout_secs, settings.suspends), (30, true));
    let info = harness.get(&format!("/sandboxes/{warm}")).await.json();
    assert_eq!((&info["pool_id"], &info["timeout_secs"]), (&json!(id), &json!(30)));
    harness.until_pool(&id, "cw").await;
    // It sleeps though it has no name.
    assert_eq!(harness.call("POST", &format!("/sandboxes/{warm}/suspend?wait_ms=9000"), "").await.status, 200);
    assert_eq!(harness.call("DELETE", &format!("/sandboxes/{warm}"), "").await.status, 200);
    harness.until_pool(&id, "w").await;
}

#[tokio::test]
async fn a_pool_never_grows_over_its_limit() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.make_pool(r#"{"warm_containers":1,"max_containers":2}"#).await;
    harness.until_pool(&id, "w").await;
    assert_eq!(harness.claim_from(&id).await.status, 200);
    harness.until_pool(&id, "cw").await;
    let last = harness.claim_from(&id).await;
    assert_eq!((last.status, kinds(&harness.pool(&id).await)), (200, "cc".to_owned()));
    let full = harness.claim_from(&id).await;
    check_error(&full, StatusCode::TOO_MANY_REQUESTS, code::TOO_MANY, "has 2 sandboxes");
    let path = format!("/sandbox-pools/{id}");
    let reply = harness.call("DELETE", &path, "").await;
    check_error(
        &reply,
        StatusCode::CONFLICT,
        code::CONFLICT,
        &format!("Cannot delete pool '{id}': active sandbox(es)"),
    );
    let one = last.json()["sandbox_id"].as_str().expect("id").to_owned();
    harness.call("DELETE", &format!("/sandboxes/{one}"), "").await;
    harness.until_pool(&id, "cw").await;
}

#[tokio::test]
async fn a_claim_from_an_empty_pool_waits_like_a_create() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.make_pool("{}").await;
    assert_eq!(harness.pool(&id).await["containers"], json!([]));
    assert_eq!(harness.claim_from(&id).await.json()["status"], "running");
    node.set_boot(Boot::Hang);
    let path = format!("/sandbox-pools/{id}/sandboxes");
    let request = harness.request("POST", &path).header("x-tensorlake-request-timeout-ms", "30");
    let late = harness.ask(request, "").await;
    assert_eq!((late.status, &late.json()["status"]), (504, &json!("timeout")));
    node.set(late.json()["sandbox_id"].as_str().expect("id"), NodeState::Running);
    harness.until_pool(&id, "cc").await;
    let reply = harness.call("POST", &path, r#"{"file_systems":[{}]}"#).await;
    check_error(&reply, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, "file_systems");
    let unknown = harness.claim_from("5gm9wex8dm6ko1ed441ya").await;
    check_error(&unknown, StatusCode::NOT_FOUND, code::POOL_NOT_FOUND, "Pool not found");
}

#[tokio::test]
async fn a_change_replaces_the_warm_and_leaves_the_claimed() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.make_pool(r#"{"warm_containers":1}"#).await;
    let old = harness.until_pool(&id, "w").await["containers"][0]["id"].clone();
    let claimed = harness.claim_from(&id).await.json()["sandbox_id"].clone();
    assert_eq!(old, claimed);
    let second = harness.until_pool(&id, "cw").await;
    let body = r#"{"warm_containers":1,"entrypoint":["serve"],"exposed_ports":[80],"timeout_secs":9}"#;
    let pool = harness.call("PUT", &format!("/sandbox-pools/{id}"), body).await.json();
    assert_eq!((&pool["entrypoint"], &pool["timeout_secs"]), (&json!(["serve"]), &json!(9)));
    let is_new = |pool: &Value| {
        let before = second["containers"].as_array().expect("containers");
        pool["containers"]
            .as_array()
            .expect("containers")
            .iter()
            .any(|one| !before.iter().any(|b| b["id"] == one["id"]))
    };
    while !is_new(&harness.until_pool(&id, "cw").await) {}
    let info = harness.get(&format!("/sandboxes/{}", claimed.as_str().expect("id"))).await.json();
    assert_eq!((&info["entrypoint"], &info["status"]), (&Value::Null, &json!("running")));
    harness.call("PUT", &format!("/sandbox-pools/{id}"), "{}").await;
    harness.until_pool(&id, "c").await;
}

#[tokio::test]
async fn a_deleted_pool_takes_its_warm_ones_along() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.make_pool(r#"{"warm_containers":2}"#).await;
    harness.until_pool(&id, "ww").await;
    assert_eq!(harness.get("/sandbox-pools").await.json()["pools"].as_array().map(Vec::len), Some(1));
    let harness = harness.restart().await;
    node.connect(&harness).await;
    harness.until_pool(&id, "ww").await;
    let path = format!("/sandbox-pools/{id}");
    assert_eq!(harness.call("DELETE", &path, "").await.status, 200);
    assert_eq!(harness.call("DELETE", &path, "").await.error(), (404, "POOL_NOT_FOUND".into()));
    assert_eq!(harness.get("/sandbox-pools").await.json()["pools"], json!([]));
    assert_eq!(harness.get("/archived-sandboxes").await.json()["sandboxes"], json!([]), "somebody sees them");
    // All of the memory is free again.
    harness.create(r#"{"resources":{"memory_mb":4096}}"#).await;
}

#[tokio::test]
async fn a_pool_whose_sandboxes_do_not_start_rests() {
    let (harness, node) = Harness::with_node().await;
    node.set_boot(Boot::Fail(TerminationReason::StartupFailedInternalError, "no kernel"));
    let id = harness.make_pool(r#"{"warm_containers":1}"#).await;
    node.command(|c| matches!(c.op, Op::Terminate { .. })).await;
    let made = || node.commands().iter().filter(|c| matches!(c.op, Op::Create { .. })).count();
    for _ in 0..20 {
        harness.pool(&id).await;
    }
    assert_eq!(made(), 1, "it does not rest");
    let unknown = harness.make_pool(r#"{"warm_containers":1,"image":"nope"}"#).await;
    assert_eq!(harness.pool(&unknown).await["containers"], json!([]));
    assert_eq!(made(), 1, "a node heard of it");
    // A change of the pool begins anew.
    node.set_boot(Boot::Run);
    harness.call("PUT", &format!("/sandbox-pools/{id}"), r#"{"warm_containers":1}"#).await;
    harness.until_pool(&id, "w").await;
}

#[tokio::test]
async fn one_that_died_is_replaced() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.make_pool(r#"{"warm_containers":1}"#).await;
    let pool = harness.until_pool(&id, "w").await;
    let died = pool["containers"][0]["id"].as_str().expect("id").to_owned();
    let ended = NodeState::Terminated { reason: TerminationReason::VmmExited, detail: String::new(), at: 1 };
    node.set(&died, ended);
    harness.until_pool(&id, "").await;
    let pool = harness.until_pool(&id, "w").await;
    assert_ne!(pool["containers"][0]["id"], died);
}
