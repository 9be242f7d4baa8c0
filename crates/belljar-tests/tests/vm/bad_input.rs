//! What is refused, and how; nothing is left behind.

use std::fs;

use belljar_tests::{World, world::prepared};
use serde_json::json;

#[test]
fn bad_requests_name_what_is_wrong() {
    let world = World::start();
    let http = world.http();
    for (body, status, code, word) in [
        (r#"{"resources":{"cpus":0}}"#, 400, "INVALID_ARGUMENT", "cpus"),
        (r#"{"resources":{"memory_mb":1}}"#, 400, "INVALID_ARGUMENT", "memory_mb"),
        (r#"{"resources":{"disk_mb":999999999}}"#, 400, "INVALID_ARGUMENT", "disk_mb"),
        (r#"{"name":"Not Good"}"#, 400, "INVALID_ARGUMENT", "name"),
        (r#"{"timeout_secs":"soon"}"#, 400, "INVALID_ARGUMENT", "timeout_secs"),
        (r#"{"exposed_ports":[70000]}"#, 400, "INVALID_ARGUMENT", "exposed_ports"),
        (r#"{"network":{"allow_out":["1.1.1.1/40"]}}"#, 400, "INVALID_ARGUMENT", "allow_out"),
        (r#"{"name":"#, 400, "INVALID_ARGUMENT", ""),
        ("[1]", 400, "INVALID_ARGUMENT", ""),
    ] {
        let answer = http.json("POST", "/sandboxes", body);
        assert_eq!((answer.status, answer.code()), (status, code), "{body}: {answer:?}");
        assert!(answer.json["error"].as_str().unwrap().contains(word), "{body}: {answer:?}");
    }
    let unknown = http.post("/sandboxes", &json!({"image": "no/such-image"}));
    assert_eq!((unknown.status, &unknown.json["status"]), (422, &json!("failed")), "{unknown:?}");
    assert_eq!(unknown.json["reason"], "ImageNotFound");
    assert!(unknown.json["error_details"]["message"].as_str().unwrap().contains("no/such-image"), "{unknown:?}");
    let later = http.post("/sandboxes", &json!({"image": "tensorlake/ubuntu-vnc"}));
    assert_eq!((later.status, &later.json["reason"]), (422, &json!("ImageNotFound")), "{later:?}");
    let huge = http.post("/sandboxes", &json!({"resources": {"cpus": 512}}));
    assert_eq!((huge.status, &huge.json["termination_reason"]), (422, &json!("no_capacity")), "{huge:?}");
    let large = http.json("POST", "/sandboxes", &format!(r#"{{"name":"{}"}}"#, "x".repeat(2 << 20)));
    assert_eq!(large.status, 413, "{large:?}");
    for (method, path) in
        [("GET", "/sandboxes/nobody"), ("PATCH", "/sandboxes/nobody"), ("DELETE", "/sandboxes/nobody")]
    {
        let answer = http.json(method, path, "{}");
        assert_eq!((answer.status, answer.code()), (404, "SANDBOX_NOT_FOUND"), "{method} {path}: {answer:?}");
    }
    for key in [None, Some("belljar_wrong")] {
        let answer = http.clone().with_key(key).get("/sandboxes");
        assert_eq!((answer.status, answer.code()), (401, "UNAUTHENTICATED"), "{answer:?}");
    }
    assert_eq!(http.get("/no/such/route").status, 404);
    assert_eq!(http.json("PUT", "/sandboxes", "{}").status, 405);
    assert_eq!(http.get("/sandboxes").json["sandboxes"], json!([]), "nothing is left");
    world.wait_until_clean();
}

/// A server that is started with `settings`: creating a sandbox fails for a reason that contains `word`.
fn check_boot_failure(settings: &[(&'static str, String)], word: &str) {
    let world = World::start_with(settings);
    let answer = world.http().post("/sandboxes", &json!({}));
    assert_eq!((answer.status, &answer.json["status"]), (422, &json!("failed")), "{answer:?}");
    assert!(answer.json.to_string().contains(word), "{answer:?}");
    world.wait_until_clean();
}

#[test]
fn a_damaged_kernel_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("vmlinux");
    fs::write(&kernel, vec![0; 1 << 20]).unwrap();
    check_boot_failure(&[("BELLJAR_KERNEL", kernel.display().to_string())], "StartupFailedInternalError");
}

#[test]
fn a_damaged_initramfs_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd.cpio");
    fs::write(&initrd, vec![b'x'; 1 << 20]).unwrap();
    check_boot_failure(&[("BELLJAR_INITRD", initrd.display().to_string())], "StartupFailedInternalError");
}

#[test]
fn a_missing_kernel_keeps_the_server_from_starting() {
    let world = World::start();
    let data = tempfile::tempdir().unwrap();
    let output = world
        .command(&["up", "--detach", "--listen", "127.0.0.1:0"])
        .env("BELLJAR_KERNEL", "/nowhere/vmlinux")
        .env("BELLJAR_DATA_DIR", data.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("/nowhere/vmlinux") && text.contains("cargo xtask kernel"),
        "{text}"
    );
}

#[test]
fn a_damaged_image_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let copied = std::process::Command::new("cp")
        .args(["-a", "--sparse=always"])
        .arg(prepared("BELLJAR_IMAGE_STORE"))
        .arg(&store)
        .status()
        .unwrap();
    assert!(copied.success());
    for entry in fs::read_dir(store.join("images")).unwrap() {
        let file = entry.unwrap().path().join("rootfs.ext4");
        fs::OpenOptions::new().write(true).open(file).unwrap().set_len(4096).unwrap();
    }
    check_boot_failure(&[("BELLJAR_IMAGE_STORE", store.display().to_string())], "image");
}

#[test]
fn a_data_directory_from_a_newer_version_is_refused() {
    let world = World::start();
    world.ok(&["down"]);
    let format = world.data().join("format");
    let text = fs::read_to_string(&format).unwrap();
    fs::write(&format, "belljar-data 999\n").unwrap();
    let error = world.up_fails();
    assert!(error.contains("newer"), "{error}");
    fs::write(&format, text).unwrap();
    world.up();
}

#[test]
fn a_port_in_use_is_named() {
    let world = World::start();
    let data = tempfile::tempdir().unwrap();
    let output = world
        .command(&["up", "--detach", "--listen", world.address()])
        .env("BELLJAR_DATA_DIR", data.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(world.address()) && text.contains("in use"), "{text}");
}
