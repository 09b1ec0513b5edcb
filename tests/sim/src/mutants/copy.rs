//! The copy of the sources with every bug written into it, and its build.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{FoundBy, MUTANTS, Suite};

/// Holds the number of the bug that is switched on.
pub(super) const SWITCH: &str = "LONGSHORE_PLANTED";

/// The members' folder in the copy. Cargo tells a workspace's crates apart by their
/// paths from its root: under the same ones the copy would overwrite the originals.
const UNDER: &str = "copy";
/// Crates that carry bugs.
const CARRIERS: [&str; 4] = [
    "scheduler",
    "scheduler/core",
    "scheduler/github",
    "node-agent/core",
];
const PLANTED: &str = r#"//! Which bug is switched on.
use std::sync::LazyLock;
static ON: LazyLock<usize> = LazyLock::new(|| {
    std::env::var("LONGSHORE_PLANTED").ok().and_then(|n| n.parse().ok()).unwrap_or(0)
});
pub fn on(n: usize) -> bool { *ON == n }
"#;

impl Suite {
    pub(super) fn package(self) -> &'static str {
        match self {
            Self::SchedulerCore => "scheduler-core",
            Self::SchedulerGitHub => "scheduler-github",
            Self::AgentCore => "agent-core",
        }
    }

    /// Name and kind of its target, as cargo tells them.
    fn target(self) -> (&'static str, &'static str) {
        match self {
            Self::SchedulerCore => ("behaviour", "test"),
            Self::SchedulerGitHub => ("difficult", "test"),
            Self::AgentCore => ("agent_core", "lib"),
        }
    }
}

/// What was built.
pub(super) struct Programs {
    tree: PathBuf,
    /// By name and kind of their target.
    built: BTreeMap<(String, String), PathBuf>,
    /// Nobody else changes the copy while it is used.
    _lock: File,
}

impl Programs {
    pub(super) fn of(&self, finder: FoundBy) -> anyhow::Result<&Path> {
        let (name, kind) = match finder {
            FoundBy::Check(_) => ("longshore-planted", "bin"),
            FoundBy::Test(suite, _) => suite.target(),
        };
        let built = self.built.get(&(name.to_owned(), kind.to_owned()));
        built
            .map(PathBuf::as_path)
            .with_context(|| format!("cargo did not say where it put {name}"))
    }

    /// Where the words of one run go.
    pub(super) fn log(&self, n: usize, finder: FoundBy) -> PathBuf {
        let (FoundBy::Check(name) | FoundBy::Test(_, name)) = finder;
        let name = name.replace(':', "-");
        self.tree.join(format!("{n}-{name}.log"))
    }
}

/// Makes the copy and builds what these need.
pub(super) fn build(finders: &[FoundBy]) -> anyhow::Result<Programs> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().context("find the repository")?;
    let target = target_folder(&root)?;
    let tree = target.join("planted");
    fs::create_dir_all(&tree).with_context(|| format!("make {}", tree.display()))?;
    let lock = File::create(target.join("planted.lock")).context("make the lock")?;
    lock.lock().context("take the lock")?;

    let mut copy = Copy::of(&root)?;
    copy.prepare()?;
    for (n, mutant) in (1..).zip(MUTANTS) {
        let bug = mutant
            .replace
            .replace("PLANTED", &format!("planted::on({n})"));
        copy.edit(&format!("{UNDER}/{}", mutant.file), mutant.find, &bug)
            .with_context(|| format!("{} no longer fits", mutant.name))?;
    }
    copy.write(&tree)?;

    let mut programs = Programs {
        tree,
        built: BTreeMap::new(),
        _lock: lock,
    };
    let suites: BTreeSet<Suite> = finders
        .iter()
        .filter_map(|finder| match finder {
            FoundBy::Test(suite, _) => Some(*suite),
            FoundBy::Check(_) => None,
        })
        .collect();
    // The whole workspace and a test are named, so that the dependencies' features
    // are those of `cargo test --workspace`: what that built is used again.
    let mut first = vec!["build", "--workspace", "--test", "nothing"];
    if finders.iter().any(|f| matches!(f, FoundBy::Check(_))) {
        first.extend(["--bin", "longshore-planted"]);
    }
    for suite in &suites {
        if let (name, "test") = suite.target() {
            first.extend(["--test", name]);
        }
    }
    programs.cargo(&target, &first)?;
    for suite in &suites {
        // Unit tests cannot be chosen by name; this crate needs next to nothing.
        if let (_, "lib") = suite.target() {
            let package = suite.package();
            programs.cargo(&target, &["test", "--no-run", "--lib", "-p", package])?;
        }
    }
    Ok(programs)
}

impl Programs {
    fn cargo(&mut self, target: &Path, arguments: &[&str]) -> anyhow::Result<()> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(arguments)
            .args(["--offline", "--message-format=json-render-diagnostics"])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", target)
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .stdin(Stdio::null())
            .output()
            .context("run cargo")?;
        ensure!(
            output.status.success(),
            "the copy with the planted bugs does not build:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        for line in output.stdout.split(|byte| *byte == b'\n') {
            let told: Value = serde_json::from_slice(line).unwrap_or(Value::Null);
            let (Some(program), Some(name), Some(kind)) = (
                told["executable"].as_str(),
                told["target"]["name"].as_str(),
                told["target"]["kind"][0].as_str(),
            ) else {
                continue;
            };
            self.built
                .insert((name.to_owned(), kind.to_owned()), program.into());
        }
        Ok(())
    }
}

/// Where this program itself was built, so that dependencies are shared.
fn target_folder(root: &Path) -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("find this program")?;
    let target = program
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file());
    Ok(target.map_or_else(|| root.join("target"), Path::to_path_buf))
}

/// Content by path from the root.
struct Copy(BTreeMap<PathBuf, Vec<u8>>);

impl Copy {
    /// The workspace's members as they are.
    fn of(root: &Path) -> anyhow::Result<Self> {
        let mut copy = Self(BTreeMap::new());
        for name in ["Cargo.toml", "Cargo.lock"] {
            let content = fs::read(root.join(name)).with_context(|| format!("read {name}"))?;
            copy.0.insert(name.into(), content);
        }
        for member in copy.members()? {
            copy.take(root, Path::new(&member))?;
        }
        let manifest = copy.text("Cargo.toml")?;
        let manifest = manifest.replace("path = \"", &format!("path = \"{UNDER}/"));
        let (before, rest) = manifest.split_once("members = [").context("no members")?;
        let (members, after) = rest.split_once(']').context("no end of members")?;
        let members = members.replace("    \"", &format!("    \"{UNDER}/"));
        let manifest = format!("{before}members = [\n    \"{UNDER}/planted\",{members}]{after}");
        copy.0.insert("Cargo.toml".into(), manifest.into_bytes());
        Ok(copy)
    }

    fn members(&self) -> anyhow::Result<Vec<String>> {
        let manifest = self.text("Cargo.toml")?;
        let list = manifest.split_once("members = [").context("no members")?.1;
        let list = list.split_once(']').context("no end of members")?.0;
        Ok(list
            .split('"')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect())
    }

    fn take(&mut self, root: &Path, folder: &Path) -> anyhow::Result<()> {
        let from = root.join(folder);
        for entry in fs::read_dir(&from).with_context(|| format!("read {}", from.display()))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir()
                && !matches!(entry.file_name().to_str(), Some("target" | "node_modules"))
            {
                self.take(root, &path)?;
            } else if kind.is_file() {
                self.0
                    .insert(Path::new(UNDER).join(path), fs::read(entry.path())?);
            }
        }
        Ok(())
    }

    /// Adds the switch, and gives the program a name of its own.
    fn prepare(&mut self) -> anyhow::Result<()> {
        self.edit(
            "Cargo.toml",
            "[workspace.dependencies]\n",
            &format!("[workspace.dependencies]\nplanted = {{ path = \"{UNDER}/planted\" }}\n"),
        )?;
        let manifest = "[package]\nname = \"planted\"\nversion = \"0.0.0\"\nedition = \"2024\"\n";
        let planted = Path::new(UNDER).join("planted");
        for (name, content) in [
            ("Cargo.toml", manifest),
            ("src/lib.rs", PLANTED),
            ("tests/nothing.rs", ""),
        ] {
            self.0.insert(planted.join(name), content.into());
        }
        for carrier in CARRIERS {
            self.edit(
                &format!("{UNDER}/{carrier}/Cargo.toml"),
                "[dependencies]\n",
                "[dependencies]\nplanted.workspace = true\n",
            )?;
        }
        self.edit(
            &format!("{UNDER}/tests/sim/Cargo.toml"),
            "name = \"longshore-sim\"\npath",
            "name = \"longshore-planted\"\npath",
        )?;
        Ok(())
    }

    fn text(&self, path: &str) -> anyhow::Result<&str> {
        let content = self.0.get(Path::new(path));
        let content = content.with_context(|| format!("there is no {path}"))?;
        std::str::from_utf8(content).with_context(|| format!("{path} is no text"))
    }

    /// Replaces what stands there exactly once.
    fn edit(&mut self, path: &str, find: &str, replace: &str) -> anyhow::Result<()> {
        let text = self.text(path)?;
        let places = text.matches(find).count();
        ensure!(places == 1, "its place is {places} times in {path}");
        let text = text.replace(find, replace);
        self.0.insert(path.into(), text.into_bytes());
        Ok(())
    }

    /// A file that did not change keeps its time, so that the next build is quick.
    fn write(&self, tree: &Path) -> anyhow::Result<()> {
        for (path, content) in &self.0 {
            let path = tree.join(path);
            if fs::read(&path).is_ok_and(|old| old == *content) {
                continue;
            }
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        }
        self.remove_others(tree, tree)
    }

    /// A file that is gone from the sources must not be built any more.
    fn remove_others(&self, tree: &Path, folder: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.remove_others(tree, &path)?;
            } else if !path
                .strip_prefix(tree)
                .is_ok_and(|known| self.0.contains_key(known))
            {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}
