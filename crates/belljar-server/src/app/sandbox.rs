//! Sandboxes: make, find, list, change, end.

use std::{sync::Arc, time::Duration};

use belljar_api::{
    id::{is_id, new_id},
    limits,
    network::NetworkUse,
    node::Origin,
    sandbox::{CreateSandbox, NetworkConfig, PatchSandbox, SandboxInfo, SandboxStatus, TerminationReason},
};
use http::StatusCode;
use tokio::sync::watch;

use super::{App, place, restore};
use crate::{
    clock::now_ms,
    error::ApiError,
    life::{Change, Ending, Membership, Phase, SandboxRow, Spec},
    limits::{PAGE_MAX, SETTINGS_WAIT},
    placement::{Decision, NO_EGRESS_RULES},
    store::{Page, Place, Reservation, Start, StoreError},
    visible::{self, World},
};

/// A sandbox that is to be made.
pub(super) struct Plan {
    pub(super) name: Option<String>,
    pub(super) spec: Spec,
    pub(super) origin: Origin,
    /// The only node that can make it.
    pub(super) home: Option<String>,
    pub(super) pool: Option<Membership>,
}

impl App {
    /// Makes a sandbox and gives it to a node, or lets it wait, or ends it at once with the reason.
    pub(crate) async fn create(&self, namespace: &str, request: CreateSandbox) -> Result<Arc<SandboxRow>, ApiError> {
        let plan = self.plan(namespace, request).await?;
        self.make(namespace, plan).await
    }

    /// The same for one that the server needs itself.
    pub(super) async fn create_internal(
        &self,
        namespace: &str,
        request: CreateSandbox,
    ) -> Result<Arc<SandboxRow>, ApiError> {
        let mut plan = self.plan(namespace, request).await?;
        plan.spec.internal = true;
        self.make(namespace, plan).await
    }

    async fn make(&self, namespace: &str, plan: Plan) -> Result<Arc<SandboxRow>, ApiError> {
        let decision = place::decision(self, &plan.spec, plan.home.as_deref()).await;
        Ok(self.start(namespace, plan, decision).await?)
    }

    /// Makes what was planned, as was decided.
    pub(super) async fn start(
        &self,
        namespace: &str,
        plan: Plan,
        decision: Decision,
    ) -> Result<Arc<SandboxRow>, StoreError> {
        let at = now_ms();
        let start = match decision {
            Decision::Place { node_id, capacity } => Start::Place(Reservation { node_id, capacity }),
            Decision::Wait(_) => Start::Wait,
            Decision::Never(reason, detail) => Start::End(Ending { reason, detail, at }),
        };
        let row = SandboxRow {
            id: new_id(),
            namespace: namespace.to_owned(),
            name: plan.name,
            spec: plan.spec,
            origin: plan.origin,
            home: plan.home,
            pool: plan.pool,
            generation: 0,
            phase: Phase::Waiting,
            trouble: None,
            created_at: at,
            started_at: None,
        };
        let row = self.store.create_sandbox(row, start).await?;
        if row.phase == Phase::Waiting {
            // A node may have come, or a place become free, between the decision and the commit.
            self.live.retry.notify_one();
        }
        Ok(row)
    }

    /// What a request asks for, checked.
    async fn plan(&self, namespace: &str, request: CreateSandbox) -> Result<Plan, ApiError> {
        if let Some(id) = &request.snapshot_id {
            request.check_fields().map_err(|error| ApiError::invalid(error.to_string()))?;
            let snapshot = self.find_snapshot(namespace, id).await?;
            let mut spec = restore::spec(&request, &snapshot)?;
            let names = request.secret_names.clone().unwrap_or_else(|| spec.secret_names());
            spec.secrets = self.secret_refs(&names).await?;
            self.refuse_rules_nobody_holds(&spec)?;
            let origin = Origin::Snapshot { snapshot_id: snapshot.id, kind: snapshot.kind };
            return Ok(Plan { name: request.name, spec, origin, home: Some(snapshot.node_id), pool: None });
        }
        let spec = self.image_spec(&request).await?;
        self.refuse_rules_nobody_holds(&spec)?;
        Ok(Plan { name: request.name, spec, origin: Origin::Image, home: None, pool: None })
    }

    /// What a request for a sandbox from an image asks for, checked.
    pub(super) async fn image_spec(&self, request: &CreateSandbox) -> Result<Spec, ApiError> {
        let resources = request.check().map_err(|error| ApiError::invalid(error.to_string()))?;
        let spec = Spec {
            image: request.image.clone().unwrap_or_else(|| self.default_image.clone()),
            resources,
            entrypoint: request.entrypoint.clone().filter(|words| !words.is_empty()),
            timeout_secs: request.timeout_secs.unwrap_or(limits::TIMEOUT_DEFAULT_SECS),
            network: request.network.clone(),
            allow_unauthenticated_access: request.allow_unauthenticated_access.unwrap_or(false),
            exposed_ports: sorted(request.exposed_ports.clone().unwrap_or_default()),
            auto_resume: request.auto_resume.unwrap_or(true),
            max_pending_secs: request.max_pending_secs,
            secrets: self.secret_refs(request.secret_names.as_deref().unwrap_or_default()).await?,
            runtime: request.runtime.clone(),
            internal: false,
        };
        check_image(&spec.image)?;
        Ok(spec)
    }

    /// At once, where it is plain that placement would refuse them.
    fn refuse_rules_nobody_holds(&self, spec: &Spec) -> Result<(), ApiError> {
        let nodes = self.live.nodes.connected();
        let nobody = !nodes.is_empty() && !nodes.iter().any(|link| link.hello().egress_rules);
        if nobody && spec.needs_egress_rules() {
            return Err(ApiError::invalid(NO_EGRESS_RULES));
        }
        Ok(())
    }

    /// Waits until a sandbox has come up or has ended; whether it did in time.
    pub(crate) async fn settled(
        &self,
        row: Arc<SandboxRow>,
        wait: Duration,
    ) -> Result<(Arc<SandboxRow>, bool), ApiError> {
        let is_settled = |row: &Arc<SandboxRow>| row.is_up() || row.ending().is_some();
        if is_settled(&row) {
            return Ok((row, true));
        }
        let Some(mut seen) = self.live.table.get(&row.id) else {
            // It has come and gone meanwhile.
            return Ok((self.store.sandbox(&row.id).await?.unwrap_or(row), true));
        };
        let in_time = tokio::time::timeout(wait, seen.wait_for(is_settled)).await.is_ok();
        let row = Arc::clone(&seen.borrow());
        Ok((row, in_time))
    }

    /// The sandbox with this id, ended or not, or the live one with this name.
    pub(crate) async fn find(&self, namespace: &str, reference: &str) -> Result<Arc<SandboxRow>, ApiError> {
        let found = if is_id(reference) {
            self.store.sandbox(reference).await?.filter(|row| row.namespace == namespace)
        } else {
            self.store.sandbox_named(namespace, reference).await?
        };
        found.filter(|row| !row.is_unclaimed()).ok_or_else(|| ApiError::sandbox_not_found(reference))
    }

    /// A row as the API shows it.
    pub(crate) fn info(&self, row: &SandboxRow) -> SandboxInfo {
        let nodes = &self.live.nodes;
        let world = World { has_node: self.has_node(row), driver: row.node_id().and_then(|id| nodes.driver(id)) };
        visible::info(row, world, &self.urls)
    }

    /// Whether a node is connected that could take a sandbox.
    pub(crate) fn has_node(&self, row: &SandboxRow) -> bool {
        match &row.home {
            Some(home) => self.live.nodes.get(home).is_some(),
            None => self.live.nodes.any(),
        }
    }

    /// Live sandboxes, oldest first, and where the next page begins. Without a limit it is one page.
    pub(crate) async fn list(
        &self,
        namespace: &str,
        status: Option<SandboxStatus>,
        mut from: Option<Place>,
        limit: Option<usize>,
        internal: bool,
    ) -> Result<(Vec<Arc<SandboxRow>>, Option<Place>), ApiError> {
        let is_wanted =
            |row: &Arc<SandboxRow>| status.is_none_or(|wanted| visible::status(row, self.has_node(row)).0 == wanted);
        let mut found = Vec::new();
        loop {
            let page = Page { from: from.take(), limit: PAGE_MAX, internal, ..Page::default() };
            let rows = self.store.live_sandboxes(namespace, page).await?;
            let last = rows.len() < PAGE_MAX;
            from = rows.last().map(|row| Place { at: row.created_at, id: row.id.clone() });
            found.extend(rows.into_iter().filter(is_wanted));
            if let Some(limit) = limit
                && found.len() > limit
            {
                found.truncate(limit);
                let next = found.last().map(|row| Place { at: row.created_at, id: row.id.clone() });
                return Ok((found, next));
            }
            if last {
                return Ok((found, None));
            }
        }
    }

    /// Changes a live sandbox.
    pub(crate) async fn patch(&self, row: &SandboxRow, request: PatchSandbox) -> Result<Arc<SandboxRow>, ApiError> {
        request.check().map_err(|error| ApiError::invalid(error.to_string()))?;
        let suspends = request.name.is_some() || row.suspends();
        if request.auto_resume == Some(false) && !suspends {
            return Err(ApiError::invalid("auto_resume: false needs a name: only named sandboxes are suspended"));
        }
        if let Some(network) = request.network.as_ref().and_then(Option::as_ref) {
            self.check_network(row, network).await?;
        }
        let new_network = request.network.is_some();
        let change = Change {
            name: request.name,
            timeout_secs: request.timeout_secs,
            allow_unauthenticated_access: request.allow_unauthenticated_access,
            exposed_ports: request.exposed_ports.map(sorted),
            auto_resume: request.auto_resume,
            network: request.network.map(|network| network.filter(|n| *n != NetworkConfig::default())),
        };
        let changed = self.store.change_sandbox(&row.id, change).await?.ok_or_else(|| {
            let message = format!("sandbox {} has ended and cannot be changed; create a new one", row.id);
            ApiError::new(StatusCode::CONFLICT, belljar_api::error::code::CONFLICT, message)
        })?;
        if new_network && changed.is_up() {
            self.until_in_force(&changed).await;
        }
        Ok(changed)
    }

    /// Waits until the node holds what was just stored, so that whoever asked may rely on it. A node that does not answer
    /// in time still gets it: the outbox keeps it.
    async fn until_in_force(&self, row: &SandboxRow) {
        let Some(link) = row.node_id().and_then(|id| self.live.nodes.get(id)) else { return };
        let done = link.done(&row.id, row.generation);
        match tokio::time::timeout(SETTINGS_WAIT, done).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(sandbox = row.id, %error, "whether new rules hold is not known"),
            Err(_) => tracing::warn!(sandbox = row.id, "new rules take long to come into force"),
        }
    }

    /// What has passed through its network; its node counts that.
    pub(crate) async fn network_use(&self, row: &SandboxRow) -> Result<NetworkUse, ApiError> {
        let link = row.node_id().and_then(|id| self.live.nodes.get(id)).ok_or_else(|| {
            let message = "nothing is counted for this sandbox now: it has no node that is connected";
            ApiError::new(StatusCode::NOT_FOUND, belljar_api::error::code::NOT_FOUND, message)
        })?;
        Ok(link.network_use(&row.id).await?)
    }

    /// Refuses rules that the sandbox's node could not hold: the old ones stay then.
    async fn check_network(&self, row: &SandboxRow, network: &NetworkConfig) -> Result<(), ApiError> {
        let Some(node_id) = row.node_id().filter(|_| network.has_rules()) else { return Ok(()) };
        let link = self.live.nodes.get(node_id).ok_or_else(|| {
            let message = "the sandbox's node is not connected, so its network cannot be changed now; try again later";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, belljar_api::error::code::SANDBOX_NOT_READY, message)
        })?;
        if !link.hello().egress_rules {
            return Err(ApiError::invalid(NO_EGRESS_RULES));
        }
        Ok(link.check_network(network).await?)
    }

    /// Ends a sandbox; one that has ended stays as it is.
    pub(crate) async fn terminate(&self, row: &SandboxRow) -> Result<(), ApiError> {
        let ending = Ending { reason: TerminationReason::User, detail: String::new(), at: now_ms() };
        self.store.terminate_sandbox(&row.id, ending).await?;
        Ok(())
    }

    /// See [`super::Live::routed`].
    pub(crate) fn routed(&self, reference: &str) -> Option<watch::Receiver<Arc<SandboxRow>>> {
        self.live.routed(reference)
    }
}

pub(super) fn sorted(mut ports: Vec<u16>) -> Vec<u16> {
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Longest image name, in characters: a reference with host, path, tag and digest.
const IMAGE_NAME_MAX: usize = 512;

fn check_image(name: &str) -> Result<(), ApiError> {
    let allowed = |b: u8| b.is_ascii_graphic();
    if name.is_empty() || name.len() > IMAGE_NAME_MAX || !name.bytes().all(allowed) {
        let shown: String = name.chars().take(80).collect();
        let rule = format!("give 1 to {IMAGE_NAME_MAX} printable ASCII characters without spaces");
        return Err(ApiError::invalid(format!("image: {shown:?} is not an image name; {rule}")));
    }
    Ok(())
}
