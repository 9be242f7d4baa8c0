//! `belljar diff`: a line for each path, `+` added, `-` removed, `~` changed.

use belljar_api::snapshot::Difference;

use super::Context;
use crate::{exit::ExitStatus, table::printable};

pub(super) async fn diff(ctx: &Context, first: &str, second: &str) -> anyhow::Result<ExitStatus> {
    let diff = ctx.client()?.diff(first, second).await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&diff)?;
        return Ok(ExitStatus::Success);
    }
    for entry in &diff.entries {
        let sign = match entry.difference {
            Difference::Added => '+',
            Difference::Removed => '-',
            Difference::Changed => '~',
        };
        ctx.printer.line(format!("{sign} {}", printable(&entry.path)))?;
    }
    if diff.truncated {
        ctx.printer.warn("there are more differences than an answer holds");
    }
    Ok(ExitStatus::Success)
}
