//! `belljar vmm ls|install`, on this machine.

use indicatif::ProgressBar;
use serde::Serialize;

use super::Context;
use crate::{
    cli::{VmmCommand, VmmInstallArgs},
    exit::ExitStatus,
    releases::{self, Release},
    table::Table,
};

/// A line of `vmm ls`.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    release: Release,
    /// Version of what is in our directory; null where nothing is.
    installed: Option<String>,
}

pub(super) fn vmm(ctx: &Context, command: &VmmCommand) -> anyhow::Result<ExitStatus> {
    match command {
        VmmCommand::Ls => ls(ctx),
        VmmCommand::Install(args) => install(ctx, args),
    }
}

fn ls(ctx: &Context) -> anyhow::Result<ExitStatus> {
    let dir = ctx.settings.data_dir.join(releases::DIR);
    let lines = releases::releases().into_iter().map(|release| {
        let installed = release.installed(&dir).map(|found| match found {
            Ok(program) => program.version,
            Err(problem) => problem.to_string(),
        });
        Line { release, installed }
    });
    let lines: Vec<Line> = lines.collect();
    if ctx.printer.is_json() {
        ctx.printer.json(&serde_json::json!({ "items": lines }))?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["name", "version", "installed", "release"]);
    for Line { release, installed } in lines {
        table.push([release.name, release.version, installed.unwrap_or_else(|| "-".to_owned()), release.url]);
    }
    ctx.printer.table(&table)?;
    Ok(ExitStatus::Success)
}

fn install(ctx: &Context, args: &VmmInstallArgs) -> anyhow::Result<ExitStatus> {
    let dir = ctx.settings.data_dir.join(releases::DIR);
    let mut installed = Vec::new();
    for release in releases::named(&args.programs)? {
        let mut bar = None;
        let done = release.install(&dir, args.from.as_deref(), &mut |have, total| {
            bar.get_or_insert_with(|| ctx.printer.transfer(&release.name, total)).set_position(have);
        });
        bar.inspect(ProgressBar::finish_and_clear);
        let path = done?;
        if !ctx.printer.is_json() {
            ctx.printer.line(path.display().to_string())?;
        }
        ctx.printer.note(format!("{} {} is installed", release.name, release.version));
        installed.push(serde_json::json!({ "name": release.name, "version": release.version, "path": path }));
    }
    if ctx.printer.is_json() {
        ctx.printer.json(&serde_json::json!({ "items": installed }))?;
    }
    Ok(ExitStatus::Success)
}
