//! One `belljar up` with a data directory of its own.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    http::{Answer, Http},
    leftovers,
    sandbox::Sandbox,
    wait_while,
};

/// Names of VM processes: QEMU is told its own, the kernel keeps 15 bytes of others.
const VM_PROCESSES: [&str; 3] = ["belljar-vm", "firecracker", "cloud-hyperviso"];

/// A running server with its node.
pub struct World {
    dir: TempDir,
    address: String,
    key: String,
    settings: Vec<(&'static str, String)>,
}

impl World {
    /// Starts a server on a free port.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more environment variables, such as another kernel.
    pub fn start_with(settings: &[(&'static str, String)]) -> Self {
        Self::start_on("127.0.0.1", settings)
    }

    /// Starts a server on another address of this machine.
    pub fn start_on(ip: &str, settings: &[(&'static str, String)]) -> Self {
        let dir = tempfile::Builder::new().prefix("belljar-e2e-").tempdir().expect("a temporary directory");
        let port = TcpListener::bind((ip, 0)).and_then(|it| it.local_addr()).expect("a free port").port();
        let address = format!("{ip}:{port}");
        let mut world = Self { dir, address, key: String::new(), settings: settings.to_vec() };
        world.up();
        world.key = fs::read_to_string(world.data().join("api-key")).expect("the first key").trim().to_owned();
        world
    }

    /// Starts a server that has its golden snapshot and VMs kept ready, with more environment variables.
    pub fn golden_with(settings: &[(&'static str, String)]) -> Self {
        let world = Self::start_with(&[settings, &[("BELLJAR_TEMPLATES", "true".to_owned())]].concat());
        let ready = || !world.entries("templates").is_empty() && world.vm_pids().len() >= world.spares();
        wait_while(|| !ready() || world.entries("templates").iter().any(|it| it.ends_with(".building")));
        world
    }

    fn spares(&self) -> usize {
        let set = self.settings.iter().find(|(name, _)| *name == "BELLJAR_SPARES");
        set.map_or(2, |(_, value)| value.parse().expect("a number"))
    }

    /// The server's data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// `host:port` of the server.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The API key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// `belljar ARGS`, pointed at this server.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(args)
            .env("BELLJAR_DATA_DIR", self.data())
            .env("BELLJAR_API_URL", format!("http://{}", self.address))
            .env("XDG_CONFIG_HOME", self.dir.path())
            .env_remove("BELLJAR_API_KEY")
            // A template takes two processors for seconds: only worlds that are about them build one.
            .env("BELLJAR_TEMPLATES", "false")
            // Many servers run at once, and the default port is one.
            .env("BELLJAR_SSH_LISTEN", "none")
            .stdin(Stdio::null());
        for (name, value) in &self.settings {
            command.env(name, value);
        }
        command
    }

    /// Runs `belljar ARGS` and answers what it wrote.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the belljar binary starts")
    }

    /// Runs `belljar ARGS`, which has to succeed; answers its stdout.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "belljar {args:?}: {}\n{stderr}\n{}", output.status, self.log());
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// `belljar ARGS --json`, parsed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Starts the server (again).
    #[track_caller]
    pub fn up(&self) {
        self.ok(&["up", "--detach", "--listen", &self.address]);
    }

    /// Tries to start the server; answers what it wrote when it could not.
    pub fn up_fails(&self) -> String {
        let output = self.cli(&["up", "--detach", "--listen", &self.address]);
        assert!(!output.status.success(), "it started");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Stops the server; the VMs go on.
    #[track_caller]
    pub fn down_keep(&self) {
        self.ok(&["down", "--keep"]);
    }

    /// Pid of the server's process.
    pub fn server_pid(&self) -> i32 {
        let text = fs::read_to_string(self.data().join("belljar.pid")).expect("the pid file");
        text.split_whitespace().next().and_then(|it| it.parse().ok()).expect("a pid")
    }

    /// Kills the server with SIGKILL and waits until it is gone.
    pub fn kill_server(&self) {
        leftovers::kill_and_wait(self.server_pid());
    }

    /// An HTTP client with the key.
    pub fn http(&self) -> Http {
        Http::new(&self.address, Some(&self.key))
    }

    /// `POST /sandboxes`, which has to end in `running`.
    #[track_caller]
    pub fn create(&self, body: &Value) -> Sandbox<'_> {
        let answer = self.http().post("/sandboxes", body);
        assert!(answer.status < 300, "{answer:?}\n{}", self.log());
        assert_eq!(answer.json["status"], "running", "{answer:?}\n{}", self.log());
        Sandbox::new(self, answer.json["sandbox_id"].as_str().expect("an id"))
    }

    /// `GET /sandboxes/{id}`.
    pub fn info(&self, id: &str) -> Answer {
        self.http().get(&format!("/sandboxes/{id}"))
    }

    /// Waits until the sandbox has ended, and answers its last state.
    #[track_caller]
    pub fn ended(&self, id: &str) -> Value {
        for _ in 0..600 {
            let info = self.info(id);
            if info.json["status"] == "terminated" {
                return info.json;
            }
            // A client of the public API has nothing to wait on but the answer to its next question.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("sandbox {id} has not ended: {:?}\n{}", self.info(id), self.log());
    }

    /// Directories of sandboxes on the node.
    pub fn sandbox_dirs(&self) -> Vec<PathBuf> {
        self.entries("sandboxes")
    }

    /// Root of the node's storage.
    pub fn storage(&self) -> PathBuf {
        let volume = self.data().join("volume");
        if volume.join("sandboxes").exists() { volume } else { self.data() }
    }

    /// What lies in a directory of the node's storage.
    pub fn entries(&self, dir: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.storage().join(dir)) else { return Vec::new() };
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// `POST /sandboxes/{id}/{verb}` and the status and body of the answer.
    pub fn order(&self, id: &str, verb: &str) -> Answer {
        self.http().json("POST", &format!("/sandboxes/{id}/{verb}"), "")
    }

    /// Suspends a sandbox and waits until it is.
    #[track_caller]
    pub fn suspend(&self, id: &str) {
        let answer = self.order(id, "suspend?wait_ms=30000");
        assert_eq!(answer.status, 200, "{answer:?}\n{}", self.log());
        assert_eq!(self.info(id).json["status"], "suspended");
    }

    /// Resumes a sandbox and waits until it runs.
    #[track_caller]
    pub fn resume(&self, id: &str) {
        let answer = self.order(id, "resume?wait_ms=30000");
        assert_eq!(answer.status, 200, "{answer:?}\n{}", self.log());
    }

    /// Takes a snapshot and waits until it is complete; answers its description.
    #[track_caller]
    pub fn snapshot(&self, id: &str, kind: &str) -> Value {
        let answer = self.http().post(&format!("/sandboxes/{id}/snapshot"), &json!({"snapshot_type": kind}));
        assert_eq!(answer.status, 202, "{answer:?}");
        let info = self.snapshot_settled(answer.json["snapshot_id"].as_str().expect("an id"));
        assert_eq!(info["status"], "completed", "{info}\n{}", self.log());
        info
    }

    /// Waits until a snapshot is complete or has failed; answers its description.
    pub fn snapshot_settled(&self, id: &str) -> Value {
        loop {
            let info = self.http().get(&format!("/snapshots/{id}"));
            assert_eq!(info.status, 200, "{info:?}");
            if info.json["status"] != "in_progress" {
                return info.json;
            }
            // A client of the public API has nothing to wait on but the answer to its next question.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Makes running copies of a sandbox.
    #[track_caller]
    pub fn copy(&self, id: &str, times: usize) -> Vec<Sandbox<'_>> {
        let answer = self.order(id, &format!("copy?times={times}"));
        assert_eq!(answer.status, 200, "{answer:?}\n{}", self.log());
        let copies = answer.json["sandboxes"].as_array().expect("a list").clone();
        copies.iter().map(|it| Sandbox::new(self, it["sandbox_id"].as_str().expect("an id"))).collect()
    }

    /// A sandbox by id or name.
    pub fn sandbox(&self, id: &str) -> Sandbox<'_> {
        Sandbox::new(self, id)
    }

    /// Waits until no VM and no sandbox directory is left: the end of a sandbox is visible before they are gone.
    pub fn wait_until_clean(&self) {
        wait_while(|| self.vm_pids().len() > self.entries("spares").len() || !self.sandbox_dirs().is_empty());
    }

    /// Pids of this world's VMs.
    pub fn vm_pids(&self) -> Vec<i32> {
        leftovers::processes_of(self.dir.path())
            .into_iter()
            .filter(|it| VM_PROCESSES.contains(&it.name.as_str()))
            .map(|it| it.pid)
            .collect()
    }

    /// Pid of a sandbox's VM, if it has one now.
    pub fn vm_pid(&self, id: &str) -> Option<i32> {
        let record = fs::read(self.storage().join("sandboxes").join(id).join("run/vm.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        self.vm_pids().into_iter().find(|pid| record["pid"] == *pid)
    }

    /// The end of the server's log, for a message.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.data().join("log/belljar.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.cli(&["up", "--detach", "--listen", &self.address]);
            let _ = self.cli(&["down"]);
            leftovers::clean(self.dir.path());
            return;
        }
        let output = self.cli(&["down"]);
        let found = leftovers::find(self.dir.path());
        leftovers::clean(self.dir.path());
        assert!(found.is_empty(), "left behind: {found:#?}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("BELLJAR_BIN").expect("BELLJAR_BIN is not set: run the tests with `cargo xtask test`");
    let path = PathBuf::from(path);
    assert!(path.exists(), "{} does not exist: run `cargo xtask test`", path.display());
    path
}

/// A file that `cargo xtask test` prepared, such as `BELLJAR_KERNEL`.
pub fn prepared(name: &str) -> PathBuf {
    let path =
        std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run the tests with `cargo xtask test`"));
    assert!(Path::new(&path).exists(), "{name} names a missing file");
    path.into()
}

/// A copy of the prepared image store in `dir`, for a world that makes images; as a setting of that.
pub fn own_store(dir: &Path) -> (&'static str, String) {
    const NAME: &str = "BELLJAR_IMAGE_STORE";
    let to = dir.join("store");
    let copy = ["--archive", "--sparse=always", "--reflink=auto"];
    let copied = Command::new("cp").args(copy).arg(prepared(NAME)).arg(&to).status().expect("cp");
    assert!(copied.success(), "the image store cannot be copied");
    (NAME, to.display().to_string())
}
