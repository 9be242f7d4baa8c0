//! Image builds through server, node and importer, from registries on this machine that are of no use: what is said, and
//! that nothing stays.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;

const BUILDS: &str = "/images/v4/builds";

/// A registry that takes connections and never says a word, until it is dropped.
struct Silent {
    host: String,
    /// Every connection.
    taken: mpsc::Receiver<TcpStream>,
}

impl Silent {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (sender, taken) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if sender.send(stream).is_err() {
                    return;
                }
            }
        });
        Self { host, taken }
    }

    /// Waits until somebody asks for something; the connection ends when this is dropped.
    fn asked(&self) -> TcpStream {
        let mut stream = self.taken.recv().unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    }
}

impl System {
    fn begin_build(&self, name: &str, host: &str) -> String {
        let body = json!({"kind": "import", "image_ref": format!("{host}/tool:v1"), "name": name});
        let answer = self.http().post(BUILDS, &body);
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json["build_id"].as_str().unwrap().to_owned()
    }

    fn build(&self, id: &str) -> Value {
        self.http().get(&format!("{BUILDS}/{id}")).json
    }

    /// Waits until it is over: status and words.
    fn build_over(&self, id: &str) -> (String, String) {
        let is_over = |build: &Value| !matches!(build["status"].as_str(), Some("pending" | "running"));
        wait_while(|| !is_over(&self.build(id)));
        let build = self.build(id);
        let text = |key: &str| build[key].as_str().unwrap_or_default().to_owned();
        (text("status"), text("error"))
    }

    #[track_caller]
    fn failed(&self, id: &str, words: &str) {
        let (status, error) = self.build_over(id);
        assert!(status == "failed" && error.contains(words), "{status}: {error}");
    }

    /// The image store holds what it held at first.
    fn is_clean(&self) {
        let names = |dir: &str| fs::read_dir(self.dir.path().join("store").join(dir)).unwrap().count();
        let making = || {
            let all = fs::read_dir(self.dir.path().join("store/tmp")).unwrap();
            all.filter(|entry| entry.as_ref().unwrap().file_name() != "blobs").count() > 0
        };
        wait_while(making);
        assert_eq!((names("images"), names("names"), names("builds")), (1, 1, 0));
    }
}

#[expect(clippy::print_stdout, reason = "who reads the tests' output has to know what was not tried")]
fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("{test}: skipped: imports need root");
    }
    root
}

#[test]
fn an_import_says_what_is_wrong_with_its_source() {
    if !is_root("an_import_says_what_is_wrong_with_its_source") {
        return;
    }
    let system = System::start();
    let id = system.begin_build("tool", "127.0.0.1:1");
    system.failed(&id, "cannot reach the registry 127.0.0.1:1; is its name right");
    // It speaks HTTPS, with a certificate that nobody knows.
    let id = system.begin_build("tool", &system.secure.replace("127.0.0.1", "localhost"));
    system.failed(&id, "certificate");
    let id = system.begin_build("tool", "oci:/etc");
    system.failed(&id, "is a place on the node's own disk");
    let id = system.begin_build("belljar/debian", "registry.example");
    system.failed(&id, "only its machine's owner changes it");
    system.is_clean();
}

#[test]
fn an_import_that_is_cancelled_leaves_nothing() {
    if !is_root("an_import_that_is_cancelled_leaves_nothing") {
        return;
    }
    let system = System::start();
    let registry = Silent::start();
    let id = system.begin_build("tool", &registry.host);
    let asked = registry.asked();
    wait_while(|| system.build(&id)["phase"] != "executing");
    let waits = system.begin_build("other", &registry.host);
    for id in [&waits, &id] {
        let answer = system.http().post(&format!("{BUILDS}/cancel"), &json!({ "build_id": id }));
        assert_eq!(answer.json["outcome"], "cancelled", "{answer:?}");
        assert_eq!(answer.json["build"]["status"], "cancelled");
    }
    drop((asked, registry));
    system.is_clean();
    // Both names are free, and it is the next one's turn.
    for name in ["tool", "other"] {
        let id = system.begin_build(name, "127.0.0.1:1");
        system.failed(&id, "cannot reach the registry");
    }
}

#[test]
fn a_build_fails_with_its_node_and_with_its_server() {
    if !is_root("a_build_fails_with_its_node_and_with_its_server") {
        return;
    }
    let mut system = System::start();
    let registry = Silent::start();
    let id = system.begin_build("tool", &registry.host);
    let asked = registry.asked();
    system.stop_server();
    // The node has noticed when its thread does.
    drop((asked, registry));
    system.start_server();
    system.failed(&id, "the server was stopped while this was being built");
    system.is_clean();
    let nodes =
        |system: &System| system.http().get("/platform/v1/storage").json["nodes"].as_array().map_or(0, Vec::len);
    wait_while(|| nodes(&system) == 0);

    let registry = Silent::start();
    let id = system.begin_build("tool", &registry.host);
    let asked = registry.asked();
    let (shutdown, task) = system.node.take().unwrap();
    shutdown.send_replace(Shutdown::KeepSandboxes);
    system.failed(&id, "went, or was lost, while it built this");
    drop((asked, registry));
    system.runtime.block_on(task).unwrap().unwrap();
    system.is_clean();
    system.start_node();
    wait_while(|| nodes(&system) == 0);
    let id = system.begin_build("tool", "127.0.0.1:1");
    system.failed(&id, "cannot reach the registry");
}
