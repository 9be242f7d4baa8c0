//! `belljar run`: make a sandbox, run one program in it, remove it.
//!
//! The sandbox is removed however the program or we end; only SIGKILL of ours leaves it, and then its idle timeout
//! ends it.

use super::{
    Context,
    attached::{self, Program},
    create,
    interrupt::Interrupts,
};
use crate::{cli::RunArgs, exit::ExitStatus};

pub(super) async fn run(ctx: &Context, args: RunArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let mut interrupts = Interrupts::listen()?;
    let request = create::request(&args.machine);
    // Whoever interrupts now still gets the sandbox removed: its id is only known once this has been answered.
    let mut starting = std::pin::pin!(create::start(ctx, &client, &request));
    let (created, interrupted) = tokio::select! {
        created = &mut starting => (created?, None),
        signal = interrupts.next() => {
            ctx.printer.note("interrupted; removing the sandbox (once more leaves it)");
            tokio::select! {
                created = &mut starting => (created?, Some(signal)),
                signal = interrupts.next() => return Ok(ExitStatus::of_program(None, Some(signal))),
            }
        }
    };
    let id = &created.sandbox_id;
    let done = match (interrupted, create::check(&created)) {
        (Some(signal), _) => Ok(ExitStatus::of_program(None, Some(signal))),
        (None, Err(failure)) => Err(failure.into()),
        (None, Ok(())) => {
            let program = Program { command: args.command, args: args.program, timeout: args.timeout };
            attached::run(ctx, &client.sandbox(id), program, args.interactive, &mut interrupts).await
        }
    };
    if args.keep && interrupted.is_none() && created.status == "running" {
        ctx.printer.note(format!("sandbox {id} was kept; end it with `belljar rm {id}`"));
    } else if let Err(error) = client.delete(id).await {
        ctx.printer.warn(format!("cannot remove sandbox {id}: {error}"));
    }
    done
}
