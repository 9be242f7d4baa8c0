//! Who may use whom: the table of ARCHITECTURE.md, compared with what cargo says.

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, Package};

use super::Repository;

/// Every crate and the crates of this workspace that it may use. Tests of a crate may use no more than the crate.
const EDGES: [(&str, &[&str]); 11] = [
    ("belljar-api", &[]),
    ("belljar-link", &[]),
    ("belljar-vmm", &[]),
    ("belljar-image", &[]),
    ("belljar-guest", &["belljar-api", "belljar-link"]),
    ("belljar-node", &["belljar-api", "belljar-link", "belljar-vmm", "belljar-image"]),
    ("belljar-server", &["belljar-api"]),
    ("belljar-client", &["belljar-api"]),
    (
        "belljar",
        &[
            "belljar-api",
            "belljar-client",
            "belljar-guest",
            "belljar-image",
            "belljar-link",
            "belljar-node",
            "belljar-server",
            "belljar-vmm",
        ],
    ),
    (
        "belljar-tests",
        &[
            "belljar",
            "belljar-api",
            "belljar-client",
            "belljar-guest",
            "belljar-image",
            "belljar-link",
            "belljar-node",
            "belljar-server",
            "belljar-vmm",
        ],
    ),
    ("xtask", &[]),
];

/// Crates from outside that would bring in what a crate must not know.
const FORBIDDEN: [(&str, &[&str], &str); 5] = [
    ("belljar-api", &["tokio", "hyper", "axum", "rusqlite", "nix", "libc", "rustix"], "it is wire types, without I/O"),
    ("belljar-server", &["nix", "libc", "rustix", "rtnetlink"], "host paths and netlink are the node's"),
    ("belljar-client", &["nix", "libc", "rustix", "rusqlite", "axum"], "it is HTTP and nothing else"),
    ("belljar-link", &["hyper", "axum", "serde_json", "rusqlite"], "it carries bytes, whatever they mean"),
    ("belljar-image", &["tokio", "hyper", "axum"], "it builds files; async callers use a thread"),
];

/// Edges inside the workspace.
pub(super) fn internal(repository: &Repository) -> Vec<String> {
    let packages = repository.metadata.workspace_packages();
    let edges: BTreeMap<String, Vec<String>> = packages
        .iter()
        .map(|package| {
            let used = dependencies(package, true).filter(|used| packages.iter().any(|other| other.name == used));
            (package.name.to_string(), used.map(str::to_owned).collect())
        })
        .collect();
    bad_edges(&edges)
}

fn bad_edges(edges: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (from, used) in edges {
        let Some((_, allowed)) = EDGES.iter().find(|(name, _)| name == from) else {
            complaints.push(format!("{from} is not in the table of crates; decide what it may use"));
            continue;
        };
        for to in used.iter().filter(|to| !allowed.contains(&to.as_str())) {
            complaints.push(format!("{from} must not use {to}"));
        }
    }
    for (name, _) in EDGES.iter().filter(|(name, _)| !edges.contains_key(*name)) {
        complaints.push(format!("{name} is in the table of crates and does not exist"));
    }
    complaints
}

/// Dependencies from outside.
pub(super) fn external(repository: &Repository) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in repository.metadata.workspace_packages() {
        for (_, forbidden, reason) in FORBIDDEN.iter().filter(|(name, _, _)| package.name == *name) {
            for used in dependencies(package, false).filter(|used| forbidden.contains(used)) {
                complaints.push(format!("{} must not use {used}: {reason}", package.name));
            }
        }
    }
    complaints
}

fn dependencies(package: &Package, with_tests: bool) -> impl Iterator<Item = &str> {
    let wanted = move |kind| with_tests || kind != DependencyKind::Development;
    package.dependencies.iter().filter(move |used| wanted(used.kind)).map(|used| used.name.as_str())
}

/// What each `Cargo.toml` says beside its dependencies.
pub(super) fn manifests(repository: &Repository) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in &repository.texts {
        // What lies elsewhere (fuzz targets) is a workspace of its own and inherits nothing.
        let member = path.starts_with("crates") || path.starts_with("xtask");
        if !member || path.file_name().is_none_or(|name| name != "Cargo.toml") {
            continue;
        }
        for wanted in ["[lints]\nworkspace = true", "license.workspace = true", "publish.workspace = true"] {
            if !text.contains(wanted) {
                complaints.push(format!("{} does not say {:?}", path.display(), wanted));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_outside_the_table_are_named() {
        let mut edges: BTreeMap<String, Vec<String>> =
            EDGES.iter().map(|(name, _)| ((*name).to_owned(), Vec::new())).collect();
        assert_eq!(bad_edges(&edges), Vec::<String>::new());
        edges.insert("belljar-server".into(), vec!["belljar-api".into(), "belljar-node".into()]);
        edges.insert("belljar-new".into(), Vec::new());
        edges.remove("belljar-link");
        assert_eq!(
            bad_edges(&edges),
            [
                "belljar-new is not in the table of crates; decide what it may use",
                "belljar-server must not use belljar-node",
                "belljar-link is in the table of crates and does not exist",
            ]
        );
    }

    #[test]
    fn manifests_inherit() {
        let good = "[package]\nname = \"x\"\nlicense.workspace = true\npublish.workspace = true\n\n[lints]\nworkspace = true\n";
        let check = |text: &str, expect: usize| {
            assert_eq!(manifests(&super::super::tests::of_texts(&[("crates/x/Cargo.toml", text)])).len(), expect);
        };
        check(good, 0);
        check(&good.replace("[lints]", "[other]"), 1);
        check("[package]\n", 3);
    }
}
