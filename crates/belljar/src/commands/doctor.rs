//! `belljar doctor`.

use super::Context;
use crate::{
    cli::UpArgs,
    doctor::{Check, Mark, Report, examine},
    exit::ExitStatus,
    printer::{BAD, GOOD, NOTE, WARN},
    table::printable,
};

/// Width of the column of marks.
const MARKS: usize = 8;
/// Width of the column of names.
const NAMES: usize = 18;

pub(super) fn doctor(ctx: &Context) -> anyhow::Result<ExitStatus> {
    let up = ctx.settings.up(&UpArgs::of_environment()?)?;
    let spinner = ctx.printer.spinner("looking at this machine");
    let report = examine(&ctx.settings, &up);
    spinner.finish_and_clear();
    if ctx.printer.is_json() {
        ctx.printer.json(&report)?;
    } else {
        print(ctx, &report)?;
    }
    Ok(if report.can_run { ExitStatus::Success } else { ExitStatus::Failure })
}

fn print(ctx: &Context, report: &Report) -> anyhow::Result<()> {
    for Check { name, mark, detail, remedy } in &report.checks {
        let (style, word) = match mark {
            Mark::Ok => (GOOD, "ok"),
            Mark::Warn => (WARN, "warn"),
            Mark::Missing => (BAD, "missing"),
        };
        ctx.printer.line(format!("{style}{word:MARKS$}{style:#}{name:NAMES$}{}", printable(detail)))?;
        if let Some(remedy) = remedy {
            ctx.printer.line(format!("{:width$}-> {}", "", printable(remedy), width = MARKS + NAMES))?;
        }
    }
    let driver = report.driver.as_deref().unwrap_or("none");
    ctx.printer.line(format!("\n{NOTE}driver:{NOTE:#} {driver}: {}", report.reason))?;
    if let Some(better) = &report.better {
        ctx.printer.line(format!("{NOTE}better:{NOTE:#} {better}"))?;
    }
    let verdict = if report.can_run { "sandboxes can run here" } else { "no sandbox can run here yet" };
    ctx.printer.line(format!("{NOTE}result:{NOTE:#} {verdict}"))?;
    Ok(())
}
