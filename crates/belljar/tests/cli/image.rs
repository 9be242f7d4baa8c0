//! `belljar image` on a store of this machine.

use std::{fs, os::unix::fs::FileExt};

use belljar_image::{RuntimeConfig, Store};

use serde_json::{Value, json};

use super::{ID, World, check_answers, snapshot};

/// A file that passes for an ext4 file system of a mebibyte.
fn rootfs(world: &World) -> std::path::PathBuf {
    let path = world.home.path().join("rootfs");
    let file = fs::File::create(&path).expect("file");
    file.set_len(1 << 20).expect("size");
    file.write_all_at(&0xEF53_u16.to_le_bytes(), 1024 + 0x38).expect("write");
    path
}

#[test]
fn images_are_shown_named_and_removed() {
    let world = World::new();
    let root = world.home.path().join(".cache/belljar/store");
    let store = Store::open(&root).expect("store");
    let config = RuntimeConfig {
        env: [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "two\nlines".to_owned())].into(),
        workdir: Some("/srv".to_owned()),
        entrypoint: vec!["/bin/sh".to_owned(), "-c".to_owned(), "echo hi".to_owned()],
        labels: [("maker".to_owned(), "me".to_owned())].into(),
        exposed_ports: vec!["80/tcp".to_owned()],
        ..RuntimeConfig::default()
    };
    let image = store.import("team/tool:v1", &rootfs(&world), config).expect("image");
    let digest = &image.digest;
    world.check(&["image", "tag", "team/tool:v1", "tool"], &[], 0, &format!("tool {digest}\n"), "");
    let shown = format!(
        "name:        tool\nnames:       team/tool:v1, tool\nid:          {}\ndigest:      {digest}\nsize:        1.00 MiB\n\
         on disk:     {}\ncreated:     {}\npublic:      yes\nenv:         A=1\n             B=two\u{fffd}lines\n\
         workdir:     /srv\nuser:        tl-user\nentrypoint:  /bin/sh -c 'echo hi'\nlabels:      maker=me\n\
         ports:       80/tcp\nrootfs:      {}\n",
        image.id(),
        indicatif::HumanBytes(image.disk_bytes),
        image.created_at,
        image.rootfs.display().to_string().replace(world.home.path().to_str().expect("text"), "HOME"),
    );
    world.check(&["image", "show", "tool"], &[], 0, &shown, "");
    let output = world.command(&["--json", "image", "show", "tool"]).output().expect("belljar");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["names"], json!(["team/tool:v1", "tool"]));
    assert_eq!((json["config"]["env"]["A"].as_str(), json["digest"].as_str()), (Some("1"), Some(digest.as_str())));

    // It only passes for a file system. What broke off leaves no file.
    let target = world.home.path().join("tool.tar");
    let output = world.command(&["image", "export", "tool"]).arg(&target).output().expect("belljar");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("cannot export image \"tool\"") && text.contains("superblock makes no sense"), "{text}");
    let mut left = fs::read_dir(world.home.path()).expect("home").map(|it| it.expect("entry").file_name());
    assert!(!left.any(|name| name.to_string_lossy().contains("tool.tar") || name.to_string_lossy().contains("export")));

    world.check(&["image", "prune"], &[], 0, "", "0 B freed\n");
    world.check(&["image", "rm", "team/tool:v1"], &[], 0, "", "");
    let unknown = "error: image \"team/tool:v1\" not found; there are: tool\n";
    for args in [&["image", "show", "team/tool:v1"][..], &["image", "tag", "team/tool:v1", "x"]] {
        world.check(args, &[], 1, "", unknown);
    }
    // As a crash in the middle of a removal leaves it.
    fs::remove_file(root.join("names/tool.json")).expect("removed");
    fs::write(root.join("tmp/making-x.json.lock"), "").expect("written");
    let would = world.command(&["image", "prune", "--dry-run"]).output().expect("belljar");
    let (out, err) = (String::from_utf8_lossy(&would.stdout), String::from_utf8_lossy(&would.stderr));
    assert!(out.contains("image without a name") && out.contains("claim of a name"), "{out}");
    assert!(err.contains("would be freed; without --dry-run they are"), "{err}");
    assert!(image.rootfs.exists());
    assert!(world.command(&["image", "prune"]).output().expect("belljar").status.success());
    assert!(!image.rootfs.exists());
    world.check(&["image", "prune"], &[], 0, "", "0 B freed\n");
}

#[test]
fn names_that_no_image_can_have_are_refused_at_once() {
    let world = World::new();
    for args in [
        &["image", "show", "Nope"][..],
        &["image", "tag", "a", "b:"],
        &["image", "rm", "../x"],
        &["image", "import", "debian", "--name", "a//b"],
        &["image", "build", "a b"],
    ] {
        let output = world.command(args).output().expect("belljar");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains("a name looks like `team/tool` or `team/tool:v2`"), "{args:?}: {text}");
    }
}

fn image() -> Value {
    json!({
        "id": "image_0", "name": "mine", "snapshot_id": "blake3:00", "global": false, "physical_size_bytes": 2048,
        "logical_size_bytes": 4096, "created_at": "2025-09-06T09:51:06Z", "updated_at": "2025-09-06T09:51:06Z",
    })
}

#[test]
fn a_commit_takes_a_snapshot_and_removes_it() {
    let accepted = (202, json!({ "snapshot_id": ID, "status": "in_progress" }));
    let completed = (200, snapshot("completed", None));
    let gone = (200, Value::Null);
    let args = ["commit", "box", "mine"];
    check_answers(
        &[accepted.clone(), completed.clone(), (201, image()), gone.clone()],
        &args,
        0,
        "mine blake3:00\n",
        "image mine was made: 2.00 KiB on disk\n",
    );
    // It goes, too, when no image comes of it.
    let failed = (200, snapshot("failed", Some("no space")));
    let words = "error: the snapshot was not completed: no space\n";
    check_answers(&[accepted.clone(), failed, gone.clone()], &args, 1, "", words);
    let conflict = (409, json!({ "error": "it is being made", "code": "CONFLICT" }));
    let answers = [accepted.clone(), completed.clone(), conflict, gone];
    check_answers(&answers, &args, 1, "", "error: it is being made\n");
    let busy = (409, json!({ "error": "another time", "code": "CONFLICT" }));
    let note = format!("snapshot {ID} stays: another time; `belljar snapshot rm {ID}` removes it\n");
    let stays = format!("{note}image mine was made: 2.00 KiB on disk\n");
    check_answers(&[accepted, completed, (201, image()), busy], &args, 0, "mine blake3:00\n", &stays);
    // Nothing was taken: there is nothing to remove.
    let asleep = (409, json!({ "error": "it sleeps; resume it first", "code": "CONFLICT" }));
    check_answers(&[asleep], &args, 1, "", "error: it sleeps; resume it first\n");
}

#[test]
fn all_pages_of_images_are_listed() {
    let page = |next: Value| (200, json!({ "items": [image()], "pagination": { "next": next } }));
    let line = "mine  image_0  2.00 KiB  4.00 KiB  2025-09-06T09:51:06Z\n";
    let table = format!("NAME  ID       ON DISK   SIZE      BUILT\n{line}{line}");
    check_answers(&[page(json!("bWluZQ")), page(Value::Null)], &["image", "ls"], 0, &table, "");
}
