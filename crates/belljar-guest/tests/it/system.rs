use belljar_api::guest::{AgentInfo, Health};
use belljar_link::{OpenError, RefuseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{Agent, configuration, json, request};

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
    let answer = agent.send(0, request("POST", "/v1/configure", json(wanted))).await;
    assert_eq!(answer.status(), 400);
    let text = crate::harness::body(answer).await;
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
