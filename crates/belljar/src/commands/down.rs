//! `belljar down`.

use std::time::Duration;

use super::Context;
use crate::{
    cli::DownArgs,
    exit::ExitStatus,
    report::Failure,
    up::{instance::Instance, log},
};

/// Longest wait for the end. Ending a sandbox takes well below a second, and they end together.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn down(ctx: &Context, args: &DownArgs) -> anyhow::Result<ExitStatus> {
    let dir = &ctx.settings.data_dir;
    let stopped = match Instance::read(dir) {
        Some(instance) => {
            let spinner = ctx.printer.spinner("stopping");
            let stopped = instance.stop(!args.keep, PATIENCE);
            spinner.finish_and_clear();
            stopped.map_err(|error| {
                Failure::new("cannot stop it").because(error).hint(format!("its log is {}", log::path(dir).display()))
            })?
        }
        None => false,
    };
    if ctx.printer.is_json() {
        ctx.printer.json(&serde_json::json!({ "stopped": stopped }))?;
    } else if !stopped {
        ctx.printer.note(format!("nothing runs on {}", dir.display()));
    }
    Ok(ExitStatus::Success)
}
