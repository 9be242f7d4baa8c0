//! `belljar rm`.

use super::Context;
use crate::{cli::RmArgs, exit::ExitStatus, report::Failure};

pub(super) async fn rm(ctx: &Context, args: RmArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let references = match args.all {
        true => client.list().await?.into_iter().map(|sandbox| sandbox.id).collect(),
        false => args.sandboxes,
    };
    let (mut removed, mut failed) = (Vec::new(), None);
    for reference in references {
        // One that cannot be ended does not keep the others alive.
        match client.delete(&reference).await {
            Ok(()) => removed.push(reference),
            Err(error) if failed.is_none() => failed = Some((reference, error)),
            Err(error) => ctx.printer.warn(format!("cannot end {reference}: {error}")),
        }
    }
    match ctx.printer.is_json() {
        true => ctx.printer.json(&serde_json::json!({ "removed": removed }))?,
        false => removed.iter().try_for_each(|reference| ctx.printer.line(reference))?,
    }
    match failed {
        None => Ok(ExitStatus::Success),
        Some((reference, error)) => Err(Failure::new(format!("cannot end {reference}")).because(error).into()),
    }
}
