use super::*;
use tokio::io::AsyncReadExt;

/// Plays QEMU: sends the greeting, then for each command runs `answer(id)` and sends what it returns.
fn fake(answers: Vec<Box<dyn Fn(u64) -> String + Send>>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (read, mut write) = theirs.into_split();
        let mut read = BufReader::new(read);
        write.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
        for answer in answers {
            let Ok(Some(line)) = read_line(&mut read).await else { return };
            let id = serde_json::from_slice::<Value>(&line).unwrap()["id"].as_u64().unwrap();
            if write.write_all(answer(id).as_bytes()).await.is_err() {
                return;
            }
        }
    });
    ours
}

fn ok() -> Box<dyn Fn(u64) -> String + Send> {
    Box::new(|id| format!("{{\"return\": {{}}, \"id\": {id}}}\r\n"))
}

#[test]
fn messages() {
    let check = |line: &str, expected: Message| assert_eq!(parse(line.as_bytes()).unwrap(), expected, "{line}");
    check(r#"{"QMP": {"version": {}}}"#, Message::Greeting);
    check(r#"{"return": {"a": 1}, "id": 4}"#, Message::Return { id: 4, value: json!({"a": 1}) });
    check(
        r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 4}"#,
        Message::Error { id: 4, class: "GenericError".into(), description: "no".into() },
    );
    check(
        r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}, "timestamp": {}}"#,
        Message::Shutdown { reason: "guest-reset".into() },
    );
    check(r#"{"event": "SHUTDOWN"}"#, Message::Shutdown { reason: String::new() });
    check(r#"{"event": "MIGRATION", "data": {"status": "active"}}"#, Message::Migration { status: "active".into() });
    check(r#"{"event": "RESUME", "data": {}}"#, Message::Event);
    for bad in ["", "x", "[]", "{}", r#"{"return": 1}"#, r#"{"error": {"class": "GenericError"}}"#, "\u{0}"] {
        assert!(matches!(parse(bad.as_bytes()), Err(QmpError::Malformed(_))), "{bad}");
    }
}

#[tokio::test]
async fn command_and_refusal() {
    let refuse = |id| format!("{{\"error\": {{\"class\": \"C\", \"desc\": \"d\"}}, \"id\": {id}}}\n");
    let qmp = Qmp::start(fake(vec![ok(), Box::new(refuse), ok()])).await.unwrap();
    let error = qmp.command("stop", json!({})).await.unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused `stop`: C: d");
    assert_eq!(qmp.command("cont", json!({})).await.unwrap(), json!({}));
}

#[tokio::test]
async fn late_answers_and_events_do_not_confuse() {
    let noisy = |id| {
        format!(
            "{{\"return\": 1, \"id\": {}}}\n{{\"event\": \"STOP\"}}\n{{\"event\": \"SHUTDOWN\", \"data\": {{\"reason\": \
             \"guest-panic\"}}}}\n{{\"return\": 2, \"id\": {id}}}\n",
            id - 1
        )
    };
    let qmp = Qmp::start(fake(vec![ok(), Box::new(noisy)])).await.unwrap();
    assert_eq!(qmp.command("x", json!({})).await.unwrap(), json!(2));
    assert_eq!(qmp.shutdown().await, "guest-panic");
    assert_eq!(qmp.shutdown().await, "guest-panic");
}

#[tokio::test]
async fn end_of_a_migration_is_waited_for() {
    let check = async |last: &'static str, expected: Result<(), &str>| {
        let tell = move |id| {
            let event = |status| format!("{{\"event\": \"MIGRATION\", \"data\": {{\"status\": \"{status}\"}}}}\n");
            [event("setup"), format!("{{\"return\": {{}}, \"id\": {id}}}\n"), event("active"), event(last)].concat()
        };
        let qmp = Qmp::start(fake(vec![ok(), Box::new(tell)])).await.unwrap();
        qmp.command("migrate", json!({})).await.unwrap();
        assert_eq!(qmp.migrated().await.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    };
    check("completed", Ok(())).await;
    check("failed", Err("QEMU's migration failed")).await;
    check("device", Err("QEMU closed the QMP connection")).await;
}

#[tokio::test]
async fn end_of_connection_fails_commands() {
    let qmp = Qmp::start(fake(vec![ok()])).await.unwrap();
    for _ in 0..2 {
        let error = qmp.command("x", json!({})).await.unwrap_err();
        assert!(matches!(error, QmpError::Closed | QmpError::Io(_)), "{error}");
    }
}

#[tokio::test]
async fn garbage_and_endless_lines_end_the_connection() {
    let garbage = Qmp::start(fake(vec![ok(), Box::new(|_| "hello\n".into())])).await.unwrap();
    assert!(matches!(garbage.command("x", json!({})).await, Err(QmpError::Closed)));
    let endless = Qmp::start(fake(vec![ok(), Box::new(|_| "x".repeat(QMP_LINE_BYTES + 1))])).await.unwrap();
    assert!(matches!(endless.command("x", json!({})).await, Err(QmpError::Closed)));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"{\"return\": 1, \"id\": 1}\n").await.unwrap();
    assert!(matches!(Qmp::start(ours).await, Err(QmpError::Malformed(_))));
}

#[tokio::test]
async fn dropping_the_client_closes_the_connection() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"{\"QMP\": {}}\n{\"return\": {}, \"id\": 1}\n").await.unwrap();
    drop(Qmp::start(ours).await.unwrap());
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).await.unwrap();
    assert!(rest.starts_with(b"{"), "the command, then the end");
}
