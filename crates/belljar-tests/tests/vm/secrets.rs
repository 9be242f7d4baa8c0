//! Secrets: hosts get them, guests never do.

use belljar_tests::{
    Sandbox, World,
    internet::{DNS, Internet, TWO},
};
use serde_json::{Value, json};

const VALUE: &str = "hunter2-hunter2-hunter2";

/// Asks a host with what is in the variable `KEY`; says what came back. Each of them has its own idea of whom to trust.
const CURL: &str = "curl -sS --max-time 20 -H \"Authorization: Bearer $KEY\" https://one.example/v1 2>&1; echo";
const PYTHON: &str = r#"python3 -c '
import os, urllib.request
request = urllib.request.Request("https://one.example/v1", headers={"Authorization": "Bearer " + os.environ["KEY"]})
print(urllib.request.urlopen(request, timeout=20).read().decode())'"#;
const NODE: &str = r#"node -e '
fetch("https://one.example/v1", {headers: {authorization: "Bearer " + process.env.KEY}})
  .then(async answer => console.log(await answer.text()), error => console.log(String(error.cause ?? error)))'"#;

fn start() -> (Internet, World) {
    let internet = Internet::enter();
    let trusted = internet.authority().to_str().expect("a path").to_owned();
    let world = World::start_with(&[
        ("BELLJAR_RESOLVERS", DNS.to_owned()),
        ("BELLJAR_NETWORK", "namespaces".to_owned()),
        ("SSL_CERT_FILE", trusted),
    ]);
    (internet, world)
}

fn put(world: &World, body: &Value) {
    let answer = world.http().json("PUT", "/platform/v1/secrets", &body.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn start_with_secret() -> (Internet, World) {
    let (internet, world) = start();
    put(&world, &json!({"name": "KEY", "value": VALUE, "hosts": ["one.example", "*.wild.example"]}));
    (internet, world)
}

/// The credentials that hosts have been sent since the last time.
fn sent(internet: &Internet) -> Vec<String> {
    let of = |head: String| {
        let line = head.lines().find_map(|line| line.strip_prefix("authorization: ").map(str::to_owned));
        line.unwrap_or_else(|| "none".to_owned())
    };
    internet.take_requests().into_iter().map(of).collect()
}

#[track_caller]
fn check(internet: &Internet, sandbox: &Sandbox<'_>, program: &str, when: &str) {
    assert_eq!(sandbox.sh(program).trim(), "with a credential", "{when}: {program}");
    assert_eq!(sent(internet), [format!("Bearer {VALUE}")], "{when}: {program}");
}

#[test]
fn hosts_get_a_secret_that_no_sandbox_ever_has() {
    let (internet, world) = start_with_secret();
    let sandbox = world.create(&json!({"name": "box", "secret_names": ["KEY"]}));
    for program in [CURL, PYTHON, NODE] {
        check(&internet, &sandbox, program, "at first");
    }
    check(&internet, &sandbox, &CURL.replace("one.example", "a.wild.example"), "below a suffix");
    assert!(sandbox.sh("echo $KEY").starts_with("belljar-secret-"));

    world.suspend(&sandbox.id);
    world.resume(&sandbox.id);
    check(&internet, &sandbox, CURL, "after a sleep");
    let copy = world.copy(&sandbox.id, 1).remove(0);
    check(&internet, &copy, PYTHON, "in a copy");
    let snapshot = world.snapshot(&sandbox.id, "memory");
    let restored = world.create(&json!({"snapshot_id": snapshot["id"]}));
    check(&internet, &restored, CURL, "restored");
    let without = world.create(&json!({"snapshot_id": snapshot["id"], "secret_names": []}));
    // The variable is still in nobody's environment but that of what ran, and is worth nothing here.
    assert_eq!(without.sh("echo \"[$KEY]\""), "[]");

    world.kill_server();
    world.up();
    check(&internet, &sandbox, CURL, "after the server was killed");
    // Disk and memory of all of them: nobody may look for the value inside, or it would be there.
    world.suspend(&sandbox.id);
    assert_eq!(holds(&world.data()), Vec::<String>::new(), "the value is on the disk");
    assert!(!world.log().contains(VALUE), "the value is in the log");
}

/// Files below a directory that hold the value, memory of sleeping sandboxes included.
fn holds(directory: &std::path::Path) -> Vec<String> {
    let output = std::process::Command::new("grep")
        .args(["-rsl", "--exclude=volume.xfs", VALUE])
        .arg(directory)
        .output()
        .expect("grep");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn a_placeholder_that_strays_goes_nowhere() {
    let (internet, world) = start_with_secret();
    let sandbox = world.create(&json!({"name": "box", "secret_names": ["KEY"]}));
    let curl = |arguments: &str| sandbox.run(&format!("curl -sS --max-time 20 {arguments} 2>&1")).stdout;
    let other = curl("-H \"x-other: $KEY\" https://one.example/");
    assert!(other.contains("header x-other, to which it is not bound"), "{other}");
    let url = curl("\"https://one.example/?key=$KEY\"");
    assert!(url.contains("in the URL"), "{url}");
    let trace = curl("-X TRACE -H \"Authorization: $KEY\" https://one.example/");
    assert!(trace.contains("TRACE is not possible here"), "{trace}");
    // One name for the proxy, and another one for whoever is behind it.
    let other = curl("-H \"Host: two.example\" -H \"Authorization: $KEY\" https://one.example/");
    assert!(other.contains("names another host"), "{other}");
    let other = curl("--connect-to two.example:443:one.example:443 -H \"Authorization: $KEY\" https://two.example/");
    assert!(other.contains("TLS") || other.contains("SSL") || other.contains("alert"), "{other}");
    assert_eq!(sent(&internet), Vec::<String>::new());
    // A host without a rule is not looked into, and gets what the guest has.
    curl("-k -H \"Authorization: $KEY\" https://two.example/");
    assert!(sent(&internet)[0].starts_with("belljar-secret-"));
    let log = world.ok(&["logs", "box"]);
    assert!(log.contains("blocked: https one.example, a secret's placeholder in the URL"), "{log}");
    assert!(!log.contains(VALUE), "{log}");

    // Another sandbox on the same node, which was not given the secret, has learnt the placeholder.
    let placeholder = sandbox.sh("echo $KEY");
    let thief = world.create(&json!({}));
    let steal = |target: &str| {
        thief.run(&format!("curl -sSk --max-time 20 -H 'Authorization: {placeholder}' {target} 2>&1"));
    };
    steal("https://one.example/");
    steal("--resolve one.example:443:10.0.2.4 https://one.example/");
    assert_eq!(sent(&internet), [placeholder]);
}

#[test]
fn the_policy_holds_for_hosts_with_a_secret_too() {
    let (internet, world) = start_with_secret();
    let network = json!({"allow_out": [TWO]});
    let sandbox = world.create(&json!({"name": "box", "secret_names": ["KEY"], "network": network}));
    let denied = sandbox.sh(CURL);
    assert!(denied.contains("one.example"), "{denied}");
    // Around the resolver, straight to the proxy.
    let around = sandbox.sh(&CURL.replace("https://", "--resolve one.example:443:10.0.2.4 https://"));
    assert!(around.contains("one.example: not in allow_out"), "{around}");
    assert_eq!(sent(&internet), Vec::<String>::new());
    let log = world.ok(&["logs", "box"]);
    assert!(log.contains("blocked: https one.example, one.example: not in allow_out"), "{log}");

    let patch = |network: Value| {
        let body = json!({"network": network}).to_string();
        let answer = world.http().json("PATCH", &format!("/sandboxes/{}", sandbox.id), &body);
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    patch(json!({"allow_out": ["one.example"]}));
    check(&internet, &sandbox, CURL, "allowed by name");
    patch(json!({"deny_out": ["45.83.1.0/24"]}));
    let denied = sandbox.sh(CURL);
    assert!(denied.contains("in deny_out"), "{denied}");
    assert_eq!(sent(&internet), Vec::<String>::new());
}

#[test]
fn a_secret_changes_and_goes_without_a_restart() {
    let (internet, world) = start_with_secret();
    let sandbox = world.create(&json!({"secret_names": ["KEY"]}));
    check(&internet, &sandbox, CURL, "at first");
    let output = world
        .command(&["secret", "set", "KEY", "--host", "one.example", "--header", "x-api-key"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            std::io::Write::write_all(child.stdin.as_mut().expect("a pipe"), b"second\n")?;
            child.wait_with_output()
        });
    assert!(output.expect("the binary").status.success());
    assert_eq!(world.ok(&["secret", "ls"]).matches("one.example").count(), 1);
    sandbox.sh("curl -sS -H \"X-Api-Key: $KEY\" https://one.example/");
    let heads = internet.take_requests();
    assert!(heads.iter().any(|head| head.contains("x-api-key: second")), "{heads:?}");
    world.ok(&["secret", "rm", "KEY"]);
    let gone = sandbox.run("curl -sSk --resolve one.example:443:10.0.2.4 -H \"X-Api-Key: $KEY\" https://one.example/");
    assert_ne!(gone.end["exit_code"], 0, "{gone:?}");
    assert!(internet.take_requests().is_empty());
}
