//! `belljar image export`.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use anyhow::Context as _;
use belljar_image::{Exported, Packing, Store};

use super::Context;
use crate::{
    cli::ImageExportArgs,
    exit::ExitStatus,
    printer::{Printer, Sink},
    report::Failure,
    table::bytes,
};

/// What stands for stdout.
const STDOUT: &str = "-";

pub(super) fn export(ctx: &Context, store: &Store, args: &ImageExportArgs) -> anyhow::Result<ExitStatus> {
    let spinner = ctx.printer.spinner("reading the files");
    let mut progress = |read| spinner.set_message(format!("reading the files: {}", bytes(read)));
    let is_stdout = args.file.as_os_str() == STDOUT;
    let exported = if is_stdout {
        if io::stdout().is_terminal() {
            let failure = Failure::new("an archive is nothing for a terminal");
            return Err(failure.hint("name a file, or pipe it: belljar image export NAME - | skopeo …").into());
        }
        store.export(&args.name, Packing::Gzip, &mut Out(ctx.printer), &mut progress).map_err(anyhow::Error::from)
    } else {
        to_file(store, args, &mut progress)
    };
    spinner.finish_and_clear();
    let Exported { digest, entries, layer_bytes, sockets } = exported?;
    if ctx.printer.is_json() && !is_stdout {
        ctx.printer.json(&serde_json::json!({
            "name": args.name, "file": args.file, "digest": digest, "entries": entries,
            "layer_size_bytes": layer_bytes, "sockets_left_out": sockets,
        }))?;
        return Ok(ExitStatus::Success);
    }
    if !is_stdout {
        ctx.printer.line(format!("{} {digest}", args.file.display()))?;
    }
    ctx.printer.note(format!("image {} was exported: {entries} files, {} packed", args.name, bytes(layer_bytes)));
    if sockets > 0 {
        ctx.printer.note(format!("{sockets} sockets were left out: an archive cannot hold them"));
    }
    Ok(ExitStatus::Success)
}

/// Writes beside the file and then takes its place: what breaks off leaves what was there.
fn to_file(store: &Store, args: &ImageExportArgs, progress: &mut dyn FnMut(u64)) -> anyhow::Result<Exported> {
    use std::os::unix::fs::PermissionsExt;
    let dir = args.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new()
        .prefix(".belljar-export-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .with_context(|| format!("cannot create a file in {}", dir.display()))?;
    let exported = store.export(&args.name, Packing::Gzip, &mut new, progress)?;
    new.as_file().sync_all().with_context(|| format!("cannot write {}", args.file.display()))?;
    new.persist(&args.file).with_context(|| format!("cannot write {}", args.file.display()))?;
    Ok(exported)
}

/// Stdout, by way of the printer.
struct Out(Printer);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.bytes(Sink::Out, bytes).map_err(|error| error.0)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
