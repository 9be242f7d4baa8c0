//! Files and directories, both ways.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use belljar_tests::{Sandbox, World};
use serde_json::json;

/// Sends `size` bytes in and out again, and compares them inside and outside.
#[track_caller]
fn check(sandbox: &Sandbox<'_>, size: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blob");
    let bytes: Vec<u8> = (0..size).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    fs::write(&path, &bytes).unwrap();
    let put = sandbox.http().put("/api/v1/files?path=%2Ftmp%2Fa+b.bin", File::open(&path).unwrap());
    assert_eq!(put.status, 204, "{size}: {put:?}");
    let host = std::process::Command::new("sha256sum").arg(&path).output().unwrap();
    let sum = String::from_utf8_lossy(&host.stdout)[..64].to_owned();
    assert_eq!(sandbox.sh("sha256sum '/tmp/a b.bin' | cut -c-64"), sum, "{size} bytes");
    let get = sandbox.http().get("/api/v1/files?path=%2Ftmp%2Fa+b.bin");
    assert!(get.status == 200 && get.bytes == bytes, "{size} bytes: {} {}", get.status, get.bytes.len());
}

#[test]
fn files_of_every_size_go_in_and_out() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    for size in [0, 1, 4096, 65_537, 3 << 20, 256 << 20] {
        check(&sandbox, size);
    }
}

#[test]
fn files_are_listed_removed_and_refused() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    let http = sandbox.http();
    sandbox.sh("mkdir -p /tmp/d/z /tmp/d/y; echo hi > /tmp/d/a");
    let list = http.get("/api/v1/files/list?path=/tmp/d").json;
    let names: Vec<_> = list["entries"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["y", "z", "a"]);
    for (method, path, status, code) in [
        ("GET", "/api/v1/files?path=/tmp/none", 404, "NOT_FOUND"),
        ("GET", "/api/v1/files?path=/tmp/d", 400, "IS_DIRECTORY"),
        ("GET", "/api/v1/files?path=/tmp/../etc/passwd", 403, "PATH_TRAVERSAL"),
        ("GET", "/api/v1/files/list?path=/tmp/d/a", 400, "NOT_A_DIRECTORY"),
        ("GET", "/api/v1/files/list?path=/none", 404, "NOT_FOUND"),
        ("DELETE", "/api/v1/files?path=/tmp/none", 404, "NOT_FOUND"),
        ("PUT", "/api/v1/files?path=/tmp/d", 400, "IS_DIRECTORY"),
        ("PUT", "/api/v1/files?path=/tmp/../x", 403, "PATH_TRAVERSAL"),
        ("GET", "/api/v1/files", 400, "INVALID_ARGUMENT"),
    ] {
        let answer = http.json(method, path, "x");
        assert_eq!((answer.status, answer.code()), (status, code), "{method} {path}: {answer:?}");
    }
    assert_eq!(http.delete("/api/v1/files?path=/tmp/d/a").status, 204);
    assert_eq!(sandbox.sh("ls /tmp/d"), "y\nz");
    let full = http.put("/api/v1/files?path=/dev/full", std::io::repeat(0).take(1 << 20));
    assert_eq!((full.status, full.code()), (507, "NO_SPACE"), "{full:?}");
}

#[test]
fn directories_are_copied_with_modes_and_links() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("sub/script.sh"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.join("sub/script.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("sub/script.sh", tree.join("link")).unwrap();
    File::create(tree.join("sub/big")).unwrap().write_all(&vec![7; 5 << 20]).unwrap();

    let remote = format!("{}:/workspace/tree", sandbox.id);
    world.ok(&["cp", tree.to_str().unwrap(), &remote]);
    assert_eq!(
        sandbox.sh("/workspace/tree/link; stat -c %s /workspace/tree/sub/big; ls -d /workspace/tree/sub/empty"),
        "ran\n5242880\n/workspace/tree/sub/empty"
    );
    let back = dir.path().join("back");
    world.ok(&["cp", &remote, back.to_str().unwrap()]);
    assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("sub/script.sh"));
    assert_eq!(fs::metadata(back.join("sub/script.sh")).unwrap().mode() & 0o777, 0o755);
    assert_eq!(fs::read(back.join("sub/big")).unwrap(), vec![7; 5 << 20]);

    let file = format!("{}:/tmp/one", sandbox.id);
    world.ok(&["cp", tree.join("sub/script.sh").to_str().unwrap(), &file]);
    world.ok(&["cp", &file, dir.path().join("one").to_str().unwrap()]);
    assert_eq!(fs::read_to_string(dir.path().join("one")).unwrap(), "#!/bin/sh\necho ran\n");
}
