//! A program in a sandbox with our stdout, stderr, signals and, where asked for, stdin: what `run` and `exec` share.
//!
//! Without stdin it is one `run` request. With stdin it is a process with a pipe, whose output is followed.

use anyhow::Context as _;
use belljar_api::process::{
    OutputStream, ProcessInfo, ProcessStatus, RunEvent, RunProcess, StartProcess, StdinMode, UserSpec,
};
use belljar_client::{EventStream, OutputKind, Sandbox};

use super::{Context, interrupt::Interrupts};
use crate::{
    cli::ProgramArgs,
    exit::{ExitStatus, TIMED_OUT},
    printer::Sink,
    report::Failure,
    stdin,
};

/// A program, as the command line has it.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) command: Vec<String>,
    pub(super) args: ProgramArgs,
    /// Seconds.
    pub(super) timeout: Option<u64>,
}

impl Program {
    pub(super) fn start(self, stdin_mode: StdinMode) -> StartProcess {
        let mut words = self.command.into_iter();
        StartProcess {
            command: words.next().unwrap_or_default(),
            args: words.collect(),
            env: self.args.env.into_iter().collect(),
            working_dir: self.args.workdir,
            user: self.args.user.map(UserSpec::Text),
            stdin_mode,
            ..StartProcess::default()
        }
    }

    fn run(self) -> RunProcess {
        #[expect(clippy::cast_precision_loss, reason = "no timeout has 2^52 seconds")]
        let timeout = self.timeout.map(|seconds| seconds as f64);
        let StartProcess { command, args, env, working_dir, user, .. } = self.start(StdinMode::Closed);
        RunProcess { command, args, env, working_dir, timeout, user }
    }
}

/// Runs a program to its end.
pub(super) async fn run(
    ctx: &Context,
    sandbox: &Sandbox,
    program: Program,
    interactive: bool,
    interrupts: &mut Interrupts,
) -> anyhow::Result<ExitStatus> {
    if !interactive {
        let events = sandbox.run(&program.run()).await?;
        return match follow(ctx, sandbox, events, None, interrupts).await? {
            Some(status) => Ok(status),
            None => Err(Failure::new("the sandbox ended before the program did")
                .hint("`belljar show` says why, `belljar logs` what was written before")
                .into()),
        };
    }
    let process = sandbox.start(&program.start(StdinMode::Pipe)).await?;
    let pid = process.pid.to_string();
    let feeding = tokio::spawn(feed(sandbox.clone(), pid.clone()));
    let events = sandbox.follow(&pid, OutputKind::Both).await?;
    let followed = follow(ctx, sandbox, events, Some(process.pid), interrupts).await;
    feeding.abort();
    if let Some(status) = followed? {
        return Ok(status);
    }
    let process = sandbox.process(&pid).await?;
    let ended = ended(&process)
        .ok_or_else(|| Failure::new(format!("lost process {pid}: its output ended, but it still runs")))?;
    if ctx.printer.is_json() {
        ctx.printer.json(&ended)?;
    }
    Ok(ExitStatus::of_program(process.exit_code, process.signal))
}

/// Prints events until the last. `None` when the stream ended without saying how the program did.
async fn follow(
    ctx: &Context,
    sandbox: &Sandbox,
    mut events: EventStream,
    mut pid: Option<i64>,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Option<ExitStatus>> {
    let mut interrupted = 0_u32;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            signal = interrupts.next() => {
                interrupted += 1;
                match pid {
                    Some(pid) if interrupted <= 2 => interrupt(ctx, sandbox, pid, signal, interrupted).await,
                    _ => return Ok(Some(ExitStatus::of_program(None, Some(signal)))),
                }
                continue;
            }
        };
        let Some(event) = event else { return Ok(None) };
        if ctx.printer.is_json() && !matches!(event, RunEvent::Eof {}) {
            ctx.printer.json(&event)?;
        }
        match event {
            RunEvent::Started { pid: started, .. } => pid = Some(started),
            RunEvent::Line { mut line, stream, .. } if !ctx.printer.is_json() => {
                line.push('\n');
                let sink = if stream == Some(OutputStream::Stderr) { Sink::Err } else { Sink::Out };
                ctx.printer.bytes(sink, line.as_bytes())?;
            }
            RunEvent::Line { .. } => {}
            RunEvent::Ended { exit_code, signal, oom_killed, reason } => {
                if oom_killed == Some(true) {
                    ctx.printer.warn("the program was killed: the sandbox ran out of memory");
                }
                if reason == "timed_out" {
                    ctx.printer.warn("the program was killed: its time ran out");
                    return Ok(Some(ExitStatus::Program(TIMED_OUT)));
                }
                return Ok(Some(ExitStatus::of_program(exit_code, signal)));
            }
            RunEvent::Eof {} => return Ok(None),
        }
    }
}

/// The first signal goes to the program, the second kills it; the third is not sent here, but ends us.
async fn interrupt(ctx: &Context, sandbox: &Sandbox, pid: i64, signal: i32, count: u32) {
    let pid = pid.to_string();
    let sent = if count == 1 { sandbox.signal(&pid, signal).await.map(|_| ()) } else { sandbox.kill(&pid).await };
    if let Err(error) = sent {
        ctx.printer.warn(format!("cannot signal process {pid}: {error}"));
    }
}

async fn feed(sandbox: Sandbox, pid: String) -> anyhow::Result<()> {
    let mut chunks = stdin::read().context("cannot read stdin")?;
    while let Some(chunk) = chunks.recv().await {
        // A program that closed its stdin or ended has read what it wanted.
        if sandbox.write_stdin(&pid, chunk).await.is_err() {
            return Ok(());
        }
    }
    sandbox.close_stdin(&pid).await?;
    Ok(())
}

fn ended(process: &ProcessInfo) -> Option<RunEvent> {
    let reason = match process.status {
        ProcessStatus::Running => return None,
        ProcessStatus::Exited => "exited",
        ProcessStatus::Signaled => "signaled",
        ProcessStatus::OomKilled => "oom_killed",
    };
    Some(RunEvent::Ended {
        exit_code: process.exit_code,
        signal: process.signal,
        oom_killed: Some(process.oom_killed),
        reason: reason.to_owned(),
    })
}
