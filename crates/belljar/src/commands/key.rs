//! `belljar key ls|create|rm`.

use super::Context;
use crate::{
    cli::KeyCommand,
    exit::ExitStatus,
    table::{Table, age},
};

pub(super) async fn key(ctx: &Context, command: KeyCommand) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    match command {
        KeyCommand::Ls => {
            let keys = client.keys().await?;
            if ctx.printer.is_json() {
                ctx.printer.json(&keys)?;
                return Ok(ExitStatus::Success);
            }
            let mut table = Table::new(["id", "name", "age"]);
            for key in &keys.items {
                table.push([key.id.clone(), key.name.clone(), age(key.created_at)]);
            }
            ctx.printer.table(&table)?;
        }
        KeyCommand::Create { name } => {
            let created = client.create_key(&name).await?;
            match ctx.printer.is_json() {
                true => ctx.printer.json(&created)?,
                false => ctx.printer.line(&created.key)?,
            }
            ctx.printer.note(format!("key {} was made; it is not shown again", created.id));
        }
        KeyCommand::Rm { id } => client.delete_key(&id).await?,
    }
    Ok(ExitStatus::Success)
}
