//! Pools: make, change, claim from, remove; and the task that keeps them filled.
//!
//! The task is woken by every change of a pool or of a sandbox in one, and by the end of a pause. A pool whose sandboxes
//! fail at start rests longer and longer; a change of the pool begins anew.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use belljar_api::{
    id::{is_id, new_id},
    node::Origin,
    pool::{PoolInfo, PoolRequest},
    sandbox::{CreateSandbox, TerminationReason},
};
use tokio::sync::Notify;

use super::{App, place, sandbox::Plan};
use crate::{
    clock::now_ms,
    error::ApiError,
    life::{Ending, Membership, SandboxRow, Spec},
    limits::{POOL_CONTAINERS_MAX, POOL_FORGET},
    placement::Decision,
    pool::{PoolRow, pause, plan},
    store::{PoolChange, StoreError},
};

/// What the task needs to know between two looks.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    wake: Notify,
    health: Mutex<HashMap<String, Health>>,
}

/// How the starts of a pool went lately.
#[derive(Debug, Clone, Copy)]
struct Health {
    failures: u32,
    last: Instant,
}

impl Pools {
    /// A sandbox of a pool was made or has changed; `failed` when it has just ended unwished for and unclaimed.
    pub(crate) fn changed(&self, pool_id: &str, failed: bool) {
        if failed {
            self.fail(pool_id);
        }
        self.wake.notify_one();
    }

    /// A pool was made, changed or removed.
    pub(crate) fn reset(&self, pool_id: &str) {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).remove(pool_id);
        self.wake.notify_one();
    }

    fn fail(&self, pool_id: &str) {
        let now = Instant::now();
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let health = health.entry(pool_id.to_owned()).or_insert(Health { failures: 0, last: now });
        let recent = now.duration_since(health.last) < POOL_FORGET;
        *health = Health { failures: if recent { health.failures.saturating_add(1) } else { 1 }, last: now };
    }

    /// Until when a pool rests.
    fn rests_until(&self, pool_id: &str) -> Option<Instant> {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner).get(pool_id).copied()?;
        Some(health.last + pause(health.failures)).filter(|until| *until > Instant::now())
    }
}

/// Keeps the pools filled until it is dropped.
pub(crate) async fn run(app: Arc<App>) {
    loop {
        let next = pass(&app).await;
        let rested = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = app.live.pools.wake.notified() => {}
            () = rested => {}
        }
    }
}

/// One look at every pool; returns when the next one has rested.
async fn pass(app: &App) -> Option<Instant> {
    let pools = match app.store.pools(None).await {
        Ok(pools) => pools,
        Err(error) => {
            tracing::error!(%error, "cannot read the pools");
            return Some(Instant::now() + pause(1));
        }
    };
    let mut next = None;
    for pool in pools {
        let plan = plan(&pool, &app.live.table.in_pool(&pool.id));
        for id in plan.end {
            let detail = "its pool does not need it any more".to_owned();
            let ending = Ending { reason: TerminationReason::User, detail, at: now_ms() };
            if let Err(error) = app.store.terminate_sandbox(&id, ending).await {
                tracing::error!(sandbox = id, %error, "cannot end a sandbox of a pool");
            }
        }
        for _ in 0..plan.make {
            if let Some(until) = app.live.pools.rests_until(&pool.id) {
                next = [next, Some(until)].into_iter().flatten().min();
                break;
            }
            fill(app, &pool).await;
        }
    }
    next
}

/// Makes one warm sandbox.
async fn fill(app: &App, pool: &PoolRow) {
    let plan = member(pool, pool.warm_spec(), false);
    let decision = place::decision(app, &plan.spec, None).await;
    if let Decision::Never(_, words) = &decision {
        tracing::warn!(pool = pool.id, words, "a pool cannot be filled");
        return app.live.pools.fail(&pool.id);
    }
    match app.start(&pool.namespace, plan, decision).await {
        // It changed meanwhile, which has rung.
        Ok(_) | Err(StoreError::PoolFull { .. } | StoreError::NoPool(_)) => {}
        Err(error) => {
            tracing::error!(pool = pool.id, %error, "cannot fill a pool");
            app.live.pools.fail(&pool.id);
        }
    }
}

fn member(pool: &PoolRow, spec: Spec, claimed: bool) -> Plan {
    let pool = Some(Membership { pool_id: pool.id.clone(), claimed });
    Plan { name: None, spec, origin: Origin::Image, home: None, pool }
}

impl App {
    /// Makes a pool.
    pub(crate) async fn create_pool(&self, namespace: &str, request: PoolRequest) -> Result<PoolRow, ApiError> {
        let at = now_ms();
        let (max_containers, warm_containers) = sizes(&request)?;
        let row = PoolRow {
            id: new_id(),
            namespace: namespace.to_owned(),
            spec: self.pool_spec(request).await?,
            max_containers,
            warm_containers,
            created_at: at,
            updated_at: at,
        };
        self.store.create_pool(row.clone()).await?;
        Ok(row)
    }

    async fn pool_spec(&self, request: PoolRequest) -> Result<Spec, ApiError> {
        let request = CreateSandbox {
            image: request.image,
            resources: request.resources,
            // Claimed ones sleep, so none has to.
            timeout_secs: request.timeout_secs.or(Some(0)),
            entrypoint: request.entrypoint,
            network: request.network,
            allow_unauthenticated_access: request.allow_unauthenticated_access,
            exposed_ports: request.exposed_ports,
            secret_names: request.secret_names,
            ..CreateSandbox::default()
        };
        self.image_spec(&request).await
    }

    /// The pool with this id.
    pub(crate) async fn find_pool(&self, namespace: &str, id: &str) -> Result<PoolRow, ApiError> {
        let found = if is_id(id) { self.store.pool(id).await? } else { None };
        found.filter(|row| row.namespace == namespace).ok_or_else(|| ApiError::pool_not_found(id))
    }

    /// A pool as the API shows it.
    pub(crate) fn pool_info(&self, pool: &PoolRow) -> PoolInfo {
        pool.info(&self.live.table.in_pool(&pool.id))
    }

    /// Replaces what a pool is.
    pub(crate) async fn change_pool(&self, pool: &PoolRow, request: PoolRequest) -> Result<PoolRow, ApiError> {
        let (max_containers, warm_containers) = sizes(&request)?;
        let spec = self.pool_spec(request).await?;
        let change = PoolChange { spec, max_containers, warm_containers, at: now_ms() };
        self.store.change_pool(&pool.id, change).await?.ok_or_else(|| ApiError::pool_not_found(&pool.id))
    }

    /// Removes a pool with its warm sandboxes.
    pub(crate) async fn delete_pool(&self, pool: &PoolRow) -> Result<(), ApiError> {
        let ending =
            Ending { reason: TerminationReason::User, detail: "its pool was deleted".to_owned(), at: now_ms() };
        match self.store.delete_pool(&pool.id, ending).await? {
            true => Ok(()),
            false => Err(ApiError::pool_not_found(&pool.id)),
        }
    }

    /// Hands out a warm sandbox, or makes one.
    pub(crate) async fn claim(&self, pool: &PoolRow) -> Result<Arc<SandboxRow>, ApiError> {
        if let Some(row) = self.store.claim(&pool.id).await? {
            return Ok(row);
        }
        let plan = member(pool, pool.spec.clone(), true);
        let decision = place::decision(self, &plan.spec, None).await;
        Ok(self.start(&pool.namespace, plan, decision).await?)
    }
}

fn sizes(request: &PoolRequest) -> Result<(Option<u32>, Option<u32>), ApiError> {
    let (max, warm) = (request.max_containers, request.warm_containers);
    for (field, count) in [("max_containers", max), ("warm_containers", warm)] {
        if let Some(count) = count
            && count > POOL_CONTAINERS_MAX
        {
            return Err(ApiError::invalid(format!(
                "{field}: {count} is over {POOL_CONTAINERS_MAX}; use several pools"
            )));
        }
    }
    match (max, warm) {
        (Some(0), _) => Err(ApiError::invalid("max_containers: 0 lets nobody claim anything; use 1 or more")),
        (Some(max), Some(warm)) if warm > max => {
            Err(ApiError::invalid(format!("warm_containers: {warm} is over max_containers ({max})")))
        }
        _ => Ok((max, warm)),
    }
}
