//! `belljar fork`.

use super::{Context, create};
use crate::{cli::ForkArgs, exit::ExitStatus};

pub(super) async fn fork(ctx: &Context, args: &ForkArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let spinner = ctx.printer.spinner("copying");
    let copied = client.copy(&args.sandbox, usize::from(args.times), args.idempotency_key.as_deref()).await;
    spinner.finish_and_clear();
    let copied = copied?;
    if ctx.printer.is_json() {
        ctx.printer.json(&copied)?;
    }
    let mut failed = None;
    for copy in &copied.sandboxes {
        match create::check(copy) {
            Ok(()) if ctx.printer.is_json() => {}
            Ok(()) => ctx.printer.line(&copy.sandbox_id)?,
            Err(failure) if failed.is_none() => failed = Some(failure),
            Err(failure) => ctx.printer.warn(failure.to_string()),
        }
    }
    match failed {
        None => Ok(ExitStatus::Success),
        Some(failure) => Err(failure.into()),
    }
}
