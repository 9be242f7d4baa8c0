//! What a sandbox is like that begins as a snapshot: what the snapshot's source was, but for what the request says.

use belljar_api::{
    error::code,
    sandbox::{CreateSandbox, Resources, ResourcesRequest},
    snapshot::SnapshotType,
};
use http::StatusCode;

use super::sandbox::sorted;
use crate::{
    error::ApiError,
    life::Spec,
    snapshot::{SnapshotRow, Standing},
};

/// Computes it. The form of the request has been checked.
pub(super) fn spec(request: &CreateSandbox, snapshot: &SnapshotRow) -> Result<Spec, ApiError> {
    check_completed(snapshot)?;
    let source = &snapshot.spec;
    let resources = resources(request.resources.as_ref(), &source.resources, snapshot.kind)?;
    let entrypoint = request.entrypoint.clone().filter(|words| !words.is_empty());
    if snapshot.kind == SnapshotType::Memory && entrypoint.is_some() && entrypoint != source.entrypoint {
        return Err(locked("entrypoint"));
    }
    // Only a named one can sleep, so the flag means nothing for another.
    let inherited = source.auto_resume || request.name.is_none();
    Ok(Spec {
        image: source.image.clone(),
        resources,
        entrypoint: entrypoint.or_else(|| source.entrypoint.clone()),
        timeout_secs: request.timeout_secs.unwrap_or(source.timeout_secs),
        network: request.network.clone().or_else(|| source.network.clone()),
        allow_unauthenticated_access: request
            .allow_unauthenticated_access
            .unwrap_or(source.allow_unauthenticated_access),
        exposed_ports: request.exposed_ports.clone().map_or_else(|| source.exposed_ports.clone(), sorted),
        auto_resume: request.auto_resume.unwrap_or(inherited),
        max_pending_secs: request.max_pending_secs,
        secrets: source.secrets.clone(),
        runtime: request.runtime.clone(),
        internal: false,
    })
}

/// Refuses a snapshot that holds nothing (yet).
pub(super) fn check_completed(snapshot: &SnapshotRow) -> Result<(), ApiError> {
    let why = match &snapshot.standing {
        Standing::Completed { .. } => return Ok(()),
        Standing::InProgress => "it is in progress; try again when it is completed".to_owned(),
        Standing::Failed { error } => format!("it failed ({error}); take another one"),
        Standing::Deleting => "it is being deleted; take another one".to_owned(),
    };
    let words = format!("Snapshot is not completed: {why}");
    Err(ApiError::new(StatusCode::BAD_REQUEST, code::INVALID_ARGUMENT, words))
}

fn resources(wanted: Option<&ResourcesRequest>, source: &Resources, kind: SnapshotType) -> Result<Resources, ApiError> {
    let wanted = wanted.cloned().unwrap_or_default();
    let merged = ResourcesRequest {
        cpus: wanted.cpus.or(Some(source.cpus)),
        memory_mb: wanted.memory_mb.or(Some(source.memory_mb)),
        disk_mb: wanted.disk_mb.or(Some(source.disk_mb)),
        gpus: wanted.gpus.or(Some(source.gpu_configs.clone())),
    };
    let resources = merged.resolve().map_err(|error| ApiError::invalid(error.to_string()))?;
    if kind == SnapshotType::Memory {
        if resources.cpus.total_cmp(&source.cpus).is_ne() {
            return Err(locked("resources.cpus"));
        }
        if resources.memory_mb != source.memory_mb {
            return Err(locked("resources.memory_mb"));
        }
        if !resources.gpu_configs.is_empty() {
            return Err(locked("resources.gpus"));
        }
    }
    if resources.disk_mb < source.disk_mb {
        let words = format!(
            "resources.disk_mb: the snapshot's disk has {} MiB and cannot shrink to {}; ask for as much or more",
            source.disk_mb, resources.disk_mb
        );
        return Err(ApiError::invalid(words));
    }
    Ok(resources)
}

fn locked(field: &str) -> ApiError {
    ApiError::invalid(format!(
        "{field}: a memory snapshot goes on as it stood, so this cannot change; leave it out, or use a filesystem snapshot"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rows;

    fn snapshot(kind: SnapshotType) -> SnapshotRow {
        let mut spec = rows::spec();
        spec.entrypoint = Some(vec!["serve".into()]);
        spec.resources =
            Resources { cpus: 2.0, memory_mb: 4096, disk_mb: 20480, ephemeral_disk_mb: 20480, gpu_configs: Vec::new() };
        spec.exposed_ports = vec![80];
        spec.auto_resume = false;
        SnapshotRow {
            id: "s".into(),
            namespace: "default".into(),
            sandbox_id: "id".into(),
            node_id: "n".into(),
            kind,
            standing: Standing::Completed { size_bytes: 1, rootfs_disk_bytes: 1 },
            spec,
            parent_id: None,
            created_at: 1,
        }
    }

    #[track_caller]
    fn check(kind: SnapshotType, body: &str, expected: &str) {
        let request: CreateSandbox = serde_json::from_str(body).expect(body);
        let got = match spec(&request, &snapshot(kind)) {
            Ok(spec) => {
                let r = spec.resources;
                let entrypoint = spec.entrypoint.unwrap_or_default().join(" ");
                format!(
                    "{} {} {} {entrypoint} {} {:?} {}",
                    r.cpus, r.memory_mb, r.disk_mb, spec.timeout_secs, spec.exposed_ports, spec.auto_resume
                )
            }
            Err(error) => error.message,
        };
        assert!(got.starts_with(expected), "{body}: {got}, not {expected}");
    }

    #[test]
    fn what_the_request_does_not_say_is_the_sources() {
        use SnapshotType::{Filesystem, Memory};
        for kind in [Filesystem, Memory] {
            check(kind, "{}", "2 4096 20480 serve 600 [80] true");
            check(kind, r#"{"name":"x"}"#, "2 4096 20480 serve 600 [80] false");
            check(kind, r#"{"timeout_secs":5,"exposed_ports":[9,8]}"#, "2 4096 20480 serve 5 [8, 9] true");
            check(kind, r#"{"resources":{"disk_mb":30000}}"#, "2 4096 30000 ");
            check(kind, r#"{"resources":{"cpus":2,"memory_mb":4096}}"#, "2 4096 20480 ");
            check(kind, r#"{"resources":{"disk_mb":10240}}"#, "resources.disk_mb: the snapshot's disk");
            check(kind, r#"{"resources":{"memory_mb":1}}"#, "resources.memory_mb: 1 is out of range");
        }
        check(Filesystem, r#"{"resources":{"cpus":1},"entrypoint":["x"]}"#, "1 4096 20480 x ");
        check(Memory, r#"{"resources":{"cpus":1}}"#, "resources.cpus: a memory snapshot");
        check(Memory, r#"{"resources":{"memory_mb":2048}}"#, "resources.memory_mb: a memory snapshot");
        check(Memory, r#"{"entrypoint":["x"]}"#, "entrypoint: a memory snapshot");
    }
}
