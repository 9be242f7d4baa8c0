//! Images that were made elsewhere, or of a sandbox.

use std::{fs, path::Path, process::Command};

use belljar_tests::{World, world::own_store};
use serde_json::{Value, json};

/// All that is in the image.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    char dir[64];
    printf("%d %s %s\n", getuid(), getcwd(dir, sizeof dir), getenv("GREETING"));
    return 0;
}
"#;

#[track_caller]
fn run(dir: &Path, words: &str) {
    let words: Vec<_> = words.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_oci_image_runs_as_its_configuration_says() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tool.c"), PROGRAM).unwrap();
    for words in [
        "gcc -static -o tool tool.c",
        "umoci init --layout image",
        "umoci new --image image:v1",
        "umoci insert --image image:v1 tool /bin/tool",
        "umoci config --image image:v1 --config.user 1001:1001 --config.workingdir /srv --config.env GREETING=hello",
    ] {
        run(dir.path(), words);
    }
    let store = dir.path().join("store").display().to_string();
    let world = World::start_with(&[("BELLJAR_IMAGE_STORE", store)]);
    let source = format!("oci:{}:v1", dir.path().join("image").display());
    world.ok(&["image", "import", &source, "--name", "tool"]);
    let sandbox = world.create(&json!({"image": "tool"}));
    let ran = sandbox.run_request(&json!({"command": "/bin/tool"}));
    assert_eq!(ran.stdout, "1001 /srv hello", "{ran:?}");
    sandbox.delete();
}

/// A world with a store of its own, in which the default image is.
fn with_own_store(dir: &Path) -> World {
    World::start_with(&[own_store(dir)])
}

fn names(world: &World) -> Vec<String> {
    let images = world.http().get("/images/v4/images?page_size=100").json;
    images["items"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_sandbox_becomes_an_image_that_can_go_while_others_live() {
    let dir = tempfile::tempdir().unwrap();
    let world = with_own_store(dir.path());
    let before = names(&world);
    let source = world.create(&json!({"name": "source"}));
    source.sh("echo kept > /workspace/file; ln /workspace/file /workspace/again; echo gone > /dev/shm/memory");
    world.ok(&["commit", "source", "mine:v1"]);
    assert_eq!(source.sh("cat /dev/shm/memory"), "gone", "it goes on");
    assert_eq!(world.http().get("/snapshots").json["snapshots"], json!([]));
    source.delete();

    world.ok(&["image", "tag", "mine:v1", "mine"]);
    let shown = world.json(&["image", "show", "mine"]);
    assert_eq!(shown["names"], json!(["mine", "mine:v1"]));
    assert_eq!(shown["history"].as_array().unwrap().last().unwrap()["comment"], "from image belljar/debian");
    let made = world.create(&json!({"image": "mine:v1", "name": "made", "timeout_secs": 0}));
    assert_eq!(made.sh("cat /workspace/again; stat -c %h /workspace/file; ls /dev/shm"), "kept\n2");
    // It is configured as the default image is.
    let config = &world.json(&["image", "show", "belljar/debian"])["config"];
    assert_eq!(&shown["config"], config);
    let language = config["env"]["LANG"].as_str().unwrap();
    assert_eq!(made.sh("echo $LANG"), language);

    let id = shown["id"].as_str().unwrap();
    let refused = world.http().delete("/images/v4/images/name/belljar/debian");
    assert_eq!((refused.status, refused.code()), (403, "FORBIDDEN"), "{refused:?}");
    assert_eq!(world.http().delete(&format!("/images/v4/images/{id}")).status, 204);
    assert_eq!(names(&world), before);
    let refused = world.http().post("/sandboxes", &json!({"image": "mine"}));
    assert_eq!((refused.status, &refused.json["termination_reason"]), (422, &json!("ImageNotFound")), "{refused:?}");
    // Whoever lives notices nothing, awake, asleep, and under another server.
    world.suspend("made");
    world.down_keep();
    world.up();
    assert_eq!(made.sh("cat /workspace/file; echo $LANG"), format!("kept\n{language}"));
    // And can be made into an image again.
    let snapshot = world.snapshot("made", "filesystem");
    let new = json!({"name": "again", "snapshot_id": snapshot["id"], "public": true});
    let answer = world.http().post("/images/v4/images/from-snapshot", &new);
    assert_eq!((answer.status, &answer.json["global"]), (201, &Value::Bool(true)), "{answer:?}");
    let again = world.create(&json!({"image": "again"}));
    assert_eq!(again.sh("cat /workspace/file"), "kept");
    again.delete();
    made.delete();
    world.ok(&["image", "prune"]);
    let left: Vec<_> = fs::read_dir(dir.path().join("store/tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_exported_image_comes_back_through_another_program() {
    let dir = tempfile::tempdir().unwrap();
    let world = with_own_store(dir.path());
    let source = world.create(&json!({"name": "source"}));
    // Written a moment before the snapshot, it is in the journal of the disk and not everywhere in its place.
    source.sh("cp -a /etc/passwd /workspace/file; ln /workspace/file /workspace/again; echo new | sudo tee /root/root");
    source
        .sh("mkdir /workspace/many; for n in $(seq 500); do echo $n > /workspace/many/$n; done; rm /workspace/many/7");
    world.ok(&["commit", "source", "mine:v1"]);
    let sum = "cd / && sudo sha256sum /workspace/file /workspace/many/* /root/root /usr/bin/* 2>/dev/null | sha256sum";
    let expected = source.sh(sum);
    source.delete();
    let archive = dir.path().join("mine.tar").display().to_string();
    world.ok(&["image", "export", "mine:v1", &archive]);
    run(dir.path(), &format!("skopeo copy --quiet oci-archive:{archive} oci:copied:v1"));
    world.ok(&["image", "import", &format!("oci:{}:v1", dir.path().join("copied").display()), "--name", "back"]);
    let made = world.create(&json!({"image": "back"}));
    assert_eq!(made.sh(sum), expected);
    assert_eq!(made.sh("stat -c %h /workspace/again; ls /workspace/many | wc -l; id -un"), "2\n499\ntl-user");
    made.delete();
}
