//! `belljar create`, and making a sandbox for `run`.

use belljar_api::sandbox::{
    CreateSandbox, CreatedSandbox, NetworkConfig, PendingReason, ResourcesRequest, TerminationReason,
};
use belljar_client::Client;

use super::Context;
use crate::{
    cli::{CreateArgs, MachineArgs},
    exit::ExitStatus,
    report::Failure,
};

pub(super) async fn create(ctx: &Context, args: CreateArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let request = CreateSandbox {
        name: args.name,
        timeout_secs: args.timeout,
        entrypoint: Some(args.entrypoint).filter(|words| !words.is_empty()),
        exposed_ports: Some(args.expose).filter(|ports| !ports.is_empty()),
        allow_unauthenticated_access: args.public.then_some(true),
        ..request(&args.machine)
    };
    if args.no_wait {
        let accepted = client.create_without_waiting(&request).await?;
        match ctx.printer.is_json() {
            true => ctx.printer.json(&accepted)?,
            false => ctx.printer.line(&accepted.sandbox_id)?,
        }
        return Ok(ExitStatus::Success);
    }
    let created = start(ctx, &client, &request).await?;
    check(&created)?;
    match ctx.printer.is_json() {
        true => ctx.printer.json(&created)?,
        false => ctx.printer.line(&created.sandbox_id)?,
    }
    Ok(ExitStatus::Success)
}

/// The request that these arguments stand for.
pub(super) fn request(machine: &MachineArgs) -> CreateSandbox {
    let resources = ResourcesRequest {
        cpus: machine.cpus,
        memory_mb: machine.memory,
        disk_mb: machine.disk,
        ..ResourcesRequest::default()
    };
    CreateSandbox {
        image: machine.image.clone(),
        resources: Some(resources).filter(|resources| *resources != ResourcesRequest::default()),
        network: machine.no_network.then(|| NetworkConfig { allow_internet_access: false, ..NetworkConfig::default() }),
        ..CreateSandbox::default()
    }
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
        Some(TerminationReason::NoSpace) => failure.hint("make room on the server's disk"),
        _ => failure.hint("the server's log has the details; `belljar doctor` checks the machine"),
    }
}
