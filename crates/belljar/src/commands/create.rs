//! `belljar create`, and making a sandbox for `run`, `restore` and `pool claim`.

use belljar_api::sandbox::{
    CreateSandbox, CreatedSandbox, NetworkConfig, PendingReason, ResourcesRequest, TerminationReason,
};
use belljar_client::Client;

use super::Context;
use crate::{
    cli::{CreateArgs, LifeArgs, MachineArgs, SizeArgs},
    exit::ExitStatus,
    report::Failure,
};

pub(super) async fn create(ctx: &Context, args: CreateArgs) -> anyhow::Result<ExitStatus> {
    let entrypoint = Some(args.entrypoint).filter(|words| !words.is_empty());
    let request = CreateSandbox { entrypoint, runtime: args.runtime, ..request(&args.machine) };
    make(ctx, request, args.life).await
}

/// Makes what a request and the options that all new sandboxes have ask for, and prints its id.
pub(super) async fn make(ctx: &Context, request: CreateSandbox, life: LifeArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let request = CreateSandbox {
        name: life.name,
        timeout_secs: life.timeout,
        exposed_ports: Some(life.expose).filter(|ports| !ports.is_empty()),
        allow_unauthenticated_access: life.public.then_some(true),
        auto_resume: life.no_auto_resume.then_some(false),
        ..request
    };
    if life.no_wait {
        let accepted = client.create_without_waiting(&request).await?;
        match ctx.printer.is_json() {
            true => ctx.printer.json(&accepted)?,
            false => ctx.printer.line(&accepted.sandbox_id)?,
        }
        return Ok(ExitStatus::Success);
    }
    let created = start(ctx, &client, &request).await?;
    print(ctx, &created)
}

/// Prints a sandbox that was made, or says why it does not run.
pub(super) fn print(ctx: &Context, created: &CreatedSandbox) -> anyhow::Result<ExitStatus> {
    check(created)?;
    match ctx.printer.is_json() {
        true => ctx.printer.json(created)?,
        false => ctx.printer.line(&created.sandbox_id)?,
    }
    Ok(ExitStatus::Success)
}

/// The request that these arguments stand for.
pub(super) fn request(machine: &MachineArgs) -> CreateSandbox {
    CreateSandbox {
        image: machine.image.clone(),
        resources: resources(&machine.size),
        network: network(&machine.size),
        secret_names: secrets(&machine.size),
        ..CreateSandbox::default()
    }
}

/// Cpus, memory, disk and GPUs, when any is given.
pub(super) fn resources(size: &SizeArgs) -> Option<ResourcesRequest> {
    let gpus = Some(size.gpu.clone()).filter(|gpus| !gpus.is_empty());
    let resources = ResourcesRequest { cpus: size.cpus, memory_mb: size.memory, disk_mb: size.disk, gpus };
    Some(resources).filter(|resources| *resources != ResourcesRequest::default())
}

/// The policy, when it is not the default one.
pub(super) fn network(size: &SizeArgs) -> Option<NetworkConfig> {
    let policy = NetworkConfig {
        allow_internet_access: !size.no_network,
        allow_out: size.allow_out.clone(),
        deny_out: size.deny_out.clone(),
    };
    Some(policy).filter(|policy| *policy != NetworkConfig::default())
}

/// The secrets, when any is named.
pub(super) fn secrets(size: &SizeArgs) -> Option<Vec<String>> {
    Some(size.secret.clone()).filter(|names| !names.is_empty())
}

/// Makes a sandbox and waits for it; [`check`] says whether it runs.
pub(super) async fn start(
    ctx: &Context,
    client: &Client,
    request: &CreateSandbox,
) -> Result<CreatedSandbox, belljar_client::Error> {
    let spinner = ctx.printer.spinner("starting a sandbox");
    let created = client.create(request).await;
    spinner.finish_and_clear();
    created
}

/// Says why a sandbox does not run.
pub(super) fn check(created: &CreatedSandbox) -> Result<(), Failure> {
    if created.status == "running" { Ok(()) } else { Err(not_running(created)) }
}

fn not_running(created: &CreatedSandbox) -> Failure {
    let id = &created.sandbox_id;
    if matches!(created.status.as_str(), "pending" | "timeout") {
        let why = match created.pending_reason {
            Some(PendingReason::NoExecutorsAvailable) => ": no node is connected",
            Some(PendingReason::NoResourcesAvailable) => ": no node has the memory free",
            Some(PendingReason::NoExecutorForSnapshotLocation) => ": the node that has its snapshot is not connected",
            Some(PendingReason::Scheduling | PendingReason::WaitingForContainer) | None => "",
        };
        return Failure::new(format!("sandbox {id} has not started yet{why}"))
            .hint("`belljar show` tells how it stands, `belljar rm` gives up");
    }
    let details = created.error_details.as_ref().map(|details| details.message.as_str());
    let why = details.or(created.reason.as_deref()).unwrap_or("the server gave no reason");
    let failure = Failure::new(format!("sandbox {id} could not be started: {why}"));
    match created.termination_reason {
        Some(TerminationReason::ImageNotFound) => {
            failure.hint("`belljar image ls` lists the images, `belljar image build` builds one")
        }
        Some(TerminationReason::NoCapacity) => failure.hint("ask for fewer cpus or less memory"),
        Some(TerminationReason::OutOfMemory) => {
            failure.hint("tell the people who run the server: the VM process used too much")
        }
        Some(TerminationReason::NoSpace) => failure.hint("make room on the server's disk"),
        _ => failure.hint("the server's log has the details; `belljar doctor` checks the machine"),
    }
}
