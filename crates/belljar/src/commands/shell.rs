//! `belljar shell`: our terminal becomes that of a program in the sandbox.
//!
//! ```text
//! create session -> attach -> raw mode -> { keys, window size } up, { output } down -> exit code
//!                                 \-- any way out: RawMode is dropped, and the terminal is as it was
//! ```
//! Where stdin is no terminal it is typed as it comes, followed by Ctrl-D.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
};

use anyhow::Context as _;
use belljar_api::{
    process::UserSpec,
    pty::{CreatePty, PtyInfo, ResizePty},
};
use belljar_client::{Sandbox, Terminal, TerminalEvent, TerminalInput, TerminalOutput, limits::PING_EVERY};
use crossterm::terminal;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use super::{Context, interrupt::Interrupts};
use crate::{cli::ShellArgs, exit::ExitStatus, printer::Sink, report::Failure, stdin};

/// Ctrl-D: what a terminal makes of the end of its input.
const END_OF_INPUT: u8 = 0x04;
/// Terminal that every image knows, where ours has no name.
const DEFAULT_TERM: &str = "xterm-256color";
/// Size where nobody has a window.
const DEFAULT_SIZE: ResizePty = ResizePty { rows: 24, cols: 80 };

pub(super) async fn shell(ctx: &Context, args: ShellArgs) -> anyhow::Result<ExitStatus> {
    let sandbox = ctx.client()?.sandbox(&args.sandbox);
    let size = window();
    let mut words = args.command.into_iter();
    let mut env = BTreeMap::from([("TERM".to_owned(), ctx.settings.term.clone().unwrap_or(DEFAULT_TERM.into()))]);
    env.extend(args.program.env);
    let request = CreatePty {
        command: words.next().unwrap_or_default(),
        args: words.collect(),
        env,
        working_dir: args.program.workdir,
        user: args.program.user.map(UserSpec::Text),
        rows: size.rows,
        cols: size.cols,
    };
    let session = sandbox.create_pty(&request).await?;
    let error = match attach(ctx, &sandbox, &session).await {
        Ok(status) => return Ok(status),
        Err(error) => error,
    };
    // A connection that broke at the program's end took the exit code along, but the session still knows it.
    if let Ok(PtyInfo { is_alive: false, exit_code: Some(code), .. }) = sandbox.pty(&session.session_id).await {
        return Ok(ExitStatus::of_program(Some(code), None));
    }
    // Nobody else has the token: without us the session is of no use.
    let _ = sandbox.delete_pty(&session.session_id).await;
    Err(error)
}

async fn attach(
    ctx: &Context,
    sandbox: &Sandbox,
    session: &belljar_api::pty::CreatedPty,
) -> anyhow::Result<ExitStatus> {
    let Terminal { input, output } = sandbox.attach_pty(session).await?;
    let mut interrupts = Interrupts::listen()?;
    let resized = signal(SignalKind::window_change())?;
    let keys = stdin::read().context("cannot read stdin")?;
    let _raw = RawMode::enter()?;
    let mut shown = std::pin::pin!(show(ctx, output));
    tokio::select! {
        status = &mut shown => status,
        // What came before the connection broke is still to be read, and may be the exit code.
        error = type_in(input, keys, resized) => shown.await.or(Err(error)),
        signal = interrupts.next() => {
            let _ = sandbox.delete_pty(&session.session_id).await;
            Ok(ExitStatus::of_program(None, Some(signal)))
        }
    }
}

/// What the program writes, until it ends.
async fn show(ctx: &Context, mut output: TerminalOutput) -> anyhow::Result<ExitStatus> {
    loop {
        match output.next().await? {
            TerminalEvent::Output(bytes) => ctx.printer.bytes(Sink::Out, &bytes)?,
            TerminalEvent::Exit(code) => return Ok(ExitStatus::of_program(Some(code), None)),
            TerminalEvent::Closed(reason) => {
                let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
                return Err(Failure::new(format!("the sandbox closed the terminal{why}"))
                    .hint("`belljar show` says whether the sandbox still runs")
                    .into());
            }
        }
    }
}

/// Keys and window sizes, for as long as there are any; only a broken connection ends it.
async fn type_in(
    mut input: TerminalInput,
    mut keys: tokio::sync::mpsc::Receiver<Vec<u8>>,
    mut resized: Signal,
) -> anyhow::Error {
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut open = true;
    loop {
        let sent = tokio::select! {
            typed = keys.recv(), if open => match typed {
                Some(bytes) => input.write(&bytes).await,
                None => {
                    open = false;
                    input.write(&[END_OF_INPUT]).await
                }
            },
            _ = resized.recv() => input.resize(window()).await,
            _ = pings.tick() => input.ping().await,
        };
        if let Err(error) = sent {
            return error.into();
        }
    }
}

fn window() -> ResizePty {
    terminal::size().map_or(DEFAULT_SIZE, |(cols, rows)| ResizePty { rows, cols })
}

/// Keys come one by one and unprocessed for as long as this lives. Nothing happens where stdin is no terminal.
struct RawMode(bool);

impl RawMode {
    fn enter() -> anyhow::Result<Self> {
        let terminal = io::stdin().is_terminal();
        if terminal {
            terminal::enable_raw_mode().context("cannot change the terminal's mode")?;
        }
        Ok(Self(terminal))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if self.0
            && let Err(error) = terminal::disable_raw_mode()
        {
            tracing::warn!(%error, "cannot restore the terminal; `reset` does");
        }
    }
}
