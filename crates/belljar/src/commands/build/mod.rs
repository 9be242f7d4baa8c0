//! `belljar build`: sends a context, shows what the builder writes, and waits for the image.
//!
//! The build is the server's: it goes on when we are gone, unless we were interrupted, which cancels it.

mod context;
mod ignore;

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Context as _;
use belljar_api::{
    build::{BuildInfo, BuildKind, BuildStatus, BuilderResources, CancelOutcome, StartBuild},
    process::RunEvent,
    secret::SecretValue,
};
use belljar_client::Client;

use super::{Context, interrupt::Interrupts};
use crate::{
    cli::{BuildArgs, BuildSecret, SecretSource},
    exit::{ExitStatus, SIGNAL_BASE},
    report::Failure,
    table::bytes,
};

/// What the log of a build is read from.
const BUILDER: &str = "tl-image-builder";
/// Pause between two looks at a build.
const LOOK: Duration = Duration::from_millis(500);

pub(super) async fn build(ctx: &Context, args: &BuildArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let packed = {
        let _spinner = ctx.printer.spinner("packing the context");
        context::pack(&args.context, args.file.as_deref())?
    };
    for path in &packed.skipped {
        ctx.printer.note(format!("{} is neither a file, a directory nor a link, and is not sent", path.display()));
    }
    let start = request(args, packed.dockerfile.clone())?;
    let mut interrupts = Interrupts::listen().context("cannot listen for signals")?;
    let key = belljar_api::id::new_id();
    let started = client.start_build(&start, &key).await?;
    let id = started.build.build_id.clone();
    ctx.printer.note(format!("build {id}"));
    let work = async {
        if let Some(to) = &started.context_upload {
            let bar = ctx.printer.transfer("sending the context".to_owned(), Some(packed.bytes));
            let shown = bar.clone();
            let sent = client.upload_context(to, packed.archive.path(), move |count| shown.inc(count)).await;
            bar.finish_and_clear();
            sent?;
            client.seal_context(&id, &packed.digest).await?;
        }
        follow(ctx, &client, &id).await
    };
    let ended = tokio::select! {
        ended = work => ended?,
        signal = interrupts.next() => {
            ctx.printer.note("interrupted; cancelling the build");
            cancel(ctx, &client, &id).await?;
            return Ok(ExitStatus::Program(u8::try_from(signal).map_or(u8::MAX, |it| it + SIGNAL_BASE)));
        }
    };
    report(ctx, &ended)
}

fn request(args: &BuildArgs, dockerfile: String) -> anyhow::Result<StartBuild> {
    let secrets = args.secret.iter().map(|secret| Ok((secret.id.clone(), SecretValue::new(value(secret)?))));
    let auth = match &args.registry_auth {
        Some(path) => Some(fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => None,
    };
    Ok(StartBuild {
        kind: BuildKind::Dockerfile,
        name: args.tag.clone(),
        image_ref: None,
        image_scope: args.public.then(|| "global".to_owned()),
        registry_credentials_json: auth.map(SecretValue::new),
        disk_mb: None,
        dockerfile_path: Some(dockerfile),
        parents: Vec::new(),
        build_args: args.build_arg.iter().cloned().collect(),
        target: args.target.clone(),
        secrets: secrets.collect::<anyhow::Result<BTreeMap<_, _>>>()?,
        no_cache: args.no_cache,
        pull: args.pull,
        builder_resources: Some(BuilderResources { cpus: args.cpus, memory_mb: args.memory, disk_mb: args.disk }),
    })
}

fn value(secret: &BuildSecret) -> anyhow::Result<String> {
    match &secret.from {
        SecretSource::File(path) => {
            fs::read_to_string(path).with_context(|| format!("cannot read {}, which --secret names", path.display()))
        }
        SecretSource::Env(name) => {
            std::env::var(name).map_err(|_| Failure::new(format!("--secret: the environment has no {name}")).into())
        }
    }
}

/// Shows the log until the build is over.
async fn follow(ctx: &Context, client: &Client, id: &str) -> anyhow::Result<BuildInfo> {
    let (mut next, mut is_read, mut phase) = (0, false, None);
    loop {
        let info = client.build(id).await?;
        if phase.replace(info.phase) != Some(info.phase) && !info.status.is_over() {
            ctx.printer.note(words(&info));
        }
        if let Some(sandbox) = info.builder_sandbox_id.as_deref().filter(|_| !is_read) {
            // What breaks off is read on from where it was, at the next look.
            is_read = show(ctx, client, sandbox, &mut next).await.unwrap_or(false);
        }
        if info.status.is_over() {
            return Ok(info);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn words(info: &BuildInfo) -> &'static str {
    use belljar_api::build::BuildPhase::{
        AwaitingContext, Executing, Finished, Publishing, Snapshotting, StartingBuilder,
    };
    match info.phase {
        AwaitingContext => "waiting for the context",
        StartingBuilder => "starting the builder",
        Executing => "building",
        Snapshotting => "packing the image",
        Publishing => "naming the image",
        Finished => "done",
    }
}

/// Shows what the builder writes, from a line on; whether that was all of it.
async fn show(ctx: &Context, client: &Client, sandbox: &str, next: &mut u64) -> anyhow::Result<bool> {
    let sandbox = client.sandbox(sandbox);
    let all = sandbox.processes().await?;
    let is_builder = |command: &str| command.rsplit('/').next() == Some(BUILDER);
    let Some(process) = all.processes.iter().find(|it| is_builder(&it.command)) else { return Ok(false) };
    let mut events = sandbox.follow_from(&process.pid.to_string(), *next).await?;
    while let Some(event) = events.next().await? {
        match event {
            RunEvent::Line { line, offset, .. } => {
                *next = offset.unwrap_or(*next) + 1;
                ctx.printer.progress(&crate::table::printable(&line))?;
            }
            RunEvent::Eof {} => return Ok(true),
            RunEvent::Started { .. } | RunEvent::Ended { .. } => {}
        }
    }
    Ok(false)
}

async fn cancel(ctx: &Context, client: &Client, id: &str) -> anyhow::Result<()> {
    match client.cancel_build(id).await?.outcome {
        CancelOutcome::Cancelled | CancelOutcome::AlreadyCancelled => ctx.printer.note("the build was cancelled"),
        CancelOutcome::AlreadyCompleted => ctx.printer.note("it was too late: the image is there"),
        CancelOutcome::AlreadyFailed | CancelOutcome::NotAdmitted => ctx.printer.note("the build had failed"),
    }
    Ok(())
}

fn report(ctx: &Context, ended: &BuildInfo) -> anyhow::Result<ExitStatus> {
    if ctx.printer.is_json() {
        ctx.printer.json(ended)?;
    }
    match (ended.status, &ended.result) {
        (BuildStatus::Succeeded, Some(image)) => {
            if !ctx.printer.is_json() {
                ctx.printer.line(format!("{} {}", image.name, image.id))?;
            }
            ctx.printer.note(format!("image {} was built: {} on disk", image.name, bytes(image.physical_size_bytes)));
            Ok(ExitStatus::Success)
        }
        (BuildStatus::Cancelled, _) => Err(Failure::new("the build was cancelled").into()),
        _ => {
            let why = ended.error.clone().unwrap_or_else(|| "the server does not say why".to_owned());
            Err(Failure::new(why).into())
        }
    }
}
