//! Images from Dockerfiles: what `belljar build` makes, what it says when it makes nothing, and what is left.
//!
//! They build on an image with nothing but busybox, so that a step takes as long as its container does.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

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
        self.context_named("context", files)
    }

    /// The same for one of several at once.
    fn context_named(&self, name: &str, files: &[(&str, &str)]) -> String {
        let context = self.dir.path().join(name);
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
        wait_while(|| !self.builders().is_empty());
        self.world.wait_until_clean();
    }

    /// Sandboxes in which images are built; no list shows them to those who did not ask.
    fn builders(&self) -> Vec<String> {
        let list = |path: &str| self.world.http().get(path).json["sandboxes"].as_array().unwrap().clone();
        assert_eq!(list("/sandboxes"), [] as [Value; 0]);
        list("/sandboxes?internal=true").iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect()
    }

    /// The builder, once the program that builds runs in it.
    fn at_work(&self) -> Option<String> {
        let id = self.builders().pop()?;
        let processes = self.world.sandbox(&id).processes()?;
        processes.to_string().contains("tl-image-builder").then_some(id)
    }

    /// How many snapshots a list has.
    fn snapshots(&self, query: &str) -> usize {
        self.world.http().get(&format!("/snapshots{query}")).json["snapshots"].as_array().unwrap().len()
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
    // The cache is a snapshot, and all that is left. It is shown to those who ask for it.
    assert_eq!((it.snapshots(""), it.snapshots("?internal=true")), (0, 1));
    let count = |args: &[&str], key: &str| it.world.json(args)[key].as_array().unwrap().len();
    assert_eq!(
        (count(&["snapshot", "ls"], "snapshots"), count(&["snapshot", "ls", "--internal"], "snapshots")),
        (0, 1)
    );
    assert_eq!(count(&["tree"], "nodes"), 0);
    assert!(count(&["tree", "--internal"], "nodes") > 0);
    // `run` made one of those that have ended.
    let ended = count(&["ls", "--all"], "sandboxes");
    assert_eq!((ended, count(&["ls", "--all", "--internal"], "sandboxes")), (1, 3));
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
    it.check_fails(bomb, &small, "too many processes, at most 2048 may run in a builder");
    it.settle();
    assert_eq!(it.snapshots("?internal=true"), 0);
    let images = it.world.http().get("/images/v4/images?page_size=100").json;
    assert!(!images["items"].as_array().unwrap().iter().any(|image| image["name"] == "made"), "{images}");
}

#[test]
fn a_build_is_cancelled_and_ends_with_its_server() {
    let it = Builds::new();
    let context = it.context(&[("Dockerfile", "FROM tiny\nRUN sleep 1000")]);
    let mut client = it.world.command(&["build", "-t", "made", &context]).stderr(Stdio::null()).spawn().unwrap();
    wait_while(|| it.at_work().is_none());
    let second = it.world.cli(&["build", "-t", "made", &context]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("makes an image \"made\" already"), "{said}");
    // Ctrl-C cancels it.
    run(it.dir.path(), &format!("kill -INT {}", client.id()));
    assert_eq!(client.wait().unwrap().code(), Some(130));
    it.settle();

    let mut client = it.world.command(&["build", "-t", "made", &context]).stderr(Stdio::null()).spawn().unwrap();
    wait_while(|| it.at_work().is_none());
    it.world.kill_server();
    assert!(!client.wait().unwrap().success());
    it.world.up();
    it.settle();
    let left: Vec<_> = fs::read_dir(it.world.data().join("contexts")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn two_builds_at_once_do_not_disturb_each_other() {
    let it = Builds::new();
    let begin = |name: &str| {
        let dockerfile = format!("FROM tiny\nRUN echo {name} > /who; sleep 10");
        let context = it.context_named(name, &[("Dockerfile", &dockerfile)]);
        let args = ["build", "-t", name, "--cpus", "1", "--memory", "1024", "--disk", "10240", &context];
        it.world.command(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let clients = ["one", "two"].map(begin);
    wait_while(|| it.builders().len() < 2);
    for client in clients {
        let ended = client.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}\n{}", String::from_utf8_lossy(&ended.stderr), it.world.log());
    }
    for name in ["one", "two"] {
        assert_eq!(it.run(name, "cat /who").trim(), name);
    }
    // Both unpacked a base that was not there; what one of them has is kept.
    it.settle();
    assert_eq!(it.snapshots("?internal=true"), 1);
}

/// Passes connections on to an address, until it is told to cut them.
struct Proxy {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, open) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let kept = Arc::clone(&open);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let far = TcpStream::connect(&to).unwrap();
                for (mut from, mut into) in [(&near, &far), (&far, &near)].map(|(a, b)| (own(a), own(b))) {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Write);
                    });
                }
                kept.lock().unwrap().push(near);
            }
        });
        Self { address, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn own(stream: &TcpStream) -> TcpStream {
    stream.try_clone().unwrap()
}

#[test]
fn a_log_that_breaks_off_is_read_on_from_where_it_was() {
    let it = Builds::new();
    let steps = "for n in 1 2 3 4 5 6 7 8 9; do echo mark-$n; sleep 1; done";
    let context = it.context(&[("Dockerfile", &format!("FROM tiny\nRUN {steps}"))]);
    let proxy = Proxy::start(it.world.address().to_owned());
    let mut client = it.world.command(&["build", "-t", "made", &context]);
    client.env("BELLJAR_API_URL", format!("http://{}", proxy.address));
    let mut client = client.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // Another client begins when the first one is cut off, and reads all of it.
    let follow = || {
        let id = it.at_work().unwrap();
        let processes = it.world.sandbox(&id).processes().unwrap();
        let mut found = processes["processes"].as_array().unwrap().iter();
        let builder = found.find(|it| it["command"].to_string().contains("tl-image-builder")).unwrap();
        it.world.sandbox(&id).follow(&builder["pid"].to_string())
    };
    let stderr = BufReader::new(client.stderr.take().unwrap());
    let (said, other) = std::thread::scope(|scope| {
        let (mut said, mut other) = (Vec::new(), None);
        for line in stderr.lines() {
            said.push(line.unwrap());
            if said.last().is_some_and(|line| line.ends_with("mark-3")) {
                other = Some(scope.spawn(follow));
                proxy.cut();
            }
        }
        (said, other.map(|other| other.join().unwrap()))
    });
    assert!(client.wait().unwrap().success(), "{said:#?}\n{}", it.world.log());
    let marks = |lines: &[String]| -> Vec<String> {
        lines.iter().filter_map(|line| line.rsplit_once("mark-")).map(|(_, n)| n.to_owned()).collect()
    };
    let all = ["$n; sleep 1; done", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    assert_eq!(marks(&said), all, "{said:#?}");
    assert_eq!(other.as_deref().map(marks).unwrap(), all, "{other:#?}");
    it.settle();
}
