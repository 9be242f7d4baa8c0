//! `belljar commit`: a snapshot of the sandbox's files, an image of that, and the snapshot goes.

use anyhow::Context as _;
use belljar_api::{
    image::{ImageFromSnapshot, ImageInfo},
    snapshot::{SnapshotStatus, SnapshotType},
};
use belljar_client::Client;

use super::{Context, interrupt::Interrupts};
use crate::{
    cli::CommitArgs,
    exit::{ExitStatus, SIGNAL_BASE},
    report::Failure,
    table::bytes,
};

pub(super) async fn commit(ctx: &Context, args: &CommitArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    // From here on the snapshot is removed whatever happens.
    let mut interrupts = Interrupts::listen().context("cannot listen for signals")?;
    let spinner = ctx.printer.spinner("taking a snapshot");
    let snapshot = client.snapshot_without_waiting(&args.sandbox, SnapshotType::Filesystem).await?.snapshot_id;
    let making = async {
        settle(&client, &snapshot).await?;
        spinner.set_message("making the image");
        let new = ImageFromSnapshot { name: args.name.clone(), snapshot_id: snapshot.clone(), public: args.public };
        Ok::<ImageInfo, anyhow::Error>(client.image_from_snapshot(&new).await?)
    };
    let made = tokio::select! {
        made = making => Ok(made),
        signal = interrupts.next() => Err(signal),
    };
    let removed = client.delete_snapshot(&snapshot).await;
    spinner.finish_and_clear();
    if let Err(error) = removed {
        ctx.printer.note(format!("snapshot {snapshot} stays: {error}; `belljar snapshot rm {snapshot}` removes it"));
    }
    let image = match made {
        Ok(image) => image?,
        Err(signal) => return Ok(ExitStatus::Program(u8::try_from(signal).map_or(u8::MAX, |it| it + SIGNAL_BASE))),
    };
    if ctx.printer.is_json() {
        ctx.printer.json(&image)?;
        return Ok(ExitStatus::Success);
    }
    ctx.printer.line(format!("{} {}", image.name, image.snapshot_id))?;
    ctx.printer.note(format!("image {} was made: {} on disk", image.name, bytes(image.physical_size_bytes)));
    Ok(ExitStatus::Success)
}

async fn settle(client: &Client, snapshot: &str) -> anyhow::Result<()> {
    let info = client.settled_snapshot(snapshot).await?;
    if info.status == SnapshotStatus::Completed {
        return Ok(());
    }
    let why = info.error.unwrap_or_else(|| "it took too long".to_owned());
    Err(Failure::new(format!("the snapshot was not completed: {why}")).into())
}
