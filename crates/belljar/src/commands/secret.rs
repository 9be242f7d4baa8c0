//! `belljar secret ls|set|rm`.

use std::io::{self, IsTerminal, Read};

use anyhow::Context as _;
use belljar_api::{
    limits::SECRET_VALUE_MAX,
    secret::{PutSecret, SecretValue},
};

use super::Context;
use crate::{
    cli::{SecretCommand, SecretSetArgs},
    exit::ExitStatus,
    report::Failure,
    table::Table,
};

pub(super) async fn secret(ctx: &Context, command: SecretCommand) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    match command {
        SecretCommand::Ls => {
            let secrets = client.secrets().await?;
            if ctx.printer.is_json() {
                ctx.printer.json(&secrets)?;
                return Ok(ExitStatus::Success);
            }
            let mut table = Table::new(["name", "hosts", "headers", "changed"]);
            for secret in secrets.items {
                table.push([secret.name, secret.hosts.join(" "), secret.headers.join(" "), secret.updated_at]);
            }
            ctx.printer.table(&table)?;
        }
        SecretCommand::Set(args) => {
            let put = client.put_secret(&request(args)?).await?;
            match ctx.printer.is_json() {
                true => ctx.printer.json(&put)?,
                false => ctx.printer.line(&put.name)?,
            }
            if put.hosts.is_empty() {
                ctx.printer.note("no sandbox can use it before it is bound to a host: give --host");
            }
        }
        SecretCommand::Rm { name } => client.delete_secret(&name).await?,
    }
    Ok(ExitStatus::Success)
}

fn request(args: SecretSetArgs) -> anyhow::Result<PutSecret> {
    let some = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
    let value = if args.keep_value { None } else { Some(SecretValue::new(value()?)) };
    Ok(PutSecret { name: args.name, value, hosts: some(args.host), headers: some(args.header) })
}

fn value() -> anyhow::Result<String> {
    let hint = "give it on stdin: printf %s \"$TOKEN\" | belljar secret set NAME; or --keep-value to change the rest";
    from_stdin("the value of a secret", hint)
}

/// Arguments and environments of processes are seen by others, so it comes from stdin. One line break at its end is not its.
pub(super) fn from_stdin(what: &'static str, hint: &str) -> anyhow::Result<String> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::new(format!("{what} is not typed here")).hint(hint).into());
    }
    let mut text = String::new();
    let limit = u64::try_from(SECRET_VALUE_MAX).unwrap_or(u64::MAX).saturating_add(3);
    stdin.lock().take(limit).read_to_string(&mut text).with_context(|| format!("cannot read {what} from stdin"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}
