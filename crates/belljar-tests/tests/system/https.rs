//! Our own client against our own HTTPS: every way in which it uses a connection, and what it says when it trusts nobody.

use std::{fs, net::SocketAddr};

use belljar_api::{
    process::{RunEvent, RunProcess},
    pty::CreatePty,
    sandbox::CreateSandbox,
};
use belljar_client::{Client, Error, Sandbox, Scope, TerminalEvent};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::System;

const HELLO: &[u8] = b"hello over TLS";

impl System {
    fn port(&self) -> u16 {
        self.secure.parse::<SocketAddr>().unwrap().port()
    }

    fn client(&self) -> Client {
        let ca = fs::read(self.dir.path().join("cert.pem")).unwrap();
        Client::with_ca(&format!("https://localhost:{}", self.port()), Some(&self.key), &ca).unwrap()
    }
}

#[test]
fn the_client_does_everything_over_https() {
    let system = System::start();
    let client = system.client();
    system.runtime.block_on(async {
        let created = client.create(&CreateSandbox::default()).await.unwrap();
        let sandbox = client.sandbox(&created.sandbox_id);
        live_output(&sandbox).await;
        terminal(&sandbox).await;
        tunnel(&sandbox).await;
        reverse_tunnel(&sandbox).await;
        client.delete(&created.sandbox_id).await.unwrap();
    });
}

async fn live_output(sandbox: &Sandbox) {
    let request = RunProcess { command: "echo".into(), args: vec!["hello".into()], ..RunProcess::default() };
    let mut events = sandbox.run(&request).await.unwrap();
    let mut lines = Vec::new();
    while let Some(event) = events.next().await.unwrap() {
        if let RunEvent::Line { line, .. } = event {
            lines.push(line);
        }
    }
    assert_eq!(lines, ["hello"]);
}

async fn terminal(sandbox: &Sandbox) {
    let request = CreatePty {
        command: "sh".into(),
        args: vec!["-c".into(), "read line; echo got $line; exit 7".into()],
        env: Default::default(),
        working_dir: None,
        user: None,
        rows: 24,
        cols: 80,
    };
    let session = sandbox.create_pty(&request).await.unwrap();
    let mut terminal = sandbox.attach_pty(&session).await.unwrap();
    terminal.input.write(b"this\n").await.unwrap();
    let mut shown = Vec::new();
    loop {
        match terminal.output.next().await.unwrap() {
            TerminalEvent::Output(bytes) => shown.extend_from_slice(&bytes),
            TerminalEvent::Exit(code) => break assert_eq!(code, 7),
            TerminalEvent::Closed(why) => panic!("closed: {why}"),
        }
    }
    assert!(String::from_utf8_lossy(&shown).contains("got this"));
}

/// A service that sends back what it gets until the end of it, then ends itself.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await.unwrap();
                to.shutdown().await.unwrap();
            });
        }
    });
    port
}

async fn ask(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(HELLO).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen, HELLO);
}

/// The agent is a plain process here, so that its 127.0.0.1 is ours.
async fn tunnel(sandbox: &Sandbox) {
    let tunnel = sandbox.tunnel("127.0.0.1:0".parse().unwrap(), echo().await).await.unwrap();
    let address = tunnel.address();
    let serving = tokio::spawn(tunnel.serve(|error| panic!("{error}")));
    ask(address).await;
    serving.abort();
}

async fn reverse_tunnel(sandbox: &Sandbox) {
    let tunnel = sandbox.reverse_tunnel(0, "127.0.0.1", echo().await).await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], tunnel.port()));
    let serving = tokio::spawn(tunnel.serve(|error| panic!("{error}")));
    ask(address).await;
    serving.abort();
}

#[test]
fn who_cannot_be_trusted_is_told_with_a_remedy() {
    let system = System::start();
    let ca = fs::read(system.dir.path().join("cert.pem")).unwrap();
    let plain = system.address.parse::<SocketAddr>().unwrap().port();
    let secure = system.port();
    let cases = [
        (format!("https://localhost:{secure}"), None, "from an issuer that is not known here"),
        (format!("https://127.0.0.1:{secure}"), Some(&ca), "for other names (localhost); use one of these"),
        (format!("https://localhost:{plain}"), Some(&ca), "does not speak TLS at this port"),
    ];
    for (url, ca, words) in cases {
        let client = match ca {
            Some(ca) => Client::with_ca(&url, Some(&system.key), ca),
            None => Client::new(&url, Some(&system.key)),
        };
        let error = system.runtime.block_on(client.unwrap().list(Scope::Clients)).unwrap_err();
        assert!(matches!(error, Error::Untrusted { .. } | Error::Tls { .. }), "{url}: {error:?}");
        assert!(error.to_string().contains(words) && error.to_string().contains(&url), "{error}");
    }
    for junk in [&b"junk"[..], b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let error = Client::with_ca("https://localhost", None, junk).unwrap_err();
        assert!(matches!(error, Error::Ca { .. }), "{error:?}");
    }
}
