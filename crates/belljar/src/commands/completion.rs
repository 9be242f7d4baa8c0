//! `belljar completion`.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::Context;
use crate::{cli::Cli, exit::ExitStatus, printer::Sink};

pub(super) fn completion(ctx: &Context, shell: Shell) -> anyhow::Result<ExitStatus> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "belljar", &mut script);
    ctx.printer.bytes(Sink::Out, &script)?;
    Ok(ExitStatus::Success)
}
