//! `belljar df` and `belljar gc`.

use super::Context;
use crate::{
    exit::ExitStatus,
    table::{Table, bytes},
};

pub(super) async fn df(ctx: &Context) -> anyhow::Result<ExitStatus> {
    let list = ctx.client()?.storage().await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&list)?;
        return Ok(ExitStatus::Success);
    }
    let heading =
        ["node", "size", "free", "images", "templates", "sandboxes", "snapshots", "garbage", "cache", "logs", "clones"];
    let mut table = Table::new(heading);
    for node in &list.nodes {
        table.push([
            node.node_id.clone(),
            bytes(node.total_bytes),
            bytes(node.free_bytes),
            bytes(node.images_bytes),
            bytes(node.templates_bytes),
            bytes(node.sandboxes_bytes),
            bytes(node.snapshots_bytes),
            bytes(node.garbage_bytes),
            bytes(node.cache_bytes),
            bytes(node.logs_bytes),
            node.clone_method.clone(),
        ]);
    }
    ctx.printer.table(&table)?;
    Ok(ExitStatus::Success)
}

pub(super) async fn gc(ctx: &Context) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let spinner = ctx.printer.spinner("cleaning up");
    let list = client.collect_garbage().await;
    spinner.finish_and_clear();
    let list = list?;
    if ctx.printer.is_json() {
        ctx.printer.json(&list)?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["node", "freed", "files"]);
    for node in &list.nodes {
        table.push([node.node_id.clone(), bytes(node.freed_bytes), node.removed_files.to_string()]);
    }
    ctx.printer.table(&table)?;
    Ok(ExitStatus::Success)
}
