//! `belljar rm`, and removing several things.

use belljar_client::Scope;

use super::Context;
use crate::{cli::RmArgs, exit::ExitStatus, report::Failure};

pub(super) async fn rm(ctx: &Context, args: RmArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let references = match args.all {
        true => client.list(Scope::Clients).await?.into_iter().map(|sandbox| sandbox.id).collect(),
        false => args.sandboxes,
    };
    each(ctx, "end", references, async |reference| client.delete(reference).await).await
}

/// Removes one after the other and prints those that are gone. One that cannot be removed does not keep the others.
pub(super) async fn each(
    ctx: &Context,
    verb: &str,
    references: Vec<String>,
    remove: impl AsyncFn(&str) -> Result<(), belljar_client::Error>,
) -> anyhow::Result<ExitStatus> {
    let (mut removed, mut failed) = (Vec::new(), None);
    for reference in references {
        match remove(&reference).await {
            Ok(()) => removed.push(reference),
            Err(error) if failed.is_none() => failed = Some((reference, error)),
            Err(error) => ctx.printer.warn(format!("cannot {verb} {reference}: {error}")),
        }
    }
    match ctx.printer.is_json() {
        true => ctx.printer.json(&serde_json::json!({ "removed": removed }))?,
        false => removed.iter().try_for_each(|reference| ctx.printer.line(reference))?,
    }
    match failed {
        None => Ok(ExitStatus::Success),
        Some((reference, error)) => Err(Failure::new(format!("cannot {verb} {reference}")).because(error).into()),
    }
}
