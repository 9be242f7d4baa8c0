//! The OpenAPI document: paths from the table of routes, schemas from the wire types.

use belljar_api::{
    build, error, exec, file, guest, image, key, log, network, pool, process, pty, sandbox, secret, snapshot, ssh_key,
};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use crate::routes::{Auth, BYTES, EVENTS, Op, Route, Scope, routes};

/// Bodies that may be left out: every field of them may.
const OPTIONAL_BODIES: [&str; 3] = ["CreateSandbox", "CreateSnapshot", "PoolRequest"];

/// Carries the schemas.
#[derive(OpenApi)]
#[openapi(components(schemas(
    build::BuildInProgress,
    build::BuildInfo,
    build::CancelBuild,
    build::CancelledBuild,
    build::SealContext,
    build::StartBuild,
    build::StartedBuild,
    error::ErrorBody,
    exec::ExecExit,
    exec::StartExec,
    file::DirectoryList,
    guest::AgentInfo,
    guest::Health,
    image::ImageFromSnapshot,
    image::ImageInfo,
    image::ImageList,
    key::CreateKey,
    key::CreatedKey,
    key::Introspection,
    key::KeyList,
    log::LogPage,
    log::LogProcessList,
    network::NetworkUse,
    pool::CreatedPool,
    pool::PoolInfo,
    pool::PoolList,
    pool::PoolRequest,
    process::OutputLines,
    process::ProcessInfo,
    process::ProcessList,
    process::RunEvent,
    process::RunProcess,
    process::SendSignal,
    process::SignalSent,
    process::StartProcess,
    pty::CreatePty,
    pty::CreatedPty,
    pty::PtyInfo,
    pty::PtyList,
    pty::ResizePty,
    sandbox::AcceptedSandbox,
    sandbox::ArchivedList,
    sandbox::CreateSandbox,
    sandbox::CreatedSandbox,
    sandbox::PatchSandbox,
    sandbox::SandboxInfo,
    sandbox::SandboxList,
    secret::PutSecret,
    secret::PutSecrets,
    secret::SecretInfo,
    secret::SecretList,
    secret::SecretPage,
    secret::SecretValue,
    snapshot::AcceptedSnapshot,
    snapshot::CollectedList,
    snapshot::CopiedSandboxes,
    snapshot::CreateSnapshot,
    snapshot::Rollback,
    snapshot::SnapshotDiff,
    snapshot::SnapshotInfo,
    snapshot::SnapshotList,
    snapshot::StorageList,
    snapshot::Tree,
    ssh_key::AddSshKey,
    ssh_key::SshGateway,
    ssh_key::SshKeyInfo,
    ssh_key::SshKeyList,
)))]
struct Schemas;

/// The document, as JSON for people.
pub fn openapi() -> String {
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
}

/// The document.
pub(crate) fn document() -> Value {
    let schemas = serde_json::to_value(Schemas::openapi()).unwrap_or_default();
    let mut paths = Map::new();
    for route in routes() {
        let operation_id = operation_id(route);
        add(&mut paths, route.path, route, &operation_id);
        if route.scope == Scope::Lifecycle {
            let path = format!("/v1/namespaces/{{ns}}{}", route.path);
            add(&mut paths, &path, route, &format!("{operation_id}_in_namespace"));
        }
    }
    let bearer = |words: &str| json!({ "type": "http", "scheme": "bearer", "description": words });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Belljar",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Self-hosted microVM sandboxes. Every operation answers errors as `ErrorBody`.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas["components"]["schemas"],
            "securitySchemes": {
                "key": bearer("An API key, `belljar_` and 43 characters."),
                "node": bearer("The node token."),
            },
        },
    })
}

fn add(paths: &mut Map<String, Value>, path: &str, route: &Route, operation_id: &str) {
    let entry = paths.entry(path.to_owned()).or_insert_with(|| json!({}));
    entry[route.verb.word()] = operation(path, route, operation_id);
}

/// `get /platform/v1/keys/{id}` becomes `get_platform_v1_keys_id`.
fn operation_id(route: &Route) -> String {
    let path: String = route.path.chars().filter(|c| !matches!(c, '{' | '}')).collect();
    format!("{}{}", route.verb.word(), path.replace(['/', '-'], "_"))
}

fn operation(path: &str, route: &Route, operation_id: &str) -> Value {
    let mut operation = json!({
        "operationId": operation_id,
        "summary": route.summary,
        "tags": [tag(route)],
        "parameters": parameters(path, route),
        "responses": responses(route),
        "security": match route.auth {
            Auth::Key => json!([{ "key": [] }]),
            Auth::Node => json!([{ "node": [] }]),
            Auth::Nobody => json!([]),
        },
    });
    if let Some(body) = route.body {
        operation["requestBody"] = json!({ "content": content(body), "required": !OPTIONAL_BODIES.contains(&body) });
    }
    operation
}

fn tag(route: &Route) -> &'static str {
    match (route.op, route.scope) {
        (Op::NotYet(_), _) => "not in this release",
        (_, Scope::Guest) => "guest",
        (_, Scope::Lifecycle) => "sandboxes",
        (_, Scope::Host) => "server",
    }
}

fn parameters(path: &str, route: &Route) -> Vec<Value> {
    let text = json!({ "type": "string" });
    let in_path = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut all: Vec<Value> =
        in_path.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": text })).collect();
    all.extend(route.query.iter().map(
        |(name, words)| json!({ "name": name, "in": "query", "required": false, "schema": text, "description": words }),
    ));
    if route.scope == Scope::Guest {
        let words = "Id or name of the sandbox; not needed where the host name says it.";
        let name = "X-Tensorlake-Sandbox-Id";
        all.push(json!({ "name": name, "in": "header", "required": false, "schema": text, "description": words }));
    }
    all
}

fn responses(route: &Route) -> Value {
    let error = |words: &str| json!({ "description": words, "content": content("ErrorBody") });
    let mut all = Map::new();
    for (status, schema, words) in route.answers {
        let mut answer = json!({ "description": words });
        if !schema.is_empty() {
            answer["content"] = content(schema);
        }
        all.insert(status.to_string(), answer);
    }
    if let Op::NotYet(words) = route.op {
        all.insert("501".to_owned(), error(words));
    }
    if route.auth != Auth::Nobody {
        all.insert("401".to_owned(), error("The key is missing or not known."));
    }
    all.insert("default".to_owned(), error("What was wrong and what to do."));
    Value::Object(all)
}

fn content(schema: &str) -> Value {
    let reference = |name: &str| json!({ "schema": { "$ref": format!("#/components/schemas/{name}") } });
    match schema {
        BYTES => json!({ "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } }),
        EVENTS => json!({ "text/event-stream": reference("RunEvent") }),
        name => json!({ "application/json": reference(name) }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn references(value: &Value, into: &mut HashSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    into.insert(reference.clone());
                }
                map.values().for_each(|value| references(value, into));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, into)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_has_its_own_id() {
        let document = document();
        let mut found = HashSet::new();
        references(&document, &mut found);
        assert!(found.len() > 30, "{found:?}");
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let mut ids = HashSet::new();
        for (path, operations) in document["paths"].as_object().expect("paths") {
            for (verb, operation) in operations.as_object().expect("operations") {
                let id = operation["operationId"].as_str().expect("id");
                assert!(ids.insert(id.to_owned()), "{verb} {path}: {id}");
            }
        }
        let routes: usize = routes().map(|r| if r.scope == Scope::Lifecycle { 2 } else { 1 }).sum();
        assert_eq!(ids.len(), routes);
    }

    /// `BELLJAR_BLESS=1` writes the committed document anew.
    #[test]
    fn the_committed_document_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/belljar.json");
        let text = openapi();
        if std::env::var_os("BELLJAR_BLESS").is_some() {
            let folder = std::path::Path::new(path).parent().expect("folder");
            std::fs::create_dir_all(folder).expect("folder");
            std::fs::write(path, &text).expect("write");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == text, "openapi/belljar.json is out of date; BELLJAR_BLESS=1 writes it anew");
    }
}
