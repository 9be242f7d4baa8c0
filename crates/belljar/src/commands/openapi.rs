//! `belljar openapi`: the document that is committed as `openapi/belljar.json`.

use super::Context;
use crate::{exit::ExitStatus, printer::Sink};

pub(super) fn openapi(ctx: &Context) -> anyhow::Result<ExitStatus> {
    ctx.printer.bytes(Sink::Out, belljar_server::openapi().as_bytes())?;
    Ok(ExitStatus::Success)
}
