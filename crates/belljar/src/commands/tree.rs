//! `belljar tree`.

use std::collections::{HashMap, HashSet};

use belljar_api::snapshot::{TreeKind, TreeNode};

use super::{Context, ls::scope};
use crate::{
    exit::ExitStatus,
    table::{age, printable},
};

pub(super) async fn tree(ctx: &Context, internal: bool) -> anyhow::Result<ExitStatus> {
    let tree = ctx.client()?.tree(scope(internal)).await?;
    if ctx.printer.is_json() {
        ctx.printer.json(&tree)?;
        return Ok(ExitStatus::Success);
    }
    for line in draw(&tree.nodes, words) {
        ctx.printer.line(printable(&line))?;
    }
    Ok(ExitStatus::Success)
}

fn words(node: &TreeNode) -> String {
    let kind = match node.kind {
        TreeKind::Sandbox => "",
        TreeKind::Snapshot => "snapshot ",
    };
    let name = node.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    format!("{kind}{}{name} ({}, {})", node.id, node.status, age(node.created_at))
}

/// The lines, each child below its parent. One whose parent is gone stands at the root.
fn draw(nodes: &[TreeNode], words: impl Fn(&TreeNode) -> String) -> Vec<String> {
    let known: HashSet<&str> = nodes.iter().map(|node| node.id.as_str()).collect();
    let mut children: HashMap<Option<&str>, Vec<&TreeNode>> = HashMap::new();
    for node in nodes {
        let parent = node.parent_id.as_deref().filter(|parent| known.contains(parent));
        children.entry(parent).or_default().push(node);
    }
    let mut lines = Vec::new();
    // What is still to be drawn, the next one last: a tree may be deeper than a stack.
    let push = |stack: &mut Vec<_>, parent: Option<&str>, indent: &str| {
        let below = children.get(&parent).map(Vec::as_slice).unwrap_or_default();
        for (n, node) in below.iter().enumerate().rev() {
            stack.push((*node, indent.to_owned(), n + 1 == below.len(), parent.is_none()));
        }
    };
    let mut stack = Vec::new();
    push(&mut stack, None, "");
    while let Some((node, indent, is_last, is_root)) = stack.pop() {
        let (branch, below) = match (is_root, is_last) {
            (true, _) => ("", ""),
            (false, true) => ("└─ ", "   "),
            (false, false) => ("├─ ", "│  "),
        };
        lines.push(format!("{indent}{branch}{}", words(node)));
        push(&mut stack, Some(&node.id), &format!("{indent}{below}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, parent: Option<&str>) -> TreeNode {
        TreeNode {
            kind: TreeKind::Sandbox,
            id: id.into(),
            name: None,
            status: "running".into(),
            parent_id: parent.map(str::to_owned),
            created_at: 1,
        }
    }

    #[test]
    fn children_stand_below_their_parents() {
        let nodes = [
            node("a", None),
            node("b", Some("a")),
            node("c", Some("gone")),
            node("d", Some("b")),
            node("e", Some("a")),
        ];
        let lines = draw(&nodes, |node| node.id.clone());
        assert_eq!(lines, ["a", "├─ b", "│  └─ d", "└─ e", "c"]);
    }
}
