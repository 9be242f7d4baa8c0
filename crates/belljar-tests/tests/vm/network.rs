//! What leaves a sandbox that has QEMU's user-mode network, where no rules hold; see [`crate::egress`] for where they do.

use std::{io::Write, net::TcpListener};

use belljar_tests::World;
use serde_json::json;

/// Whether a sandbox made from `body` reaches a listener on the host, by address and through the resolver's port.
fn reaches_host(world: &World, body: &serde_json::Value) -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = { stream }.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello");
        }
    });
    let sandbox = world.create(body);
    let ran = sandbox.run(&format!("curl -s --max-time 5 http://10.0.2.2:{port}/"));
    let dns = sandbox.run("timeout 5 python3 -c \"import socket; s=socket.create_connection(('10.0.2.3', 53), 3)\"");
    assert_eq!(ran.stdout == "hello", ran.end["exit_code"] == 0, "{ran:?}");
    if ran.stdout != "hello" {
        assert_ne!(dns.end["exit_code"], 0, "DNS leaves although nothing may: {dns:?}");
    }
    ran.stdout == "hello"
}

#[test]
fn the_network_is_there_unless_it_is_off() {
    let world = World::start_with(&[("BELLJAR_NETWORK", "user".to_owned())]);
    assert!(reaches_host(&world, &json!({})));
    assert!(!reaches_host(&world, &json!({"network": {"allow_internet_access": false}})));
}

#[test]
fn the_network_is_switched_while_the_sandbox_runs() {
    let world = World::start_with(&[("BELLJAR_NETWORK", "user".to_owned())]);
    let sandbox = world.create(&json!({}));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let probe = format!(
        "timeout 5 bash -c '</dev/tcp/10.0.2.2/{}' && echo open || echo shut",
        listener.local_addr().unwrap().port()
    );
    let patch = |body: &str| world.http().json("PATCH", &format!("/sandboxes/{}", sandbox.id), body);
    assert_eq!(sandbox.sh(&probe), "open");
    assert_eq!(patch(r#"{"network":{"allow_internet_access":false}}"#).status, 200);
    assert_eq!(sandbox.sh(&probe), "shut");
    assert_eq!(patch(r#"{"network":null}"#).status, 200);
    assert_eq!(sandbox.sh(&probe), "open");
    let finer = patch(r#"{"network":{"deny_out":["10.0.0.0/8"]}}"#);
    assert_eq!((finer.status, finer.code()), (400, "INVALID_ARGUMENT"), "{finer:?}");
}
