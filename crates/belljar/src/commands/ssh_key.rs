//! `belljar ssh-key ls|add|rm`.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use anyhow::Context as _;
use belljar_api::ssh_key::AddSshKey;

use super::Context;
use crate::{cli::SshKeyCommand, exit::ExitStatus, table::Table};

/// Most bytes that are read of a file that should hold a key.
const KEY_FILE_MAX: u64 = 64 * 1024;

pub(super) async fn ssh_key(ctx: &Context, command: SshKeyCommand) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    match command {
        SshKeyCommand::Ls => {
            let keys = client.ssh_keys().await?;
            if ctx.printer.is_json() {
                ctx.printer.json(&keys)?;
                return Ok(ExitStatus::Success);
            }
            let mut table = Table::new(["id", "name", "type", "fingerprint", "last used"]);
            for key in keys.items {
                let used = key.last_used_at.unwrap_or_else(|| "never".to_owned());
                table.push([key.id, key.name, key.key_type, key.fingerprint, used]);
            }
            ctx.printer.table(&table)?;
        }
        SshKeyCommand::Add { file, name } => {
            let added = client.add_ssh_key(&AddSshKey { name, public_key: read(&file)? }).await?;
            match ctx.printer.is_json() {
                true => ctx.printer.json(&added)?,
                false => ctx.printer.line(&added.id)?,
            }
            ctx.printer.note(format!("{} ({}) opens the sandboxes now", added.fingerprint, added.name));
        }
        SshKeyCommand::Rm { id } => client.delete_ssh_key(&id).await?,
    }
    Ok(ExitStatus::Success)
}

fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => io::stdin().lock().take(KEY_FILE_MAX).read_to_string(&mut text),
        false => File::open(file).and_then(|file| file.take(KEY_FILE_MAX).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text)
}
