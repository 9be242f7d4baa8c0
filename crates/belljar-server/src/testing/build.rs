//! Image builds: how they go, what is refused, and what is left when a part of the whole goes in the middle.

use std::time::Duration;

use belljar_api::{
    build::BuildPhase,
    error::code,
    node::{ImportReport, ImportSource},
};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::{Harness, Reply, check_error, import::OnStop, node::FakeNode, node_state::image};
use crate::build::{BuildRow, tests::build};

const BUILDS: &str = "/images/v4/builds";

fn import(name: &str) -> Value {
    json!({
        "kind": "import", "image_ref": "docker.io/library/alpine:3", "name": name, "disk_mb": 10240,
        "builder_resources": {"cpus": 2.0, "memory_mb": 4096},
    })
}

fn step(phase: BuildPhase) -> ImportReport {
    ImportReport::Step { phase }
}

fn done(name: &str) -> ImportReport {
    ImportReport::Done { image: image(name) }
}

fn failed(words: &str) -> ImportReport {
    ImportReport::Failed { error: words.into() }
}

impl Harness {
    async fn ask_build(&self, body: &Value, key: Option<&str>) -> Reply {
        let mut request = self.request("POST", BUILDS).header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.ask(request, body.to_string()).await
    }

    /// Starts a build, waits until the node has begun it, and gives its id.
    async fn begin(&self, node: &FakeNode, body: &Value, key: Option<&str>) -> String {
        let reply = self.ask_build(body, key).await;
        assert_eq!(reply.status, 201, "{:?}", reply.body);
        let id = reply.json()["build_id"].as_str().expect("id").to_owned();
        node.imports.begun(&id).await;
        id
    }

    async fn build(&self, id: &str) -> Value {
        let reply = self.get(&format!("{BUILDS}/{id}")).await;
        assert_eq!(reply.status, 200, "{:?}", reply.body);
        reply.json()
    }

    /// Waits until a build stands like this.
    async fn build_until(&self, id: &str, status: &str, phase: &str) -> Value {
        let mut changes = self.app.live.builds.changed.subscribe();
        loop {
            let build = self.build(id).await;
            if (build["status"].as_str(), build["phase"].as_str()) == (Some(status), Some(phase)) {
                return build;
            }
            changes.changed().await.expect("server");
        }
    }

    async fn run_sql(&self, statements: [&'static str; 2]) {
        for sql in statements {
            self.break_store(sql).await;
        }
    }

    async fn cancel(&self, body: Value) -> Reply {
        self.call("POST", &format!("{BUILDS}/cancel"), &body.to_string()).await
    }

    /// Cancels by id: outcome and status.
    async fn cancelled(&self, id: &str) -> (String, String) {
        let reply = self.cancel(json!({ "build_id": id })).await;
        assert_eq!(reply.status, 200, "{:?}", reply.body);
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        (text(&reply.json()["outcome"]), text(&reply.json()["build"]["status"]))
    }
}

fn pair(outcome: &str, status: &str) -> (String, String) {
    (outcome.to_owned(), status.to_owned())
}

#[tokio::test]
async fn an_import_goes_its_way() {
    let (harness, node) = Harness::with_node().await;
    let mut body = import("Team/Alp");
    body["image_scope"] = "global".into();
    body["registry_credentials_json"] = r#"{"auths":{"r.example":{"password":"hunter2"}}}"#.into();
    let reply = harness.ask_build(&body, Some("0123456789abcdef")).await;
    let first = reply.json();
    let id = first["build_id"].as_str().expect("id").to_owned();
    let expect = json!({
        "build_id": id, "kind": "import", "name": "team/alp", "status": "pending", "phase": "starting_builder",
        "attempt_no": 1, "client_request_id": "0123456789abcdef", "created_at_ms": first["created_at_ms"],
        "updated_at_ms": first["created_at_ms"],
    });
    assert_eq!((reply.status, &first), (201, &expect));
    let told = node.imports.begun(&id).await;
    let ImportSource::Registry { image_ref, registry_credentials_json } = told.source else { panic!("a registry") };
    assert_eq!((told.name.as_str(), image_ref.as_str()), ("team/alp", "docker.io/library/alpine:3"));
    assert!(told.public && registry_credentials_json.expect("sent on").reveal().contains("hunter2"));
    assert_eq!(harness.build(&id).await, expect);
    for (phase, word) in [
        (BuildPhase::Executing, "executing"),
        (BuildPhase::Snapshotting, "snapshotting"),
        (BuildPhase::Publishing, "publishing"),
    ] {
        node.imports.tell(&id, step(phase));
        let build = harness.build_until(&id, "running", word).await;
        assert!(build.get("result").is_none() && build.get("error").is_none());
    }
    node.imports.tell(&id, done("team/alp"));
    let build = harness.build_until(&id, "succeeded", "finished").await;
    assert_eq!(build["result"], json!(image("team/alp")));
    assert!(build["result"]["created_at"].is_string() && build.get("error").is_none());
    node.imports.dropped(&id).await;
    // The credentials were on their way and are nowhere.
    let (dir, _) = harness.stop().await;
    for entry in std::fs::read_dir(dir.path()).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a file");
        assert!(!bytes.windows(7).any(|part| part == b"hunter2"), "{}", path.display());
    }
}

#[tokio::test]
async fn the_same_request_is_the_same_build_and_a_name_has_one_at_a_time() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.begin(&node, &import("alp"), Some("key 1")).await;
    let mut with_login = import("ALP");
    with_login["registry_credentials_json"] = "{}".into();
    for again in [import("alp"), with_login] {
        let reply = harness.ask_build(&again, Some("key 1")).await;
        assert_eq!((reply.status, &reply.json()["build_id"]), (201, &json!(id)));
    }
    let mut larger = import("alp");
    larger["disk_mb"] = 1.into();
    for other in [import("other"), larger] {
        let reply = harness.ask_build(&other, Some("key 1")).await;
        check_error(&reply, StatusCode::CONFLICT, code::CLIENT_REQUEST_ID_MISMATCH, "use a new key");
    }
    for key in [Some("key 2"), None] {
        let reply = harness.ask_build(&import("alp"), key).await;
        check_error(&reply, StatusCode::CONFLICT, code::IMAGE_BUILD_IN_PROGRESS, "wait for it, or cancel it");
        let body = reply.json();
        let active = [&body["image_name"], &body["active_build_id"], &body["active_kind"], &body["active_status"]];
        assert_eq!(active, [&json!("alp"), &json!(id), &json!("import"), &json!("pending")]);
    }
    harness.begin(&node, &import("other"), Some("key 2")).await;
    assert_eq!(node.imports.count(), 2, "what was refused or known has begun nothing");
    node.imports.tell(&id, done("alp"));
    harness.build_until(&id, "succeeded", "finished").await;
    let reply = harness.ask_build(&import("alp"), Some("key 1")).await;
    assert_eq!((reply.status, &reply.json()["status"]), (201, &json!("succeeded")));
    harness.begin(&node, &import("alp"), None).await;
}

#[tokio::test]
async fn what_is_no_build_is_refused_in_words() {
    let (harness, node) = Harness::with_node().await;
    let bad = (StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT);
    let with = |key: &str, value: Value| {
        let mut body = import("alp");
        body[key] = value;
        body
    };
    for (body, words) in [
        (json!({}), "missing field `kind`"),
        (with("kind", "direct".into()), "kind: unknown variant `direct`, expected `dockerfile` or `import`"),
        (with("name", "".into()), "name: it is missing or empty"),
        (with("name", "x".repeat(129).into()), "name: it has 129 bytes"),
        (with("image_ref", Value::Null), "image_ref: it is missing"),
        (with("image_ref", "x".repeat(2000).into()), "image_ref: it has 2000 bytes"),
        (with("image_scope", "world".into()), "image_scope: use \"global\""),
        (with("registry_credentials_json", "x".repeat(300_000).into()), "registry_credentials_json: it has"),
        (with("registry_credentials_json", json!({"a": 1})), "registry_credentials_json: invalid type"),
    ] {
        check_error(&harness.ask_build(&body, None).await, bad.0, bad.1, words);
    }
    check_error(&harness.ask_build(&import("alp"), Some(&"k".repeat(300))).await, bad.0, bad.1, "Idempotency-Key");
    for id in ["build_x", "x"] {
        let reply = harness.get(&format!("{BUILDS}/{id}")).await;
        check_error(&reply, StatusCode::NOT_FOUND, code::NOT_FOUND, "there is no build");
        let reply = harness.cancel(json!({ "build_id": id })).await;
        check_error(&reply, StatusCode::NOT_FOUND, code::NOT_FOUND, "there is no build");
    }
    for body in [json!({}), json!({"build_id": "x", "client_request_id": "y"})] {
        check_error(&harness.cancel(body).await, bad.0, bad.1, "either build_id or client_request_id");
    }
    let reply = harness.cancel(json!({"client_request_id": "nobody's"})).await;
    assert_eq!((reply.status, reply.json()), (200, json!({"outcome": "not_admitted"})));
    node.disconnect(&harness).await;
    let reply = harness.ask_build(&import("alp"), None).await;
    check_error(&reply, StatusCode::SERVICE_UNAVAILABLE, code::SANDBOX_UNREACHABLE, "no node is connected");
    assert_eq!(node.imports.count(), 0);
}

#[tokio::test]
async fn a_build_fails_in_the_words_of_whoever_knows_why() {
    let (harness, node) = Harness::with_node().await;
    let check = async |id: &str, words: &str| {
        let build = harness.build_until(id, "failed", "finished").await;
        let error = build["error"].as_str().expect("words");
        assert!(error.contains(words) && build.get("result").is_none(), "{error:?} does not say {words:?}");
    };
    let id = harness.begin(&node, &import("alp"), None).await;
    node.imports.tell(&id, step(BuildPhase::Executing));
    node.imports.tell(&id, failed("there is no image alp in the registry r.example"));
    check(&id, "there is no image alp in the registry r.example").await;
    // The node goes while it is at it, and while it is silent.
    let id = harness.begin(&node, &import("alp"), None).await;
    node.imports.hush(&id);
    check(&id, "node node-1 went, or was lost").await;
    let id = harness.begin(&node, &import("alp"), None).await;
    node.disconnect(&harness).await;
    check(&id, "start the build again, unless GET /images/v4/images").await;
    node.connect(&harness).await;
    // What a newer node may say.
    node.imports.set_refuse();
    let reply = harness.ask_build(&import("alp"), None).await;
    check(reply.json()["build_id"].as_str().expect("id"), "too many imports wait on this node").await;
}

#[tokio::test]
async fn a_build_is_cancelled_at_any_time() {
    let (harness, node) = Harness::with_node().await;
    for steps in [&[][..], &[BuildPhase::Executing], &[BuildPhase::Executing, BuildPhase::Publishing]] {
        let id = harness.begin(&node, &import("alp"), Some(&format!("key {}", steps.len()))).await;
        steps.iter().for_each(|phase| node.imports.tell(&id, step(*phase)));
        assert_eq!(harness.cancelled(&id).await, pair("cancelled", "cancelled"));
        node.imports.dropped(&id).await;
        assert_eq!(harness.cancelled(&id).await, pair("already_cancelled", "cancelled"));
        let reply = harness.cancel(json!({"client_request_id": format!("key {}", steps.len())})).await.json();
        assert_eq!((&reply["outcome"], &reply["build"]["build_id"]), (&json!("already_cancelled"), &json!(id)));
    }
    // Without waiting for the node: its task knows, and says so when the node has it.
    let id = harness.ask_build(&import("alp"), None).await.json()["build_id"].as_str().expect("id").to_owned();
    assert_eq!(harness.cancelled(&id).await, pair("cancelled", "cancelled"));
    // A node that fails once is asked again.
    node.imports.set_on_stop(OnStop::Fail);
    let id = harness.begin(&node, &import("alp"), None).await;
    assert_eq!(harness.cancelled(&id).await, pair("cancelled", "cancelled"));
    // Several who cancel are all told.
    let id = harness.begin(&node, &import("alp"), None).await;
    let (one, other) = tokio::join!(harness.cancelled(&id), harness.cancelled(&id));
    assert!(one.0.ends_with("cancelled") && other.0.ends_with("cancelled"), "{one:?} {other:?}");
}

#[tokio::test]
async fn a_cancellation_that_comes_too_late_says_what_came_first() {
    let (harness, node) = Harness::with_node().await;
    for on_stop in [OnStop::TooLate, OnStop::Over] {
        node.imports.set_on_stop(on_stop);
        for (last, outcome, status) in [
            (done("alp"), "already_completed", "succeeded"),
            (failed("no space"), "already_failed", "failed"),
            (ImportReport::Stopped, "cancelled", "cancelled"),
        ] {
            let id = harness.begin(&node, &import("alp"), None).await;
            let late = async {
                // Its answer has to wait for this.
                tokio::task::yield_now().await;
                node.imports.tell(&id, last);
            };
            let (got, ()) = tokio::join!(harness.cancelled(&id), late);
            assert_eq!(got, pair(outcome, status), "{on_stop:?}");
            assert_eq!(harness.build(&id).await["status"], status);
        }
    }
    // The node goes before it has said anything.
    let id = harness.begin(&node, &import("alp"), None).await;
    let (got, ()) = tokio::join!(harness.cancelled(&id), async { node.imports.hush(&id) });
    assert_eq!(got, pair("already_failed", "failed"));
}

#[tokio::test]
async fn no_build_is_lost_when_the_server_goes() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.begin(&node, &import("alp"), Some("key 1")).await;
    node.imports.tell(&id, step(BuildPhase::Executing));
    harness.build_until(&id, "running", "executing").await;
    let harness = harness.restart().await;
    node.imports.dropped(&id).await;
    let stopped = harness.build(&id).await;
    assert_eq!((&stopped["status"], &stopped["phase"]), (&json!("failed"), &json!("finished")));
    assert!(stopped["error"].as_str().expect("words").contains("the server was stopped"), "{stopped}");
    assert_eq!(harness.cancelled(&id).await, pair("already_failed", "failed"));
    // As a crash leaves it: nobody speaks for it any more.
    let row = BuildRow { id: "build_crashed".into(), ..build(7, "alp") };
    harness.app.store.create_build(row).await.expect("saved");
    let harness = harness.restart().await;
    let crashed = harness.build("build_crashed").await;
    assert!(crashed["error"].as_str().expect("words").contains("the server was restarted"), "{crashed}");
    node.connect(&harness).await;
    harness.begin(&node, &import("alp"), None).await;
}

/// No build can be saved or changed until [`REPAIR`].
const BREAK: [&str; 2] = [
    "CREATE TRIGGER no_change BEFORE UPDATE ON builds BEGIN SELECT RAISE(ABORT, 'a test made it fail'); END",
    "CREATE TRIGGER no_new BEFORE INSERT ON builds BEGIN SELECT RAISE(ABORT, 'a test made it fail'); END",
];
const REPAIR: [&str; 2] = ["DROP TRIGGER IF EXISTS no_change", "DROP TRIGGER IF EXISTS no_new"];

/// The store fails from before one report of the node on, for that one or until after the last.
#[tokio::test]
async fn a_store_that_fails_loses_no_build() {
    let (harness, node) = Harness::with_node().await;
    let reports =
        || [step(BuildPhase::Executing), step(BuildPhase::Snapshotting), step(BuildPhase::Publishing), done("alp")];
    for transient in [true, false] {
        for at in 0..reports().len() {
            let id = harness.begin(&node, &import("alp"), None).await;
            for (number, report) in reports().into_iter().enumerate() {
                if number == at {
                    harness.run_sql(BREAK).await;
                }
                node.imports.tell(&id, report);
                // Time for the server to fail; if it needs more, it does not fail, and all is as well.
                tokio::time::sleep(Duration::from_millis(20)).await;
                if number == at && transient {
                    harness.run_sql(REPAIR).await;
                }
            }
            harness.run_sql(REPAIR).await;
            let build = harness.build_until(&id, "succeeded", "finished").await;
            assert_eq!(build["result"]["name"], "alp", "it failed at {at}");
        }
    }
    // One that cannot even be noted has not begun.
    harness.run_sql(BREAK).await;
    let count = node.imports.count();
    assert_eq!(harness.ask_build(&import("alp"), None).await.status, 500);
    assert_eq!(node.imports.count(), count);
    harness.run_sql(REPAIR).await;
    harness.begin(&node, &import("alp"), None).await;
}
