use belljar_api::{
    guest::{AgentInfo, Health, LogEvent, SYSTEM_PORT, Settled},
    process::{ManagedStatus, ProcessInfo, ProcessList},
    pty::{CreatedPty, PtyList},
};
use belljar_link::{OpenError, RefuseCode};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

use serde_json::json;

use crate::harness::{Agent, PATIENCE, body, configuration, json as bytes, living_below, parse, request, websocket};

#[tokio::test]
async fn nothing_answers_before_the_sandbox_is_configured() {
    let agent = Agent::bare().await;
    for path in ["/api/v1/health", "/api/v1/processes", "/api/v1/files?path=/etc/passwd", "/nothing"] {
        let refused = agent.refused("GET", path, "").await;
        assert_eq!(refused, (503, "SANDBOX_NOT_READY".to_owned()), "{path}");
    }
    let configured = agent.configure(&configuration()).await;
    assert_eq!((configured.protocol, configured.boot_id.len()), (belljar_api::guest::PROTOCOL, 36));
    let health: Health = agent.get("GET", "/api/v1/health", (), 200).await;
    assert!(health.healthy);
    agent.sh("true").await;
    let info: AgentInfo = agent.get("GET", "/api/v1/info", (), 200).await;
    assert_eq!((info.running_processes, info.total_processes), (0, 1));
}

#[tokio::test]
async fn a_wrong_configuration_names_the_field() {
    let agent = Agent::bare().await;
    let mut wanted = serde_json::to_value(configuration()).expect("JSON");
    wanted["runtime"]["env"] = serde_json::json!({"A": 1});
    let answer = agent.send(0, request("POST", "/v1/configure", bytes(wanted))).await;
    assert_eq!(answer.status(), 400);
    let text = body(answer).await;
    assert!(String::from_utf8_lossy(&text).contains("runtime.env.A"), "{text:?}");
}

#[tokio::test]
async fn other_ports_are_the_guests_own() {
    let agent = Agent::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut near = agent.link.open(port).await.expect("somebody listens");
    let (mut far, _) = listener.accept().await.expect("a connection");
    near.write_all(b"ping").await.expect("sent");
    near.shutdown().await.expect("half closed");
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"ping");
    far.write_all(b"pong").await.expect("the other half is open");
    drop(far);
    got.clear();
    near.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, b"pong");
    drop(listener);
    match agent.link.open(port).await {
        Err(OpenError::Refused { code, .. }) => assert_eq!(code, RefuseCode::Refused),
        other => panic!("{other:?}"),
    }
}

/// Asks the system API with or without a body.
async fn order(agent: &Agent, path: &str, content: &'static str) -> (u16, Bytes) {
    let answer = agent.send(SYSTEM_PORT, request("POST", path, content.into())).await;
    (answer.status().as_u16(), body(answer).await)
}

#[tokio::test]
async fn nothing_starts_while_the_sandbox_stands_still() {
    let agent = Agent::start().await;
    for content in ["", "{}", r#"{"sync": false}"#] {
        let (status, answer) = order(&agent, "/v1/freeze", content).await;
        assert_eq!((status, &answer[..]), (200, &b"{}"[..]), "{content}");
    }
    let run = bytes(json!({"command": "true"}));
    let not_ready = (503, "SANDBOX_NOT_READY".to_owned());
    assert_eq!(agent.refused("POST", "/api/v1/processes/run", run.clone()).await, not_ready);
    assert_eq!(agent.refused("GET", "/api/v1/health", "").await, not_ready);
    assert_eq!(agent.refused("PUT", "/api/v1/files?path=new", "text").await, not_ready);
    assert!(!agent.home().join("new").exists());
    agent.configure(&configuration()).await;
    let list: ProcessList = agent.get("GET", "/api/v1/processes", (), 200).await;
    assert_eq!(list.processes.len(), 0);
    assert_eq!(agent.refused("POST", "/api/v1/processes/run", "no JSON").await.0, 400);
    agent.sh("true").await;
}

#[tokio::test]
async fn a_wrong_freeze_changes_nothing() {
    let agent = Agent::start().await;
    assert_eq!(order(&agent, "/v1/freeze", r#"{"sync": 1}"#).await.0, 400);
    agent.sh("true").await;
}

#[tokio::test]
async fn a_supervisor_waits_for_the_sandbox_to_go_on() {
    let agent = Agent::start().await;
    let content = json!({
        "command": "sh", "args": ["-c", "echo life; read line"], "name": "web", "stdin_mode": "pipe",
        "restart": {"policy": "always", "initial_backoff_ms": 10},
    });
    let first: ProcessInfo = agent.get("POST", "/api/v1/processes", content, 201).await;
    order(&agent, "/v1/freeze", "").await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first.pid).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
    // Longer than its pause: it would have been started again.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(living_below(agent.pid()).is_empty());
    agent.configure(&configuration()).await;
    let now = timeout(PATIENCE, async {
        loop {
            let info: ProcessInfo = agent.get("GET", "/api/v1/processes/web", (), 200).await;
            match &info.managed {
                Some(managed) if managed.status == ManagedStatus::Running && info.pid != first.pid => return info,
                _ => tokio::task::yield_now().await,
            }
        }
    });
    let managed = now.await.expect("in time").managed.expect("a supervisor");
    assert_eq!((managed.restart_count, managed.last_error), (1, None));
}

#[tokio::test]
async fn settling_comes_before_the_sandbox() {
    let agent = Agent::bare().await;
    let (status, answer) = order(&agent, "/v1/settle", "").await;
    assert_eq!((status, parse::<Settled>(&answer)), (200, Settled::default()));
    agent.configure(&configuration()).await;
    assert_eq!(order(&agent, "/v1/settle", "").await.0, 400);
}

#[tokio::test]
async fn a_copy_shares_no_secret_and_no_log_with_its_parent() {
    let agent = Agent::start().await;
    let content = json!({"command": "cat", "rows": 24, "cols": 80});
    let pty: CreatedPty = agent.get("POST", "/api/v1/pty", content, 201).await;
    let path = format!("/api/v1/pty/{}/ws?token={}", pty.session_id, pty.token);
    agent.sh("echo parent").await;
    let mut wanted = configuration();
    wanted.life += 1;
    agent.configure(&wanted).await;
    drop(websocket(&agent, &path).await.expect("the sandbox that slept is the same"));
    wanted.sandbox_id = "sandbox-2".to_owned();
    agent.configure(&wanted).await;
    assert_eq!(websocket(&agent, &path).await.expect_err("another sandbox"), 403);
    let list: PtyList = agent.get("GET", "/api/v1/pty", (), 200).await;
    assert!(list.sessions[0].is_alive);
    agent.sh("echo child").await;
    let mut log = agent.send(SYSTEM_PORT, request("GET", "/v1/logs?after=0", "".into())).await.into_body();
    let first = timeout(PATIENCE, log.frame()).await.expect("in time").expect("a line").expect("a frame");
    let first: LogEvent = parse(first.data_ref().expect("data").split(|&byte| byte == b'\n').next().expect("a line"));
    assert_eq!((first.seq, first.line.as_str()), (2, "child"));
}

#[tokio::test]
async fn what_served_the_former_life_ends_with_it() {
    let mut agent = Agent::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut near = agent.link.open(port).await.expect("somebody listens");
    let (mut far, _) = listener.accept().await.expect("a connection");
    // The agent has read to the end of this stream and has nothing to write to it: only the session's end can tell it.
    near.shutdown().await.expect("half closed");
    assert_eq!(far.read(&mut [0; 8]).await.expect("the end"), 0);
    agent.reconnect().await;
    agent.configure(&configuration()).await;
    let gone = timeout(PATIENCE, async {
        while far.write_all(b"to nobody").await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("the connection is closed");
}
