//! SSH: keys over the API, and the gateway with a client of the same library. OpenSSH's clients meet it in the VM tests.

use std::{sync::Arc, time::Duration};

use belljar_api::{error::code, exec::StartExec, node::NodeState};
use http::StatusCode;
use russh::{
    ChannelMsg, Disconnect, Sig,
    client::{self, Config, Handle, Msg},
    keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate, ssh_key::private::Ed25519Keypair},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Harness, check_error,
    guest::{CLOSED_PORT, ECHO_PORT, SINK_PORT},
    program::EXPANDED,
};
use crate::limits::{SSH_PENDING_MAX, SSH_WINDOW};

const KEYS: &str = "/platform/v1/users/me/ssh-keys";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes every host key.
struct Client;

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

fn line(seed: u8) -> String {
    key(seed).public_key().to_openssh().expect("line")
}

/// How a channel ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ended {
    stdout: Vec<u8>,
    stderr: String,
    status: Option<u32>,
    signal: Option<String>,
}

async fn end(channel: &mut russh::Channel<Msg>) -> Ended {
    let mut ended = Ended::default();
    loop {
        match tokio::time::timeout(PATIENCE, channel.wait()).await.expect("in time") {
            Some(ChannelMsg::Data { data }) => ended.stdout.extend_from_slice(&data),
            Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                ended.stderr.push_str(std::str::from_utf8(&data).expect("text"));
            }
            Some(ChannelMsg::ExitStatus { exit_status }) => ended.status = Some(exit_status),
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => ended.signal = Some(format!("{signal_name:?}")),
            Some(ChannelMsg::Close) | None => return ended,
            Some(_) => {}
        }
    }
}

impl Harness {
    async fn add_key(&self, seed: u8) -> String {
        let reply = self.call("POST", KEYS, &json!({ "name": "k", "publicKey": line(seed) }).to_string()).await;
        assert_eq!(reply.status, 201, "{:?}", reply.body);
        reply.json()["id"].as_str().expect("id").to_owned()
    }

    async fn login(&self, user: &str, seed: u8) -> Result<Handle<Client>, bool> {
        let stream = TcpStream::connect(self.ssh).await.expect("connect");
        let mut session = client::connect_stream(Arc::new(Config::default()), stream, Client).await.expect("session");
        let key = PrivateKeyWithHashAlg::new(Arc::new(key(seed)), None);
        let answer = session.authenticate_publickey(user, key).await.expect("answer");
        if answer.success() { Ok(session) } else { Err(false) }
    }

    /// A session whose key is known.
    async fn session(&self, user: &str) -> Handle<Client> {
        self.login(user, 1).await.expect("login")
    }

    async fn exec(&self, user: &str, command: &str) -> Ended {
        let session = self.session(user).await;
        let mut channel = session.channel_open_session().await.expect("channel");
        channel.exec(true, command).await.expect("exec");
        end(&mut channel).await
    }
}

#[tokio::test]
async fn keys_are_added_listed_and_removed() {
    let harness = Harness::start().await;
    let added = harness.call("POST", KEYS, &json!({ "publicKey": format!("{} me@x", line(1)) }).to_string()).await;
    let key = added.json();
    assert_eq!((added.status, &key["name"], &key["keyType"]), (201, &json!("me@x"), &json!("ssh-ed25519")));
    assert!(key["fingerprint"].as_str().is_some_and(|text| text.starts_with("SHA256:")), "{key}");
    assert!(key["createdAt"].as_str().is_some_and(|text| text.ends_with('Z')) && key["lastUsedAt"].is_null(), "{key}");
    assert_eq!(harness.get(KEYS).await.json()["items"], json!([key]));

    let again = harness.call("POST", KEYS, &json!({ "name": "b", "publicKey": line(1) }).to_string()).await;
    check_error(&again, StatusCode::CONFLICT, code::CONFLICT, "named \"me@x\"");
    for (body, words) in [
        (json!({ "publicKey": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blb" }), "publicKey: this is a private key"),
        (json!({ "publicKey": "nonsense" }), "publicKey: not a public key"),
        (json!({ "name": "x".repeat(101), "publicKey": line(2) }), "name: give the key a label"),
        (json!({ "name": "a\nb", "publicKey": line(2) }), "name: give the key a label"),
    ] {
        let reply = harness.call("POST", KEYS, &body.to_string()).await;
        check_error(&reply, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, words);
    }

    let harness = harness.restart().await;
    assert_eq!(harness.get(KEYS).await.json()["items"][0]["id"], key["id"], "the key survives");
    let path = format!("{KEYS}/{}", key["id"].as_str().expect("id"));
    assert_eq!(harness.call("DELETE", &path, "").await.status, 200);
    assert_eq!(harness.call("DELETE", &path, "").await.error(), (404, "NOT_FOUND".into()));
    assert_eq!(harness.get(KEYS).await.json()["items"], json!([]));
}

#[tokio::test]
async fn the_host_key_stays_the_same() {
    let harness = Harness::start().await;
    let before = harness.get("/platform/v1/ssh-gateway").await.json();
    assert_eq!(before["port"], harness.ssh.port());
    let harness = harness.restart().await;
    let after = harness.get("/platform/v1/ssh-gateway").await.json();
    assert!(before["hostKey"].as_str().is_some_and(|key| key.starts_with("ssh-ed25519 ")), "{before}");
    assert_eq!((&before["hostKey"], &before["fingerprint"]), (&after["hostKey"], &after["fingerprint"]));
}

#[tokio::test]
async fn programs_run_and_end_as_they_do() {
    let (harness, _node) = Harness::with_node().await;
    let id = harness.create(r#"{"name":"box"}"#).await;
    harness.add_key(1).await;
    for (user, command, status) in [("box", "exit 0", 0), (id.as_str(), "exit 7", 7), ("box", "exit 255", 255)] {
        assert_eq!(harness.exec(user, command).await.status, Some(status), "{command}");
    }
    let session = harness.session("box").await;
    let mut channel = session.channel_open_session().await.expect("channel");
    channel.set_env(true, "LANG", "C.UTF-8").await.expect("env");
    channel.request_pty(true, "vt100", 120, 40, 0, 0, &[]).await.expect("pty");
    channel.exec(true, "show me").await.expect("exec");
    let ended = end(&mut channel).await;
    let start: StartExec = serde_json::from_slice(&ended.stdout).expect("START");
    let size = start.terminal.expect("terminal");
    assert_eq!(
        (size.cols, size.rows, start.env["TERM"].as_str(), start.env["LANG"].as_str()),
        (120, 40, "vt100", "C.UTF-8")
    );
    assert!(start.env["SSH_CONNECTION"].starts_with("127.0.0.1 "), "{start:?}");
    assert_eq!((ended.stderr.as_str(), ended.status), ("and an error", Some(0)));

    let mut shell = session.channel_open_session().await.expect("channel");
    shell.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.expect("pty");
    shell.request_shell(true).await.expect("shell");
    shell.window_change(100, 30, 0, 0).await.expect("resize");
    shell.signal(Sig::TERM).await.expect("signal");
    let ended = end(&mut shell).await;
    assert_eq!((ended.stdout.as_slice(), ended.signal.as_deref()), (b"b\"\\0d\\0\\x1e\"".as_slice(), Some("TERM")));
    let used = harness.get(KEYS).await.json()["items"][0]["lastUsedAt"].clone();
    assert!(used.is_string(), "{used}");
}

#[tokio::test]
async fn what_does_not_run_says_why() {
    let (harness, _node) = Harness::with_node().await;
    harness.create(r#"{"name":"box"}"#).await;
    harness.add_key(1).await;
    for (user, command, words) in [
        ("nobody-here", "exit 0", "Sandbox not found"),
        ("No Such", "exit 0", "is not the id or the name of a sandbox"),
        ("9501-box", "exit 0", "reserved"),
        ("80-box", "exit 0", "run programs as `ssh box@"),
        ("box", "refuse", "working_dir: it is not there"),
        ("box", "break", "the connection to the sandbox broke off"),
    ] {
        let ended = harness.exec(user, command).await;
        assert_eq!(ended.status, Some(255), "{user} {command}: {ended:?}");
        assert!(ended.stderr.contains(words), "{:?} does not say {words:?}", ended.stderr);
    }
}

#[tokio::test]
async fn only_a_known_key_opens_a_connection_and_only_while_it_is_known() {
    let (harness, node) = Harness::with_node().await;
    harness.create(r#"{"name":"box"}"#).await;
    let id = harness.add_key(1).await;
    assert!(harness.login("box", 2).await.is_err(), "a stranger came in");

    let session = harness.session("box").await;
    let channel = session.channel_open_session().await.expect("channel");
    channel.exec(true, "sleep").await.expect("exec");
    node.opened.subscribe().wait_for(|opened| *opened == 1).await.expect("node");
    assert_eq!(harness.call("DELETE", &format!("{KEYS}/{id}"), "").await.status, 200);
    node.left.subscribe().wait_for(|left| *left == 1).await.expect("the program is left");
    assert!(harness.login("box", 1).await.is_err(), "a removed key came in");

    // One that was added with another API key goes with that.
    let created = harness.call("POST", "/platform/v1/keys", r#"{"name":"ci"}"#).await.json();
    let request = http::Request::post(KEYS)
        .header(http::header::HOST, "localhost")
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::AUTHORIZATION, format!("Bearer {}", created["key"].as_str().expect("key")));
    let added = harness.ask(request, json!({ "publicKey": line(1) }).to_string()).await;
    assert_eq!(added.status, 201);
    let _session = harness.session("box").await;
    harness.call("DELETE", &format!("/platform/v1/keys/{}", created["id"].as_str().expect("id")), "").await;
    assert!(harness.login("box", 1).await.is_err(), "the key of a removed API key came in");
}

#[tokio::test]
async fn who_goes_away_leaves_nothing_running() {
    let (harness, node) = Harness::with_node().await;
    harness.create(r#"{"name":"box"}"#).await;
    harness.add_key(1).await;
    let session = harness.session("box").await;
    let mut left = node.left.subscribe();
    for number in 1..=2 {
        let channel = session.channel_open_session().await.expect("channel");
        channel.exec(true, "sleep").await.expect("exec");
        node.opened.subscribe().wait_for(|opened| *opened == number).await.expect("node");
        if number == 1 {
            channel.close().await.expect("close");
        } else {
            session.disconnect(Disconnect::ByApplication, "", "").await.expect("disconnect");
        }
        left.wait_for(|left| *left == number).await.expect("node");
    }
}

#[tokio::test]
async fn a_sleeping_sandbox_is_woken() {
    let (harness, node) = Harness::with_node().await;
    let id = harness.create(r#"{"name":"box"}"#).await;
    harness.add_key(1).await;
    node.set(&id, NodeState::Suspended);
    harness.until(&id, |info| info["status"] == "suspended").await;
    assert_eq!(harness.exec("box", "exit 3").await.status, Some(3));
    harness.until(&id, |info| info["status"] == "running").await;
}

#[tokio::test]
async fn a_program_may_write_before_it_reads() {
    let (harness, _node) = Harness::with_node().await;
    harness.create(r#"{"name":"box"}"#).await;
    harness.add_key(1).await;
    let session = harness.session("box").await;
    let channel = session.channel_open_session().await.expect("channel");
    channel.exec(true, "expand").await.expect("exec");
    let (mut read, write) = channel.split();
    let sent = 3 * SSH_WINDOW as usize;
    let sending = tokio::spawn(async move {
        write.data_bytes(vec![b'y'; sent]).await.expect("sent");
        write.eof().await.expect("end");
    });
    let (mut out, mut counted) = (0, String::new());
    while let Some(message) = tokio::time::timeout(PATIENCE, read.wait()).await.expect("no deadlock") {
        match message {
            ChannelMsg::Data { data } => out += data.len(),
            ChannelMsg::ExtendedData { data, .. } => counted.push_str(std::str::from_utf8(&data).expect("text")),
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    sending.await.expect("sender");
    assert_eq!((out, counted), (EXPANDED, sent.to_string()));
}

#[tokio::test]
async fn a_channel_that_is_not_read_takes_a_window_and_stops_no_other() {
    let (harness, _node) = Harness::with_node().await;
    harness.create(r#"{"name":"box"}"#).await;
    harness.add_key(1).await;
    let session = harness.session("box").await;
    let stuck = session.channel_open_session().await.expect("channel");
    stuck.exec(true, "stuck").await.expect("exec");
    let (_read, write) = stuck.split();
    // Far more than windows and sockets hold.
    let sending = tokio::spawn(async move { write.data_bytes(vec![0; 64 << 20]).await });

    let other = session.channel_open_session().await.expect("channel");
    other.exec(true, "cat").await.expect("exec");
    let text: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 251).expect("small")).collect();
    let (mut read, write) = other.split();
    let bytes = text.clone();
    let writing = tokio::spawn(async move {
        write.data_bytes(bytes).await.expect("sent");
        write.eof().await.expect("end");
    });
    let mut got = Vec::new();
    while let Some(message) = tokio::time::timeout(PATIENCE, read.wait()).await.expect("in time") {
        match message {
            ChannelMsg::Data { data } => got.extend_from_slice(&data),
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    writing.await.expect("writer");
    assert!(got == text, "{} of {} bytes", got.len(), text.len());
    assert!(!sending.is_finished(), "a program that reads nothing took 64 MiB");
    sending.abort();
}

#[tokio::test]
async fn ports_are_reached_in_two_ways() {
    let (harness, node) = Harness::with_node().await;
    harness.create(r#"{"name":"box"}"#).await;
    harness.add_key(1).await;
    let session = harness.session("box").await;
    let forward = |host: &'static str, port: u16| session.channel_open_direct_tcpip(host, port.into(), "127.0.0.1", 1);
    let mut stream = forward("localhost", ECHO_PORT).await.expect("channel").into_stream();
    stream.write_all(b"hello").await.expect("sent");
    stream.shutdown().await.expect("end");
    let mut got = String::new();
    stream.read_to_string(&mut got).await.expect("echo");
    assert_eq!(got, "hello");
    // What was sent before a channel was closed still gets there.
    let sink = forward("localhost", SINK_PORT).await.expect("channel");
    sink.data_bytes(vec![b'x'; 200_000]).await.expect("sent");
    sink.eof().await.expect("end");
    sink.close().await.expect("close");
    node.left.subscribe().wait_for(|left| *left == 200_000).await.expect("node");
    let before = *node.opened.borrow();
    for (host, port) in [("localhost", CLOSED_PORT), ("localhost", 9501), ("localhost", 0), ("10.0.0.1", ECHO_PORT)] {
        assert!(forward(host, port).await.is_err(), "{host}:{port}");
    }
    assert_eq!(*node.opened.borrow(), before, "something else was reached");

    let session = harness.session("7-box").await;
    let mut channel = session.channel_open_session().await.expect("channel");
    channel.request_shell(true).await.expect("shell");
    channel.data_bytes("over the port").await.expect("sent");
    channel.eof().await.expect("end");
    let ended = end(&mut channel).await;
    assert_eq!((ended.stdout.as_slice(), ended.status), (b"over the port".as_slice(), Some(0)));
}

#[tokio::test]
async fn strangers_that_wait_are_few() {
    let harness = Harness::start().await;
    let mut greeted = Vec::new();
    for _ in 0..SSH_PENDING_MAX {
        let mut stream = TcpStream::connect(harness.ssh).await.expect("connect");
        let mut first = [0; 4];
        stream.read_exact(&mut first).await.expect("a greeting");
        assert_eq!(&first, b"SSH-");
        greeted.push(stream);
    }
    let mut late = TcpStream::connect(harness.ssh).await.expect("connect");
    assert!(matches!(late.read(&mut [0; 4]).await, Ok(0) | Err(_)), "one more is greeted");
    // Places come back.
    drop(greeted);
    harness.add_key(1).await;
    loop {
        let mut stream = TcpStream::connect(harness.ssh).await.expect("connect");
        if stream.read_exact(&mut [0; 4]).await.is_ok() {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_shutdown_says_goodbye() {
    let (harness, _node) = Harness::with_node().await;
    harness.create(r#"{"name":"box"}"#).await;
    harness.add_key(1).await;
    let session = harness.session("box").await;
    let mut channel = session.channel_open_session().await.expect("channel");
    channel.exec(true, "sleep").await.expect("exec");
    let restarted = tokio::spawn(harness.restart());
    let ended = end(&mut channel).await;
    assert_eq!(ended.status, None);
    drop(session);
    restarted.await.expect("restarted");
}
