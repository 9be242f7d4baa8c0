//! `belljar tunnel`.

use std::net::SocketAddr;

use super::{Context, interrupt::Interrupts};
use crate::{cli::TunnelArgs, exit::ExitStatus, report::Failure};

pub(super) async fn tunnel(ctx: &Context, args: &TunnelArgs) -> anyhow::Result<ExitStatus> {
    let sandbox = ctx.client()?.sandbox(&args.sandbox);
    // A wrong sandbox shows now, and not at the first connection.
    sandbox.health().await?;
    let local = SocketAddr::new(args.bind, args.local);
    let tunnel = sandbox.tunnel(local, args.port).await.map_err(|error| {
        Failure::new(format!("cannot listen on {local}")).because(error).hint("choose another port with --local")
    })?;
    let address = tunnel.address();
    match ctx.printer.is_json() {
        true => ctx.printer.json(&serde_json::json!({ "local": address, "port": args.port }))?,
        false => ctx.printer.line(address.to_string())?,
    }
    ctx.printer.note(format!("{address} leads to port {} of {}; Ctrl-C ends it", args.port, args.sandbox));
    let printer = ctx.printer;
    let mut interrupts = Interrupts::listen()?;
    tokio::select! {
        () = tunnel.serve(move |error| printer.warn(error.to_string())) => {}
        _ = interrupts.next() => {}
    }
    Ok(ExitStatus::Success)
}
