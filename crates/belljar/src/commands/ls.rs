//! `belljar ls`.

use belljar_api::sandbox::{SandboxInfo, SandboxList, SandboxStatus};
use belljar_client::Scope;

use super::Context;
use crate::{
    cli::LsArgs,
    exit::ExitStatus,
    table::{Table, age, mebibytes, or_dash},
};

pub(super) async fn ls(ctx: &Context, args: &LsArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let scope = scope(args.internal);
    let mut sandboxes = client.list(scope).await?;
    if args.all {
        let mut ended = client.archived(scope, None, None).await?.sandboxes;
        ended.reverse();
        ended.append(&mut sandboxes);
        sandboxes = ended;
    }
    if ctx.printer.is_json() {
        ctx.printer.json(&SandboxList { sandboxes, cursor: None })?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["id", "name", "status", "image", "cpus", "memory", "age"]);
    for sandbox in &sandboxes {
        table.push([
            sandbox.id.clone(),
            or_dash(sandbox.name.as_ref()),
            status(sandbox),
            sandbox.image.clone(),
            sandbox.resources.cpus.to_string(),
            mebibytes(sandbox.resources.memory_mb),
            age(sandbox.created_at),
        ]);
    }
    ctx.printer.table(&table)?;
    Ok(ExitStatus::Success)
}

/// What `--internal` asks for.
pub(super) fn scope(internal: bool) -> Scope {
    if internal { Scope::All } else { Scope::Clients }
}

/// Status, with the reason where it is not the user's own doing.
pub(super) fn status(sandbox: &SandboxInfo) -> String {
    match sandbox.status {
        SandboxStatus::Pending => {
            word(&sandbox.pending_reason).map_or("pending".into(), |why| format!("pending ({why})"))
        }
        SandboxStatus::Running => "running".to_owned(),
        SandboxStatus::Suspending => "suspending".to_owned(),
        SandboxStatus::Suspended => "suspended".to_owned(),
        SandboxStatus::Terminated => {
            word(&sandbox.termination_reason).map_or("terminated".into(), |why| format!("terminated ({why})"))
        }
    }
}

/// A value by its name on the wire.
pub(super) fn word(value: &impl serde::Serialize) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(str::to_owned)
}
