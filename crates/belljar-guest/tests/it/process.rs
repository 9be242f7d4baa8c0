use belljar_api::{
    limits::AGENT_PORT,
    process::{OutputLines, ProcessInfo, ProcessList, ProcessStatus, RunEvent, SignalSent},
};
use serde_json::json;

use crate::harness::{Agent, EventReader, configuration, events, json as body, request, summary};

async fn check(agent: &Agent, content: serde_json::Value, expected: &[&str]) {
    assert_eq!(summary(&agent.run(content.clone()).await), expected, "{content}");
}

#[tokio::test]
async fn run_tells_output_and_end() {
    let agent = Agent::start().await;
    let home = agent.home();
    let home = home.to_str().expect("UTF-8");
    let sh = |script: &str| json!({"command": "sh", "args": ["-c", script]});
    check(&agent, json!({"command": "true"}), &["exited 0"]).await;
    check(&agent, json!({"command": "/bin/echo", "args": ["hi", "there"]}), &["o:hi there", "exited 0"]).await;
    check(&agent, sh("exit 7"), &["exited 7"]).await;
    check(&agent, sh("kill -9 $$"), &["signaled 9"]).await;
    check(&agent, sh("kill -40 $$"), &["signaled 40"]).await;
    check(&agent, sh("echo a; printf c"), &["o:a", "o:c", "exited 0"]).await;
    check(&agent, sh("echo b >&2"), &["e:b", "exited 0"]).await;
    check(&agent, sh("printf 'x\\r\\n\\n\\377\\n'"), &["o:x\r", "o:", "o:\u{fffd}", "exited 0"]).await;
    check(&agent, sh("pwd; echo $HOME"), &[&format!("o:{home}"), &format!("o:{home}"), "exited 0"]).await;
    check(&agent, sh("cat; echo end"), &["o:end", "exited 0"]).await;
    check(&agent, json!({"command": "pwd", "working_dir": "/"}), &["o:/", "exited 0"]).await;
    check(&agent, json!({"command": "sh", "args": ["-c", "echo $A"], "env": {"A": "b c"}}), &["o:b c", "exited 0"])
        .await;
    // The process leads its own session, so that a signal reaches all of it and nothing else.
    check(&agent, sh("[ $(ps -o sid= -p $$) = $$ ] && echo leader"), &["o:leader", "exited 0"]).await;
}

#[tokio::test]
async fn a_long_output_comes_whole_and_in_order() {
    let agent = Agent::start().await;
    let lines = summary(&agent.sh("seq 1 50000").await);
    assert_eq!(lines.len(), 50_001);
    assert!(lines.iter().take(50_000).enumerate().all(|(index, line)| *line == format!("o:{}", index + 1)));
}

#[tokio::test]
async fn a_background_child_does_not_hold_the_end_up() {
    let agent = Agent::start().await;
    assert_eq!(summary(&agent.sh("(sleep 1000) >/dev/null 2>&1 & echo started").await), ["o:started", "exited 0"]);
    assert_eq!(summary(&agent.sh("sleep 1000 & echo started").await), ["o:started", "exited 0"]);
    assert_eq!(summary(&agent.sh("yes & echo started").await).last().map(String::as_str), Some("exited 0"));
}

#[tokio::test]
async fn a_timeout_kills_the_group() {
    let agent = Agent::start().await;
    let script = "sleep 1000 & echo $!; wait";
    let end = agent.run(json!({"command": "sh", "args": ["-c", script], "timeout": 0.2})).await;
    let lines = summary(&end);
    assert_eq!(lines.last().map(String::as_str), Some("timed_out 9"));
    let sleeper = lines[0].strip_prefix("o:").expect("a pid");
    let state = std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    let end = agent.run(json!({"command": "sleep", "args": ["1000"], "timeout_secs": 0.05})).await;
    assert_eq!(summary(&end), ["timed_out 9"]);
}

#[tokio::test]
async fn refusals_say_what_was_wrong() {
    let agent = Agent::start().await;
    for (method, path, content, status, code) in [
        ("POST", "/api/v1/processes/run", json!({"command": "no-such-program"}), 400, "NOT_FOUND"),
        ("POST", "/api/v1/processes", json!({"command": "/etc/passwd"}), 400, "NOT_FOUND"),
        ("POST", "/api/v1/processes/run", json!({"args": []}), 400, "INVALID_ARGUMENT"),
        ("POST", "/api/v1/processes/run", json!({"command": "sh", "args": [1]}), 400, "INVALID_ARGUMENT"),
        ("POST", "/api/v1/processes/run", json!({"command": "sh", "timeout": 0}), 400, "INVALID_ARGUMENT"),
        ("POST", "/api/v1/processes/run", json!({"command": "sh", "working_dir": "/nope"}), 400, "INVALID_ARGUMENT"),
        ("POST", "/api/v1/processes/run", json!({"command": "sh", "env": {"A=": ""}}), 400, "INVALID_ARGUMENT"),
        ("POST", "/api/v1/processes", json!({"command": "sh", "name": "12"}), 400, "INVALID_ARGUMENT"),
        ("GET", "/api/v1/processes/1", json!({}), 404, "NOT_FOUND"),
        ("GET", "/api/v1/processes/1/nothing", json!({}), 404, "NOT_FOUND"),
        ("GET", "/api/v1/nothing", json!({}), 404, "NOT_FOUND"),
        ("PATCH", "/api/v1/processes", json!({}), 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/api/v1/processes", json!({"command": "x".repeat(2 << 20)}), 413, "PAYLOAD_TOO_LARGE"),
    ] {
        let refused = agent.refused(method, path, body(&content)).await;
        assert_eq!(refused, (status, code.to_owned()), "{method} {path}");
    }
    let (_, answer) = agent.ask("POST", "/api/v1/processes/run", body(json!({"command": "sh", "args": [1]}))).await;
    assert!(String::from_utf8_lossy(&answer).contains("args[0]"), "{answer:?}");
}

#[tokio::test]
async fn a_process_is_started_written_to_followed_and_listed() {
    let agent = Agent::start().await;
    let start = json!({"command": "cat", "stdin_mode": "pipe"});
    let started: ProcessInfo = agent.get("POST", "/api/v1/processes", start, 201).await;
    assert!(started.stdin_writable && started.status == ProcessStatus::Running);
    let path = format!("/api/v1/processes/{}", started.pid);
    let answer = agent.send(AGENT_PORT, request("GET", &format!("{path}/output/follow"), body(()))).await;
    let mut follower = EventReader::new(answer);
    assert_eq!(agent.ask("POST", &format!("{path}/stdin"), "one\ntwo\nthr").await.0, 204);
    for expected in ["one", "two"] {
        match follower.next().await {
            Some(RunEvent::Line { line, .. }) => assert_eq!(line, expected),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(agent.ask("POST", &format!("{path}/stdin/close"), "").await.0, 204);
    assert!(matches!(follower.next().await, Some(RunEvent::Line { line, .. }) if line == "thr"));
    assert_eq!(follower.next().await, Some(RunEvent::Eof {}));
    assert_eq!(follower.next().await, None);
    let ended: ProcessInfo = agent.get("GET", &path, (), 200).await;
    assert_eq!((ended.status, ended.exit_code, ended.stdin_writable), (ProcessStatus::Exited, Some(0), false));
    assert!(ended.ended_at.is_some());
    let refused = agent.refused("POST", &format!("{path}/stdin"), "more").await;
    assert_eq!(refused, (400, "STDIN_NOT_WRITABLE".to_owned()));
    let lines: OutputLines = agent.get("GET", &format!("{path}/stdout"), (), 200).await;
    assert_eq!((lines.lines, lines.line_count, lines.dropped), (vec!["one".into(), "two".into(), "thr".into()], 3, 0));
    let list: ProcessList = agent.get("GET", "/api/v1/processes", (), 200).await;
    assert_eq!(list.processes, [ended]);
}

#[tokio::test]
async fn a_follower_comes_back_with_an_offset() {
    let agent = Agent::start().await;
    let start = json!({"command": "sh", "args": ["-c", "echo a; sleep 0.05; echo b >&2; sleep 0.05; echo c"]});
    let started: ProcessInfo = agent.get("POST", "/api/v1/processes", start, 201).await;
    let follow = async |of: &str| {
        let (_, stream) = agent.ask("GET", &format!("/api/v1/processes/{}/{of}", started.pid), "").await;
        (summary(&events(&stream)), String::from_utf8_lossy(&stream).into_owned())
    };
    let (all, text) = follow("output/follow").await;
    assert_eq!(all.len(), 4);
    assert!(text.starts_with("event: output\ndata: ") && text.ends_with("\n\nevent: eof\ndata: {}\n\n"), "{text}");
    assert_eq!(follow("output/follow?offset=2").await.0, ["o:c", "eof"]);
    assert_eq!(follow("stdout/follow").await.0, ["a", "c", "eof"]);
    assert_eq!(follow("stderr/follow?offset=0").await.0, ["b", "eof"]);
    assert_eq!(follow("output/follow?offset=99").await.0, ["eof"]);
    assert!(!follow("stdout/follow").await.1.contains("stream"));
}

#[tokio::test]
async fn a_lost_run_goes_on_and_can_be_followed() {
    let mut agent = Agent::start().await;
    let gate = agent.home().join("gate");
    assert!(std::process::Command::new("mkfifo").arg(&gate).status().expect("mkfifo").success());
    let content = body(json!({"command": "sh", "args": ["-c", "echo before; cat gate; echo after"]}));
    let answer = agent.send(AGENT_PORT, request("POST", "/api/v1/processes/run", content)).await;
    let mut run = EventReader::new(answer);
    let Some(RunEvent::Started { pid, .. }) = run.next().await else { panic!("started comes first") };
    assert!(matches!(run.next().await, Some(RunEvent::Line { offset: Some(0), .. })));
    drop(run);
    agent.reconnect().await;
    std::fs::write(&gate, "through\n").expect("the gate opens");
    let (_, stream) = agent.ask("GET", &format!("/api/v1/processes/{pid}/output/follow?offset=1"), "").await;
    assert_eq!(summary(&events(&stream)), ["o:through", "o:after", "eof"]);
}

#[tokio::test]
async fn signals_reach_the_whole_group_and_delete_kills() {
    let agent = Agent::start().await;
    let script = "trap 'echo term; exit 3' TERM; sleep 1000 & wait";
    let start = json!({"command": "sh", "args": ["-c", script]});
    let started: ProcessInfo = agent.get("POST", "/api/v1/processes", &start, 201).await;
    let path = format!("/api/v1/processes/{}", started.pid);
    // The trap is set when the group has its second member.
    while crate::harness::living_below(u32::try_from(started.pid).expect("a pid")).is_empty() {
        tokio::task::yield_now().await;
    }
    let sent: SignalSent = agent.get("POST", &format!("{path}/signal"), json!({"signal": 15}), 200).await;
    assert!(sent.success);
    let (_, stream) = agent.ask("GET", &format!("{path}/output/follow"), "").await;
    assert_eq!(summary(&events(&stream)), ["o:term", "eof"]);
    let ended: ProcessInfo = agent.get("GET", &path, (), 200).await;
    assert_eq!(ended.exit_code, Some(3));
    for signal in [0, 65, 15] {
        let refused = agent.refused("POST", &format!("{path}/signal"), body(json!({"signal": signal}))).await;
        assert_eq!(refused, (400, "INVALID_ARGUMENT".to_owned()));
    }
    let started: ProcessInfo = agent.get("POST", "/api/v1/processes", &start, 201).await;
    let path = format!("/api/v1/processes/{}", started.pid);
    assert_eq!(agent.ask("DELETE", &path, "").await.0, 204);
    let ended: ProcessInfo = agent.get("GET", &path, (), 200).await;
    assert_eq!((ended.status, ended.signal), (ProcessStatus::Signaled, Some(9)));
    assert_eq!(agent.ask("DELETE", &path, "").await.0, 204);
}

#[tokio::test]
async fn a_stdin_that_nobody_reads_can_be_closed() {
    let agent = Agent::start().await;
    let start = json!({"command": "sleep", "args": ["1000"], "stdin_mode": "pipe"});
    let started: ProcessInfo = agent.get("POST", "/api/v1/processes", start, 201).await;
    let path = format!("/api/v1/processes/{}", started.pid);
    let (stdin, close) = (format!("{path}/stdin"), format!("{path}/stdin/close"));
    let (write, closed) = tokio::join!(agent.ask("POST", &stdin, vec![b'x'; 1 << 20]), async {
        tokio::task::yield_now().await;
        agent.ask("POST", &close, "").await
    });
    assert_eq!((write.0.as_u16(), closed.0.as_u16()), (400, 204));
    let now: ProcessInfo = agent.get("GET", &path, (), 200).await;
    assert!(!now.stdin_writable && now.status == ProcessStatus::Running);
}

#[tokio::test]
async fn the_images_environment_holds_and_a_requests_wins() {
    let agent = Agent::bare().await;
    let mut wanted = configuration();
    wanted.runtime.env = [("A", "image"), ("B", "image")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    agent.configure(&wanted).await;
    let run = json!({"command": "sh", "args": ["-c", "echo $A $B"], "env": {"B": "own"}});
    assert_eq!(summary(&agent.run(run).await), ["o:image own", "exited 0"]);
}

#[tokio::test]
async fn orphans_are_collected() {
    let agent = Agent::start().await;
    agent.sh("(sh -c 'sleep 0.05' &) >/dev/null 2>&1").await;
    let agent_pid = agent.pid();
    let gone = async {
        while !crate::harness::living_below(agent_pid).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, gone).await.expect("the orphan is collected");
}
