//! `belljar show`.

use belljar_api::sandbox::Gpus;

use super::{Context, ls};
use crate::{
    exit::ExitStatus,
    table::{age, mebibytes, or_dash, printable},
};

pub(super) async fn show(ctx: &Context, reference: &str) -> anyhow::Result<ExitStatus> {
    let sandbox = ctx.client()?.get(reference).await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&sandbox)?;
        return Ok(ExitStatus::Success);
    }
    let resources = &sandbox.resources;
    let internet = sandbox.network_policy.as_ref().is_none_or(|network| network.allow_internet_access);
    let ports: Vec<String> = sandbox.exposed_ports.iter().map(ToString::to_string).collect();
    // A named one, or one from a pool, sleeps where another ends; GPUs cannot.
    let sleeps = (sandbox.name.is_some() || sandbox.pool_id.is_some()) && resources.gpu_configs.is_empty();
    let timeout = match (sandbox.timeout_secs, sleeps) {
        (0, false) => "never ends for being idle".to_owned(),
        (0, true) => "is never suspended for being idle".to_owned(),
        (secs, false) => format!("ends after {secs} s without use"),
        (secs, true) => format!("is suspended after {secs} s without use"),
    };
    let wakes = match (sleeps, sandbox.auto_resume) {
        (false, _) => "-",
        (true, true) => "when it is used",
        (true, false) => "by `belljar resume` only",
    };
    let lines = [
        ("id", sandbox.id.clone()),
        ("name", or_dash(sandbox.name.as_ref())),
        ("status", ls::status(&sandbox)),
        ("details", or_dash(sandbox.error_details.as_ref().map(|details| &details.message))),
        ("image", sandbox.image.clone()),
        ("driver", or_dash(sandbox.runtime.as_ref())),
        ("cpus", resources.cpus.to_string()),
        ("memory", mebibytes(resources.memory_mb)),
        ("disk", mebibytes(resources.disk_mb)),
        (
            "gpus",
            if resources.gpu_configs.is_empty() { "-".to_owned() } else { Gpus::describe(&resources.gpu_configs) },
        ),
        ("network", if internet { "internet" } else { "none" }.to_owned()),
        ("ports", if ports.is_empty() { "-".to_owned() } else { ports.join(", ") }),
        ("timeout", timeout),
        ("wakes", wakes.to_owned()),
        ("pool", or_dash(sandbox.pool_id.as_ref())),
        ("age", age(sandbox.created_at)),
        ("ended", sandbox.terminated_at.map_or_else(|| "-".to_owned(), |at| format!("{} ago", age(at)))),
        ("url", or_dash(sandbox.sandbox_url.as_ref())),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| value != "-") {
        ctx.printer.line(format!("{:9}{}", format!("{name}:"), printable(value)))?;
    }
    Ok(ExitStatus::Success)
}
