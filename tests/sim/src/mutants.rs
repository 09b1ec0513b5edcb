//! Planted bugs: each must be found, by a named check.
//!
//! The production code knows nothing of this. A copy of the sources is made
//! under the target folder, every bug is written into the copy behind a switch,
//! the copy is built once, and each bug is then switched on in turn.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};

mod list;

pub use list::MUTANTS;

/// One planted bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    pub name: &'static str,
    /// From the root of the repository.
    pub file: &'static str,
    /// Stands there exactly once.
    pub find: &'static str,
    /// `PLANTED` is true while the bug is switched on.
    pub replace: &'static str,
    /// The check of [`crate::checks`] that finds it.
    pub found_by: &'static str,
}

/// Folders of the copy.
const PARTS: [&str; 4] = ["proto", "scheduler", "node-agent/core", "tests"];
const MEMBERS: &str = r#"members = ["proto", "scheduler", "scheduler/core", "scheduler/github", "scheduler/store", "node-agent/core", "tests/github-sim", "tests/sim", "planted"]"#;
/// Crates that carry bugs, and the one that switches them on.
const CARRIERS: [&str; 4] = [
    "scheduler/core",
    "scheduler",
    "node-agent/core",
    "tests/sim",
];
const PLANTED: &str = r#"//! Which bug is switched on.
use std::sync::atomic::{AtomicUsize, Ordering};
static ON: AtomicUsize = AtomicUsize::new(0);
pub fn plant(n: usize) { ON.store(n, Ordering::Relaxed); }
pub fn on(n: usize) -> bool { ON.load(Ordering::Relaxed) == n }
"#;

/// Builds the copy and shows that each of these bugs is found; all when empty.
/// Prints one line per bug.
pub fn run(only: &[String]) -> anyhow::Result<()> {
    for name in only {
        ensure!(
            MUTANTS.iter().any(|mutant| mutant.name == name),
            "there is no planted bug {name}"
        );
    }
    let program = build()?;
    let chosen: Vec<_> = (1..)
        .zip(MUTANTS)
        .filter(|(_, mutant)| only.is_empty() || only.iter().any(|name| name == mutant.name))
        .collect();
    // Control: without any bug the checks are content.
    for check in crate::checks::NAMES {
        if chosen.iter().any(|(_, mutant)| mutant.found_by == *check) {
            let (found, text) = check_with(&program, 0, check)?;
            ensure!(
                !found,
                "the check {check} fails without any planted bug:\n{text}"
            );
        }
    }
    let mut missed = Vec::new();
    for (n, mutant) in &chosen {
        let (found, text) = check_with(&program, *n, mutant.found_by)?;
        let first = text.lines().nth(1).unwrap_or_default().trim();
        let word = if found { "found" } else { "MISSED" };
        println!("{word:6} {} by {}: {first}", mutant.name, mutant.found_by);
        if !found {
            missed.push(mutant.name);
        }
    }
    ensure!(missed.is_empty(), "planted and not found: {missed:?}");
    println!("{} planted bugs, all found", chosen.len());
    Ok(())
}

fn check_with(program: &Path, n: usize, check: &str) -> anyhow::Result<(bool, String)> {
    let output = Command::new(program)
        .args(["check", check])
        .env("LONGSHORE_PLANTED", n.to_string())
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => Ok((false, text)),
        Some(1) => Ok((true, text)),
        other => bail!(
            "the planted program ended with {other:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

fn build() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let tree = target.join("planted-tree");
    copy(&root, &tree)?;
    for (n, mutant) in (1..).zip(MUTANTS) {
        plant(&tree, n, mutant)?;
    }
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--offline", "-p", "longshore-sim"])
        .args(["--bin", "longshore-planted"])
        .current_dir(&tree)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-Awarnings")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .context("run cargo")?;
    ensure!(
        status.success(),
        "the copy with the planted bugs does not build"
    );
    Ok(target.join("debug/longshore-planted"))
}

/// Copies what is needed; a file that did not change keeps its time, so that the
/// next build is quick.
fn copy(root: &Path, tree: &Path) -> anyhow::Result<()> {
    for part in PARTS {
        copy_folder(&root.join(part), &tree.join(part))?;
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("read Cargo.toml")?;
    let from = manifest.find("members = [").context("no members")?;
    let to = from + manifest[from..].find(']').context("no end of members")? + 1;
    let manifest = format!(
        "{}{MEMBERS}{}\n",
        &manifest[..from],
        manifest[to..].replace(
            "[workspace.dependencies]",
            "[workspace.dependencies]\nplanted = { path = \"planted\" }"
        )
    );
    write(&tree.join("Cargo.toml"), manifest.as_bytes())?;
    write(
        &tree.join("Cargo.lock"),
        &fs::read(root.join("Cargo.lock")).context("read Cargo.lock")?,
    )?;
    write(
        &tree.join("planted/Cargo.toml"),
        b"[package]\nname = \"planted\"\nversion = \"0.0.0\"\nedition = \"2024\"\n",
    )?;
    write(&tree.join("planted/src/lib.rs"), PLANTED.as_bytes())?;
    for carrier in CARRIERS {
        edit(&tree.join(carrier).join("Cargo.toml"), |text| {
            text.replace(
                "[dependencies]\n",
                "[dependencies]\nplanted.workspace = true\n",
            )
            .replace(
                "name = \"longshore-sim\"\npath",
                "name = \"longshore-planted\"\npath",
            )
        })?;
    }
    edit(&tree.join("tests/sim/src/main.rs"), |text| {
        text.replace(
            "fn main() -> anyhow::Result<()> {\n",
            "fn main() -> anyhow::Result<()> {\n    let planted = std::env::var(\"LONGSHORE_PLANTED\").ok();\n    planted::plant(planted.and_then(|n| n.parse().ok()).unwrap_or(0));\n",
        )
    })
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            if !matches!(entry.file_name().to_str(), Some("target" | "node_modules")) {
                copy_folder(&from, &to)?;
            }
        } else if entry.file_type()?.is_file() {
            write(&to, &fs::read(&from)?)?;
        }
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

fn edit(path: &Path, change: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    write(path, change(&text).as_bytes())
}

fn plant(tree: &Path, n: usize, mutant: &Mutant) -> anyhow::Result<()> {
    let path = tree.join(mutant.file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let places = text.matches(mutant.find).count();
    ensure!(
        places == 1,
        "{} no longer fits {}: its place is there {places} times",
        mutant.name,
        mutant.file
    );
    let bug = mutant
        .replace
        .replace("PLANTED", &format!("planted::on({n})"));
    write(&path, text.replace(mutant.find, &bug).as_bytes())
}
