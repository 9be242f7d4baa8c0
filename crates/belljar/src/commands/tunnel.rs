//! `belljar tunnel`, in both directions.

use std::net::{Ipv4Addr, SocketAddr};

use super::{Context, interrupt::Interrupts};
use crate::{cli::TunnelArgs, exit::ExitStatus, report::Failure};

pub(super) async fn tunnel(ctx: &Context, args: &TunnelArgs) -> anyhow::Result<ExitStatus> {
    if args.reverse {
        return reverse(ctx, args).await;
    }
    let port = args.port.guest;
    if args.port.service.is_some() {
        return Err(Failure::new("a tunnel to a sandbox leads to a port there, 1 to 65535")
            .hint("write the port alone; PORT:HOST:PORT is for --reverse")
            .into());
    }
    let sandbox = ctx.client()?.sandbox(&args.sandbox);
    // A wrong sandbox shows now, and not at the first connection.
    sandbox.health().await?;
    let local = SocketAddr::new(args.bind, args.local);
    let tunnel = sandbox.tunnel(local, port).await.map_err(|error| {
        Failure::new(format!("cannot listen on {local}")).because(error).hint("choose another port with --local")
    })?;
    let address = tunnel.address();
    match ctx.printer.is_json() {
        true => ctx.printer.json(&serde_json::json!({ "local": address, "port": port }))?,
        false => ctx.printer.line(address.to_string())?,
    }
    ctx.printer.note(format!("{address} leads to port {port} of {}; Ctrl-C ends it", args.sandbox));
    let printer = ctx.printer;
    let mut interrupts = Interrupts::listen()?;
    tokio::select! {
        () = tunnel.serve(move |error| printer.warn(error.to_string())) => {}
        _ = interrupts.next() => {}
    }
    Ok(ExitStatus::Success)
}

async fn reverse(ctx: &Context, args: &TunnelArgs) -> anyhow::Result<ExitStatus> {
    let sandbox = ctx.client()?.sandbox(&args.sandbox);
    let own = || (Ipv4Addr::LOCALHOST.to_string(), args.port.guest);
    let (host, to) = args.port.service.clone().unwrap_or_else(own);
    let tunnel = sandbox.reverse_tunnel(args.port.guest, &host, to).await?;
    let port = tunnel.port();
    match ctx.printer.is_json() {
        true => ctx.printer.json(&serde_json::json!({ "port": port, "host": host, "to": to }))?,
        false => ctx.printer.line(format!("127.0.0.1:{port}"))?,
    }
    ctx.printer.note(format!("127.0.0.1:{port} of {} leads to {host}:{to} here; Ctrl-C ends it", args.sandbox));
    let printer = ctx.printer;
    let mut interrupts = Interrupts::listen()?;
    tokio::select! {
        ended = tunnel.serve(move |error| printer.warn(error.to_string())) => {
            let failure = Failure::new(format!("the tunnel from {} has ended", args.sandbox));
            let failure = ended.err().into_iter().fold(failure, Failure::because);
            Err(failure.hint("the sandbox was suspended or ended, or cannot be reached; start the tunnel again").into())
        }
        _ = interrupts.next() => Ok(ExitStatus::Success),
    }
}
