//! `belljar env`: what the published SDKs need to find this server.

use super::Context;
use crate::{exit::ExitStatus, up::summary::exports};

pub(super) fn env(ctx: &Context) -> anyhow::Result<ExitStatus> {
    let (url, key) = (&ctx.settings.api_url, ctx.settings.key()?);
    if ctx.printer.is_json() {
        ctx.printer.json(&serde_json::json!({ "TENSORLAKE_API_URL": url, "TENSORLAKE_API_KEY": key }))?;
        return Ok(ExitStatus::Success);
    }
    for line in exports(url, &key) {
        ctx.printer.line(line)?;
    }
    Ok(ExitStatus::Success)
}
