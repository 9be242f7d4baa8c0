//! `belljar restore`.

use belljar_api::sandbox::CreateSandbox;

use super::{Context, create};
use crate::{cli::RestoreArgs, exit::ExitStatus};

pub(super) async fn restore(ctx: &Context, args: RestoreArgs) -> anyhow::Result<ExitStatus> {
    let request = CreateSandbox {
        snapshot_id: Some(args.snapshot),
        resources: create::resources(&args.size),
        network: create::network(&args.size),
        secret_names: create::secrets(&args.size),
        ..CreateSandbox::default()
    };
    create::make(ctx, request, args.life).await
}
