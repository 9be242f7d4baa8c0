//! A client that vanishes without a word: its machine is gone, so nothing ever says that its connections are closed.

use std::process::{Child, Command, Stdio};

use belljar_tests::World;
use serde_json::json;

/// Ends of the cable between this machine and the client's; names of interfaces are short.
const OURS: &str = "bj-half-open";
const THEIRS: &str = "bj-half-client";
const ADDRESS: &str = "10.231.77.1";

/// Another machine: a network namespace on a cable of its own.
struct Machine(String);

impl Machine {
    fn new() -> Self {
        let machine = Self(format!("belljar-half-{}", std::process::id()));
        let name = &machine.0;
        ip(&["netns", "add", name]);
        ip(&["link", "add", OURS, "type", "veth", "peer", "name", THEIRS, "netns", name]);
        ip(&["address", "add", "10.231.77.1/30", "dev", OURS]);
        ip(&["link", "set", OURS, "up"]);
        ip(&["-n", name, "address", "add", "10.231.77.2/30", "dev", THEIRS]);
        ip(&["-n", name, "link", "set", THEIRS, "up"]);
        machine
    }

    fn run(&self, program: &str, argument: &str) -> Child {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program, "-c", argument]).stdout(Stdio::piped());
        command.spawn().unwrap()
    }

    /// From here on nothing it sends arrives anywhere.
    fn pull_the_plug(&self) {
        ip(&["-n", &self.0, "link", "set", THEIRS, "down"]);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The cable goes with it.
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

#[test]
fn a_client_that_vanished_does_not_keep_a_sandbox_awake() {
    let machine = Machine::new();
    let world = World::start_on(ADDRESS, &[("BELLJAR_RESIDENT_SECS", "0".to_owned())]);
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 3}));
    let process = sandbox.start(&json!({"command": "sleep", "args": ["1000"]}));
    let (host, port) = world.address().split_once(':').unwrap();
    let script = format!(
        "import socket, time\ns = socket.create_connection(('{host}', {port}))\n\
         s.sendall(b'GET /api/v1/processes/{}/output/follow HTTP/1.1\\r\\nhost: x\\r\\nauthorization: Bearer {}\\r\\n\
         x-tensorlake-sandbox-id: {}\\r\\n\\r\\n')\nprint(s.recv(12), flush=True)\ntime.sleep(1000)",
        process["pid"],
        world.key(),
        sandbox.id
    );
    let mut client = machine.run("python3", &script);
    let mut line = [0; 12];
    std::io::Read::read_exact(client.stdout.as_mut().unwrap(), &mut line).unwrap();
    machine.pull_the_plug();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(world.info("box").json["status"], "running", "nobody can know it yet");
    while world.info("box").json["status"] != "suspended" {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    sandbox.delete();
}
