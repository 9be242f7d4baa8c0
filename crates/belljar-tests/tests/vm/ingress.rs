//! From outside into a sandbox: exposed ports and tunnels.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
};

use belljar_tests::World;
use serde_json::json;

#[test]
fn exposed_ports_answer_and_others_do_not() {
    let world = World::start();
    let sandbox = world.create(&json!({"exposed_ports": [8123]}));
    sandbox.serve(&json!({"command": "python3", "args": ["-um", "http.server", "8123"], "working_dir": "/etc"}));
    let port = |number: &str| sandbox.http().header("x-tensorlake-sandbox-port", number);
    let page = port("8123").get("/hostname?x=1");
    assert_eq!(page.status, 200, "{page:?}");

    let none = port("8124").get("/");
    assert_eq!((none.status, none.code()), (403, "PORT_NOT_EXPOSED"), "{none:?}");
    let keyless = port("8123").with_key(None);
    assert_eq!(keyless.get("/hostname").status, 401);
    let patch = json!({"allow_unauthenticated_access": true, "exposed_ports": [8123, 8125]});
    let patched = world.http().json("PATCH", &format!("/sandboxes/{}", sandbox.id), &patch.to_string());
    assert_eq!((patched.status, &patched.json["exposed_ports"]), (200, &json!([8123, 8125])), "{patched:?}");
    assert_eq!(keyless.get("/hostname").status, 200);
    assert_eq!(sandbox.http().with_key(None).get("/api/v1/health").status, 401, "the sandbox's own API is never open");
    let silent = port("8125").get("/");
    assert_eq!((silent.status, silent.code()), (502, "CONNECTION_REFUSED"), "{silent:?}");
}

#[test]
fn the_key_never_reaches_the_guest() {
    let world = World::start();
    let sandbox = world.create(&json!({"exposed_ports": [8123]}));
    let script = "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n def do_GET(s):\n  b=str(s.headers).encode(); s.send_response(200); s.send_header('content-length', str(len(b))); s.end_headers(); s.wfile.write(b)\nl=h.HTTPServer(('127.0.0.1', 8123), H)\nprint('listens', flush=True)\nl.serve_forever()";
    sandbox.serve(&json!({"command": "python3", "args": ["-c", script]}));
    let seen = sandbox
        .http()
        .header("x-tensorlake-sandbox-port", "8123")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-custom", "kept")
        .get("/");
    let text = String::from_utf8_lossy(&seen.bytes).to_lowercase();
    assert!(text.contains("x-custom: kept"), "{text}");
    for secret in [world.key().to_lowercase().as_str(), "authorization", "x-tensorlake", "6.6.6.6"] {
        assert!(!text.contains(secret), "{secret} reached the guest: {text}");
    }
}

#[test]
fn a_tunnel_leads_to_any_port_of_the_guest() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    sandbox.serve(&json!({"command": "python3", "args": ["-c", "import socket as s\nl=s.create_server(('127.0.0.1',7000))\nprint('listens', flush=True)\nwhile 1:\n c,_=l.accept()\n d=c.recv(99); c.sendall(d[::-1]); c.close()"]}));
    let mut tunnel =
        world.command(&["tunnel", &sandbox.id, "7000", "--local", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(tunnel.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address =
        line.split_whitespace().find(|word| word.contains("127.0.0.1:")).unwrap_or_else(|| panic!("{line:?}"));
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "olleh");
    }
    tunnel.kill().unwrap();
    tunnel.wait().unwrap();

    let refused = sandbox
        .http()
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .get("/api/v1/tunnels/tcp?port=7001");
    assert_eq!(refused.status, 502, "{refused:?}");
}

/// Answers with its own words and what it was told of the client.
const SERVER: &str = "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n protocol_version = 'HTTP/1.1'\n def do_GET(s):\n  b=(s.path+' '+s.headers['x-forwarded-for']).encode(); s.send_response(200); s.send_header('content-length', str(len(b))); s.end_headers(); s.wfile.write(b)\nl=h.ThreadingHTTPServer(('127.0.0.1', 8123), H)\nprint('listens', flush=True)\nl.serve_forever()";

#[test]
fn a_request_to_an_exposed_port_wakes_a_sandbox() {
    let world = World::start();
    let sandbox = world.create(
        &json!({"name": "web", "exposed_ports": [8123], "allow_unauthenticated_access": true, "timeout_secs": 0}),
    );
    sandbox.serve(&json!({"command": "python3", "args": ["-c", SERVER]}));
    let boot_id = sandbox.boot_id();
    let url = format!("http://{}/a%2Fb?q=1+2", world.address());
    // Each of curl's protocols, and each time asleep first.
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        world.suspend("web");
        let output = std::process::Command::new("curl")
            .args(["-sS", "--max-time", "60", protocol, "-H", "host: 8123-web.local", "-H", "x-forwarded-for: 6.6.6.6"])
            .args(["-w", " %{http_version}", &url])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let version = if protocol == "--http1.1" { "1.1" } else { "2" };
        assert_eq!(text, format!("/a%2Fb?q=1+2 127.0.0.1 {version}"), "{output:?}");
        assert_eq!(world.info("web").json["status"], "running");
    }
    assert_eq!(sandbox.boot_id(), boot_id, "the same machine as before");
}

#[test]
fn a_reverse_tunnel_leads_from_the_guest_to_a_service_here() {
    let world = World::start();
    let sandbox = world.create(&json!({"name": "box"}));
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = service.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in service.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                // Only when all has come: each direction ends for itself.
                let (mut stream, mut all) = (stream, String::new());
                stream.read_to_string(&mut all).unwrap();
                stream.write_all(all.chars().rev().collect::<String>().as_bytes()).unwrap();
            });
        }
    });
    let mut tunnel = world
        .command(&["tunnel", "--reverse", "box", &format!("7100:127.0.0.1:{port}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(tunnel.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "127.0.0.1:7100\n");
    let client = "import socket,threading\ndef one(n):\n s=socket.create_connection(('127.0.0.1',7100)); s.sendall(b'%d-abc'%n); s.shutdown(1); d=b''\n while True:\n  p=s.recv(99)\n  if not p: break\n  d+=p\n got.append(d==(b'%d-abc'%n)[::-1])\ngot=[]\nts=[threading.Thread(target=one,args=(n,)) for n in range(200)]\n[t.start() for t in ts]\n[t.join() for t in ts]\nprint(len(got),all(got))";
    let ran = sandbox.run_request(&json!({"command": "python3", "args": ["-c", client]}));
    assert_eq!(ran.stdout, "200 True", "{ran:?}");

    // Asleep it ends, says so, and is not there afterwards.
    world.suspend("box");
    let ended = tunnel.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && words.contains("suspended or ended"), "{words}");
    assert_eq!(sandbox.sh("ss -ltnH 'sport = :7100'"), "");
}
