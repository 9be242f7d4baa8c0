//! The life of a sandbox, from create to archive.

use belljar_tests::World;
use serde_json::{Value, json};

#[test]
fn a_sandbox_is_created_changed_and_ended() {
    let world = World::start();
    let http = world.http();
    let accepted = http.post("/v1/namespaces/default/sandboxes", &json!({"wait": false, "name": "box-1"}));
    assert_eq!((accepted.status, &accepted.json["state"]), (202, &json!("pending")), "{accepted:?}");
    let id = accepted.json["sandbox_id"].as_str().unwrap();
    // The proxy holds the request until the sandbox answers.
    let health = http.clone().header("x-tensorlake-sandbox-id", "box-1").get("/api/v1/health");
    assert_eq!(health.json, json!({"healthy": true}), "{health:?}");

    let info = http.get("/sandboxes/box-1").json;
    assert_eq!((&info["id"], &info["status"], &info["name"]), (&json!(id), &json!("running"), &json!("box-1")));
    assert_eq!(
        info["resources"],
        json!({"cpus": 1.0, "memory_mb": 1024, "disk_mb": 10240, "ephemeral_disk_mb": 10240})
    );
    assert!(info["sandbox_url"].is_string() && info["sandbox_id"].is_null(), "{info}");
    let twin = http.post("/sandboxes", &json!({"name": "box-1"}));
    assert_eq!((twin.status, twin.code()), (409, "NAME_IN_USE"), "{twin:?}");

    let patch = http.json("PATCH", "/sandboxes/box-1", r#"{"name":"box-2","timeout_secs":1234,"exposed_ports":[80]}"#);
    assert_eq!(
        (&patch.json["name"], &patch.json["timeout_secs"], &patch.json["exposed_ports"]),
        (&json!("box-2"), &json!(1234), &json!([80])),
        "{patch:?}"
    );
    assert_eq!(http.get("/sandboxes/box-1").status, 404);

    assert_eq!(http.delete("/sandboxes/box-2").status, 200);
    assert_eq!(http.delete(&format!("/sandboxes/{id}")).status, 200, "a second DELETE is fine");
    let ended = world.ended(id);
    assert_eq!((&ended["termination_reason"], &ended["outcome"]), (&json!("user"), &json!("Success(UserTerminated)")));
    assert_eq!(http.get("/sandboxes").json["sandboxes"], json!([]));
    let archived = http.get("/archived-sandboxes").json;
    assert_eq!(archived["sandboxes"][0]["id"], json!(id), "{archived}");
    assert_eq!(http.get(&format!("/archived-sandboxes/{id}")).json["status"], "terminated");
}

#[test]
fn an_idle_sandbox_ends_by_timeout() {
    let world = World::start();
    let sandbox = world.create(&json!({"timeout_secs": 3}));
    // A request that is open counts as use, however long it takes.
    assert_eq!(sandbox.sh("sleep 5; echo still"), "still");
    let ended = world.ended(&sandbox.id);
    assert_eq!(
        (&ended["termination_reason"], &ended["outcome"]),
        (&json!("timeout"), &json!("Success(Timeout)")),
        "{ended}"
    );
    let late = sandbox.http().get("/api/v1/health");
    assert!([404, 503].contains(&late.status), "{late:?}");
}

#[test]
fn twenty_sandboxes_leave_nothing_behind() {
    let world = World::start();
    let ids: Vec<String> = std::thread::scope(|scope| {
        let world = &world;
        let creates: Vec<_> = (0..20)
            .map(|_| scope.spawn(move || world.http().post("/sandboxes", &Value::Object(Default::default()))))
            .collect();
        let answers = creates.into_iter().map(|it| it.join().unwrap());
        answers
            .map(|answer| {
                assert_eq!(answer.json["status"], "running", "{answer:?}");
                answer.json["sandbox_id"].as_str().unwrap().to_owned()
            })
            .collect()
    });
    assert_eq!(world.vm_pids().len(), 20);
    for id in &ids {
        let answer = world.http().header("x-tensorlake-sandbox-id", id).get("/api/v1/health");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    world.ok(&[&["rm"][..], &ids.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    for id in &ids {
        world.ended(id);
    }
    world.wait_until_clean();
}

#[test]
fn an_entrypoint_starts_with_the_sandbox() {
    let world = World::start();
    let sandbox = world.create(&json!({"entrypoint": ["sh", "-c", "echo started > /tmp/entry; sleep 600"]}));
    assert_eq!(sandbox.sh("until [ -s /tmp/entry ]; do sleep 0.1; done; cat /tmp/entry"), "started");
}
