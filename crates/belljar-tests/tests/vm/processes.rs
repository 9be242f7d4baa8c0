//! Programs in a sandbox.

use belljar_tests::{World, wait_while};
use serde_json::{Value, json};

#[test]
fn a_program_runs_in_a_kernel_of_its_own() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_ne!(sandbox.boot_id(), host.trim());
    assert!(sandbox.sh("uname -r").contains("belljar"));

    let ran = sandbox.run("echo out; echo bad >&2; printf last; exit 7");
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\nlast", "bad"));
    assert_eq!(ran.end, json!({"exit_code": 7, "reason": "exited"}));

    let request = json!({"command": "sh", "args": ["-c", "echo $A; pwd; whoami; id -u"], "env": {"A": "1"}, "working_dir": "/tmp"});
    assert_eq!(sandbox.run_request(&request).stdout, "1\n/tmp\ntl-user\n1000");
    let root = json!({"command": "id", "args": ["-un"], "user": "root"});
    assert_eq!(sandbox.run_request(&root).stdout, "root");
    assert_eq!(sandbox.sh("sudo id -un; echo $HOME"), "root\n/home/tl-user");

    let late = json!({"command": "sleep", "args": ["60"], "timeout": 0.5});
    assert_eq!(sandbox.run_request(&late).end["reason"], "timed_out");
    assert_eq!(sandbox.sh("(sleep 60) >/dev/null 2>&1 & echo started"), "started");

    let missing = sandbox.http().post("/api/v1/processes/run", &json!({"command": "no-such-program"}));
    assert!(
        (400..500).contains(&missing.status) && missing.json["error"].as_str().unwrap().contains("no-such-program"),
        "{missing:?}"
    );
}

#[test]
fn the_image_holds_what_it_promises() {
    let world = World::start();
    let sandbox = world.create(&json!({"resources": {"cpus": 2, "memory_mb": 2048, "disk_mb": 20480}}));
    for program in ["sh", "bash", "python3", "node", "git", "curl", "sudo", "ps", "ip", "tar"] {
        sandbox.sh(&format!("command -v {program}"));
    }
    assert_eq!(
        sandbox.sh("python3 -c 'print(6*7)'; node -p 6*7; python3 -m pip --version >/dev/null && echo pip"),
        "42\n42\npip"
    );
    assert_eq!(sandbox.sh("nproc"), "2");
    let gib: u64 = sandbox.sh("df --output=size -BG / | tail -1 | tr -dc 0-9").parse().unwrap();
    assert!((18..=20).contains(&gib), "the file system was not grown: {gib} GiB");
    let mib: u64 = sandbox.sh("awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo").parse().unwrap();
    assert!((1900..=2048).contains(&mib), "{mib} MiB");
    assert_eq!(
        sandbox.sh("stat -fc %T /tmp; stat -c %U /workspace; ls -ld /home/tl-user | cut -d' ' -f3"),
        "ext2/ext3\ntl-user\ntl-user"
    );
    assert_eq!(sandbox.sh("hostname"), sandbox.id);
}

#[test]
fn fifty_programs_run_at_once() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..50)
            .map(|n| {
                scope.spawn({
                    let sandbox = &sandbox;
                    move || sandbox.sh(&format!("echo {n}; sleep 0.2"))
                })
            })
            .collect();
        for (n, run) in runs.into_iter().enumerate() {
            assert_eq!(run.join().unwrap(), n.to_string());
        }
    });
}

#[test]
fn stdin_signals_and_output_of_a_process() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    let http = sandbox.http();
    let cat = sandbox.start(&json!({"command": "cat", "stdin_mode": "pipe"}));
    let pid = cat["pid"].to_string();
    for text in ["one\n", "two\n"] {
        let answer = http.json("POST", &format!("/api/v1/processes/{pid}/stdin"), text);
        assert_eq!(answer.status, 204, "{answer:?}");
    }
    assert_eq!(http.post(&format!("/api/v1/processes/{pid}/stdin/close"), &Value::Null).status, 204);
    assert_eq!(sandbox.follow(&pid), ["one", "two"]);
    let info = http.get(&format!("/api/v1/processes/{pid}")).json;
    assert_eq!((&info["status"], &info["exit_code"]), (&json!("exited"), &json!(0)));
    let closed = http.json("POST", &format!("/api/v1/processes/{pid}/stdin"), "x");
    assert_eq!((closed.status, closed.code()), (400, "STDIN_NOT_WRITABLE"));

    let script = "import signal, sys\ndef stop(*_):\n print('usr1')\n sys.exit(3)\nsignal.signal(signal.SIGUSR1, stop)\nopen('/tmp/ready', 'w')\nprint('ready', flush=True)\nsignal.pause()";
    let trap = sandbox.start(&json!({"command": "python3", "args": ["-c", script]}));
    let pid = trap["pid"].to_string();
    sandbox.sh("until [ -e /tmp/ready ]; do sleep 0.1; done");
    assert_eq!(
        http.post(&format!("/api/v1/processes/{pid}/signal"), &json!({"signal": 10})).json,
        json!({"success": true})
    );
    assert_eq!(sandbox.follow(&pid), ["ready", "usr1"]);
    assert_eq!(http.get(&format!("/api/v1/processes/{pid}")).json["exit_code"], 3);

    let child = sandbox.start(&json!({"command": "sh", "args": ["-c", "setsid sleep 4321 & echo ready; wait"]}));
    let pid = child["pid"].to_string();
    assert_eq!(http.delete(&format!("/api/v1/processes/{pid}")).status, 204);
    assert_eq!(sandbox.follow(&pid).first().map_or("ready", String::as_str), "ready");
    assert_eq!(http.get(&format!("/api/v1/processes/{pid}")).json["signal"], 9);
    assert_eq!(sandbox.sh("pgrep -f '[s]leep 4321' | wc -l"), "0", "a child of its own session survived");
}

#[test]
fn a_managed_process_is_started_again() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    sandbox.start(&json!({
        "command": "sh", "args": ["-c", "echo run >> /tmp/runs; [ $(wc -l < /tmp/runs) -ge 3 ] && exec sleep 600; exit 1"],
        "name": "web", "restart": {"policy": "on_failure", "initial_backoff_ms": 50, "max_backoff_ms": 100},
    }));
    sandbox.sh("while [ $(cat /tmp/runs | wc -l) -lt 3 ]; do sleep 0.1; done");
    let info = sandbox.http().get("/api/v1/processes/web").json;
    assert_eq!((&info["managed"]["restart_count"], &info["managed"]["name"]), (&json!(2), &json!("web")), "{info}");
    assert_eq!(info["managed"]["restart"]["policy"], "on_failure");
    assert_eq!(sandbox.http().delete("/api/v1/processes/web").status, 204);
    assert_eq!(sandbox.http().get("/api/v1/processes/web").status, 404, "its name is free again");
    assert_eq!(sandbox.sh("pgrep -f '[s]leep 600' | wc -l"), "0");
}

#[test]
fn want_of_memory_is_told() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    let ran = sandbox.run_request(
        &json!({"command": "python3", "args": ["-c", "x = bytearray(4 << 30); x[::4096] = b'x' * len(x[::4096])"]}),
    );
    let hungry = sandbox.run_request(&json!({"command": "sh", "args": ["-c", "exec tail /dev/zero"]}));
    assert_eq!(hungry.end["reason"], "oom_killed", "{hungry:?} (python: {:?})", ran.end);
    assert_eq!(sandbox.sh("echo alive"), "alive");
}

#[test]
fn the_cli_passes_output_and_exit_codes_through() {
    let world = World::start();
    let output = world.cli(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("err"));
    assert_eq!(world.json(&["ls"])["sandboxes"].as_array().map(Vec::len), Some(0), "`run` removes its sandbox");

    let id = world.ok(&["create", "--name", "box"]).trim().to_owned();
    assert_eq!(world.ok(&["exec", "box", "--", "python3", "-c", "print('hi')"]), "hi\n");
    assert_eq!(world.cli(&["exec", "box", "--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert!(world.ok(&["ls"]).contains(&id));
    assert_eq!(world.json(&["show", "box"])["id"], id.as_str());
    world.ok(&["ps", "box"]);
    world.ok(&["rm", "box"]);
    assert_eq!(world.ended(&id)["termination_reason"], "user");
}

#[test]
fn what_a_process_wrote_is_in_the_log_after_the_end() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    sandbox.sh("echo remember-me; echo trouble >&2");
    let path = format!("/v1/namespaces/default/sandboxes/{}/logs", sandbox.id);
    let bodies = |query: &str| {
        let page = world.http().get(&format!("{path}{query}")).json;
        page["logs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line["body"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    // The log is collected beside the request that made it: the last line tells that all is there.
    sandbox.sh("echo flushed");
    wait_while(|| !bodies("").contains(&"flushed".to_owned()));
    sandbox.delete();
    assert!(bodies("").contains(&"remember-me".to_owned()));
    assert_eq!(bodies("?body=trouble&level=5"), ["trouble"]);
    assert!(world.ok(&["logs", &sandbox.id]).contains("remember-me"));
}
