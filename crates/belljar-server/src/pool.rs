//! A pool as the store keeps it, and what it lacks or has too much of: pure, like [`crate::life`].
//!
//! The sandboxes of a pool are rows like others. Until somebody claims them they have no idle timeout and nobody sees
//! them; once claimed they only count.

use std::{sync::Arc, time::Duration};

use belljar_api::pool::{PoolContainer, PoolInfo};

use crate::{
    life::{SandboxRow, Spec},
    limits::{POOL_PAUSE_FIRST, POOL_PAUSE_MAX},
};

/// One pool.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolRow {
    /// See [`belljar_api::id`].
    pub(crate) id: String,
    /// Namespace.
    pub(crate) namespace: String,
    /// What a claimed sandbox is like.
    pub(crate) spec: Spec,
    /// Most sandboxes, warm and claimed together.
    pub(crate) max_containers: Option<u32>,
    /// Unclaimed sandboxes that are kept.
    pub(crate) warm_containers: Option<u32>,
    /// Milliseconds since the epoch.
    pub(crate) created_at: i64,
    /// Milliseconds since the epoch.
    pub(crate) updated_at: i64,
}

/// What to do about a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// So many warm ones are missing.
    pub(crate) make: usize,
    /// Warm ones that are not wanted.
    pub(crate) end: Vec<String>,
}

impl PoolRow {
    /// What a warm sandbox is like: it waits as long as it takes.
    pub(crate) fn warm_spec(&self) -> Spec {
        Spec { timeout_secs: 0, ..self.spec.clone() }
    }

    /// As the API shows it, with its live sandboxes.
    pub(crate) fn info(&self, rows: &[Arc<SandboxRow>]) -> PoolInfo {
        let spec = &self.spec;
        PoolInfo {
            id: self.id.clone(),
            namespace: self.namespace.clone(),
            image: spec.image.clone(),
            resources: spec.resources.clone(),
            timeout_secs: spec.timeout_secs,
            entrypoint: spec.entrypoint.clone(),
            max_containers: self.max_containers,
            warm_containers: self.warm_containers,
            network_policy: spec.network.clone(),
            allow_unauthenticated_access: spec.allow_unauthenticated_access,
            exposed_ports: spec.exposed_ports.clone(),
            secret_names: spec.secret_names(),
            containers: rows.iter().map(|row| container(row)).collect(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

fn container(row: &SandboxRow) -> PoolContainer {
    let state = match (row.ending(), row.is_up()) {
        (Some(_), _) => "terminated",
        (None, true) => "running",
        (None, false) => "pending",
    };
    PoolContainer {
        id: row.id.clone(),
        state: state.to_owned(),
        sandbox_id: (!row.is_unclaimed()).then(|| row.id.clone()),
        executor_id: row.node_id().map(str::to_owned),
    }
}

/// What a pool lacks or has too much of, given its live sandboxes, oldest first. Those that run are kept before those
/// that boot.
pub(crate) fn plan(pool: &PoolRow, rows: &[Arc<SandboxRow>]) -> Plan {
    let size = |count: Option<u32>| count.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    let claimed = rows.iter().filter(|row| !row.is_unclaimed()).count();
    let room = size(pool.max_containers).map_or(usize::MAX, |max| max.saturating_sub(claimed));
    let target = size(pool.warm_containers).unwrap_or(0).min(room);
    let spec = pool.warm_spec();
    let (mut good, bad): (Vec<_>, Vec<_>) =
        rows.iter().filter(|row| row.is_unclaimed()).partition(|row| row.spec == spec);
    good.sort_by_key(|row| !row.is_running());
    let excess = good.split_off(good.len().min(target));
    Plan { make: target - good.len(), end: bad.into_iter().chain(excess).map(|row| row.id.clone()).collect() }
}

/// How long a pool rests after so many starts in a row have failed.
pub(crate) fn pause(failures: u32) -> Duration {
    let factor = 2u32.saturating_pow(failures.saturating_sub(1));
    POOL_PAUSE_FIRST.saturating_mul(factor).min(POOL_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        life::{Membership, Reported},
        testing::rows::{self, placed},
    };

    fn pool(warm: Option<u32>, max: Option<u32>) -> PoolRow {
        PoolRow {
            id: "p".into(),
            namespace: "default".into(),
            spec: rows::spec(),
            max_containers: max,
            warm_containers: warm,
            created_at: 1,
            updated_at: 1,
        }
    }

    /// `w` warm and running, `b` warm and booting, `o` warm of an older kind, `c` claimed.
    fn members(kinds: &str) -> Vec<Arc<SandboxRow>> {
        let row = |(n, kind): (usize, char)| {
            let reported = if kind == 'b' { Reported::Starting } else { Reported::Running };
            let mut row = rows::row(&format!("{kind}{n}"), placed(reported));
            row.pool = Some(Membership { pool_id: "p".into(), claimed: kind == 'c' });
            row.spec.timeout_secs = 0;
            if kind == 'o' {
                row.spec.image = "older".into();
            }
            Arc::new(row)
        };
        kinds.chars().enumerate().map(row).collect()
    }

    #[track_caller]
    fn check(warm: Option<u32>, max: Option<u32>, kinds: &str, make: usize, end: &[&str]) {
        let plan = plan(&pool(warm, max), &members(kinds));
        assert_eq!(
            (plan.make, plan.end.as_slice()),
            (make, end.iter().map(|&e| e.to_owned()).collect::<Vec<_>>().as_slice()),
            "{kinds}"
        );
    }

    #[test]
    fn what_lacks_is_made_and_what_is_too_much_ends() {
        check(None, None, "", 0, &[]);
        check(Some(2), None, "", 2, &[]);
        check(Some(2), None, "wc", 1, &[]);
        check(Some(1), None, "bw", 0, &["b0"]);
        check(Some(2), Some(2), "cw", 0, &[]);
        check(Some(2), Some(2), "ccw", 0, &["w2"]);
        check(Some(2), Some(1), "ccc", 0, &[]);
        check(Some(2), None, "ow", 1, &["o0"]);
        check(None, None, "wo", 0, &["o1", "w0"]);
    }

    #[test]
    fn containers_show_who_has_them() {
        let info = pool(Some(1), None).info(&members("wbc"));
        let shown: Vec<_> = info.containers.iter().map(|one| (one.state.as_str(), one.sandbox_id.is_some())).collect();
        assert_eq!(shown, [("running", false), ("pending", false), ("running", true)]);
    }

    #[test]
    fn pauses_grow_to_their_limit() {
        assert_eq!([pause(1), pause(2), pause(3)], [POOL_PAUSE_FIRST, POOL_PAUSE_FIRST * 2, POOL_PAUSE_FIRST * 4]);
        assert_eq!(pause(u32::MAX), POOL_PAUSE_MAX);
    }

    proptest! {
        #[test]
        fn a_plan_never_passes_the_limits(kinds in "[wboc]{0,12}", warm in 0u32..6, max in prop::option::of(0u32..8)) {
            let members = members(&kinds);
            let plan = plan(&pool(Some(warm), max), &members);
            prop_assert!(plan.end.iter().all(|id| !id.starts_with('c')), "a claimed one ends");
            let after = members.len() - plan.end.len() + plan.make;
            let claimed = kinds.matches('c').count();
            let limit = max.map_or(usize::MAX, |max| max as usize).max(claimed);
            prop_assert!(after <= limit && after - claimed <= warm as usize);
            prop_assert!(after == limit || after - claimed == warm as usize, "it is not filled");
        }
    }
}
