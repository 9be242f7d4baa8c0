//! `belljar ssh` and `belljar ssh-config`: this machine's OpenSSH client, told all it has to know.
//!
//! ```text
//! key there? ─no─► ssh-keygen ─► known to the server? ─no─► added ─► host key into known_hosts ─► ssh, in our place
//! ```

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::Context as _;
use belljar_api::ssh_key::AddSshKey;

use super::Context;
use crate::{
    cli::{SshArgs, SshConfigArgs},
    exit::ExitStatus,
    report::Failure,
    ssh::{Identity, Server, not_there, quote},
};

/// What the hosts of configuration blocks begin with.
const HOST: &str = "belljar-";

pub(super) async fn ssh(ctx: &Context, args: SshArgs) -> anyhow::Result<ExitStatus> {
    let (server, identity) = prepare(ctx, &args.sandbox).await?;
    let mut command = Command::new("ssh");
    for (name, value) in options(&server, &identity, &args.sandbox) {
        command.arg("-o").arg(format!("{name}={value}"));
    }
    command.args(args.options).arg("--").arg(&server.host).args(args.command);
    // Its exit code, its terminal and its signals are ours from here.
    let error = command.exec();
    Err(not_there("ssh", error).into())
}

pub(super) async fn ssh_config(ctx: &Context, args: SshConfigArgs) -> anyhow::Result<ExitStatus> {
    let (server, identity) = prepare(ctx, &args.sandbox).await?;
    let name = args.host.unwrap_or_else(|| format!("{HOST}{}", args.sandbox));
    let all = options(&server, &identity, &args.sandbox);
    if ctx.printer.is_json() {
        let values: serde_json::Map<_, _> =
            all.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        ctx.printer.json(&serde_json::json!({ "host": name, "options": values }))?;
        return Ok(ExitStatus::Success);
    }
    ctx.printer.line(format!("Host {name}"))?;
    all.iter().try_for_each(|(name, value)| ctx.printer.line(format!("  {name} {value}")))?;
    Ok(ExitStatus::Success)
}

/// Everything that lies on this machine and on the server before a connection.
async fn prepare(ctx: &Context, sandbox: &str) -> anyhow::Result<(Server, Identity)> {
    let client = ctx.client()?;
    // A wrong sandbox shows now, in our words.
    client.get(sandbox).await?;
    let gateway = client.ssh_gateway().await?;
    let dir = ctx.settings.ssh_dir.as_ref().ok_or_else(|| {
        Failure::new("there is no place for an SSH key: this user has no home directory").hint("set XDG_CONFIG_HOME")
    })?;
    let server = Server::new(&ctx.settings.api_url, &gateway)?;
    server.remember(dir)?;
    let identity = Identity::find_or_make(dir)?;
    let known = client.ssh_keys().await?.items.iter().any(|key| key.fingerprint == identity.fingerprint);
    if !known {
        let added = client.add_ssh_key(&AddSshKey { name: String::new(), public_key: identity.public.clone() }).await;
        let added = added.context("cannot add the SSH key of this machine to the server")?;
        ctx.printer.note(format!("added the SSH key {} ({}) to the server", identity.path.display(), added.id));
    }
    Ok((server, identity))
}

/// OpenSSH's options, with values as its configuration files have them.
fn options(server: &Server, identity: &Identity, sandbox: &str) -> Vec<(&'static str, String)> {
    vec![
        ("HostName", server.host.clone()),
        ("Port", server.port.to_string()),
        ("User", sandbox.to_owned()),
        ("IdentityFile", quote(&identity.path)),
        ("IdentitiesOnly", "yes".to_owned()),
        ("UserKnownHostsFile", quote(&server.known_hosts(&identity.dir))),
        ("StrictHostKeyChecking", "yes".to_owned()),
        ("ServerAliveInterval", "15".to_owned()),
    ]
}
