//! `belljar exec`.

use belljar_api::process::StdinMode;

use super::{
    Context,
    attached::{self, Program},
    interrupt::Interrupts,
};
use crate::{cli::ExecArgs, exit::ExitStatus};

pub(super) async fn exec(ctx: &Context, args: ExecArgs) -> anyhow::Result<ExitStatus> {
    let sandbox = ctx.client()?.sandbox(&args.sandbox);
    let program = Program { command: args.command, args: args.program, timeout: args.timeout };
    if args.detach {
        let process = sandbox.start(&program.start(StdinMode::Closed)).await?;
        match ctx.printer.is_json() {
            true => ctx.printer.json(&process)?,
            false => ctx.printer.line(process.pid.to_string())?,
        }
        return Ok(ExitStatus::Success);
    }
    let mut interrupts = Interrupts::listen()?;
    attached::run(ctx, &sandbox, program, args.interactive, &mut interrupts).await
}
