//! Secrets over HTTP: put, listed, removed, sealed at rest, and told to the node before anything needs them.

use belljar_api::error::code;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Harness, Reply, check_error, config, node::FakeNode};
use crate::prepare;

const SECRETS: &str = "/platform/v1/secrets";
const VALUE: &str = "hunter2hunter2";

impl Harness {
    async fn put(&self, body: &Value) -> Reply {
        let reply = self.call("PUT", SECRETS, &body.to_string()).await;
        assert!(!text(&reply).contains(VALUE), "the value is in an answer: {}", text(&reply));
        reply
    }
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

/// A server with a node that looks at what leaves sandboxes.
async fn start() -> (Harness, FakeNode) {
    let (harness, node) = (Harness::start().await, FakeNode::new());
    node.set_egress_rules(true);
    node.connect(&harness).await;
    (harness, node)
}

/// What the node was told: name, value, hosts.
fn told(node: &FakeNode) -> Vec<(String, String, Vec<String>)> {
    let credentials = node.credentials().expect("told");
    assert!(credentials.ca_certificate.starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(credentials.ca_key.reveal().contains("PRIVATE KEY"));
    let secrets = credentials.secrets.into_iter();
    secrets.map(|secret| (secret.name, secret.value.reveal().to_owned(), secret.hosts)).collect()
}

fn one(name: &str, value: &str, hosts: &[&str]) -> (String, String, Vec<String>) {
    (name.into(), value.into(), hosts.iter().map(|host| (*host).to_owned()).collect())
}

#[tokio::test]
async fn a_secret_is_put_changed_and_removed_and_the_node_knows() {
    let (harness, node) = start().await;
    let reply = harness.put(&json!({"name": "KEY", "value": VALUE, "hosts": ["Api.example"]})).await;
    assert_eq!(reply.status, 200, "{}", text(&reply));
    let first = reply.json();
    assert_eq!((&first["name"], &first["hosts"]), (&json!("KEY"), &json!(["api.example"])));
    assert_eq!(first["headers"], json!(["authorization"]));
    assert_eq!(told(&node), [one("KEY", VALUE, &["api.example"])]);

    // What the published CLI sends: a list without hosts. Of one that is there, only the value changes.
    let reply = harness.put(&json!([{"name": "KEY", "value": "other"}, {"name": "B", "value": "b"}])).await;
    assert_eq!(reply.json()["items"].as_array().map(Vec::len), Some(2), "{}", text(&reply));
    assert_eq!(told(&node), [one("B", "b", &[]), one("KEY", "other", &["api.example"])]);

    let list = harness.get(SECRETS).await.json();
    assert_eq!(list["items"][1]["id"], first["id"], "{list}");
    assert_eq!(harness.get(&format!("{SECRETS}/KEY")).await.json()["id"], first["id"]);
    assert_eq!(harness.call("DELETE", &format!("{SECRETS}/KEY"), "").await.status, 200);
    assert_eq!(told(&node), [one("B", "b", &[])]);
    let again = harness.call("DELETE", &format!("{SECRETS}/KEY"), "").await;
    check_error(&again, StatusCode::NOT_FOUND, code::NOT_FOUND, "no secret has the id or name");
    let missing = harness.get(&format!("{SECRETS}/KEY")).await;
    check_error(&missing, StatusCode::NOT_FOUND, code::NOT_FOUND, "no secret has the id or name");
}

#[tokio::test]
async fn bad_secrets_change_nothing() {
    let (harness, _node) = start().await;
    for (body, words) in [
        (json!({"name": "KEY"}), "needs one; give its value"),
        (json!({"name": "a-b", "value": VALUE}), "environment variable"),
        (json!({"name": "KEY", "value": format!("{VALUE}\n")}), "line breaks"),
        (json!({"name": "KEY", "value": VALUE, "hosts": ["10.0.0.1"]}), "bound to names"),
        (json!({"name": "KEY", "value": VALUE, "headers": ["Content-Length"]}), "how a request travels"),
        (json!([{"name": "OK", "value": "v"}, {"name": "KEY"}]), "needs one; give its value"),
    ] {
        let reply = harness.put(&body).await;
        check_error(&reply, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, words);
    }
    assert_eq!(harness.get(SECRETS).await.json()["items"], json!([]));
}

#[tokio::test]
async fn a_sandbox_has_a_placeholder_and_so_has_what_comes_of_it() {
    let (harness, node) = start().await;
    let (bad, invalid) = (StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT);
    let create = r#"{"name":"box","secret_names":["KEY","KEY"]}"#;
    check_error(&harness.call("POST", "/sandboxes", create).await, bad, invalid, "no secret \"KEY\"");
    harness.put(&json!({"name": "KEY", "value": VALUE})).await;
    check_error(&harness.call("POST", "/sandboxes", create).await, bad, invalid, "belljar secret set KEY --host");
    harness.put(&json!({"name": "KEY", "hosts": ["api.example"]})).await;

    let id = harness.create(create).await;
    assert_eq!(harness.get(&format!("/sandboxes/{id}")).await.json()["secret_names"], json!(["KEY"]));
    let refs = node.spec(&id).secrets;
    let placeholder = node.credentials().expect("told").secrets[0].placeholder.clone();
    assert_eq!(refs.len(), 1);
    assert_eq!((refs[0].name.as_str(), &refs[0].placeholder), ("KEY", &placeholder));
    // A new value is no new placeholder: what runs goes on.
    harness.put(&json!({"name": "KEY", "value": "other"})).await;
    assert_eq!(node.credentials().expect("told").secrets[0].placeholder, placeholder);

    let copies = harness.call("POST", &format!("/sandboxes/{id}/copy"), "").await.json();
    let copy = copies["sandboxes"][0]["sandbox_id"].as_str().unwrap_or_else(|| panic!("{copies}"));
    assert_eq!(node.spec(copy).secrets, refs);
    for (names, words) in [(json!(["NO"]), "no secret \"NO\""), (json!(vec!["A"; 65]), "at most 64")] {
        let pool = harness.call("POST", "/sandbox-pools", &json!({"secret_names": names}).to_string()).await;
        check_error(&pool, bad, invalid, words);
    }
}

#[tokio::test]
async fn no_node_that_looks_at_nothing_gets_one() {
    let (harness, node) = start().await;
    harness.put(&json!({"name": "KEY", "value": VALUE, "hosts": ["api.example"]})).await;
    node.disconnect(&harness).await;
    let other = FakeNode::new();
    other.connect(&harness).await;
    let reply = harness.call("POST", "/sandboxes", r#"{"secret_names":["KEY"]}"#).await;
    check_error(&reply, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, "secret_names are not enforced");
}

#[tokio::test]
async fn values_are_sealed_and_open_after_a_restart_with_the_same_key_only() {
    let (harness, _node) = start().await;
    harness.put(&json!({"name": "KEY", "value": VALUE, "hosts": ["api.example"]})).await;
    let path = harness.dir.path().to_owned();
    for entry in std::fs::read_dir(&path).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            continue;
        }
        let bytes = std::fs::read(path).expect("file");
        assert!(!bytes.windows(VALUE.len()).any(|window| window == VALUE.as_bytes()), "a value is on the disk");
    }
    let harness = harness.restart().await;
    let node = FakeNode::new();
    node.connect(&harness).await;
    // It is told before it is given anything to do.
    harness.create("{}").await;
    assert_eq!(told(&node), [one("KEY", VALUE, &["api.example"])]);

    let key = path.join("secrets.key");
    std::fs::rename(&key, path.join("elsewhere")).expect("moved");
    let Err(error) = prepare(config(&path)).await else { panic!("it started without the key") };
    assert!(error.to_string().contains("put back the file"), "{error}");
    std::fs::write(&key, [7; 32]).expect("written");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let Err(error) = prepare(config(&path)).await else { panic!("it started with another key") };
    assert!(error.to_string().contains("put back the key that belongs to this database"), "{error}");
}
