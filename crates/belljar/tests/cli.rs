//! Whole commands without a server: exit code, stdout and stderr. With a server they are tested in `belljar-tests`.

use std::{fs, net::TcpListener, path::Path, process::Command};

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
        "image",
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
        &["rm"],
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
        &["--api-key", "k", "--api-url", "https://belljar.example.com", "ls"],
        &[],
        1,
        "",
        "error: server address \"https://belljar.example.com\" uses https, which this release does not speak; use http://\n",
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
