//! Builds of Dockerfiles, as far as they go without a sandbox: the context, the Dockerfile, and what is refused.

use belljar_api::error::code;
use http::{StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Harness, Reply, check_error};

const BUILDS: &str = "/images/v4/builds";

fn wanted(name: &str) -> Value {
    json!({
        "kind": "dockerfile", "dockerfile_path": "Dockerfile", "parents": [], "build_args": {}, "name": name,
        "disk_mb": 10240, "builder_resources": {"cpus": 2.0, "memory_mb": 4096},
    })
}

fn context(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, text.as_bytes()).expect("archive");
    }
    archive.into_inner().expect("archive")
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Harness {
    /// Begins a build: its id, and where its context goes.
    async fn begin_dockerfile(&self, body: &Value) -> (String, String) {
        let reply = self.call("POST", BUILDS, &body.to_string()).await;
        assert_eq!(reply.status, 201, "{:?}", reply.body);
        let json = reply.json();
        assert_eq!((&json["status"], &json["phase"]), (&json!("pending"), &json!("awaiting_context")));
        assert!(json["operation_deadline_ms"].as_i64() > json["created_at_ms"].as_i64());
        let url = json["context_upload"]["url"].as_str().expect("url");
        let path = url.strip_prefix("http://sb.test:9443").expect("the server's own name");
        (json["build_id"].as_str().expect("id").to_owned(), path.to_owned())
    }

    /// Uploads without a key, as the published clients do.
    async fn put_context(&self, path: &str, bytes: &[u8]) -> Reply {
        let mut request = self.request("PUT", path);
        request.headers_mut().expect("headers").remove(header::AUTHORIZATION);
        self.ask(request, bytes.to_vec()).await
    }

    async fn seal(&self, id: &str, digest: &str) -> Reply {
        self.call("POST", &format!("{BUILDS}/{id}/context/seal"), &json!({ "digest": digest }).to_string()).await
    }

    /// Waits until a build is over, and says why it failed.
    async fn why_failed(&self, id: &str) -> String {
        let mut changes = self.app.live.builds.changed.subscribe();
        loop {
            let build = self.get(&format!("{BUILDS}/{id}")).await.json();
            if build["phase"] == "finished" {
                assert_eq!(build["status"], "failed", "{build}");
                return build["error"].as_str().expect("words").to_owned();
            }
            changes.changed().await.expect("server");
        }
    }

    /// Builds these files, and gives the words with which that fails.
    async fn build_of(&self, body: &Value, files: &[(&str, &str)]) -> String {
        let (id, path) = self.begin_dockerfile(body).await;
        let bytes = context(files);
        assert_eq!(self.put_context(&path, &bytes).await.status, 200);
        assert_eq!(self.seal(&id, &digest(&bytes)).await.status, 200);
        self.why_failed(&id).await
    }
}

#[tokio::test]
async fn a_context_is_uploaded_and_sealed_by_its_digest() {
    let (harness, _node) = Harness::with_node().await;
    let (id, path) = harness.begin_dockerfile(&wanted("Team/Tool")).await;
    let reply = harness.seal(&id, &digest(b"")).await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "no whole context was uploaded");
    let bytes = context(&[("Dockerfile", "FROM a\nRUNN")]);
    for wrong in [path.replace("token=", "token=0"), path.replace(&id, "build_x"), path.replace("?", "?x")] {
        let reply = harness.put_context(&wrong, &bytes).await;
        check_error(&reply, StatusCode::UNAUTHORIZED, code::UNAUTHENTICATED, "");
    }
    let reply = harness.call("PUT", &path.replace(&id, "build_x"), "").await;
    check_error(&reply, StatusCode::NOT_FOUND, code::NOT_FOUND, "no build waits for a context here");
    // The last one counts.
    assert_eq!(harness.put_context(&path, b"something else").await.status, 200);
    let reply = harness.seal(&id, &digest(&bytes)).await;
    check_error(&reply, StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, "upload it again");
    assert_eq!(harness.put_context(&path, &bytes).await.status, 200);
    let file = harness.app.contexts.join(&id);
    assert_eq!(std::fs::read(&file).expect("a file"), bytes);
    assert_eq!(harness.seal(&id, &digest(&bytes).to_uppercase()).await.status, 200);
    assert_eq!(harness.why_failed(&id).await, "Dockerfile:2:1: unknown instruction 'RUNN'");
    let reply = harness.put_context(&path, &bytes).await;
    assert!(matches!(reply.status, 401 | 409), "{reply:?}");
    // The row says so a moment before its task lets go of the context.
    while file.exists() {
        tokio::task::yield_now().await;
    }
    let reply = harness.seal(&id, &digest(&bytes)).await;
    check_error(&reply, StatusCode::CONFLICT, code::CONFLICT, "waits for no context");
}

#[tokio::test]
async fn what_cannot_be_built_is_said_before_anything_starts() {
    let (harness, node) = Harness::with_node().await;
    let with = |key: &str, value: Value| {
        let mut body = wanted("tool");
        body[key] = value;
        body
    };
    let bad = (StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT);
    for (body, words) in [
        (with("dockerfile_path", "../x".into()), "dockerfile_path: give a path within"),
        (with("dockerfile_path", "/x".into()), "dockerfile_path: give a path within"),
        (with("build_args", json!({"": "x"})), "build_args: a name: it is missing"),
        (with("build_args", json!({"A": "x".repeat(70_000)})), "build_args: \"A\" has a value"),
        (with("secrets", json!({"a/b": "x"})), "secrets: \"a/b\" is no id"),
        (with("builder_resources", json!({"memory_mb": 1})), "builder_resources: "),
        (with("name", "".into()), "name: it is missing or empty"),
    ] {
        check_error(&harness.call("POST", BUILDS, &body.to_string()).await, bad.0, bad.1, words);
    }
    let reply = harness.call("POST", BUILDS, &wanted("belljar/debian").to_string()).await;
    check_error(&reply, StatusCode::FORBIDDEN, code::FORBIDDEN, "is ours");

    let there = ("Dockerfile", "FROM a AS one");
    for (body, files, words) in [
        (wanted("a"), ("other", "FROM a"), "the context has no file \"Dockerfile\""),
        (with("target", "two".into()), there, "has no stage \"two\"; it has one"),
        (wanted("a"), ("./Dockerfile", "FROM"), "Dockerfile:1:"),
        (wanted("a"), there, "there is no image belljar/builder to build in"),
    ] {
        let said = harness.build_of(&body, &[files]).await;
        assert!(said.contains(words), "{said}");
    }
    let (id, path) = harness.begin_dockerfile(&wanted("a")).await;
    assert_eq!(harness.put_context(&path, b"no archive").await.status, 200);
    harness.seal(&id, &digest(b"no archive")).await;
    let said = harness.why_failed(&id).await;
    assert!(said.starts_with("the context "), "{said}");

    node.add_images(&["base"]);
    let pinned = with("parents", json!([{"reference": "base", "public_id": "image_of_yesterday"}]));
    let said = harness.build_of(&pinned, &[("Dockerfile", "FROM base")]).await;
    assert!(said.contains("\"base\" was image_of_yesterday when the build was begun"), "{said}");
}

#[tokio::test]
async fn a_build_that_waits_for_its_context_is_cancelled() {
    let (harness, _node) = Harness::with_node().await;
    let (id, path) = harness.begin_dockerfile(&wanted("tool")).await;
    assert_eq!(harness.put_context(&path, &context(&[("Dockerfile", "FROM a")])).await.status, 200);
    let reply = harness.call("POST", BUILDS, &wanted("tool").to_string()).await;
    check_error(&reply, StatusCode::CONFLICT, code::IMAGE_BUILD_IN_PROGRESS, "wait for it, or cancel it");
    assert_eq!(reply.json()["active_kind"], "dockerfile");
    let reply = harness.call("POST", &format!("{BUILDS}/cancel"), &json!({ "build_id": id }).to_string()).await;
    assert_eq!((reply.status, &reply.json()["outcome"]), (200, &json!("cancelled")));
    while harness.app.contexts.join(&id).exists() {
        tokio::task::yield_now().await;
    }
    let (_, second) = harness.begin_dockerfile(&wanted("tool")).await;
    assert_eq!(harness.put_context(&second, b"half of it").await.status, 200);
    // What a server left there that went in the middle is removed by the next one.
    let harness = harness.restart().await;
    assert_eq!(std::fs::read_dir(&harness.app.contexts).expect("directory").count(), 0);
}
