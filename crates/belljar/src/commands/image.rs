//! `belljar image ls|build|rm`. `ls` asks the server; `build` and `rm` work on the store of this machine.

use std::path::PathBuf;

use belljar_image::{BuildRequest, BuiltImage, Progress, Store};

use super::{Context, block_on};
use crate::{
    cli::{ImageBuildArgs, ImageCommand},
    exit::ExitStatus,
    table::{Table, bytes},
};

/// Below the cache directory: package lists, kept between builds.
const PACKAGE_LISTS: &str = "apt";

pub(super) fn image(ctx: &Context, command: ImageCommand) -> anyhow::Result<ExitStatus> {
    match command {
        ImageCommand::Ls => block_on(ls(ctx)),
        ImageCommand::Build(args) => build(ctx, args),
        ImageCommand::Rm { name, image_store } => rm(ctx, &name, image_store.as_ref()),
    }
}

async fn ls(ctx: &Context) -> anyhow::Result<ExitStatus> {
    let images = ctx.client()?.images().await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&images)?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["name", "id", "on disk", "size", "built"]);
    for image in &images.items {
        table.push([
            image.name.clone(),
            image.id.clone(),
            bytes(image.physical_size_bytes),
            bytes(image.logical_size_bytes),
            image.created_at.clone(),
        ]);
    }
    ctx.printer.table(&table)?;
    Ok(ExitStatus::Success)
}

fn build(ctx: &Context, args: ImageBuildArgs) -> anyhow::Result<ExitStatus> {
    let store = Store::open(&ctx.settings.image_store(args.image_store.as_ref())?)?;
    let default = BuildRequest::new(ctx.settings.cache_dir.join(PACKAGE_LISTS));
    let request = BuildRequest {
        name: args.name,
        suite: args.suite,
        size_mib: args.size.unwrap_or(default.size_mib),
        mirror: args.mirror,
        extra_packages: args.package,
        force: args.force,
        ..default
    };
    let spinner = ctx.printer.spinner("building");
    let mut last = 0;
    let built = belljar_image::build(&store, &request, &mut |progress: Progress| {
        let step = format!("[{}/{}] {}", progress.step, progress.steps, progress.title);
        if spinner.is_hidden() && progress.step != last {
            ctx.printer.note(&step);
        }
        last = progress.step;
        let detail = progress.detail.map(|detail| format!(": {}", crate::table::printable(&detail)));
        spinner.set_message(step + detail.as_deref().unwrap_or_default());
    });
    spinner.finish_and_clear();
    let BuiltImage { name, image, cached } = built?;
    if ctx.printer.is_json() {
        ctx.printer.json(&serde_json::json!({
            "name": name, "digest": image.digest, "rootfs": image.rootfs, "suite": image.suite,
            "logical_size_bytes": image.size_bytes, "physical_size_bytes": image.disk_bytes, "cached": cached,
        }))?;
        return Ok(ExitStatus::Success);
    }
    ctx.printer.line(format!("{name} {}", image.digest))?;
    let how = if cached { "was there already" } else { "was built" };
    ctx.printer.note(format!("image {name} {how}: {} on disk", bytes(image.disk_bytes)));
    Ok(ExitStatus::Success)
}

fn rm(ctx: &Context, name: &str, store: Option<&PathBuf>) -> anyhow::Result<ExitStatus> {
    Store::open(&ctx.settings.image_store(store)?)?.remove(name)?;
    if ctx.printer.is_json() {
        ctx.printer.json(&serde_json::json!({ "removed": name }))?;
    }
    Ok(ExitStatus::Success)
}
