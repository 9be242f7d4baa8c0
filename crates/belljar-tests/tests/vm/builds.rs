//! Images from Dockerfiles: what `belljar build` makes, what it says when it makes nothing, and what is left.
//!
//! They build on an image with nothing but busybox, so that a step takes as long as its container does.

use std::{fs, path::Path, process::Command};

use belljar_tests::{World, wait_while, world::own_store};
use serde_json::{Value, json};

/// What the image is made of: links are as good as programs.
const APPLETS: [&str; 12] =
    ["cat", "dd", "echo", "fallocate", "id", "ls", "mkdir", "pwd", "sh", "sleep", "test", "true"];

/// A server with a store of its own, in which the image `tiny` and the builder are.
struct Builds {
    world: World,
    dir: tempfile::TempDir,
}

#[track_caller]
fn run(dir: &Path, words: &str) {
    let words: Vec<_> = words.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Builds {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        fs::create_dir_all(at.join("root/bin")).unwrap();
        fs::create_dir_all(at.join("root/tmp")).unwrap();
        fs::copy("/bin/busybox", at.join("root/bin/busybox")).unwrap();
        for name in APPLETS {
            std::os::unix::fs::symlink("busybox", at.join("root/bin").join(name)).unwrap();
        }
        for words in [
            "umoci init --layout layout",
            "umoci new --image layout:v1",
            "umoci insert --image layout:v1 root /",
            "umoci config --image layout:v1 --config.env PATH=/bin",
        ] {
            run(at, words);
        }
        let world = World::start_with(&[own_store(at)]);
        world.ok(&["image", "import", &format!("oci:{}:v1", at.join("layout").display()), "--name", "tiny"]);
        Self { world, dir }
    }

    /// Writes a context of these files.
    fn context(&self, files: &[(&str, &str)]) -> String {
        let context = self.dir.path().join("context");
        let _ = fs::remove_dir_all(&context);
        for (name, text) in files {
            let path = context.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        context.display().to_string()
    }

    /// Builds a Dockerfile: whether that worked, and all that was said.
    fn build(&self, dockerfile: &str, args: &[&str]) -> (bool, String) {
        let context = self.context(&[("Dockerfile", dockerfile)]);
        let output = self.world.cli(&[&["build", "--tag", "made"], args, &[&context]].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[track_caller]
    fn check_fails(&self, dockerfile: &str, args: &[&str], words: &str) {
        let (worked, said) = self.build(dockerfile, args);
        assert!(!worked && said.contains(words), "{dockerfile}: {said}\n{}", self.world.log());
    }

    fn run(&self, image: &str, line: &str) -> String {
        self.world.ok(&["run", "--image", image, "--", "sh", "-c", line])
    }

    /// Waits until no builder is left, and what is kept of the last one is.
    fn settle(&self) {
        let live = || self.world.http().get("/sandboxes").json["sandboxes"].as_array().map_or(0, Vec::len);
        wait_while(|| live() > 0);
        self.world.wait_until_clean();
    }
}

const STAGES: &str = r#"# syntax=docker/dockerfile:1
ARG BASE=nothing
FROM ${BASE} AS first
ARG WHO=nobody
RUN <<EOF
echo "here is $WHO" > /who
mkdir /out
EOF
RUN --mount=type=secret,id=token --mount=type=cache,target=/cache \
    cat /run/secrets/token > /seen; echo once >> /cache/count; cat /cache/count > /out/count
COPY . /all

FROM first AS unused
RUN echo this must not run; test

FROM ${BASE}
COPY --from=first /who /out/count /seen /
COPY --from=first /all /all
COPY --chmod=755 <<'EOF' /bin/greet
#!/bin/sh
echo "hello from $(pwd)"
EOF
ENV GREETING=hello
WORKDIR /srv
USER 7:8
CMD ["greet"]
"#;

#[test]
fn a_dockerfile_becomes_an_image() {
    let it = Builds::new();
    let token = it.dir.path().join("token");
    fs::write(&token, "sesame").unwrap();
    let context = it.context(&[
        ("docker/Dockerfile", STAGES),
        (".dockerignore", "*.log\n!kept.log\nskipped\n"),
        ("a.log", ""),
        ("kept.log", ""),
        ("skipped/x", ""),
        ("dir/file", ""),
    ]);
    let file = format!("{context}/docker/Dockerfile");
    let secret = format!("id=token,src={}", token.display());
    let args = ["--build-arg", "BASE=tiny", "--build-arg", "WHO=me", "--secret", &secret, "--file", &file, &context];
    let build = || {
        let output = it.world.cli(&[&["build", "-t", "team/made", "--json"], args.as_slice()].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}\n{}", it.world.log());
        (serde_json::from_slice::<Value>(&output.stdout).unwrap(), said)
    };
    let (first, said) = build();
    assert_eq!(
        (&first["status"], &first["kind"], &first["name"]),
        (&json!("succeeded"), &json!("dockerfile"), &json!("team/made"))
    );
    assert!(said.contains("STEP 2/") && said.contains(" s] ") && !said.contains("sesame"), "{said}");
    let seen =
        it.run("team/made", "id -u; pwd; greet; echo $GREETING; cat /who /count /seen; echo; ls -A /all; ls /all/dir");
    let files = ".dockerignore\ndir\ndocker\nkept.log\nfile\n";
    assert_eq!(seen, format!("7\n/srv\nhello from /srv\nhello\nhere is me\nonce\nsesame\n{files}"));
    it.settle();
    // Nothing has changed: no step runs, and nothing is imported.
    let (second, said) = build();
    assert_eq!(second["result"]["id"], first["result"]["id"]);
    assert!(said.contains("Using cache") && !said.contains("unpack"), "{said}");
    let shown = it.world.json(&["image", "show", "team/made"]);
    let history = shown["history"].to_string();
    assert!(history.contains("COPY") && !history.contains("sesame"), "{history}");
    it.settle();
    // The cache is a snapshot, and all that is left.
    assert_eq!(it.world.http().get("/snapshots").json["snapshots"].as_array().unwrap().len(), 1);
}

#[test]
fn a_build_that_fails_says_why_and_leaves_nothing() {
    let it = Builds::new();
    it.check_fails("FROM tiny\n\n RUNN x", &[], "Dockerfile:3:2: unknown instruction 'RUNN'");
    it.check_fails("FROM tiny AS one", &["--target", "two"], "has no stage \"two\"; it has one");
    let context = it.context(&[("Dockerfile", "FROM tiny")]);
    for (args, words) in [
        (["build", "-t", "made", "-f", "/nowhere", &context], "cannot read the Dockerfile /nowhere"),
        (["build", "--no-cache", "--pull", "-t", "belljar/debian", &context], "belljar/debian"),
    ] {
        let output = it.world.cli(&args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{said}");
    }

    it.check_fails(
        "FROM tiny\nRUN true\nRUN echo its last words; exit 7",
        &[],
        "step 3/3 RUN echo its last words; exit 7: exit status 7; it wrote last: its last words",
    );
    it.check_fails("FROM registry.invalid/no:1", &[], "step 1/1 FROM registry.invalid/no:1: ");
    let small = ["--cpus", "1", "--memory", "1024", "--disk", "10240"];
    it.check_fails(
        "FROM tiny\nRUN dd if=/dev/zero of=/dev/null bs=850M count=1",
        &small,
        "count=1: out of memory, 1024 MiB builder; use --memory",
    );
    it.check_fails("FROM tiny\nRUN fallocate -l 30G /full", &small, "disk full, 10240 MiB builder; use --disk");
    // It forks until it may not any more, and the builder is still there to say so.
    let bomb = "FROM tiny\nRUN sh -c 'while true; do sleep 1000 & done'";
    it.check_fails(bomb, &small, "it wrote last: sh: can't fork: Resource temporarily unavailable");
    it.settle();
    assert_eq!(it.world.http().get("/snapshots").json["snapshots"], json!([]));
    let images = it.world.http().get("/images/v4/images?page_size=100").json;
    assert!(!images["items"].as_array().unwrap().iter().any(|image| image["name"] == "made"), "{images}");
}

#[test]
fn a_build_is_cancelled_and_ends_with_its_server() {
    let it = Builds::new();
    let context = it.context(&[("Dockerfile", "FROM tiny\nRUN sleep 1000")]);
    let mut client =
        it.world.command(&["build", "-t", "made", &context]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let running = || {
        let sandboxes = it.world.http().get("/sandboxes").json;
        let id = sandboxes["sandboxes"].as_array().unwrap().first()?["id"].as_str()?.to_owned();
        let processes = it.world.sandbox(&id).processes()?;
        processes.to_string().contains("tl-image-builder").then_some(id)
    };
    wait_while(|| running().is_none());
    let second = it.world.cli(&["build", "-t", "made", &context]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("makes an image \"made\" already"), "{said}");
    // Ctrl-C cancels it.
    run(it.dir.path(), &format!("kill -INT {}", client.id()));
    assert_eq!(client.wait().unwrap().code(), Some(130));
    it.settle();

    let mut client =
        it.world.command(&["build", "-t", "made", &context]).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_while(|| running().is_none());
    it.world.kill_server();
    assert!(!client.wait().unwrap().success());
    it.world.up();
    it.settle();
    let left: Vec<_> = fs::read_dir(it.world.data().join("contexts")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
