//! `belljar snapshot create|ls|show|rm`.

use belljar_api::snapshot::{SnapshotInfo, SnapshotList, SnapshotStatus, SnapshotType};
use belljar_client::Scope;

use super::{
    Context,
    ls::{scope, word},
    rm,
};
use crate::{
    cli::{SnapshotCommand, SnapshotCreateArgs},
    exit::ExitStatus,
    report::Failure,
    table::{Table, age, bytes, or_dash, printable},
};

pub(super) async fn snapshot(ctx: &Context, command: SnapshotCommand) -> anyhow::Result<ExitStatus> {
    match command {
        SnapshotCommand::Create(args) => create(ctx, &args).await,
        SnapshotCommand::Ls { sandbox, internal } => list(ctx, scope(internal), sandbox.as_deref()).await,
        SnapshotCommand::Show { snapshot } => show(ctx, &snapshot).await,
        SnapshotCommand::Rm { snapshots } => {
            let client = ctx.client()?;
            rm::each(ctx, "delete snapshot", snapshots, async |id| client.delete_snapshot(id).await).await
        }
    }
}

async fn create(ctx: &Context, args: &SnapshotCreateArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let kind = if args.memory { SnapshotType::Memory } else { SnapshotType::Filesystem };
    if args.no_wait {
        let accepted = client.snapshot_without_waiting(&args.sandbox, kind).await?;
        match ctx.printer.is_json() {
            true => ctx.printer.json(&accepted)?,
            false => ctx.printer.line(&accepted.snapshot_id)?,
        }
        return Ok(ExitStatus::Success);
    }
    let spinner = ctx.printer.spinner("taking a snapshot");
    let info = client.snapshot(&args.sandbox, kind).await;
    spinner.finish_and_clear();
    let info = info?;
    if info.status != SnapshotStatus::Completed {
        let why = info.error.unwrap_or_else(|| "it is still in progress".to_owned());
        let failure = Failure::new(format!("snapshot {} is not completed: {why}", info.id));
        return Err(failure.hint("`belljar snapshot show` tells how it stands").into());
    }
    match ctx.printer.is_json() {
        true => ctx.printer.json(&info)?,
        false => ctx.printer.line(&info.id)?,
    }
    Ok(ExitStatus::Success)
}

async fn list(ctx: &Context, scope: Scope, sandbox: Option<&str>) -> anyhow::Result<ExitStatus> {
    let snapshots = ctx.client()?.snapshots(scope, sandbox).await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&SnapshotList { snapshots, cursor: None })?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["id", "sandbox", "type", "status", "size", "age"]);
    for snapshot in &snapshots {
        table.push([
            snapshot.id.clone(),
            snapshot.sandbox_id.clone(),
            or_dash(word(&snapshot.snapshot_type)),
            or_dash(word(&snapshot.status)),
            or_dash(snapshot.size_bytes.map(bytes)),
            age(snapshot.created_at),
        ]);
    }
    ctx.printer.table(&table)?;
    Ok(ExitStatus::Success)
}

async fn show(ctx: &Context, id: &str) -> anyhow::Result<ExitStatus> {
    let snapshot = ctx.client()?.get_snapshot(id).await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&snapshot)?;
        return Ok(ExitStatus::Success);
    }
    for (name, value) in lines(&snapshot).iter().filter(|(_, value)| value != "-") {
        ctx.printer.line(format!("{:9}{}", format!("{name}:"), printable(value)))?;
    }
    Ok(ExitStatus::Success)
}

fn lines(snapshot: &SnapshotInfo) -> [(&'static str, String); 10] {
    [
        ("id", snapshot.id.clone()),
        ("sandbox", snapshot.sandbox_id.clone()),
        ("image", or_dash(snapshot.base_image.as_ref())),
        ("type", or_dash(word(&snapshot.snapshot_type))),
        ("status", or_dash(word(&snapshot.status))),
        ("error", or_dash(snapshot.error.as_ref())),
        ("size", or_dash(snapshot.size_bytes.map(bytes))),
        ("disk", or_dash(snapshot.rootfs_disk_bytes.map(bytes))),
        ("parent", or_dash(snapshot.parent_id.as_ref())),
        ("age", age(snapshot.created_at)),
    ]
}
