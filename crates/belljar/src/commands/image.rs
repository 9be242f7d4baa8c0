//! `belljar image`. `ls` asks the server; the others work on the store of this machine.

mod export;
mod show;

use belljar_api::image::{ImageList, Pagination};
use belljar_image::{
    BuildRequest, BuiltImage, DEFAULT_IMAGE, ImportProgress, ImportRequest, LayerProgress, Login, Progress, Removed,
    Store,
};
use indicatif::ProgressBar;

use super::{Context, block_on, secret};
use crate::{
    cli::{ImageBuildArgs, ImageCommand, ImageImportArgs, StoreArgs},
    exit::ExitStatus,
    printer::Printer,
    table::{Table, bytes, printable},
};

/// Below the cache directory: package lists, kept between builds.
const PACKAGE_LISTS: &str = "apt";

pub(super) fn image(ctx: &Context, command: ImageCommand) -> anyhow::Result<ExitStatus> {
    match command {
        ImageCommand::Ls => block_on(ls(ctx)),
        ImageCommand::Build(args) => build(ctx, args),
        ImageCommand::Import(args) => import(ctx, args),
        ImageCommand::Export(args) => export::export(ctx, &open(ctx, &args.store)?, &args),
        ImageCommand::Show { name, store } => show::show(ctx, &open(ctx, &store)?, &name),
        ImageCommand::Tag { name, new, store } => tag(ctx, &open(ctx, &store)?, &name, &new),
        ImageCommand::Rm { name, store } => rm(ctx, &open(ctx, &store)?, &name),
        ImageCommand::Prune { dry_run, store } => prune(ctx, &open(ctx, &store)?, dry_run),
    }
}

fn open(ctx: &Context, store: &StoreArgs) -> anyhow::Result<Store> {
    Ok(Store::open(&ctx.settings.image_store(store.image_store.as_ref())?)?)
}

async fn ls(ctx: &Context) -> anyhow::Result<ExitStatus> {
    let images = ctx.client()?.images().await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&ImageList { items: images, pagination: Pagination::default() })?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["name", "id", "on disk", "size", "built"]);
    for image in &images {
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
    let store = open(ctx, &args.store)?;
    let lists = ctx.settings.cache_dir.join(PACKAGE_LISTS);
    let default = BuildRequest::of(args.name.as_deref().unwrap_or(DEFAULT_IMAGE), lists);
    let request = BuildRequest {
        suite: args.suite.unwrap_or(default.suite),
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
    made(ctx, built?, "built")
}

fn import(ctx: &Context, args: ImageImportArgs) -> anyhow::Result<ExitStatus> {
    let store = open(ctx, &args.store)?;
    let login = match args.username {
        Some(username) => {
            let hint = "give it on stdin: printf %s \"$TOKEN\" | belljar image import … --password-stdin";
            Some(Login { username, password: secret::from_stdin("the password", hint)? })
        }
        None => None,
    };
    let request = ImportRequest {
        source: args.source,
        name: args.name,
        platform: args.platform,
        insecure: args.insecure,
        login,
        docker_dir: ctx.settings.docker_dir.clone(),
        size_mib: args.size,
        force: args.force,
        ..ImportRequest::default()
    };
    let mut shown = Shown { printer: ctx.printer, step: String::new(), bar: None };
    let imported = belljar_image::import(&store, &request, &mut |progress| shown.show(&progress));
    shown.end();
    made(ctx, imported?, "imported")
}

/// How far an import is, on stderr: a bar for each layer, or a line where that is no terminal.
struct Shown {
    printer: Printer,
    /// Words of the present step.
    step: String,
    bar: Option<ProgressBar>,
}

impl Shown {
    fn show(&mut self, progress: &ImportProgress) {
        let (step, layer) = match progress {
            ImportProgress::Resolve => ("look up the image".to_owned(), None),
            ImportProgress::Fetch(layer) => (of_layer(layer, "fetch"), Some(layer)),
            ImportProgress::Unpack(layer) => (of_layer(layer, "unpack"), Some(layer)),
            ImportProgress::Pack => ("pack the file system".to_owned(), None),
            ImportProgress::Address => ("compute the content address".to_owned(), None),
        };
        if step != self.step {
            self.end();
            let bar = match layer {
                Some(layer) => self.printer.transfer(step.clone(), Some(layer.total)),
                None => self.printer.spinner(step.clone()),
            };
            if bar.is_hidden() {
                self.printer.note(&step);
            }
            (self.step, self.bar) = (step, Some(bar));
        }
        if let (Some(bar), Some(layer)) = (&self.bar, layer) {
            bar.set_position(layer.have);
        }
    }

    fn end(&mut self) {
        self.bar.take().inspect(ProgressBar::finish_and_clear);
    }
}

/// `[1/3] fetch sha256:0123456789ab (12.3 MiB)`
fn of_layer(layer: &LayerProgress, verb: &str) -> String {
    const SHOWN: usize = "sha256:".len() + 12;
    let digest: String = layer.digest.chars().take(SHOWN).collect();
    format!("[{}/{}] {verb} {} ({})", layer.number, layer.of, printable(&digest), bytes(layer.total))
}

/// Says what an image is that was made.
fn made(ctx: &Context, made: BuiltImage, how: &str) -> anyhow::Result<ExitStatus> {
    let BuiltImage { name, image, cached } = made;
    if ctx.printer.is_json() {
        ctx.printer.json(&serde_json::json!({
            "name": name, "digest": image.digest, "rootfs": image.rootfs, "suite": image.suite, "origin": image.origin,
            "logical_size_bytes": image.size_bytes, "physical_size_bytes": image.disk_bytes, "cached": cached,
        }))?;
        return Ok(ExitStatus::Success);
    }
    ctx.printer.line(format!("{name} {}", image.digest))?;
    let how = if cached { "was there already".to_owned() } else { format!("was {how}") };
    ctx.printer.note(format!("image {name} {how}: {} on disk", bytes(image.disk_bytes)));
    Ok(ExitStatus::Success)
}

fn tag(ctx: &Context, store: &Store, name: &str, new: &str) -> anyhow::Result<ExitStatus> {
    let tagged = store.tag(name, new)?;
    if ctx.printer.is_json() {
        ctx.printer.json(&serde_json::json!({ "name": tagged.name, "digest": tagged.image.digest }))?;
        return Ok(ExitStatus::Success);
    }
    ctx.printer.line(format!("{} {}", tagged.name, tagged.image.digest))?;
    Ok(ExitStatus::Success)
}

fn rm(ctx: &Context, store: &Store, name: &str) -> anyhow::Result<ExitStatus> {
    store.remove(name)?;
    if ctx.printer.is_json() {
        ctx.printer.json(&serde_json::json!({ "removed": name }))?;
    }
    Ok(ExitStatus::Success)
}

fn prune(ctx: &Context, store: &Store, dry_run: bool) -> anyhow::Result<ExitStatus> {
    let pruned = store.prune(dry_run)?;
    if ctx.printer.is_json() {
        let item = |it: &Removed| serde_json::json!({ "what": it.what, "path": it.path, "bytes": it.bytes });
        let removed: Vec<_> = pruned.removed.iter().map(item).collect();
        ctx.printer.json(&serde_json::json!({
            "dry_run": dry_run, "removed": removed, "freed_bytes": pruned.bytes(), "busy": pruned.busy,
        }))?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["what", "size", "path"]);
    for it in &pruned.removed {
        table.push([it.what.to_owned(), bytes(it.bytes), it.path.display().to_string()]);
    }
    if !pruned.removed.is_empty() {
        ctx.printer.table(&table)?;
    }
    if pruned.busy {
        ctx.printer.note("an image is being made: what its maker works with was left alone");
    }
    let freed = if dry_run { "would be freed; without --dry-run they are" } else { "freed" };
    ctx.printer.note(format!("{} {freed}", bytes(pruned.bytes())));
    Ok(ExitStatus::Success)
}
