//! The whole system in one process with the `process` driver: server, node, store, link and agent are the real ones, only
//! the VM is missing. Fast, and needs nothing of the machine.

#![expect(clippy::unwrap_used, reason = "tests")]

mod builds;
mod grpc;
mod https;
mod tunnel;

use std::{fs, path::PathBuf};

use belljar_node::{Artifacts, DriverSetting, NodeConfig, ServerSetting, Shutdown};
use belljar_server::{Listeners, ServerConfig, TlsFiles, TlsSource};
use belljar_tests::{http::Http, wait_while};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{oneshot, watch},
    task::JoinHandle,
};

type NodeTask = JoinHandle<Result<(), belljar_node::NodeError>>;

/// A server and a node in this process.
struct System {
    dir: tempfile::TempDir,
    runtime: Runtime,
    address: String,
    /// Where it speaks HTTPS, under the name `localhost`.
    secure: String,
    key: String,
    node: Option<(watch::Sender<Shutdown>, NodeTask)>,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    node_token: String,
}

impl System {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs.ext4");
        let mut bytes = vec![0; 1 << 20];
        bytes[1080..1082].copy_from_slice(&[0x53, 0xEF]);
        fs::write(&rootfs, bytes).unwrap();
        let store = belljar_image::Store::open(&dir.path().join("store")).unwrap();
        store.import(belljar_image::DEFAULT_IMAGE, &rootfs, Default::default()).unwrap();
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(dir.path().join("cert.pem"), issued.cert.pem()).unwrap();
        fs::write(dir.path().join("key.pem"), issued.signing_key.serialize_pem()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let mut system = Self {
            dir,
            runtime,
            address: "127.0.0.1:0".into(),
            secure: "127.0.0.1:0".into(),
            key: String::new(),
            node: None,
            server: None,
            node_token: "t".repeat(40),
        };
        system.start_server();
        system.start_node();
        system
    }

    fn start_server(&mut self) {
        let config = ServerConfig {
            database: self.dir.path().join("belljar.db"),
            secrets_key: self.dir.path().join("secrets.key"),
            sandbox_url_base: "http://localhost:1".into(),
            ingress_domain: None,
            trusted_proxies: Vec::new(),
            tls: Some(TlsSource::Files(TlsFiles {
                certificate: self.dir.path().join("cert.pem"),
                key: self.dir.path().join("key.pem"),
            })),
            default_image: belljar_image::DEFAULT_IMAGE.into(),
            node_token: Some(self.node_token.clone()),
        };
        let (stop, stopped) = oneshot::channel();
        let (address, secure, key, task) = self.runtime.block_on(async {
            let listener = TcpListener::bind(&self.address).await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let tls = TcpListener::bind(&self.secure).await.unwrap();
            let secure = tls.local_addr().unwrap().to_string();
            let server = belljar_server::prepare(config).await.unwrap();
            let key = server.first_key().map(str::to_owned);
            let task = tokio::spawn(async move {
                server
                    .run(Listeners { plain: vec![listener], tls: vec![tls], pipes: None }, async {
                        drop(stopped.await)
                    })
                    .await;
            });
            (address, secure, key, task)
        });
        (self.address, self.secure) = (address, secure);
        self.key = key.unwrap_or_else(|| self.key.clone());
        self.server = Some((stop, task));
    }

    fn start_node(&mut self) {
        let (shutdown, receiver) = watch::channel(Shutdown::No);
        let config = NodeConfig {
            network: belljar_node::NetworkOptions { kind: belljar_node::NetworkSetting::User, ..Default::default() },
            data_dir: self.dir.path().join("data"),
            server: ServerSetting::Address(self.address.clone()),
            node_token: self.node_token.clone(),
            artifacts: Artifacts { kernel: PathBuf::new(), initrd: PathBuf::new() },
            image_store: self.dir.path().join("store"),
            driver: DriverSetting::Process { agent: agent() },
            vmm_dir: None,
            jail: Default::default(),
            templates: false,
            spares: 0,
            resident: NodeConfig::RESIDENT,
            disk_limits: belljar_node::DiskLimits::default(),
            hidden_features: belljar_node::HiddenFeatures::default(),
            gpus: Vec::new(),
            memory_mb: Some(64 * 1024),
            storage: Default::default(),
        };
        let task = self.runtime.spawn(belljar_node::run(config, receiver));
        self.node = Some((shutdown, task));
    }

    fn stop_node(&mut self, how: Shutdown) {
        let (shutdown, task) = self.node.take().unwrap();
        shutdown.send_replace(how);
        self.runtime.block_on(task).unwrap().unwrap();
    }

    fn stop_server(&mut self) {
        let (stop, task) = self.server.take().unwrap();
        stop.send(()).unwrap();
        self.runtime.block_on(task).unwrap();
    }

    fn http(&self) -> Http {
        Http::new(&self.address, Some(&self.key))
    }

    fn create(&self) -> String {
        self.create_with(&json!({}))
    }

    fn create_with(&self, body: &Value) -> String {
        let answer = self.http().post("/sandboxes", body);
        assert_eq!(answer.json["status"], "running", "{answer:?}");
        answer.json["sandbox_id"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn echo(&self, id: &str) {
        let http = self.http().header("x-tensorlake-sandbox-id", id);
        let events = http.events("POST", "/api/v1/processes/run", &json!({"command": "echo", "args": ["hello"]}));
        assert!(events.iter().any(|event| event["line"] == "hello"), "{events:?}");
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if self.node.is_some() {
            self.stop_node(Shutdown::EndSandboxes);
        }
        if self.server.is_some() {
            self.stop_server();
        }
        if !std::thread::panicking() {
            let text = self.dir.path().display().to_string();
            let left = std::process::Command::new("pgrep").args(["-f", &text]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&left.stdout), "", "processes are left");
        }
    }
}

/// The agent that `cargo build` put beside the test programs.
fn agent() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let agent = own.parent().unwrap().parent().unwrap().join("belljar-guest");
    assert!(agent.exists(), "{} is missing: run `cargo build -p belljar-guest`", agent.display());
    agent
}

#[test]
fn a_sandbox_lives_and_ends() {
    let system = System::start();
    let id = system.create();
    system.echo(&id);
    assert_eq!(system.http().delete(&format!("/sandboxes/{id}")).status, 200);
    assert_eq!(system.http().get(&format!("/sandboxes/{id}")).json["termination_reason"], "user");
}

#[test]
fn sandboxes_outlive_node_and_server() {
    let mut system = System::start();
    let ids: Vec<String> = (0..5).map(|_| system.create()).collect();
    system.stop_node(Shutdown::KeepSandboxes);
    system.start_node();
    ids.iter().for_each(|id| system.echo(id));
    system.stop_server();
    system.start_server();
    ids.iter().for_each(|id| system.echo(id));
}

#[test]
fn commands_given_while_the_node_is_away_are_carried_out() {
    let mut system = System::start();
    let ended = system.create();
    system.stop_node(Shutdown::KeepSandboxes);
    assert_eq!(system.http().delete(&format!("/sandboxes/{ended}")).status, 200);
    let begun = system.http().post("/sandboxes", &json!({"wait": false}));
    assert_eq!(begun.status, 202, "{begun:?}");
    system.start_node();
    let id = begun.json["sandbox_id"].as_str().unwrap();
    wait_while(|| system.http().get(&format!("/sandboxes/{id}")).json["status"] == "pending");
    system.echo(id);
    let sandboxes = system.dir.path().join("data/volume/sandboxes").join(&ended);
    wait_while(|| sandboxes.exists());
}

#[test]
fn many_sandboxes_are_made_and_ended_at_once() {
    let system = System::start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let id = system.create();
                    system.echo(&id);
                    assert_eq!(system.http().delete(&format!("/sandboxes/{id}")).status, 200);
                }
            });
        }
    });
    assert_eq!(system.http().get("/sandboxes").json["sandboxes"], Value::Array(Vec::new()));
}
