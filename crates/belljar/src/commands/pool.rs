//! `belljar pool create|ls|show|update|rm|claim`.

use belljar_api::{
    pool::{PoolInfo, PoolRequest},
    sandbox::ResourcesRequest,
};

use super::{Context, create};
use crate::{
    cli::{PoolArgs, PoolCommand},
    exit::ExitStatus,
    table::{Table, age, mebibytes, or_dash},
};

pub(super) async fn pool(ctx: &Context, command: PoolCommand) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    match command {
        PoolCommand::Create(args) => {
            let created = client.create_pool(&request(args)).await?;
            match ctx.printer.is_json() {
                true => ctx.printer.json(&created)?,
                false => ctx.printer.line(&created.pool_id)?,
            }
        }
        PoolCommand::Ls => list(ctx).await?,
        PoolCommand::Show { pool } => show(ctx, &client.pool(&pool).await?)?,
        PoolCommand::Update { args, pool } => {
            let request = merge(request(args), &client.pool(&pool).await?);
            show(ctx, &client.update_pool(&pool, &request).await?)?;
        }
        PoolCommand::Rm { pool } => {
            client.delete_pool(&pool).await?;
            if ctx.printer.is_json() {
                ctx.printer.json(&serde_json::json!({ "removed": pool }))?;
            }
        }
        PoolCommand::Claim { pool } => {
            let spinner = ctx.printer.spinner("claiming a sandbox");
            let claimed = client.claim(&pool).await;
            spinner.finish_and_clear();
            return create::print(ctx, &claimed?);
        }
    }
    Ok(ExitStatus::Success)
}

fn request(args: PoolArgs) -> PoolRequest {
    PoolRequest {
        resources: create::resources(&args.machine.size),
        network: create::network(&args.machine.size),
        secret_names: create::secrets(&args.machine.size),
        image: args.machine.image,
        timeout_secs: args.timeout,
        max_containers: args.max,
        warm_containers: args.warm,
        exposed_ports: Some(args.expose).filter(|ports| !ports.is_empty()),
        ..PoolRequest::default()
    }
}

/// A PUT replaces everything, so what was not given is put there as it is.
fn merge(request: PoolRequest, now: &PoolInfo) -> PoolRequest {
    let wanted = request.resources.unwrap_or_default();
    let resources = ResourcesRequest {
        cpus: wanted.cpus.or(Some(now.resources.cpus)),
        memory_mb: wanted.memory_mb.or(Some(now.resources.memory_mb)),
        disk_mb: wanted.disk_mb.or(Some(now.resources.disk_mb)),
        gpus: wanted.gpus.or_else(|| Some(now.resources.gpu_configs.clone())),
    };
    PoolRequest {
        image: request.image.or_else(|| Some(now.image.clone())),
        resources: Some(resources),
        timeout_secs: request.timeout_secs.or(Some(now.timeout_secs)),
        entrypoint: now.entrypoint.clone(),
        max_containers: request.max_containers.or(now.max_containers),
        warm_containers: request.warm_containers.or(now.warm_containers),
        network: request.network.or_else(|| now.network_policy.clone()),
        allow_unauthenticated_access: Some(now.allow_unauthenticated_access),
        exposed_ports: request.exposed_ports.or_else(|| Some(now.exposed_ports.clone())),
        secret_names: request.secret_names.or_else(|| Some(now.secret_names.clone())),
    }
}

async fn list(ctx: &Context) -> anyhow::Result<()> {
    let list = ctx.client()?.pools().await?;
    if ctx.printer.is_json() {
        return Ok(ctx.printer.json(&list)?);
    }
    let mut table = Table::new(["id", "image", "cpus", "memory", "warm", "max", "claimed", "age"]);
    for pool in &list.pools {
        let claimed = pool.containers.iter().filter(|one| one.sandbox_id.is_some()).count();
        table.push([
            pool.id.clone(),
            pool.image.clone(),
            pool.resources.cpus.to_string(),
            mebibytes(pool.resources.memory_mb),
            format!("{}/{}", pool.containers.len() - claimed, pool.warm_containers.unwrap_or(0)),
            or_dash(pool.max_containers),
            claimed.to_string(),
            age(pool.created_at),
        ]);
    }
    Ok(ctx.printer.table(&table)?)
}

fn show(ctx: &Context, pool: &PoolInfo) -> anyhow::Result<()> {
    if ctx.printer.is_json() {
        return Ok(ctx.printer.json(pool)?);
    }
    let timeout = match pool.timeout_secs {
        0 => "claimed ones are never suspended for being idle".to_owned(),
        secs => format!("claimed ones are suspended after {secs} s without use"),
    };
    let lines = [
        ("id", pool.id.clone()),
        ("image", pool.image.clone()),
        ("cpus", pool.resources.cpus.to_string()),
        ("memory", mebibytes(pool.resources.memory_mb)),
        ("disk", mebibytes(pool.resources.disk_mb)),
        ("warm", pool.warm_containers.unwrap_or(0).to_string()),
        ("max", or_dash(pool.max_containers)),
        ("timeout", timeout),
        ("age", age(pool.created_at)),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| value != "-") {
        ctx.printer.line(format!("{:9}{value}", format!("{name}:")))?;
    }
    let mut table = Table::new(["sandbox", "state", "claimed", "node"]);
    for one in &pool.containers {
        let claimed = if one.sandbox_id.is_some() { "yes" } else { "no" };
        table.push([one.id.clone(), one.state.clone(), claimed.to_owned(), or_dash(one.executor_id.as_ref())]);
    }
    Ok(ctx.printer.table(&table)?)
}
