//! `belljar ps`.

use belljar_api::process::{ProcessInfo, ProcessStatus};

use super::Context;
use crate::{
    exit::ExitStatus,
    table::{Table, age, or_dash},
};

pub(super) async fn ps(ctx: &Context, reference: &str) -> anyhow::Result<ExitStatus> {
    let list = ctx.client()?.sandbox(reference).processes().await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&list)?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["pid", "name", "status", "started", "command"]);
    for process in &list.processes {
        table.push([
            process.pid.to_string(),
            or_dash(process.managed.as_ref().and_then(|managed| managed.name.as_ref())),
            status(process),
            format!("{} ago", age(process.started_at)),
            [std::slice::from_ref(&process.command), process.args.as_slice()].concat().join(" "),
        ]);
    }
    ctx.printer.table(&table)?;
    Ok(ExitStatus::Success)
}

fn status(process: &ProcessInfo) -> String {
    match process.status {
        ProcessStatus::Running => "running".to_owned(),
        ProcessStatus::Exited => format!("exited ({})", or_dash(process.exit_code)),
        ProcessStatus::Signaled => format!("signaled ({})", or_dash(process.signal)),
        ProcessStatus::OomKilled => "out of memory".to_owned(),
    }
}
