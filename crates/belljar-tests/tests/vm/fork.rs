//! Snapshots, restores, copies, rollback, the tree and the difference.

use std::{fs, os::unix::fs::FileExt};

use belljar_tests::{Sandbox, World, wait_while};
use serde_json::{Value, json};

/// State of a sandbox that is told apart in memory, in a process and on the disk.
fn mark(sandbox: &Sandbox<'_>, word: &str) {
    sandbox.sh(&format!("echo {word} > /workspace/disk; echo {word} > /dev/shm/memory"));
}

#[track_caller]
fn check(sandbox: &Sandbox<'_>, word: &str) {
    assert_eq!(sandbox.sh("cat /workspace/disk /dev/shm/memory"), format!("{word}\n{word}"));
}

fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

#[test]
fn a_memory_snapshot_is_restored_any_number_of_times() {
    let world = World::start();
    let source = world.create(&json!({"exposed_ports": [8080]}));
    mark(&source, "one");
    let boot_id = source.boot_id();
    let first = world.snapshot(&source.id, "memory");
    mark(&source, "two");
    let second = world.snapshot(&source.id, "memory");
    assert_eq!(second["parent_id"], first["id"]);
    check(&source, "two");
    source.delete();
    for (snapshot, word) in [(&first, "one"), (&second, "two"), (&first, "one")] {
        let restored = world.create(&json!({"snapshot_id": snapshot["id"]}));
        assert_ne!(restored.id, source.id);
        check(&restored, word);
        assert_eq!(restored.boot_id(), boot_id);
        assert_eq!(world.info(&restored.id).json["exposed_ports"], json!([8080]));
        mark(&restored, "elsewhere");
        restored.delete();
    }
    assert_eq!(world.http().delete(&format!("/snapshots/{}", id(&first))).status, 200);
    // Deleting the parent harms no child.
    let restored = world.create(&json!({"snapshot_id": second["id"]}));
    check(&restored, "two");
    wait_while(|| world.http().get(&format!("/snapshots/{}", id(&first))).status != 404);
    assert_eq!(world.http().post("/sandboxes", &json!({"snapshot_id": first["id"]})).status, 404);
}

#[test]
fn a_filesystem_snapshot_boots_with_other_resources() {
    let world = World::start();
    let source = world.create(&json!({}));
    mark(&source, "kept");
    let snapshot = world.snapshot(&source.id, "filesystem");
    let body = json!({"snapshot_id": snapshot["id"], "resources": {"cpus": 2, "memory_mb": 1536, "disk_mb": 12288}});
    let restored = world.create(&body);
    assert_ne!(restored.boot_id(), source.boot_id());
    assert_eq!(restored.sh("cat /workspace/disk; nproc"), "kept\n2");
    assert_eq!(restored.sh("test -e /dev/shm/memory; echo $?"), "1");
    let size: u64 = restored.sh("df --output=size -m / | tail -1").trim().parse().unwrap();
    assert!(size > 11_000, "the file system has {size} MiB");
    let smaller = json!({"snapshot_id": snapshot["id"], "image": "belljar/debian-minimal"});
    assert_eq!(world.http().post("/sandboxes", &smaller).status, 400);
}

#[test]
fn a_memory_snapshot_locks_what_is_in_it() {
    let world = World::start();
    let source = world.create(&json!({}));
    let snapshot = world.snapshot(&source.id, "memory");
    let answer = world.http().post("/sandboxes", &json!({"snapshot_id": snapshot["id"], "resources": {"cpus": 2}}));
    assert_eq!(answer.status, 400, "{answer:?}");
    let grown = world.create(&json!({"snapshot_id": snapshot["id"], "resources": {"disk_mb": 12288}}));
    let size: u64 = grown.sh("df --output=size -m / | tail -1").trim().parse().unwrap();
    assert!(size > 11_000, "the file system has {size} MiB");
    let unknown = world.http().post("/sandboxes", &json!({"snapshot_id": "a".repeat(21)}));
    assert_eq!(unknown.status, 404, "{unknown:?}");
}

#[test]
fn copies_carry_the_state_and_go_their_own_ways() {
    let world = World::start();
    let source = world.create(&json!({}));
    mark(&source, "parent");
    let boot_id = source.boot_id();
    let copies = world.copy(&source.id, 3);
    for (n, copy) in copies.iter().enumerate() {
        check(copy, "parent");
        assert_eq!(copy.boot_id(), boot_id);
        mark(copy, &format!("copy{n}"));
    }
    for (n, copy) in copies.iter().enumerate() {
        check(copy, &format!("copy{n}"));
    }
    check(&source, "parent");
    for copy in copies {
        copy.delete();
    }
    check(&source, "parent");
    assert_eq!(world.order(&source.id, "copy?times=0").status, 400);
    assert_eq!(world.order(&source.id, "copy?times=101").status, 400);
    source.delete();
    world.wait_until_clean();
    assert!(world.entries("passing").is_empty(), "what they were made from is left");
}

#[test]
fn the_same_key_makes_no_more_copies() {
    let world = World::start();
    let source = world.create(&json!({}));
    let http = world.http().header("idempotency-key", "once");
    let path = format!("/sandboxes/{}/copy?times=2", source.id);
    let ids = |answer: &Value| -> Vec<Value> {
        answer["sandboxes"].as_array().unwrap().iter().map(|it| it["sandbox_id"].clone()).collect()
    };
    let (first, again) = (http.json("POST", &path, ""), http.json("POST", &path, ""));
    assert_eq!((first.status, again.status), (200, 200), "{first:?} {again:?}");
    assert_eq!(ids(&first.json), ids(&again.json));
    assert_eq!(world.vm_pids().len(), 3);
}

#[test]
fn a_sandbox_is_rolled_back_in_place() {
    let world = World::start();
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0}));
    mark(&sandbox, "before");
    let snapshot = world.snapshot("box", "memory");
    mark(&sandbox, "after");
    for _ in 0..2 {
        let path = "/sandboxes/box/rollback?wait_ms=30000";
        let answer = world.http().post(path, &json!({"snapshot_id": snapshot["id"]}));
        assert_eq!(answer.status, 200, "{answer:?}\n{}", world.log());
        check(&sandbox, "before");
        mark(&sandbox, "after again");
        world.suspend("box");
    }
    let other = world.create(&json!({}));
    let foreign = world.snapshot(&other.id, "memory");
    let answer = world.http().post("/sandboxes/box/rollback", &json!({"snapshot_id": foreign["id"]}));
    assert_eq!(answer.status, 400, "{answer:?}");
    sandbox.delete();
}

#[test]
fn the_difference_of_two_snapshots_names_the_files() {
    let world = World::start();
    let source = world.create(&json!({}));
    source.sh("mkdir -p /workspace/d; echo 1 > /workspace/d/changed; echo 1 > /workspace/d/removed; echo 1 > /workspace/d/same");
    let first = world.snapshot(&source.id, "filesystem");
    source.sh("echo 2 > /workspace/d/changed; rm /workspace/d/removed; echo 1 > /workspace/d/added");
    let second = world.snapshot(&source.id, "filesystem");
    let diff = world.http().get(&format!("/snapshots/{}/diff/{}", id(&first), id(&second)));
    assert_eq!(diff.status, 200, "{diff:?}");
    let entries = diff.json["entries"].as_array().unwrap();
    let found: Vec<String> = entries
        .iter()
        .filter(|it| it["path"].as_str().unwrap().starts_with("/workspace/d/"))
        .map(|it| format!("{} {}", it["difference"].as_str().unwrap(), it["path"].as_str().unwrap()))
        .collect();
    let expected = ["added /workspace/d/added", "changed /workspace/d/changed", "removed /workspace/d/removed"];
    assert_eq!(found, expected);
}

#[test]
fn the_tree_shows_who_comes_from_whom() {
    let world = World::start();
    let source = world.create(&json!({}));
    let snapshot = world.snapshot(&source.id, "memory");
    let restored = world.create(&json!({"snapshot_id": snapshot["id"]}));
    let copy = world.copy(&restored.id, 1).remove(0);
    let tree = world.http().get("/tree").json;
    let parent = |id: &str| {
        let nodes = tree["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["id"] == id).map(|node| node["parent_id"].clone())
    };
    assert_eq!(parent(id(&snapshot)), Some(json!(source.id)));
    assert_eq!(parent(&restored.id), Some(snapshot["id"].clone()));
    assert_eq!(parent(&copy.id), Some(json!(restored.id)));
}

/// Damages the one pack of a snapshot with `damage`; a restore must say so and leave nothing.
fn check_damaged(damage: impl Fn(&std::path::Path)) {
    let world = World::start();
    let source = world.create(&json!({}));
    let snapshot = world.snapshot(&source.id, "memory");
    source.delete();
    world.down_keep();
    // What is unpacked already would hide the damage.
    fs::remove_dir_all(world.storage().join("cache")).unwrap();
    for pack in world.entries("snapshots/packs") {
        damage(&pack);
    }
    world.up();
    let answer = world.http().post("/sandboxes", &json!({"snapshot_id": snapshot["id"]}));
    assert_eq!(answer.status, 422, "{answer:?}");
    let words = answer.json["error_details"]["message"].as_str().unwrap_or_default();
    assert!(words.contains("packs/"), "{answer:?}");
    world.wait_until_clean();
}

#[test]
fn a_damaged_snapshot_is_refused() {
    check_damaged(|pack| {
        let file = fs::OpenOptions::new().read(true).write(true).open(pack).unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle).unwrap();
        file.write_all_at(&[byte[0] ^ 0x55], middle).unwrap();
    });
}

#[test]
fn a_truncated_snapshot_is_refused() {
    check_damaged(|pack| {
        let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    });
}

#[test]
fn space_is_accounted_and_got_back() {
    let world = World::start();
    let source = world.create(&json!({}));
    source.sh("head -c 30000000 /dev/urandom > /workspace/blob");
    let snapshot = world.snapshot(&source.id, "filesystem");
    let used = || world.json(&["df"])["nodes"][0]["snapshots_bytes"].as_u64().unwrap();
    let before = used();
    assert!(before >= 30_000_000, "{before}");
    world.ok(&["snapshot", "rm", id(&snapshot)]);
    // The node takes note of the deletion a moment after it was acknowledged, which may be in the middle of this.
    world.ok(&["gc"]);
    wait_while(|| used() >= before - 30_000_000);
}
