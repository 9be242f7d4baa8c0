//! Images that were made elsewhere.

use std::{fs, path::Path, process::Command};

use belljar_tests::World;
use serde_json::json;

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
