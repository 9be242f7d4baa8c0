//! Snapshots over HTTP: take, list, restore, roll back, compare, delete, and what becomes of them when a node is away.

use belljar_api::{
    error::code,
    node::{NodeState, Op, Origin, SnapshotState},
    snapshot::SnapshotType,
};
use http::StatusCode;
use serde_json::{Value, json};

use super::{
    Harness, Reply, check_error,
    node::{Boot, FakeNode, Work},
};

const BAD: StatusCode = StatusCode::BAD_REQUEST;

impl Harness {
    /// Takes a snapshot, which must be accepted, and returns its id.
    async fn snapshot(&self, sandbox: &str, kind: &str) -> String {
        let body = format!(r#"{{"snapshot_type":"{kind}"}}"#);
        let reply = self.call("POST", &format!("/sandboxes/{sandbox}/snapshot"), &body).await;
        assert_eq!((reply.status, &reply.json()["status"]), (202, &json!("in_progress")), "{:?}", reply.body);
        let id = reply.json()["snapshot_id"].as_str().expect("id").to_owned();
        // Whatever comes of it, it has been told.
        self.get(&format!("/snapshots/{id}?wait_ms=300")).await;
        id
    }

    async fn shown(&self, snapshot: &str) -> Value {
        self.get(&format!("/snapshots/{snapshot}?wait_ms=5000")).await.json()
    }

    /// Waits until a snapshot is so, or gone.
    async fn until_snapshot(&self, id: &str, matches: impl Fn(&Reply) -> bool) -> Reply {
        let mut changes = self.app.live.snapshots.subscribe();
        loop {
            let reply = self.get(&format!("/snapshots/{id}")).await;
            if matches(&reply) {
                return reply;
            }
            changes.changed().await.expect("server");
        }
    }

    async fn restore(&self, snapshot: &str, rest: &str) -> Reply {
        self.call("POST", "/sandboxes", &format!(r#"{{"snapshot_id":"{snapshot}"{rest}}}"#)).await
    }

    async fn boxed() -> (Self, FakeNode, String) {
        let (harness, node) = Self::with_node().await;
        let body = r#"{"name":"box","timeout_secs":5,"exposed_ports":[80],"resources":{"cpus":2,"memory_mb":1024}}"#;
        let id = harness.create(body).await;
        (harness, node, id)
    }
}

fn ids(list: &Value) -> Vec<&str> {
    list["snapshots"].as_array().expect("list").iter().map(|one| one["id"].as_str().expect("id")).collect()
}

#[tokio::test]
async fn one_is_taken_and_shown() {
    let (harness, node, id) = Harness::boxed().await;
    let reply = harness.call("POST", "/sandboxes/box/snapshot", "").await;
    assert_eq!((reply.status, &reply.json()["status"]), (202, &json!("in_progress")));
    let first = reply.json()["snapshot_id"].as_str().expect("id").to_owned();
    let info = harness.shown(&first).await;
    assert_eq!((&info["status"], &info["snapshot_type"]), (&json!("completed"), &json!("filesystem")));
    assert_eq!((&info["id"], &info["sandbox_id"]), (&json!(first), &json!(id)));
    assert_eq!((&info["base_image"], &info["parent_id"]), (&json!("debian-minimal"), &Value::Null));
    assert_eq!((&info["size_bytes"], &info["rootfs_disk_bytes"]), (&json!(1000), &json!(10u64 << 30)));
    assert_eq!(info["snapshot_uri"], format!("belljar:node-1/{first}"));
    assert!(info.get("snapshot_id").is_none(), "both spellings");
    let command = node.command(|c| matches!(c.op, Op::Snapshot { .. })).await;
    assert_eq!(command.op, Op::Snapshot { snapshot_id: first.clone(), kind: SnapshotType::Filesystem });
    assert_eq!(harness.get("/sandboxes/box").await.json()["status"], "running");

    let second = harness.snapshot("box", "memory").await;
    let info = harness.shown(&second).await;
    assert_eq!((&info["snapshot_type"], &info["parent_id"]), (&json!("memory"), &json!(first)));
    let other = harness.create("{}").await;
    let third = harness.snapshot(&other, "memory").await;
    let all = harness.get("/snapshots").await.json();
    assert_eq!((ids(&all).len(), all.get("cursor")), (3, None));
    let page = harness.get("/snapshots?limit=2").await.json();
    let cursor = page["cursor"].as_str().expect("cursor");
    let rest = harness.get(&format!("/v1/namespaces/default/snapshots?limit=2&cursor={cursor}")).await.json();
    assert_eq!([ids(&page), ids(&rest)].concat(), ids(&all));
    assert_eq!(ids(&harness.get(&format!("/sandboxes/{other}/snapshots")).await.json()), [third.as_str()]);
    assert_eq!(harness.get(&format!("/v1/namespaces/n2/snapshots/{first}")).await.status, 404);
    // They outlive what they were taken of.
    harness.call("DELETE", "/sandboxes/box", "").await;
    assert_eq!(ids(&harness.get(&format!("/sandboxes/{id}/snapshots")).await.json()).len(), 2);
}

#[tokio::test]
async fn only_what_runs_is_taken_and_one_at_a_time() {
    let (harness, node, id) = Harness::boxed().await;
    let take = |reference: String| async move { format!("/sandboxes/{reference}/snapshot") };
    node.set_work(Work::Hang);
    let taken = harness.snapshot("box", "memory").await;
    let reply = harness.call("POST", &take("box".into()).await, "").await;
    check_error(&reply, BAD, code::INVALID_ARGUMENT, "Sandbox is already being snapshotted");
    assert_eq!(harness.shown_now(&taken).await["status"], "in_progress");
    node.set_snapshot(&taken, SnapshotState::Failed { error: "no space".into() });
    let failed = harness.until_snapshot(&taken, |reply| reply.json()["status"] == "failed").await;
    assert_eq!(failed.json()["error"], "no space");
    node.set_work(Work::Do);
    harness.call("POST", "/sandboxes/box/suspend?wait_ms=9000", "").await;
    let reply = harness.call("POST", &take("box".into()).await, "").await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "resume it first");
    harness.call("DELETE", "/sandboxes/box", "").await;
    let reply = harness.call("POST", &take(id).await, "").await;
    check_error(&reply, BAD, code::INVALID_ARGUMENT, "Cannot snapshot a terminated sandbox");
    node.set_boot(Boot::Hang);
    harness.call("POST", "/sandboxes", r#"{"name":"box","wait":false}"#).await;
    let reply = harness.call("POST", &take("box".into()).await, "").await;
    check_error(&reply, BAD, code::INVALID_ARGUMENT, "Cannot snapshot a sandbox that is not yet running");
    let unknown = harness.get("/snapshots/5gm9wex8dm6ko1ed441ya").await;
    check_error(&unknown, StatusCode::NOT_FOUND, code::SNAPSHOT_NOT_FOUND, "Snapshot not found");
}

impl Harness {
    async fn shown_now(&self, snapshot: &str) -> Value {
        self.get(&format!("/snapshots/{snapshot}")).await.json()
    }
}

#[tokio::test]
async fn a_restore_has_what_the_source_had() {
    let (harness, node, id) = Harness::boxed().await;
    let snapshot = harness.snapshot("box", "memory").await;
    harness.call("DELETE", "/sandboxes/box", "").await;
    let reply = harness.restore(&snapshot, "").await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    let restored = reply.json()["sandbox_id"].as_str().expect("id").to_owned();
    assert_ne!(restored, id);
    let info = harness.get(&format!("/sandboxes/{restored}")).await.json();
    assert_eq!((&info["name"], &info["resources"]["cpus"]), (&Value::Null, &json!(2.0)), "a name was inherited");
    assert_eq!((&info["timeout_secs"], &info["exposed_ports"]), (&json!(5), &json!([80])));
    let command = node.command(|c| c.sandbox_id == restored).await;
    let Op::Create { origin, .. } = command.op else { panic!("not a create") };
    assert_eq!(origin, Origin::Snapshot { snapshot_id: snapshot.clone(), kind: SnapshotType::Memory });
    // The next snapshot of it goes on from there.
    let child = harness.snapshot(&restored, "memory").await;
    assert_eq!(harness.shown(&child).await["parent_id"], snapshot);

    let reply = harness.restore(&snapshot, r#","name":"again","resources":{"cpus":1}"#).await;
    check_error(&reply, BAD, code::INVALID_ARGUMENT, "resources.cpus: a memory snapshot");
    let reply = harness.restore("5gm9wex8dm6ko1ed441ya", "").await;
    check_error(&reply, StatusCode::NOT_FOUND, code::SNAPSHOT_NOT_FOUND, "Snapshot not found");
    node.set_work(Work::Hang);
    let unfinished = harness.snapshot(&restored, "memory").await;
    let reply = harness.restore(&unfinished, "").await;
    check_error(&reply, BAD, code::INVALID_ARGUMENT, "Snapshot is not completed");
}

#[tokio::test]
async fn a_restore_waits_for_the_node_that_has_the_snapshot() {
    let (harness, node, _) = Harness::boxed().await;
    let snapshot = harness.snapshot("box", "filesystem").await;
    node.disconnect(&harness).await;
    let reply = harness.restore(&snapshot, r#","wait":false"#).await;
    let accepted = reply.json();
    assert_eq!((reply.status, &accepted["pending_reason"]), (202, &json!("no_executor_for_snapshot_location")));
    node.connect(&harness).await;
    harness.until(accepted["sandbox_id"].as_str().expect("id"), |info| info["status"] == "running").await;
}

#[tokio::test]
async fn a_deletion_is_confirmed_by_the_node_and_repeats() {
    let (harness, node, _) = Harness::boxed().await;
    let snapshot = harness.snapshot("box", "memory").await;
    let path = format!("/snapshots/{snapshot}");
    node.disconnect(&harness).await;
    for _ in 0..2 {
        assert_eq!(harness.call("DELETE", &path, "").await.status, 200);
    }
    assert_eq!(harness.get(&path).await.json()["status"], "deleting");
    let reply = harness.restore(&snapshot, "").await;
    check_error(&reply, BAD, code::INVALID_ARGUMENT, "being deleted");
    let harness = harness.restart().await;
    node.connect(&harness).await;
    harness.until_snapshot(&snapshot, |reply| reply.status == 404).await;
    assert_eq!(harness.call("DELETE", &path, "").await.error(), (404, "SNAPSHOT_NOT_FOUND".into()));
    let deletions = node.commands().iter().filter(|c| c.op == Op::DeleteSnapshot).count();
    assert_eq!(deletions, 1);

    // Also while it is in progress, and when it failed.
    node.set_work(Work::Hang);
    let unfinished = harness.snapshot("box", "memory").await;
    harness.call("DELETE", &format!("/snapshots/{unfinished}"), "").await;
    harness.until_snapshot(&unfinished, |reply| reply.status == 404).await;
    node.set_work(Work::Fail("no space"));
    let failed = harness.snapshot("box", "memory").await;
    assert_eq!(harness.shown(&failed).await["error"], "no space");
    harness.call("DELETE", &format!("/snapshots/{failed}"), "").await;
    harness.until_snapshot(&failed, |reply| reply.status == 404).await;
}

#[tokio::test]
async fn a_node_is_taken_at_its_word() {
    let (harness, node, _) = Harness::boxed().await;
    let (kept, lost) = (harness.snapshot("box", "memory").await, harness.snapshot("box", "memory").await);
    node.disconnect(&harness).await;
    node.lose(&lost);
    let coming = harness.snapshot("box", "memory").await;
    node.set_snapshot("5gm9wex8dm6ko1ed441ya", SnapshotState::InProgress);
    node.connect(&harness).await;
    let reply = harness.until_snapshot(&lost, |reply| reply.json()["status"] == "failed").await;
    assert!(reply.json()["error"].as_str().is_some_and(|words| words.contains("no longer has")));
    assert_eq!(harness.shown(&coming).await["status"], "completed", "its command was on the way");
    assert_eq!(harness.shown(&kept).await["status"], "completed");
    node.command(|c| c.sandbox_id == "5gm9wex8dm6ko1ed441ya" && c.op == Op::DeleteSnapshot).await;
}

#[tokio::test]
async fn a_refused_snapshot_fails_with_the_words() {
    let (harness, node, _) = Harness::boxed().await;
    node.set_refuse(Some(BAD));
    let snapshot = harness.snapshot("box", "memory").await;
    let info = harness.shown(&snapshot).await;
    assert_eq!((&info["status"], &info["error"]), (&json!("failed"), &json!("the node refuses")));
    harness.call("DELETE", &format!("/snapshots/{snapshot}"), "").await;
    harness.until_snapshot(&snapshot, |reply| reply.status == 404).await;
}

#[tokio::test]
async fn it_goes_back_to_a_snapshot_of_its_own() {
    let (harness, node, id) = Harness::boxed().await;
    let own = harness.snapshot("box", "memory").await;
    let files = harness.snapshot("box", "filesystem").await;
    let other = harness.create("{}").await;
    let foreign = harness.snapshot(&other, "memory").await;
    let back = |snapshot: &str| format!(r#"{{"snapshot_id":"{snapshot}"}}"#);
    let path = "/sandboxes/box/rollback?wait_ms=9000";
    for (snapshot, words) in [(&files, "only a memory snapshot"), (&foreign, "of another sandbox")] {
        check_error(&harness.call("POST", path, &back(snapshot)).await, BAD, code::INVALID_ARGUMENT, words);
    }
    let reply = harness.call("POST", path, &back("5gm9wex8dm6ko1ed441ya")).await;
    check_error(&reply, StatusCode::NOT_FOUND, code::SNAPSHOT_NOT_FOUND, "not found");
    assert_eq!(harness.call("POST", path, &back(&own)).await.json()["status"], "running");
    harness.call("POST", "/sandboxes/box/suspend?wait_ms=9000", "").await;
    assert_eq!(harness.call("POST", path, &back(&own)).await.json()["status"], "running");

    node.set_work(Work::Fail("a chunk is damaged"));
    let reply = harness.call("POST", path, &back(&own)).await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "a chunk is damaged");
    node.set_work(Work::Hang);
    let reply = harness.call("POST", "/sandboxes/box/rollback", &back(&own)).await;
    assert_eq!((reply.status, &reply.json()["status"]), (202, &json!("suspended")));
    // What it reports before it has the command is no answer to that.
    let asked = harness.app.store.sandbox(&id).await.expect("store").expect("row").generation;
    node.command(|command| command.sandbox_id == id && command.generation == asked).await;
    node.set(&id, NodeState::Running);
    harness.until(&id, |info| info["status"] == "running").await;
}

#[tokio::test]
async fn the_tree_shows_what_came_from_what() {
    let (harness, _node, id) = Harness::boxed().await;
    let snapshot = harness.snapshot("box", "memory").await;
    let restored = harness.restore(&snapshot, "").await.json()["sandbox_id"].clone();
    let reply = harness.call("POST", &format!("/sandboxes/{}/copy", restored.as_str().expect("id")), "").await;
    let copy = reply.json()["sandboxes"][0]["sandbox_id"].clone();
    for ended in [&id, restored.as_str().expect("id")] {
        harness.call("DELETE", &format!("/sandboxes/{ended}"), "").await;
    }
    harness.create("{}").await;
    let gone = harness.create("{}").await;
    harness.call("DELETE", &format!("/sandboxes/{gone}"), "").await;
    let tree = harness.get("/tree").await.json();
    let nodes = tree["nodes"].as_array().expect("nodes");
    let parent = |id: &Value| {
        let node = nodes.iter().find(|node| node["id"] == *id).expect("node");
        (node["kind"].clone(), node["status"].clone(), node["parent_id"].clone())
    };
    assert_eq!(parent(&json!(id)), (json!("sandbox"), json!("terminated"), Value::Null));
    assert_eq!(parent(&json!(snapshot)), (json!("snapshot"), json!("completed"), json!(id)));
    assert_eq!(parent(&restored), (json!("sandbox"), json!("terminated"), json!(snapshot)));
    assert_eq!(parent(&copy), (json!("sandbox"), json!("running"), restored));
    assert_eq!(nodes.len(), 5, "one that nothing came from is gone for good");
}

#[tokio::test]
async fn nodes_answer_for_their_disks() {
    let (harness, node, _) = Harness::boxed().await;
    let (first, second) = (harness.snapshot("box", "memory").await, harness.snapshot("box", "memory").await);
    let path = format!("/snapshots/{first}/diff/{second}");
    let diff = harness.get(&path).await.json();
    let entry = json!({ "path": "/etc/x", "difference": "added", "size_bytes": 3 });
    assert_eq!((&diff["entries"][0], &diff["truncated"]), (&entry, &json!(false)));
    let storage = harness.get("/platform/v1/storage").await.json();
    assert_eq!((&storage["nodes"][0]["node_id"], &storage["nodes"][0]["free_bytes"]), (&json!("node-1"), &json!(40)));
    let collected = harness.call("POST", "/platform/v1/storage/gc", "").await.json();
    assert_eq!(collected["nodes"][0]["freed_bytes"], 7);
    node.disconnect(&harness).await;
    let away = harness.get(&path).await;
    check_error(&away, StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, "node-1");
    assert_eq!(harness.get("/platform/v1/storage").await.json(), json!({ "nodes": [] }));
}
