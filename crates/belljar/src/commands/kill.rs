//! `belljar kill`.

use super::Context;
use crate::{cli::KillArgs, exit::ExitStatus};

pub(super) async fn kill(ctx: &Context, args: &KillArgs) -> anyhow::Result<ExitStatus> {
    let sent = ctx.client()?.sandbox(&args.sandbox).signal(&args.process, args.signal).await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&sent)?;
    }
    Ok(ExitStatus::Success)
}
