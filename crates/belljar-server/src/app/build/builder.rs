//! The sandbox that a Dockerfile is built in: how it comes up, what is put into it, what runs in it.
//!
//! Called by [`super::dockerfile`], in this order: [`start`], [`prepare`], [`begin`], [`finish`],
//! [`pack`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use belljar_api::{
    node::{GiveImage, SandboxFile},
    sandbox::{CreateSandbox, ResourcesRequest},
};

use super::{
    Spoken, cache,
    dockerfile::{Base, Failure, Job},
    guest::Guest,
};
use crate::{
    build::Event,
    build_log::{BuildLog, Size},
    clock::now_ms,
    http::DEFAULT_NAMESPACE,
    life::SandboxRow,
    limits::{BUILDER_IDLE, BUILDER_PIDS_MAX, BUILDER_RESERVE_MB, BUILDER_WAIT},
    node_link::{ImageRef, NodeError, NodeLink},
};

/// The image that Dockerfiles are built in.
const IMAGE: &str = "belljar/builder";
/// The directory of a build in its builder; see the program.
pub(super) const DIRECTORY: &str = "/var/lib/image-build";
/// The same for what must not be on a disk.
const PRIVATE: &str = "/run/image-build";
/// The program that builds, and what clients find it by.
const PROGRAM: &str = "/usr/local/bin/tl-image-builder";
/// Its text. It is put in each time, so that it is always this server's.
const PROGRAM_TEXT: &str = include_str!("tl-image-builder");
/// Where names without a registry are looked for.
const REGISTRIES: &str = "unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"permissive\"\n";
/// How steps are run: by `crun`, with what the sandbox itself has of a network.
const RUNNING: [&str; 9] = [
    "--layers",
    // The only format that keeps HEALTHCHECK, SHELL and ONBUILD.
    "--format=docker",
    "--isolation=oci",
    "--runtime=crun",
    "--network=host",
    "--cgroup-manager=cgroupfs",
    // One that broke off leaves nothing to be found in the cache.
    "--force-rm",
    "--iidfile=/run/image-build/id",
    "--tag=localhost/built",
];

/// Makes the sandbox, from what earlier builds have left or from the image, and waits until it is up. The row is noted as
/// soon as there is one, so that it can be ended.
pub(super) async fn start(
    spoken: &Spoken,
    link: &NodeLink,
    resources: &ResourcesRequest,
    noted: &mut Option<Arc<SandboxRow>>,
) -> Result<Arc<SandboxRow>, Failure> {
    let app = &spoken.app;
    let image = match link.image(ImageRef::Name(IMAGE)).await {
        Ok(image) => image,
        Err(NodeError::Answer { status: http::StatusCode::NOT_FOUND, .. }) => {
            return Err(Failure::Words(format!(
                "there is no image {IMAGE} to build in; make it on the node: belljar image build {IMAGE}"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    let mut request = CreateSandbox {
        resources: Some(resources.clone()),
        // It is ended by us, and in use as long as we follow what it does. Were we to go, nobody would end it.
        timeout_secs: Some(BUILDER_IDLE.as_secs()),
        max_pending_secs: Some(BUILDER_WAIT.as_secs()),
        ..CreateSandbox::default()
    };
    match cache::find(app, link, &image.id).await.map_err(|error| Failure::Words(error.message))? {
        Some(snapshot) => {
            // A disk cannot shrink.
            if let Some(resources) = &mut request.resources {
                resources.disk_mb = resources.disk_mb.max(Some(snapshot.spec.resources.disk_mb));
            }
            request.snapshot_id = Some(snapshot.id);
        }
        None => request.image = Some(IMAGE.to_owned()),
    }
    let row = app.create_internal(DEFAULT_NAMESPACE, request).await.map_err(|error| Failure::Words(error.message))?;
    *noted = Some(Arc::clone(&row));
    // Were the server to go, the next one ends it.
    app.store.change_build(&spoken.id, Event::Builder(row.id.clone()), now_ms()).await?;
    let (row, _) = app.settled(row, BUILDER_WAIT).await.map_err(|error| Failure::Words(error.message))?;
    match row.ending() {
        None if row.is_up() && row.node_id() != Some(link.id()) => Err(Failure::Words(format!(
            "its builder came up on node {}, and the images that it needs are on {}; start the build again",
            row.node_id().unwrap_or_default(),
            link.id()
        ))),
        None if row.is_up() => Ok(row),
        None => Err(Failure::Words(format!(
            "no builder could be started in {} minutes: there is no room for {} MiB of memory",
            BUILDER_WAIT.as_secs() / 60,
            row.spec.resources.memory_mb
        ))),
        Some(ending) => {
            let reason = crate::visible::wire_word(ending.reason);
            Err(Failure::Words(format!("the builder did not start ({reason}): {}", ending.detail)))
        }
    }
}

/// Puts everything in that the build needs; whether a base image was among it that was not there.
pub(super) async fn prepare(
    guest: &Guest<'_>,
    link: &NodeLink,
    job: &Job,
    bases: &[Base],
    sandbox_id: &str,
) -> Result<bool, Failure> {
    let context = tokio::fs::File::open(job.context.file()).await?;
    guest.unpack(&format!("{DIRECTORY}/context"), context).await?;
    guest.put_file(PROGRAM, PROGRAM_TEXT).await?;
    guest.put_file("/etc/containers/registries.conf.d/50-image-build.conf", REGISTRIES).await?;
    let made = guest.sh(&format!("chmod 755 {PROGRAM} && mkdir -p -m 700 {PRIVATE}/secrets")).await?;
    if !made.ok {
        return Err(Failure::Words(format!("the builder cannot be prepared: {}", made.output)));
    }
    for (id, value) in &job.start.secrets {
        guest.put_file(&format!("{PRIVATE}/secrets/{id}"), value.reveal().to_owned()).await?;
    }
    if let Some(text) = &job.start.registry_credentials_json {
        guest.put_file(&format!("{PRIVATE}/auth.json"), text.reveal().to_owned()).await?;
    }
    let there = guest.sh("buildah images --noheading --format '{{.Name}}'").await?.output;
    let known = |base: &&Base| there.lines().any(|line| line == format!("localhost/{}", base.id));
    let missing: BTreeMap<&str, &Base> =
        bases.iter().filter(|base| !known(base)).map(|base| (base.id.as_str(), base)).collect();
    for base in missing.values() {
        let path = format!("{DIRECTORY}/{}", base.id);
        let to = SandboxFile { sandbox_id: sandbox_id.to_owned(), path };
        link.give_image(&GiveImage { name: base.name.clone(), to }).await?;
    }
    Ok(!missing.is_empty())
}

/// Starts the program that builds; gives its process id.
pub(super) async fn begin(guest: &Guest<'_>, job: &Job, bases: &[Base], row: &SandboxRow) -> Result<i64, Failure> {
    let ids: BTreeSet<&str> = bases.iter().map(|base| base.id.as_str()).collect();
    let ids: Vec<&str> = ids.into_iter().collect();
    let memory_max = row.spec.resources.memory_mb.saturating_sub(BUILDER_RESERVE_MB) << 20;
    let env = BTreeMap::from([
        ("BASES".to_owned(), ids.join(" ")),
        ("PIDS_MAX".to_owned(), BUILDER_PIDS_MAX.to_string()),
        ("MEMORY_MAX".to_owned(), memory_max.to_string()),
        ("HOME".to_owned(), "/root".to_owned()),
        // In memory there is no room for layers.
        ("TMPDIR".to_owned(), "/var/tmp".to_owned()),
    ]);
    Ok(guest.start(PROGRAM, arguments(job, bases), env).await?)
}

/// Waits until the program has built; gives the digest of the image's configuration.
pub(super) async fn finish(guest: &Guest<'_>, pid: i64, row: &SandboxRow) -> Result<String, Failure> {
    let mut log = BuildLog::default();
    let ended = guest.follow(pid, |line| log.line(line)).await?;
    if ended.exit_code != Some(0) {
        let resources = &row.spec.resources;
        let size = Size { memory_mb: resources.memory_mb, disk_mb: resources.disk_mb };
        return Err(Failure::Words(log.failure(ended.exit_code, size)));
    }
    let said = guest.sh(&format!("cat {PRIVATE}/id")).await?.output;
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match said.trim().strip_prefix("sha256:") {
        Some(hex) if is_hex(hex) => Ok(format!("sha256:{hex}")),
        _ => Err(Failure::Words("the builder does not say what it has built; start the build again".to_owned())),
    }
}

/// What `buildah build` is told.
fn arguments(job: &Job, bases: &[Base]) -> Vec<String> {
    let start = &job.start;
    let mut args: Vec<String> = RUNNING.iter().map(|&word| word.to_owned()).collect();
    args.extend(
        bases.iter().map(|base| format!("--build-context={}=docker-image://localhost/{}", base.written, base.id)),
    );
    args.extend(start.build_args.iter().map(|(name, value)| format!("--build-arg={name}={value}")));
    args.extend(start.secrets.keys().map(|id| format!("--secret=id={id},src={PRIVATE}/secrets/{id}")));
    args.extend(start.target.iter().map(|target| format!("--target={target}")));
    // Ours are there, and no registry has them.
    args.push(if start.pull { "--pull=newer" } else { "--pull=missing" }.to_owned());
    if start.no_cache {
        args.push("--no-cache".to_owned());
    }
    if start.registry_credentials_json.is_some() {
        args.push(format!("--authfile={PRIVATE}/auth.json"));
    }
    args.push(format!("--file={DIRECTORY}/context/{}", job.dockerfile_path()));
    args.push(format!("{DIRECTORY}/context"));
    args
}

/// Writes the image as an archive; gives its path.
pub(super) async fn pack(guest: &Guest<'_>, config_digest: &str) -> Result<String, Failure> {
    let path = format!("{DIRECTORY}/image.tar");
    let hex = config_digest.trim_start_matches("sha256:");
    let line = format!("TMPDIR=/var/tmp buildah push --quiet --format=v2s2 {hex} docker-archive:{path} 2>&1");
    let packed = guest.sh(&line).await?;
    match packed.ok {
        true => Ok(path),
        false if packed.output.to_lowercase().contains("no space left on device") => {
            Err(Failure::Words("disk full while the image was packed; use --disk".to_owned()))
        }
        false => Err(Failure::Words(format!("the image cannot be packed: {}", packed.output.trim()))),
    }
}
