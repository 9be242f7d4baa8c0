use belljar_api::process::{HealthStatus, ManagedInfo, ManagedStatus, ProcessInfo};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{Agent, PATIENCE, body, events, json as bytes, request, summary};

/// Asks until `wanted` holds. The API has no event for a supervisor's state.
async fn until(agent: &Agent, name: &str, wanted: impl Fn(&ManagedInfo) -> bool) -> ProcessInfo {
    let ask = async {
        loop {
            let info: ProcessInfo = agent.get("GET", &format!("/api/v1/processes/{name}"), (), 200).await;
            if info.managed.as_ref().is_some_and(&wanted) {
                return info;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.expect("in time")
}

fn managed(name: &str, script: &str, policy: &str, more: Value) -> Value {
    let mut restart = json!({"policy": policy, "initial_backoff_ms": 10, "max_backoff_ms": 20});
    for (key, value) in more.as_object().into_iter().flatten() {
        restart[key] = value.clone();
    }
    json!({"command": "sh", "args": ["-c", script], "name": name, "restart": restart})
}

#[tokio::test]
async fn a_failing_process_is_restarted_up_to_the_limit() {
    let agent = Agent::start().await;
    let start = managed("flaky", "echo life; exit 3", "on_failure", json!({"max_restarts": 3}));
    let first: ProcessInfo = agent.get("POST", "/api/v1/processes", start, 201).await;
    let last = until(&agent, "flaky", |info| info.status == ManagedStatus::Stopped).await;
    let info = last.managed.expect("managed");
    assert_eq!(info.restart_count, 3);
    assert_eq!(info.last_exit.and_then(|exit| exit.exit_code), Some(3));
    assert!(last.handle > first.handle);
    assert_eq!(Some(info.id), first.managed.map(|info| info.id));
    let (_, output) = agent.ask("GET", "/api/v1/processes/flaky/output/follow", "").await;
    assert_eq!(summary(&events(&output)), ["o:life", "o:life", "o:life", "o:life", "eof"]);
}

#[tokio::test]
async fn success_ends_on_failure_but_not_always() {
    let agent = Agent::start().await;
    for (name, policy) in [("once", "on_failure"), ("never", "never")] {
        let _: ProcessInfo =
            agent.get("POST", "/api/v1/processes", managed(name, "true", policy, json!({})), 201).await;
        let info = until(&agent, name, |info| info.status == ManagedStatus::Stopped).await;
        assert_eq!(info.managed.map(|info| info.restart_count), Some(0));
    }
    let start = managed("again", "true", "always", json!({}));
    let _: ProcessInfo = agent.get("POST", "/api/v1/processes", start, 201).await;
    until(&agent, "again", |info| info.restart_count >= 2).await;
    assert_eq!(agent.ask("DELETE", "/api/v1/processes/again", "").await.0, 204);
    assert_eq!(agent.refused("GET", "/api/v1/processes/again", "").await.0, 404);
}

#[tokio::test]
async fn a_name_is_taken_until_it_stops_and_restart_works_on_managed_only() {
    let agent = Agent::start().await;
    let start = || managed("web server", "echo up; exec sleep 1000", "never", json!({}));
    let first: ProcessInfo = agent.get("POST", "/api/v1/processes", start(), 201).await;
    let refused = agent.refused("POST", "/api/v1/processes", bytes(start())).await;
    assert_eq!(refused, (409, "NAME_IN_USE".to_owned()));
    let path = "/api/v1/processes/web%20server";
    let again: ProcessInfo = agent.get("POST", &format!("{path}/restart"), (), 200).await;
    assert!(again.pid != first.pid);
    assert_eq!(again.managed.map(|info| (info.restart_count, info.status)), Some((1, ManagedStatus::Running)));
    assert_eq!(agent.refused("GET", &format!("/api/v1/processes/{}", first.pid), "").await.0, 404);
    assert_eq!(agent.ask("DELETE", path, "").await.0, 204);
    let _: ProcessInfo = agent.get("POST", "/api/v1/processes", start(), 201).await;
    let plain: ProcessInfo =
        agent.get("POST", "/api/v1/processes", json!({"command": "sleep", "args": ["1000"]}), 201).await;
    assert_eq!(agent.refused("POST", &format!("/api/v1/processes/{}/restart", plain.pid), "").await.0, 400);
    // The stopped one's name is free.
    let once = || managed("once", "true", "never", json!({}));
    let _: ProcessInfo = agent.get("POST", "/api/v1/processes", once(), 201).await;
    until(&agent, "once", |info| info.status == ManagedStatus::Stopped).await;
    let _: ProcessInfo = agent.get("POST", "/api/v1/processes", once(), 201).await;
}

#[tokio::test]
async fn an_unhealthy_process_is_restarted() {
    let agent = Agent::start().await;
    // A port that was free a moment ago: nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut start = managed("sick", "exec sleep 1000", "on_failure", json!({}));
    start["health_check"] =
        json!({"type": "tcp", "port": port, "initial_delay_ms": 0, "interval_ms": 10, "failure_threshold": 2});
    let _: ProcessInfo = agent.get("POST", "/api/v1/processes", start, 201).await;
    let info = until(&agent, "sick", |info| info.health_status == HealthStatus::Healthy).await;
    assert_eq!(info.managed.map(|info| info.restart_count), Some(0));
    drop(listener);
    until(&agent, "sick", |info| info.restart_count >= 1).await;
    assert_eq!(agent.ask("DELETE", "/api/v1/processes/sick", "").await.0, 204);
}

#[tokio::test]
async fn the_entrypoint_runs_once_and_is_logged() {
    let mut agent = Agent::bare().await;
    let mut wanted = crate::harness::configuration();
    wanted.runtime.entrypoint = vec!["not-this".to_owned()];
    wanted.entrypoint = Some(["sh", "-c", "echo ready; exec sleep 1000"].map(str::to_owned).to_vec());
    let first = agent.configure(&wanted).await;
    agent.reconnect().await;
    assert_eq!(agent.configure(&wanted).await, first);
    let info: ProcessInfo = agent.get("GET", "/api/v1/processes/entrypoint", (), 200).await;
    assert_eq!(info.managed.map(|info| info.restart_count), Some(0));
    let mut log = agent.send(0, request("GET", "/v1/logs?after=0", bytes(()))).await;
    let frame = http_body_util::BodyExt::frame(log.body_mut()).await.expect("a line").expect("a frame");
    let line = frame.into_data().expect("data");
    let event: belljar_api::guest::LogEvent = crate::harness::parse(line.trim_ascii());
    assert_eq!((event.seq, event.line.as_str(), event.managed_name.as_str()), (1, "ready", "entrypoint"));
    assert_eq!(event.command, "sh -c echo ready; exec sleep 1000");
    drop(log);
    // Drops the body of an answer that never ends without waiting for it.
    let unknown = agent.send(0, request("GET", "/v1/nothing", bytes(()))).await;
    assert_eq!(unknown.status(), 404);
    body(unknown).await;
}
