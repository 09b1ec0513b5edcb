//! The package graph the rules are checked on: names and edges, nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cargo_metadata::{DependencyKind, Metadata};

/// How one package uses another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Part of what is built: normal and build dependencies.
    Built,
    /// Tests, examples and benchmarks only.
    Dev,
}

/// Packages by name. Two versions of one package count as one: no rule tells them apart.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Packages of this repository and the folder of each, relative to the root.
    pub members: BTreeMap<String, String>,
    edges: BTreeMap<String, BTreeSet<(String, Use)>>,
}

impl Graph {
    /// Adds a package of this repository.
    pub fn member(&mut self, name: &str, folder: &str) {
        self.members.insert(name.to_owned(), folder.to_owned());
    }

    /// Adds a dependency.
    pub fn edge(&mut self, from: &str, to: &str, kind: Use) {
        self.edges
            .entry(from.to_owned())
            .or_default()
            .insert((to.to_owned(), kind));
    }

    /// What `from` names in its own manifest.
    pub fn direct(&self, from: &str, kind: Use) -> impl Iterator<Item = &str> {
        self.edges
            .get(from)
            .into_iter()
            .flatten()
            .filter(move |(_, k)| *k == kind)
            .map(|(to, _)| to.as_str())
    }

    /// The shortest way by which `to` becomes part of `from`, or `None`.
    pub fn path(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            for next in self.direct(at, Use::Built) {
                if next == from || came_from.contains_key(next) {
                    continue;
                }
                came_from.insert(next, at);
                if next == to {
                    let mut way = vec![to.to_owned()];
                    let mut step = to;
                    while let Some(before) = came_from.get(step) {
                        way.push((*before).to_owned());
                        step = before;
                    }
                    way.reverse();
                    return Some(way);
                }
                queue.push_back(next);
            }
        }
        None
    }
}

/// The graph of a real workspace.
pub fn from_metadata(metadata: &Metadata) -> Graph {
    let mut graph = Graph::default();
    let name_of: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|p| (&p.id, p.name.to_string()))
        .collect();
    for package in metadata.workspace_packages() {
        let folder = package
            .manifest_path
            .parent()
            .and_then(|p| p.strip_prefix(&metadata.workspace_root).ok())
            .map(|p| p.to_string())
            .unwrap_or_default();
        graph.member(package.name.as_ref(), &folder);
    }
    for node in metadata.resolve.iter().flat_map(|r| &r.nodes) {
        for dep in &node.deps {
            for kind in &dep.dep_kinds {
                let kind = match kind.kind {
                    DependencyKind::Development => Use::Dev,
                    _ => Use::Built,
                };
                graph.edge(&name_of[&node.id], &name_of[&dep.pkg], kind);
            }
        }
    }
    graph
}
