//! Whole commands without a server, or against canned answers: exit code, stdout and stderr. With a server they are
//! tested in `belljar-tests`.

#[path = "cli/image.rs"]
mod image;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
};

use serde_json::json;
use tempfile::TempDir;

/// A home directory of one's own, and an address where nobody listens.
struct World {
    home: TempDir,
    url: String,
}

impl World {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        Self { home: tempfile::tempdir().expect("directory"), url }
    }

    fn data(&self) -> std::path::PathBuf {
        self.home.path().join("data")
    }

    fn config(&self, text: &str) {
        let dir = self.home.path().join(".config/belljar");
        fs::create_dir_all(&dir).expect("directory");
        fs::write(dir.join("config.toml"), text).expect("config");
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_belljar"));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("BELLJAR_DATA_DIR", self.data());
        command
    }

    /// Runs a command; `HOME` and `URL` stand for this world's own.
    #[track_caller]
    fn check(&self, args: &[&str], env: &[(&str, &str)], code: i32, stdout: &str, stderr: &str) {
        let args: Vec<String> = args.iter().map(|arg| arg.replace("URL", &self.url)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = self.command(&args).envs(env.iter().copied()).output().expect("belljar");
        let text = |bytes: &[u8]| {
            let home = self.home.path().to_str().expect("text");
            String::from_utf8_lossy(bytes).replace(home, "HOME").replace(&self.url, "URL")
        };
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str(), text(&output.stderr).as_str()),
            (Some(code), stdout, stderr),
            "{args:?}"
        );
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    let world = World::new();
    world.check(&["--version"], &[], 0, concat!("belljar ", env!("CARGO_PKG_VERSION"), "\n"), "");
    let output = world.command(&["--help"]).output().expect("belljar");
    let text = String::from_utf8(output.stdout).expect("text");
    for verb in [
        "up",
        "down",
        "doctor",
        "create",
        "ls",
        "show",
        "run",
        "exec",
        "shell",
        "cp",
        "ps",
        "kill",
        "logs",
        "tunnel",
        "rm",
        "suspend",
        "resume",
        "snapshot",
        "commit",
        "restore",
        "fork",
        "rollback",
        "tree",
        "diff",
        "pool",
        "df",
        "gc",
        "image",
        "vmm",
        "key",
        "env",
        "completion",
    ] {
        assert!(text.lines().any(|line| line.trim_start().starts_with(verb)), "{verb} is not in\n{text}");
        let help = world.command(&[verb, "--help"]).output().expect("belljar");
        assert!(help.status.success() && help.stderr.is_empty(), "{verb}");
    }
    assert!(!text.contains("openapi"), "{text}");
}

#[test]
fn wrong_command_lines_are_code_2() {
    let world = World::new();
    for args in [
        &["frobnicate"][..],
        &["run"],
        &["exec", "box"],
        &["exec", "Box", "true"],
        &["create", "--memory", "lots"],
        &["create", "--name", "-x"],
        &["cp", "box:relative", "x"],
        &["cp", "box:/a/../b", "x"],
        &["kill", "-s", "NOPE", "box", "1"],
        &["logs", "box", "--follow"],
        &["tunnel", "box", "0"],
        &["image", "import"],
        &["image", "import", "debian", "--username", "me"],
        &["image", "import", "debian", "--password-stdin"],
        &["rm"],
        &["suspend"],
        &["snapshot", "create", "--memory", "--filesystem", "box"],
        &["snapshot", "rm"],
        &["snapshot", "show", "not-an-id"],
        &["restore", "box"],
        &["restore", "5gm9wex8dm6ko1ed441ya", "--image", "x"],
        &["create", "--no-auto-resume"],
        &["fork", "box", "--times", "0"],
        &["fork", "box", "--times", "101"],
        &["rollback", "box"],
        &["diff", "5gm9wex8dm6ko1ed441ya"],
        &["pool", "claim", "box"],
        &["up", "--listen", "nowhere"],
    ] {
        let output = world.command(args).output().expect("belljar");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    }
}

#[test]
fn without_a_server_there_is_a_hint() {
    let world = World::new();
    let key = [("BELLJAR_API_KEY", "k")];
    let refused = "error: cannot connect to URL\n  caused by: Connection refused (os error 111)\n\n\
                   hint: start it with `belljar up`, or name another server with --api-url\n";
    world.check(&["--api-url", "URL", "ls"], &key, 1, "", refused);
    // A program's own code would be 1 as well.
    world.check(&["--api-url", "URL", "run", "true"], &key, 125, "", refused);
    world.check(&["--api-url", "URL", "exec", "box", "true"], &key, 125, "", refused);
    let json = "{\"causes\":[\"Connection refused (os error 111)\"],\"error\":\"cannot connect to URL\",\
                \"hints\":[\"start it with `belljar up`, or name another server with --api-url\"]}\n";
    world.check(&["--api-url", "URL", "--json", "ls"], &key, 1, "", json);
}

#[test]
fn what_is_not_a_release_is_not_installed() {
    let world = World::new();
    let usb = world.home.path().join("usb");
    let dir = usb.to_str().expect("text");
    let check = |name: &str, stderr: &str| world.check(&["vmm", "install", "--from", dir, name], &[], 1, "", stderr);
    let url = "https://github.com/cloud-hypervisor/cloud-hypervisor/releases/download/v53.0/cloud-hypervisor-static";
    check(
        "cloud-hypervisor",
        &format!(
            "error: HOME/usb/cloud-hypervisor-static does not exist; cloud-hypervisor 53.0 is that file of {url}\n"
        ),
    );
    fs::create_dir(&usb).expect("directory");
    fs::write(usb.join("cloud-hypervisor-static"), "not it").expect("file");
    check(
        "cloud-hypervisor",
        "error: HOME/usb/cloud-hypervisor-static is not what this version of Belljar takes: its SHA-256 is \
         06121725c433ccd0469b52730a723e66a9c1e31c67c42b1dba6b501f0bf94c9d, not 448af3d4e59b22c2987f7df94c213ad40fb53a10d437e42b5ee6c4fce7c29ecc\n\n\
         hint: do not use that file; something between here and the project changed it\n",
    );
    check("qemu", "error: no release of qemu is known to this version; there are: firecracker, cloud-hypervisor\n");
    let output = world.command(&["--json", "vmm", "ls"]).output().expect("belljar");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&list["items"][0]["name"], &list["items"][0]["installed"]), (&json!("firecracker"), &json!(null)));
}

#[test]
fn without_a_key_there_is_a_hint() {
    let world = World::new();
    world.check(
        &["ls"],
        &[],
        1,
        "",
        "error: no API key: none was given, and HOME/data/api-key cannot be read\n  \
         caused by: No such file or directory (os error 2)\n\n\
         hint: start the server with `belljar up`, or give a key with --api-key or BELLJAR_API_KEY\n",
    );
    // The key of this machine's server is for nobody else.
    fs::create_dir(world.data()).expect("directory");
    fs::write(world.data().join("api-key"), "secret\n").expect("key");
    world.check(
        &["--api-url", "http://belljar.example.com", "env"],
        &[],
        1,
        "",
        "error: no API key for http://belljar.example.com\n\n\
         hint: give a key of that server with --api-key or BELLJAR_API_KEY\n",
    );
    world.check(
        &["env"],
        &[],
        0,
        "export TENSORLAKE_API_URL=http://127.0.0.1:8900\nexport TENSORLAKE_API_KEY=secret\n",
        "",
    );
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let world = World::new();
    let exports = |url: &str, key: &str| format!("export TENSORLAKE_API_URL={url}\nexport TENSORLAKE_API_KEY={key}\n");
    world.config("api_url = 'http://file'\napi_key = 'file'\n");
    world.check(&["env"], &[], 0, &exports("http://file", "file"), "");
    let env = [("BELLJAR_API_URL", "http://env"), ("BELLJAR_API_KEY", "env")];
    world.check(&["env"], &env, 0, &exports("http://env", "env"), "");
    world.check(
        &["env", "--api-url", "http://flag", "--api-key", "flag"],
        &env,
        0,
        &exports("http://flag", "flag"),
        "",
    );
    world.check(&["env", "--api-url", "http://flag"], &env[1..], 0, &exports("http://flag", "env"), "");
    world.check(
        &["env", "--json", "--api-key", "k"],
        &[],
        0,
        "{\"TENSORLAKE_API_KEY\":\"k\",\"TENSORLAKE_API_URL\":\"http://file\"}\n",
        "",
    );
}

#[test]
fn a_mistake_in_the_file_is_named() {
    let world = World::new();
    world.config("api_ulr = 'http://file'\n");
    let output = world.command(&["env"]).output().expect("belljar");
    let stderr = String::from_utf8_lossy(&output.stderr).replace(world.home.path().to_str().expect("text"), "HOME");
    assert!(stderr.starts_with("error: HOME/.config/belljar/config.toml has a mistake\n  caused by: "), "{stderr}");
    assert!(stderr.contains("unknown field `api_ulr`"), "{stderr}");
    assert_eq!(output.status.code(), Some(1));
    world.check(
        &["--config", "/nowhere/config.toml", "env"],
        &[],
        1,
        "",
        "error: cannot read /nowhere/config.toml\n  caused by: No such file or directory (os error 2)\n",
    );
}

#[test]
fn addresses_that_cannot_work_are_refused() {
    let world = World::new();
    world.check(
        &["--api-key", "k", "--api-url", "ftp://belljar.example.com", "ls"],
        &[],
        1,
        "",
        "error: server address \"ftp://belljar.example.com\" has an unknown scheme; write it like http://127.0.0.1:8900\n",
    );
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let world = World::new();
    world.check(
        &["--api-key", "k", "--api-url", "https://localhost:1", "--ca", "/nowhere/ca.pem", "ls"],
        &[],
        1,
        "",
        "error: cannot read /nowhere/ca.pem, which --ca names\n  caused by: No such file or directory (os error 2)\n",
    );
    world.check(
        &["--api-key", "k", "--api-url", "https://localhost:1", "ls"],
        &[("BELLJAR_CA", "/dev/null")],
        1,
        "",
        "error: /dev/null is not usable\n  caused by: the CA certificates cannot be used: there is no certificate in it; give \
         certificates as PEM\n",
    );
}

#[test]
fn copies_need_one_side_in_a_sandbox() {
    let world = World::new();
    world.check(
        &["--api-key", "k", "cp", "a", "b"],
        &[],
        1,
        "",
        "error: neither path is in a sandbox\n\nhint: write one of them as SANDBOX:/path\n",
    );
}

#[test]
fn completions_and_the_document_are_printed() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = world.command(&["completion", shell]).output().expect("belljar");
        assert!(output.status.success() && output.stdout.len() > 1000, "{shell}");
    }
    let output = world.command(&["openapi"]).output().expect("belljar");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    assert!(document["paths"]["/sandboxes"].is_object(), "{document}");
}

/// Starts that must fail, with the words that say why; nothing may be left behind.
#[track_caller]
fn check_up(world: &World, args: &[&str], words: &[&str]) {
    for detach in [&["up"][..], &["up", "--detach"]] {
        let before = list(world.home.path());
        let output = world.command(&[detach, args].concat()).output().expect("belljar");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{args:?}: {stderr}");
        assert_eq!(stderr.matches("error:").count(), 1, "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: {word:?} is not in {stderr}");
        }
        assert_eq!(list(world.home.path()), before, "{args:?}: something was left behind");
    }
}

fn list(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(list(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

#[test]
fn up_says_why_it_does_not_start_and_leaves_nothing() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = listener.local_addr().expect("address").to_string();
    let file = world.home.path().join("file");
    fs::write(&file, "x").expect("file");
    let file = file.to_str().expect("text");

    check_up(&world, &["--kernel", "/nowhere/vmlinux"], &["/nowhere/vmlinux is missing", "cargo xtask kernel"]);
    check_up(
        &world,
        &["--kernel", file, "--initrd", "/nowhere/initrd"],
        &["/nowhere/initrd is missing", "cargo xtask guest"],
    );
    let files = ["--kernel", file, "--initrd", file];
    check_up(&world, &[&files[..], &["--listen", &taken]].concat(), &[&taken, "is in use", "--listen"]);
    let home = world.home.path().to_str().expect("text").to_owned();
    check_up(
        &world,
        &[&files[..], &["--data-dir", &home]].concat(),
        &["not a data directory of Belljar", "--data-dir"],
    );
    fs::create_dir(world.data()).expect("directory");
    fs::write(world.data().join("format"), "belljar-data 999\n").expect("format");
    check_up(&world, &[&files[..], &["--listen", "127.0.0.1:0"]].concat(), &["newer"]);
}

#[test]
fn down_without_a_server_is_no_error() {
    let world = World::new();
    world.check(&["down"], &[], 0, "", "nothing runs on HOME/data\n");
    world.check(&["down", "--json"], &[], 0, "{\"stopped\":false}\n", "");
    // A pid that another process has by now is left alone.
    fs::create_dir(world.data()).expect("directory");
    fs::write(world.data().join("belljar.pid"), format!("{} 1\n", std::process::id())).expect("pid");
    world.check(&["down"], &[], 0, "", "nothing runs on HOME/data\n");
}

#[test]
fn doctor_looks_and_touches_nothing() {
    let world = World::new();
    let output = world.command(&["doctor", "--json"]).output().expect("belljar");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    // There is no kernel in this home.
    assert_eq!((output.status.code(), report["can_run"].as_bool()), (Some(1), Some(false)));
    let kernel = report["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "kernel");
    assert_eq!(kernel.expect("kernel")["mark"], "missing");
    let output = world.command(&["doctor"]).output().expect("belljar");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("missing kernel") && text.contains("-> cargo xtask kernel"), "{text}");
    assert_eq!(list(world.home.path()), [] as [std::path::PathBuf; 0]);
}

/// A server that gives these answers, one for each connection; returns its address.
fn answering(answers: &[(u16, serde_json::Value)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let answers: Vec<_> = answers.iter().map(|(status, body)| (*status, body.to_string())).collect();
    std::thread::spawn(move || {
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().expect("accept");
            read_request(&mut stream);
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("answer");
        }
    });
    url
}

fn read_request(stream: &mut std::net::TcpStream) {
    let (mut reader, mut length) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("head");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("length");
        }
        if line == "\r\n" {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length]).expect("body");
}

/// Runs a command against [`answering`].
#[track_caller]
fn check_answers(answers: &[(u16, serde_json::Value)], args: &[&str], code: i32, stdout: &str, stderr: &str) {
    let url = answering(answers);
    let env = [("BELLJAR_API_URL", url.as_str()), ("BELLJAR_API_KEY", "k")];
    World::new().check(args, &env, code, stdout, stderr);
}

const ID: &str = "5gm9wex8dm6ko1ed441ya";

fn sandbox(status: &str) -> serde_json::Value {
    json!({
        "id": ID, "namespace": "default", "status": status, "image": "i", "runtime": null,
        "resources": { "cpus": 1, "memory_mb": 1024, "disk_mb": 10240, "ephemeral_disk_mb": 10240 },
        "timeout_secs": 60, "entrypoint": null, "name": "box", "network_policy": null, "network": null, "pool_id": null,
        "outcome": null, "termination_reason": null, "error_details": null, "pending_reason": null, "created_at": 1,
        "terminated_at": null, "allow_unauthenticated_access": false, "exposed_ports": [], "ingress_endpoint": null,
        "sandbox_url": null, "file_systems": [], "auto_resume": false, "executor_id": null,
    })
}

fn snapshot(status: &str, error: Option<&str>) -> serde_json::Value {
    json!({
        "id": ID, "namespace": "default", "sandbox_id": ID, "base_image": "i", "status": status, "error": error,
        "snapshot_type": "memory", "size_bytes": 2048, "rootfs_disk_bytes": null, "snapshot_uri": null,
        "snapshot_format_version": null, "parent_id": null, "created_at": 1,
    })
}

fn copied(status: &str, message: Option<&str>) -> serde_json::Value {
    let details = message.map(|message| json!({ "message": message }));
    json!({
        "sandbox_id": ID, "status": status, "name": null, "pending_reason": null, "reason": null,
        "termination_reason": null, "error_details": details, "ingress_endpoint": null, "sandbox_url": null,
    })
}

#[test]
fn states_are_waited_for_and_the_id_is_printed() {
    let line = format!("{ID}\n");
    check_answers(&[(200, sandbox("suspended"))], &["suspend", "box"], 0, &line, "");
    check_answers(&[(202, sandbox("suspending"))], &["suspend", "--no-wait", "box"], 0, &line, "");
    check_answers(&[(202, sandbox("suspended")), (200, sandbox("running"))], &["resume", "box"], 0, &line, "");
    check_answers(&[(200, sandbox("running"))], &["rollback", "box", ID], 0, &line, "");
    let conflict = json!({ "error": "the disk is full", "code": "CONFLICT" });
    check_answers(&[(409, conflict)], &["suspend", "box"], 1, "", "error: the disk is full\n");
    let slow = format!(
        "error: sandbox {ID} is still suspended\n\nhint: the server goes on with it; `belljar show` tells how it stands\n"
    );
    check_answers(&[(202, sandbox("suspended"))], &["rollback", "box", ID], 1, "", &slow);
    let unknown = json!({ "error": "Snapshot not found", "code": "SNAPSHOT_NOT_FOUND" });
    let hint = "error: Snapshot not found\n\nhint: `belljar snapshot ls` lists the snapshots\n";
    check_answers(&[(404, unknown)], &["restore", ID], 1, "", hint);
}

#[test]
fn a_sleeper_is_shown_as_one() {
    let (world, url) = (World::new(), answering(&[(200, sandbox("suspended"))]));
    let mut command = world.command(&["show", "box"]);
    let output = command.env("BELLJAR_API_URL", url).env("BELLJAR_API_KEY", "k").output().expect("belljar");
    let text = String::from_utf8_lossy(&output.stdout);
    for line in
        ["status:  suspended", "timeout: is suspended after 60 s without use", "wakes:   by `belljar resume` only"]
    {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
}

#[test]
fn snapshots_and_copies_say_what_became_of_them() {
    let accepted = json!({ "snapshot_id": ID, "status": "in_progress" });
    let (line, take) = (format!("{ID}\n"), ["snapshot", "create", "--memory", "box"]);
    check_answers(&[(202, accepted.clone()), (200, snapshot("completed", None))], &take, 0, &line, "");
    let failed = format!(
        "error: snapshot {ID} is not completed: no space\n\nhint: `belljar snapshot show` tells how it stands\n"
    );
    check_answers(&[(202, accepted), (200, snapshot("failed", Some("no space")))], &take, 1, "", &failed);
    let list = json!({ "snapshots": [snapshot("completed", None)] });
    let read: belljar_api::snapshot::SnapshotList = serde_json::from_value(list.clone()).expect("list");
    let printed = format!("{}\n", serde_json::to_string(&read).expect("json"));
    check_answers(&[(200, list)], &["snapshot", "ls", "--json"], 0, &printed, "");
    check_answers(&[(200, json!({}))], &["snapshot", "rm", ID], 0, &line, "");

    let copies = json!({
        "source_sandbox_id": ID,
        "sandboxes": [copied("running", None), copied("failed", Some("the disk is full"))],
    });
    let failed = format!(
        "error: sandbox {ID} could not be started: the disk is full\n\n\
         hint: the server's log has the details; `belljar doctor` checks the machine\n"
    );
    check_answers(&[(422, copies)], &["fork", "box", "-n", "2"], 1, &line, &failed);
}

#[test]
fn trees_and_differences_are_drawn() {
    let node = |kind: &str, id: &str, parent: Option<&str>| json!({ "kind": kind, "id": id, "name": null, "status": "running", "parent_id": parent, "created_at": i64::MAX });
    let tree = json!({ "nodes": [node("sandbox", "a", None), node("snapshot", "b", Some("a"))] });
    check_answers(&[(200, tree)], &["tree"], 0, "a (running, 0s)\n└─ snapshot b (running, 0s)\n", "");
    let entry = |path: &str, how: &str| json!({ "path": path, "difference": how, "size_bytes": 1 });
    let entries = [entry("/a", "added"), entry("/b\u{1b}", "changed"), entry("/c", "removed")];
    let diff = json!({ "entries": entries, "truncated": true });
    let warning = "warning: there are more differences than an answer holds\n";
    check_answers(&[(200, diff)], &["diff", ID, ID], 0, "+ /a\n~ /b\u{fffd}\n- /c\n", warning);
    let freed = json!({ "nodes": [{ "node_id": "n", "freed_bytes": 2048, "removed_files": 3 }] });
    check_answers(&[(200, freed)], &["gc"], 0, "NODE  FREED     FILES\nn     2.00 KiB  3\n", "");
}

#[test]
fn an_update_of_a_pool_keeps_what_was_not_given() {
    let pool = json!({
        "id": ID, "namespace": "default", "image": "i",
        "resources": { "cpus": 2, "memory_mb": 1024, "disk_mb": 10240, "ephemeral_disk_mb": 10240 },
        "timeout_secs": 9, "entrypoint": null, "max_containers": 5, "warm_containers": 1, "network_policy": null,
        "containers": [{ "id": ID, "state": "running", "sandbox_id": null, "executor_id": "n" }],
        "created_at": 1, "updated_at": 1,
    });
    let url = answering(&[(200, pool.clone()), (200, pool.clone()), (200, json!({ "pools": [pool] }))]);
    let world = World::new();
    let run = |args: &[&str]| {
        let mut command = world.command(args);
        let output = command.env("BELLJAR_API_URL", &url).env("BELLJAR_API_KEY", "k").output().expect("belljar");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let shown = run(&["pool", "update", ID, "--warm", "2"]);
    assert!(shown.contains("claimed ones are suspended after 9 s without use") && shown.contains("running"), "{shown}");
    assert!(run(&["pool", "ls"]).contains("1/1   5    0"), "the list");
    let claimed = json!({ "error": "Pool not found", "code": "POOL_NOT_FOUND" });
    let hint = "error: Pool not found\n\nhint: `belljar pool ls` lists the pools\n";
    check_answers(&[(404, claimed)], &["pool", "claim", ID], 1, "", hint);
}
