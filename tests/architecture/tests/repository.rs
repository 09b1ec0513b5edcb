//! The rules, applied to this repository, and each rule shown to bite on a made-up one.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use cargo_metadata::{CargoOpt, MetadataCommand};
use longshore_architecture::{
    Breach,
    graph::{self, Graph, Use},
    licence::{self, Built, Policy},
    listing, rules, tree,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/architecture lies two folders below the root")
        .to_owned()
}

fn metadata() -> cargo_metadata::Metadata {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .features(CargoOpt::SomeFeatures(Vec::new()))
        .other_options(vec!["--filter-platform".to_owned(), platform])
        .exec()
        .expect("cargo metadata")
}

fn policy() -> Policy {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    toml::from_str(&text).expect("deny.toml is TOML")
}

fn none(breaches: Vec<Breach>) {
    assert!(breaches.is_empty(), "\n{}", listing(&breaches));
}

/// Text files of the repository: what git tracks or would track; everything but build output where there is no git.
fn files() -> Vec<String> {
    let listed = Command::new("git")
        .args([
            "-c",
            "safe.directory=*",
            "ls-files",
            "-co",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output()
        .ok()
        .filter(|out| out.status.success())
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    match listed {
        Some(text) => text.lines().map(str::to_owned).collect(),
        None => {
            let mut found = Vec::new();
            walk(&root(), &mut found);
            found
        }
    }
}

fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder)
        .expect("readable folder")
        .flatten()
    {
        let name = entry.file_name();
        if ["target", ".git", "node_modules", ".cache"]
            .iter()
            .any(|skip| name == *skip)
        {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            walk(&path, found);
        } else if let Ok(relative) = path.strip_prefix(root()) {
            found.push(relative.to_string_lossy().into_owned());
        }
    }
}

#[test]
fn dependencies_point_one_way() {
    let graph = graph::from_metadata(&metadata());
    assert!(
        graph.members.len() > 10,
        "the workspace was not read: {:?}",
        graph.members
    );
    none(rules::check(&graph));
}

#[test]
fn every_row_of_the_rules_names_a_package_or_a_planned_one() {
    // A renamed crate must not slip out of its fence unseen.
    let graph = graph::from_metadata(&metadata());
    let planned = ["scheduler-dashboard", "longshore-mcp"];
    for place in rules::PLACES.iter().chain(rules::TEST_PLACES) {
        assert!(
            graph.members.contains_key(place.package) || planned.contains(&place.package),
            "{} has a rule but is no package of the workspace",
            place.package
        );
    }
}

#[test]
fn only_known_licences_and_sources_are_built_in() {
    let metadata = metadata();
    let ids: std::collections::BTreeSet<_> = metadata
        .resolve
        .iter()
        .flat_map(|r| &r.nodes)
        .map(|n| n.id.clone())
        .collect();
    let built: Vec<Built> = metadata
        .packages
        .iter()
        .filter(|p| ids.contains(&p.id))
        .map(|p| Built {
            name: p.name.to_string(),
            licence: p.license.clone(),
            source: p.source.as_ref().map(|s| s.repr.clone()),
        })
        .collect();
    assert!(built.len() > 100, "the dependency graph was not read");
    none(licence::check(&policy(), &built));
}

#[test]
fn source_files_keep_the_house_rules() {
    let mut breaches = Vec::new();
    let mut read = 0;
    for file in files() {
        // Binary files and files deleted but not yet committed have no text to check.
        if let Ok(text) = std::fs::read_to_string(root().join(&file)) {
            read += 1;
            breaches.extend(tree::check(&file, &text));
        }
    }
    assert!(read > 20, "only {read} files were found");
    none(breaches);
}

#[test]
fn a_crate_level_clippy_toml_repeats_the_shared_bans() {
    // Clippy replaces the root file by the crate's: a ban that is not repeated is gone there.
    let bans = |text: &str| -> Vec<String> {
        let value: toml::Table = toml::from_str(text).expect("clippy.toml is TOML");
        value
            .get("disallowed-methods")
            .and_then(|v| v.as_array())
            .into_iter()
            .flatten()
            .filter_map(|v| {
                v.get("path")
                    .or(Some(v))
                    .and_then(|p| p.as_str())
                    .map(str::to_owned)
            })
            .collect()
    };
    let shared = bans(&std::fs::read_to_string(root().join("clippy.toml")).expect("clippy.toml"));
    assert!(!shared.is_empty());
    // The cores stand under a stricter rule: what is banned here is not there at all (tree::PURE).
    let pure = |file: &str| {
        tree::PURE
            .iter()
            .any(|src| src.strip_suffix("src/") == file.strip_suffix("clippy.toml"))
    };
    for file in files()
        .iter()
        .filter(|f| f.ends_with("/clippy.toml") && !pure(f))
    {
        let own = bans(&std::fs::read_to_string(root().join(file)).expect("crate's clippy.toml"));
        for ban in &shared {
            assert!(
                own.contains(ban),
                "{file} replaces the root file and lacks its ban of {ban}"
            );
        }
    }
}

#[test]
fn every_setting_is_documented() {
    // Keys of the scheduler are dotted paths, those of the agent the first text of each row; both tables are plain text in the source.
    let quoted = |line: &str| -> Option<String> {
        let text = line.trim().trim_start_matches('(').strip_prefix('"')?;
        let (word, rest) = text.split_once('"')?;
        let plain = !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || "._".contains(c));
        (plain && rest.starts_with(',')).then(|| word.to_owned())
    };
    let table = |file: &str| -> Vec<String> {
        let text = std::fs::read_to_string(root().join(file)).expect(file);
        let from = text.find("pub const KEYS").expect("the table of settings");
        let to = text[from..].find("\n];").expect("the end of the table") + from;
        text[from..to].lines().filter_map(quoted).collect()
    };
    let scheduler: Vec<String> = table("scheduler/src/config/keys.rs")
        .into_iter()
        .filter(|k| k.contains('.'))
        .collect();
    let agent: Vec<String> = table("node-agent/src/config.rs")
        .into_iter()
        .filter(|k| !k.contains('.'))
        .collect();
    assert!(
        scheduler.len() > 20 && agent.len() > 10,
        "{scheduler:?} {agent:?}"
    );
    let page = std::fs::read_to_string(root().join("docs/configuration.md"))
        .expect("docs/configuration.md");
    for key in scheduler.iter().chain(&agent) {
        assert!(
            page.contains(&format!("`{key}`")),
            "docs/configuration.md does not mention {key}"
        );
    }
}

// ---- each rule bites ----

/// A small workspace that breaks nothing.
#[test]
fn every_bound_names_a_test_that_exists() {
    let page = std::fs::read_to_string(root().join("docs/security.md")).expect("the page");
    let (_, section) = page
        .split_once("## What bounds what\n")
        .expect("the section");
    let (section, _) = section.split_once("\n## ").expect("a section after it");
    let sources: Vec<String> = files()
        .iter()
        .filter(|file| file.ends_with(".rs"))
        .filter_map(|file| std::fs::read_to_string(root().join(file)).ok())
        .collect();
    let rows = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1);
    let mut named = 0;
    for row in rows {
        let tests = row.trim_end_matches(['|', ' ']).rsplit('|').next();
        let tests: Vec<&str> = tests.unwrap_or("").split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test goes to this bound: {row}");
        for test in tests {
            let head = format!("fn {test}()");
            assert!(
                sources.iter().any(|source| source.contains(&head)),
                "docs/security.md names the test `{test}`, and there is none: {row}"
            );
            named += 1;
        }
    }
    assert!(named > 30, "{named} tests are named");
}

fn sound() -> Graph {
    let mut graph = Graph::default();
    for place in rules::PLACES {
        graph.member(place.package, &format!("product/{}", place.package));
        for used in place.may_use {
            graph.edge(place.package, used, Use::Built);
        }
    }
    graph.member("github-sim", "tests/github-sim");
    graph.member("demo-runner", "tests/demo-runner");
    graph.member("longshore-e2e", "tests/e2e");
    graph.edge("longshore-e2e", "longshore-scheduler", Use::Built);
    graph.edge("longshore-e2e", "bollard", Use::Built);
    graph.edge("scheduler-github", "octocrab", Use::Built);
    graph.edge("agent-docker", "bollard", Use::Built);
    graph.edge("bollard", "tokio", Use::Built);
    graph
}

#[test]
fn a_sound_workspace_passes() {
    none(rules::check(&sound()));
}

#[test]
fn every_fence_bites_directly_and_through_another_package() {
    for fence in rules::FENCES {
        for package in fence.packages {
            for kept_out in fence.never {
                let mut direct = sound();
                direct.edge(package, kept_out, Use::Built);
                let found = rules::check(&direct);
                assert!(
                    found
                        .iter()
                        .any(|b| b.subject == *package && b.problem.contains(kept_out)),
                    "{package} -> {kept_out} passed"
                );

                let mut far = sound();
                far.edge(package, "innocent", Use::Built);
                far.edge("innocent", "harmless", Use::Built);
                far.edge("harmless", kept_out, Use::Built);
                let found = rules::check(&far);
                assert!(
                    found.iter().any(|b| b.subject == *package
                        && (b.problem.contains("innocent -> harmless")
                            || b.problem.contains(kept_out))),
                    "{package} -> innocent -> harmless -> {kept_out} passed"
                );
            }
        }
    }
}

#[test]
fn a_core_may_use_tokio_in_no_way_but_its_tests() {
    let mut graph = sound();
    graph.edge("scheduler-core", "tokio", Use::Dev);
    none(rules::check(&graph));
    graph.edge("scheduler-core", "tokio", Use::Built);
    assert_eq!(rules::check(&graph).len(), 1);
}

#[test]
fn every_edge_that_the_layout_does_not_list_is_found() {
    for from in rules::PLACES {
        for to in rules::PLACES {
            if from.package == to.package || from.may_use.contains(&to.package) {
                continue;
            }
            let mut graph = sound();
            graph.edge(from.package, to.package, Use::Built);
            assert!(
                rules::check(&graph)
                    .iter()
                    .any(|b| b.subject == from.package),
                "{} -> {} passed",
                from.package,
                to.package
            );
        }
    }
}

#[test]
fn nothing_depends_on_tests_not_even_in_its_own_tests() {
    for kind in [Use::Built, Use::Dev] {
        let mut graph = sound();
        graph.edge("scheduler-github", "github-sim", kind);
        assert!(
            !rules::check(&graph).is_empty(),
            "{kind:?} edge to github-sim passed"
        );
    }
}

#[test]
fn a_package_without_a_place_and_a_name_that_says_nothing_are_found() {
    let mut graph = sound();
    graph.member("scheduler-common", "scheduler/common");
    let found = rules::check(&graph);
    assert_eq!(found.len(), 2, "{}", listing(&found));
    let mut graph = sound();
    graph.member("longshore-test-utils", "tests/utils");
    assert_eq!(rules::check(&graph).len(), 1);
}

#[test]
fn only_one_package_names_octocrab_bollard_and_sqlx() {
    for (package, user) in rules::SOLE_USERS {
        for place in rules::PLACES.iter().filter(|p| p.package != *user) {
            let mut graph = sound();
            graph.edge(place.package, package, Use::Built);
            assert!(
                rules::check(&graph)
                    .iter()
                    .any(|b| b.problem.contains(user) || b.problem.contains(package)),
                "{} -> {package} passed",
                place.package
            );
        }
    }
}

#[test]
fn licences_bans_and_sources_bite() {
    let policy = policy();
    let good = Built {
        name: "good".into(),
        licence: Some("MIT OR Apache-2.0".into()),
        source: Some("registry+https://github.com/rust-lang/crates.io-index".into()),
    };
    none(licence::check(&policy, std::slice::from_ref(&good)));
    let bad = [
        Built {
            licence: Some("GPL-3.0-only".into()),
            ..good.clone()
        },
        Built {
            licence: Some("MIT AND GPL-3.0-only".into()),
            ..good.clone()
        },
        Built {
            licence: None,
            ..good.clone()
        },
        Built {
            name: "openssl".into(),
            ..good.clone()
        },
        Built {
            source: Some("git+https://example.org/x".into()),
            ..good.clone()
        },
        Built {
            source: Some("registry+https://example.org/index".into()),
            ..good.clone()
        },
    ];
    for package in &bad {
        assert_eq!(
            licence::check(&policy, std::slice::from_ref(package)).len(),
            1,
            "{package:?} passed"
        );
    }
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    let allow = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]
        .map(String::from)
        .into();
    for (expression, want) in [
        ("MIT", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("ISC AND (GPL-3.0 OR LGPL-3.0)", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("MIT OR", false),
        ("(MIT", false),
        ("", false),
    ] {
        assert_eq!(licence::allowed(expression, &allow), want, "{expression}");
    }
}

#[test]
fn the_file_rules_bite() {
    let token = format!("{}{}", "ghp_", "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF3hJ6");
    let cases = [
        ("a/src/x.rs", "use std::fs;\n".to_owned(), "//!"),
        ("a/src/mod.rs", "//! x\n".to_owned(), "mod.rs"),
        ("a/src/utils.rs", "//! x\n".to_owned(), "names nothing"),
        (
            "a/src/string_helpers.rs",
            "//! x\n".to_owned(),
            "names nothing",
        ),
        (
            "scheduler/core/src/x.rs",
            "//! x\nlet t = std::time::Instant::now();\n".to_owned(),
            "pure core",
        ),
        (
            "node-agent/core/src/x.rs",
            "//! x\nuse std::collections::HashMap;\n".to_owned(),
            "pure core",
        ),
        (
            "node-agent/core/src/x.rs",
            "//! x\nuse std::net::TcpStream;\n".to_owned(),
            "pure core",
        ),
        (
            "a.md",
            format!("// {}{}: later\n", "TO", "DO"),
            "left behind",
        ),
        (
            "a.sh",
            format!("cd {}{}build\n", "/ro", "ot/"),
            "build machine",
        ),
        (
            "a.toml",
            format!("path = \"{}{}x\"\n", "/wo", "rk/"),
            "build machine",
        ),
        (
            "a.json",
            format!("{{\"token\":\"{token}\"}}"),
            "GitHub token",
        ),
        (
            "a.pem",
            format!("{} RSA PRIVATE KEY-----\n", "-----BEGIN"),
            "private key",
        ),
    ];
    for (path, text, problem) in cases {
        let found = tree::check(path, &text);
        assert!(
            found.iter().any(|b| b.problem.contains(problem)),
            "{path} passed; found: {}",
            listing(&found)
        );
    }
    for (path, text) in [
        (
            "a/src/x.rs",
            "//! What it is for.\nuse std::collections::HashMap;\n",
        ),
        (
            "scheduler/core/src/x.rs",
            "//! x\n// no HashMap, no Instant::now here\nuse std::collections::BTreeMap;\n",
        ),
        (
            "node-agent/core/src/x.rs",
            "//! x\nuse std::net::Ipv4Addr;\n",
        ),
        ("a.sh", "ls /home/runner/_work/x\n"),
        (
            "a.json",
            "{\"token\":\"ghp_000000000000000000000000000000000000\"}",
        ),
    ] {
        none(tree::check(path, text));
    }
}
