//! One sandbox and its data plane.

use serde_json::{Value, json};

use crate::{http::Http, world::World};

/// A sandbox of a [`World`].
pub struct Sandbox<'w> {
    world: &'w World,
    /// Its id.
    pub id: String,
}

/// What a program wrote and how it ended.
#[derive(Debug, PartialEq)]
pub struct Ran {
    /// Lines of stdout, joined.
    pub stdout: String,
    /// Lines of stderr, joined.
    pub stderr: String,
    /// The last event.
    pub end: Value,
}

impl<'w> Sandbox<'w> {
    pub(crate) fn new(world: &'w World, id: &str) -> Self {
        Self { world, id: id.to_owned() }
    }

    /// A client of the sandbox's own API.
    pub fn http(&self) -> Http {
        self.world.http().header("x-tensorlake-sandbox-id", &self.id)
    }

    /// `POST /api/v1/processes/run`.
    #[track_caller]
    pub fn run_request(&self, request: &Value) -> Ran {
        let events = self.http().events("POST", "/api/v1/processes/run", request);
        let lines = |stream: &str| {
            let lines = events.iter().filter(|event| event["stream"] == stream);
            lines.map(|event| event["line"].as_str().expect("a line")).collect::<Vec<_>>().join("\n")
        };
        assert!(events[0]["pid"].is_i64(), "{events:?}");
        Ran { stdout: lines("stdout"), stderr: lines("stderr"), end: events.last().expect("an end").clone() }
    }

    /// Runs a shell script.
    #[track_caller]
    pub fn run(&self, script: &str) -> Ran {
        self.run_request(&json!({"command": "sh", "args": ["-c", script]}))
    }

    /// Runs a shell script, which has to succeed; answers its stdout.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let ran = self.run(script);
        assert_eq!(ran.end["exit_code"], 0, "{script}: {ran:?}");
        ran.stdout
    }

    /// The kernel's boot id: the same as long as the VM lives.
    pub fn boot_id(&self) -> String {
        self.sh("cat /proc/sys/kernel/random/boot_id")
    }

    /// Starts a process; answers its description.
    #[track_caller]
    pub fn start(&self, request: &Value) -> Value {
        let answer = self.http().post("/api/v1/processes", request);
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json
    }

    /// Starts a server, which writes a line when it listens, and waits for that line; answers its description.
    #[track_caller]
    pub fn serve(&self, request: &Value) -> Value {
        let server = self.start(request);
        let path = format!("/api/v1/processes/{}/output/follow", server["pid"]);
        let mut events = self.http().event_stream("GET", &path, &Value::Null);
        assert!(events.any(|event| event["line"].is_string()), "the server has ended without a word: {request}");
        server
    }

    /// Its processes; `None` while its agent does not answer.
    pub fn processes(&self) -> Option<Value> {
        let answer = self.http().get("/api/v1/processes");
        (answer.status == 200).then_some(answer.json)
    }

    /// Follows a process's output to its end; answers the lines.
    pub fn follow(&self, process: &str) -> Vec<String> {
        let events = self.http().events("GET", &format!("/api/v1/processes/{process}/output/follow"), &Value::Null);
        events.iter().filter_map(|event| event["line"].as_str().map(str::to_owned)).collect()
    }

    /// `DELETE`, and waits for the end.
    pub fn delete(&self) -> Value {
        let answer = self.world.http().delete(&format!("/sandboxes/{}", self.id));
        assert_eq!(answer.status, 200, "{answer:?}");
        self.world.ended(&self.id)
    }
}
