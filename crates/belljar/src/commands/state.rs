//! `belljar suspend`, `belljar resume` and `belljar rollback`.

use belljar_api::sandbox::{SandboxInfo, SandboxStatus};

use super::{Context, ls};
use crate::{cli::StateArgs, exit::ExitStatus, report::Failure};

pub(super) async fn suspend(ctx: &Context, args: &StateArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    if args.no_wait {
        return print(ctx, &client.suspend_without_waiting(&args.sandbox).await?, None);
    }
    let spinner = ctx.printer.spinner("suspending");
    let info = client.suspend(&args.sandbox).await;
    spinner.finish_and_clear();
    print(ctx, &info?, Some(SandboxStatus::Suspended))
}

pub(super) async fn resume(ctx: &Context, args: &StateArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    if args.no_wait {
        return print(ctx, &client.resume_without_waiting(&args.sandbox).await?, None);
    }
    let spinner = ctx.printer.spinner("resuming");
    let info = client.resume(&args.sandbox).await;
    spinner.finish_and_clear();
    print(ctx, &info?, Some(SandboxStatus::Running))
}

pub(super) async fn rollback(ctx: &Context, sandbox: &str, snapshot: &str) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let spinner = ctx.printer.spinner("rolling back");
    let info = client.rollback(sandbox, snapshot).await;
    spinner.finish_and_clear();
    print(ctx, &info?, Some(SandboxStatus::Running))
}

/// Prints the id, unless it is not where it was to be.
fn print(ctx: &Context, info: &SandboxInfo, goal: Option<SandboxStatus>) -> anyhow::Result<ExitStatus> {
    if goal.is_some_and(|goal| goal != info.status) {
        let words = format!("sandbox {} is still {}", info.id, ls::status(info));
        return Err(Failure::new(words).hint("the server goes on with it; `belljar show` tells how it stands").into());
    }
    match ctx.printer.is_json() {
        true => ctx.printer.json(info)?,
        false => ctx.printer.line(&info.id)?,
    }
    Ok(ExitStatus::Success)
}
