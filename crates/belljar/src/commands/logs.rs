//! `belljar logs`: the sandbox's log as the server keeps it, or with `--follow` one process's output as it is written.

use anyhow::Context as _;
use belljar_api::{
    log::{LogLine, level},
    process::{OutputStream, RunEvent},
};
use belljar_client::{Client, LogFilter, OutputKind};

use super::Context;
use crate::{cli::LogsArgs, exit::ExitStatus, printer::Sink, report::Failure};

pub(super) async fn logs(ctx: &Context, args: LogsArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    if let (Some(process), true) = (&args.process, args.follow) {
        return follow(ctx, &client, &args.sandbox, process).await;
    }
    let mut filter = LogFilter {
        levels: args.level.iter().map(|level| level.number()).collect(),
        tail: args.tail,
        ..LogFilter::default()
    };
    if let Some(process) = &args.process {
        filter.process_ids = process_ids(&client, &args.sandbox, process).await?;
    }
    loop {
        let page = client.logs(&args.sandbox, &filter).await?;
        for line in &page.logs {
            print(ctx, line)?;
        }
        // A tail is one page by itself; an empty page cannot lead on.
        let next = page.next_token.filter(|token| !token.is_empty() && args.tail.is_none() && !page.logs.is_empty());
        match next {
            Some(token) => filter.next_token = Some(token),
            None => return Ok(ExitStatus::Success),
        }
    }
}

fn print(ctx: &Context, line: &LogLine) -> anyhow::Result<()> {
    if ctx.printer.is_json() {
        ctx.printer.json(line)?;
        return Ok(());
    }
    // As the program wrote it: stderr to stderr.
    let sink = if line.level >= level::ERROR { Sink::Err } else { Sink::Out };
    ctx.printer.bytes(sink, format!("{}\n", line.body).as_bytes())?;
    Ok(())
}

/// The server knows processes by a number of their own, people by pid or name. A pid may have been used twice.
async fn process_ids(client: &Client, sandbox: &str, process: &str) -> anyhow::Result<Vec<String>> {
    let list = client.log_processes(sandbox).await?.processes;
    let found = list.into_iter().filter(|known| known.process_pid == process || known.process_managed_name == process);
    let ids: Vec<String> = found.map(|known| known.process_id).collect();
    if ids.is_empty() {
        let failure = Failure::new(format!("process {process} of {sandbox} has written nothing"));
        return Err(failure.hint("leave out --process to see what others wrote").into());
    }
    Ok(ids)
}

async fn follow(ctx: &Context, client: &Client, sandbox: &str, process: &str) -> anyhow::Result<ExitStatus> {
    let mut events = client.sandbox(sandbox).follow(process, OutputKind::Both).await?;
    while let Some(event) = events.next().await.context("the output broke off")? {
        match event {
            RunEvent::Eof {} => break,
            event if ctx.printer.is_json() => ctx.printer.json(&event)?,
            RunEvent::Line { line, stream, .. } => {
                let sink = if stream == Some(OutputStream::Stderr) { Sink::Err } else { Sink::Out };
                ctx.printer.bytes(sink, format!("{line}\n").as_bytes())?;
            }
            RunEvent::Started { .. } | RunEvent::Ended { .. } => {}
        }
    }
    Ok(ExitStatus::Success)
}
