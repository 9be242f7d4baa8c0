//! Pools of warm sandboxes.

use belljar_tests::World;
use serde_json::{Value, json};

fn warm(world: &World, pool: &str) -> Vec<Value> {
    let info = world.http().get(&format!("/sandbox-pools/{pool}")).json;
    let containers = info["containers"].as_array().expect("containers").clone();
    containers.into_iter().filter(|it| it["sandbox_id"].is_null() && it["state"] == "running").collect()
}

#[test]
fn a_claim_answers_with_a_running_sandbox_that_is_replaced() {
    let world = World::start();
    let answer = world.http().post("/sandbox-pools", &json!({"warm_containers": 1, "max_containers": 3}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let pool = answer.json["pool_id"].as_str().unwrap().to_owned();
    while warm(&world, &pool).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(world.http().get("/sandboxes").json["sandboxes"], json!([]), "a warm one is nobody's");
    let claim = world.http().json("POST", &format!("/sandbox-pools/{pool}/sandboxes"), "");
    assert_eq!((claim.status, &claim.json["status"]), (200, &json!("running")), "{claim:?}");
    let sandbox = world.sandbox(claim.json["sandbox_id"].as_str().unwrap());
    sandbox.sh("true");
    while warm(&world, &pool).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(world.http().delete(&format!("/sandbox-pools/{pool}")).status, 409);
    // A claimed one is put to sleep, though it has no name.
    world.suspend(&sandbox.id);
    sandbox.sh("true");
    sandbox.delete();
    assert_eq!(world.http().delete(&format!("/sandbox-pools/{pool}")).status, 200);
    assert_eq!(world.http().get(&format!("/sandbox-pools/{pool}")).status, 404);
    world.wait_until_clean();
}
