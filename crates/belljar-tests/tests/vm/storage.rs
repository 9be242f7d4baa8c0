//! The node's disk: full, and placed elsewhere.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
};

use belljar_tests::World;
use serde_json::json;

/// Takes all but `left_mib` of the node's storage.
fn fill(world: &World, left_mib: u64) -> std::path::PathBuf {
    let path = world.storage().join("filler");
    let stat = nix::sys::statvfs::statvfs(&world.storage()).unwrap();
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    let file = File::create(&path).unwrap();
    let take = i64::try_from(free - (left_mib << 20)).unwrap();
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, take).unwrap();
    path
}

#[test]
fn a_full_disk_fails_the_operation_and_running_sandboxes_go_on() {
    let world =
        World::start_with(&[("BELLJAR_VOLUME_SIZE_MB", "4096".to_owned()), ("BELLJAR_RESIDENT_SECS", "0".to_owned())]);
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0}));
    sandbox.sh("echo kept > /dev/shm/memory");
    let filler = fill(&world, 100);

    let refused = world.http().post("/sandboxes", &json!({}));
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(refused.json["termination_reason"], "no_space", "{refused:?}");
    let refused = world.order("box", "suspend?wait_ms=30000");
    assert_eq!(refused.status, 409, "{refused:?}");
    let answer = world.http().post("/sandboxes/box/snapshot", &json!({"snapshot_type": "memory"}));
    assert_eq!(answer.status, 202, "{answer:?}");
    let failed = world.snapshot_settled(answer.json["snapshot_id"].as_str().unwrap());
    assert_eq!(failed["status"], "failed", "{failed}");
    assert!(failed["error"].as_str().unwrap().contains("free"), "{failed}");
    let refused = world.order("box", "copy?times=2");
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(sandbox.sh("cat /dev/shm/memory"), "kept");

    fs::remove_file(filler).unwrap();
    world.suspend("box");
    assert_eq!(sandbox.sh("cat /dev/shm/memory"), "kept");
    world.copy("box", 1).remove(0).delete();
    sandbox.delete();
    world.wait_until_clean();
    assert!(world.entries("passing").is_empty());
}

#[test]
fn the_volume_lies_where_it_is_wanted() {
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("here.xfs");
    let world = World::start_with(&[
        ("BELLJAR_VOLUME_FILE", file.display().to_string()),
        ("BELLJAR_VOLUME_SIZE_MB", "3072".to_owned()),
    ]);
    if world.storage() == world.data() {
        return; // The file system of the temporary directory can reflink: there is no volume.
    }
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (3072 << 20, 0o600), "all disks are in it");
    world.create(&json!({})).sh("true");
}
