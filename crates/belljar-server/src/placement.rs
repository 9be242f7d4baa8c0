//! Where a sandbox goes: a pure decision over what the nodes said.
//!
//! Cpus are shared and only bound the size of one sandbox; memory adds up. The store repeats the memory check inside
//! the transaction that reserves it, so a decision made on a stale view places nothing twice.

use belljar_api::{
    node::Capacity,
    sandbox::{Gpus, PendingReason, Resources, TerminationReason, is_runtime},
};

/// A connected node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NodeView {
    /// Its id.
    pub(crate) id: String,
    /// What it has in all.
    pub(crate) capacity: Capacity,
    /// Memory that its sandboxes take, MiB.
    pub(crate) used_memory_mb: u64,
    /// GPUs that its sandboxes have.
    pub(crate) used_gpus: Vec<Gpus>,
    /// Whether egress rules hold there.
    pub(crate) egress_rules: bool,
    /// What runs its sandboxes.
    pub(crate) driver: String,
    /// Whether it has the image.
    pub(crate) image: ImagePresence,
}

/// What a sandbox needs of its node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) resources: &'a Resources,
    /// It has egress rules or secrets, which must not be ignored.
    pub(crate) egress_rules: bool,
    /// What is to run it, if that was asked for.
    pub(crate) runtime: Option<&'a str>,
}

/// What to say where no node enforces egress rules.
pub(crate) const NO_EGRESS_RULES: &str = "network: allow_out, deny_out and secret_names are not enforced on any node that is connected; \
     leave them out, or run the node as root with nftables and iproute2 (`belljar doctor` tells what is missing)";

/// Whether a node has an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImagePresence {
    /// It does.
    Present,
    /// It does not; the text names the image and what there is.
    Absent(String),
}

/// What to do with a sandbox that has no node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Give it to this node, if that much is still free there.
    Place {
        /// The node.
        node_id: String,
        /// What it has in all.
        capacity: Capacity,
    },
    /// Not now.
    Wait(PendingReason),
    /// Never on these nodes.
    Never(TerminationReason, String),
}

/// Decides for one sandbox. The node with the most free memory wins, then the smaller id.
pub(crate) fn decide(nodes: &[NodeView], wanted: Wanted<'_>) -> Decision {
    if nodes.is_empty() {
        return Decision::Wait(PendingReason::NoExecutorsAvailable);
    }
    let mut with_image = Vec::new();
    let mut missing = None;
    for node in nodes {
        match &node.image {
            ImagePresence::Present => with_image.push(node),
            ImagePresence::Absent(words) => missing = missing.or(Some(words)),
        }
    }
    if with_image.is_empty() {
        let words = missing.cloned().unwrap_or_default();
        return Decision::Never(TerminationReason::ImageNotFound, words);
    }
    with_image.retain(|node| node.egress_rules || !wanted.egress_rules);
    if with_image.is_empty() {
        return Decision::Never(TerminationReason::ConfigurationError, NO_EGRESS_RULES.to_owned());
    }
    if let Some(runtime) = wanted.runtime {
        let mut others: Vec<_> = with_image.iter().map(|node| node.driver.as_str()).collect();
        others.sort_unstable();
        others.dedup();
        let detail = format!("runtime: no node runs sandboxes with {runtime}; there is {}", others.join(", "));
        with_image.retain(|node| is_runtime(runtime, &node.driver));
        if with_image.is_empty() {
            return Decision::Never(TerminationReason::ConfigurationError, detail);
        }
    }
    let wanted = wanted.resources;
    with_image.retain(|node| Gpus::are_there(&wanted.gpu_configs, &node.capacity.gpus, &[]));
    if with_image.is_empty() {
        return Decision::Never(TerminationReason::NoCapacity, no_gpus(nodes, &wanted.gpu_configs));
    }
    let fitting: Vec<_> = with_image
        .iter()
        .filter(|node| wanted.cpus <= node.capacity.cpus && wanted.memory_mb <= node.capacity.memory_mb)
        .collect();
    if fitting.is_empty() {
        let cpus = with_image.iter().map(|node| node.capacity.cpus).fold(0.0, f64::max);
        let memory = with_image.iter().map(|node| node.capacity.memory_mb).max().unwrap_or(0);
        let detail = format!(
            "no node is large enough for {} cpus and {} MiB of memory; the largest have {cpus} cpus and {memory} MiB; \
             ask for less",
            wanted.cpus, wanted.memory_mb
        );
        return Decision::Never(TerminationReason::NoCapacity, detail);
    }
    let free = |node: &NodeView| node.capacity.memory_mb.saturating_sub(node.used_memory_mb);
    fitting
        .into_iter()
        .filter(|node| free(node) >= wanted.memory_mb)
        .filter(|node| Gpus::are_there(&wanted.gpu_configs, &node.capacity.gpus, &node.used_gpus))
        .max_by(|a, b| free(a).cmp(&free(b)).then_with(|| b.id.cmp(&a.id)))
        .map_or(Decision::Wait(PendingReason::NoResourcesAvailable), |node| Decision::Place {
            node_id: node.id.clone(),
            capacity: node.capacity.clone(),
        })
}

fn no_gpus(nodes: &[NodeView], wanted: &[Gpus]) -> String {
    let mut there: Vec<_> = nodes.iter().map(|node| Gpus::describe(&node.capacity.gpus)).collect();
    there.sort_unstable();
    there.dedup();
    format!("resources.gpus: no node has {} for it; nodes have {}", Gpus::describe(wanted), there.join("; "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(id: &str, cpus: f64, memory_mb: u64, used_memory_mb: u64, present: bool) -> NodeView {
        let image = if present { ImagePresence::Present } else { ImagePresence::Absent("no image x".into()) };
        let capacity = Capacity { cpus, memory_mb, gpus: Vec::new() };
        let (id, driver, used_gpus) = (id.into(), "qemu-tcg".into(), Vec::new());
        NodeView { id, capacity, used_memory_mb, used_gpus, egress_rules: false, driver, image }
    }

    #[track_caller]
    fn check(nodes: &[NodeView], cpus: f64, memory_mb: u64, expected: &str) {
        check_rules(nodes, cpus, memory_mb, false, expected);
    }

    #[track_caller]
    fn check_rules(nodes: &[NodeView], cpus: f64, memory_mb: u64, egress_rules: bool, expected: &str) {
        let resources =
            Resources { cpus, memory_mb, disk_mb: 10240, ephemeral_disk_mb: 10240, gpu_configs: Vec::new() };
        let got = match decide(nodes, Wanted { resources: &resources, egress_rules, runtime: None }) {
            Decision::Place { node_id, .. } => node_id,
            Decision::Wait(reason) => format!("{reason:?}"),
            Decision::Never(reason, _) => format!("{reason:?}"),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn the_reasons_come_in_order() {
        check(&[], 1.0, 1024, "NoExecutorsAvailable");
        check(&[node("a", 2.0, 4096, 0, false)], 64.0, 1024, "ImageNotFound");
        check(&[node("a", 2.0, 4096, 0, true)], 4.0, 1024, "NoCapacity");
        check(&[node("a", 2.0, 4096, 4096, true)], 1.0, 8192, "NoCapacity");
        check(&[node("a", 2.0, 4096, 3500, true)], 1.0, 1024, "NoResourcesAvailable");
        check(&[node("a", 2.0, 4096, 3072, true)], 1.0, 1024, "a");
        check(&[node("a", 2.0, 4096, 3072, true), node("b", 2.0, 4096, 0, true)], 1.0, 1024, "b");
        check(&[node("b", 2.0, 4096, 0, true), node("a", 2.0, 4096, 0, true)], 1.0, 1024, "a");
        check(&[node("a", 8.0, 4096, 0, true), node("b", 2.0, 9999, 0, false)], 1.0, 8192, "NoCapacity");
    }

    #[test]
    fn rules_go_where_they_hold() {
        let (without, small) = (node("a", 2.0, 9999, 0, true), node("b", 2.0, 4096, 0, true));
        let with = NodeView { egress_rules: true, ..small };
        check_rules(std::slice::from_ref(&without), 1.0, 1024, true, "ConfigurationError");
        check_rules(&[without.clone(), with.clone()], 1.0, 1024, true, "b");
        check_rules(&[without, with], 1.0, 1024, false, "a");
    }

    #[test]
    fn a_runtime_that_was_asked_for_is_had_or_refused() {
        let qemu = node("a", 2.0, 9999, 0, true);
        let fire = NodeView { driver: "firecracker".into(), ..node("b", 2.0, 4096, 0, true) };
        let resources =
            Resources { cpus: 1.0, memory_mb: 1024, disk_mb: 10240, ephemeral_disk_mb: 10240, gpu_configs: Vec::new() };
        let check = |nodes: &[NodeView], runtime: &str, expected: &str| {
            let wanted = Wanted { resources: &resources, egress_rules: false, runtime: Some(runtime) };
            let got = match decide(nodes, wanted) {
                Decision::Place { node_id, .. } => node_id,
                Decision::Wait(reason) => format!("{reason:?}"),
                Decision::Never(reason, detail) => format!("{reason:?}: {detail}"),
            };
            assert_eq!(got, expected, "{runtime}");
        };
        let both = [qemu.clone(), fire];
        check(&both, "firecracker", "b");
        check(&both, "qemu", "a");
        check(&both, "qemu-tcg", "a");
        let refused =
            "ConfigurationError: runtime: no node runs sandboxes with cloud-hypervisor; there is firecracker, qemu-tcg";
        check(&both, "cloud-hypervisor", refused);
        check(
            &[qemu],
            "qemu-kvm",
            "ConfigurationError: runtime: no node runs sandboxes with qemu-kvm; there is qemu-tcg",
        );
        check(&[], "qemu", "NoExecutorsAvailable");
    }

    #[test]
    fn gpus_are_had_waited_for_or_refused() {
        let gpus = |model: &str, count| Gpus { model: model.into(), count };
        let mut with = node("g", 2.0, 4096, 0, true);
        with.capacity.gpus = vec![gpus("H100", 2), gpus("A10", 1)];
        let mut busy = with.clone();
        busy.used_gpus = vec![gpus("H100", 1)];
        let without = node("a", 2.0, 9999, 0, true);
        let check = |node: &NodeView, wanted: &[Gpus], expected: &str| {
            let gpu_configs = wanted.to_vec();
            let resources = Resources { cpus: 1.0, memory_mb: 1, disk_mb: 1, ephemeral_disk_mb: 1, gpu_configs };
            let wanted = Wanted { resources: &resources, egress_rules: false, runtime: None };
            let got = match decide(&[without.clone(), node.clone()], wanted) {
                Decision::Place { node_id, .. } => node_id,
                Decision::Wait(reason) => format!("{reason:?}"),
                Decision::Never(reason, detail) => format!("{reason:?}: {detail}"),
            };
            assert_eq!(got, expected);
        };
        check(&with, &[gpus("H100", 2), gpus("A10", 1)], "g");
        check(&with, &[], "a");
        check(&busy, &[gpus("H100", 1)], "g");
        check(&busy, &[gpus("H100", 2)], "NoResourcesAvailable");
        check(
            &with,
            &[gpus("A10", 2)],
            "NoCapacity: resources.gpus: no node has 2 A10 for it; nodes have 2 H100, 1 A10; none",
        );
    }

    proptest! {
        #[test]
        fn a_placement_always_fits(
            nodes in prop::collection::vec((1u32..16, 1024u64..65536, 0u64..70000, any::<bool>()), 0..6),
            cpus in 1u32..16,
            memory_mb in 1024u64..32768,
        ) {
            let nodes: Vec<_> = nodes
                .into_iter()
                .enumerate()
                .map(|(i, (c, m, used, present))| node(&format!("n{i}"), f64::from(c), m, used, present))
                .collect();
            let wanted = Resources { cpus: f64::from(cpus), memory_mb, disk_mb: 1, ephemeral_disk_mb: 1, gpu_configs: Vec::new() };
            let fits = |n: &NodeView| n.image == ImagePresence::Present
                && n.capacity.cpus >= wanted.cpus
                && n.used_memory_mb + memory_mb <= n.capacity.memory_mb;
            match decide(&nodes, Wanted { resources: &wanted, egress_rules: false, runtime: None }) {
                Decision::Place { node_id, .. } => prop_assert!(nodes.iter().any(|n| n.id == node_id && fits(n))),
                Decision::Wait(_) | Decision::Never(..) => prop_assert!(!nodes.iter().any(fits)),
            }
        }
    }
}
