//! Where things are, and running them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("tests/deploy lies two folders deep")
        .to_owned()
}

/// A file of the repository.
pub(crate) fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect(path)
}

/// Runs it to its end; a program that is missing fails with where to get it.
pub(crate) fn run(command: &mut Command) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{name}: {error}; deploy/prepare-host --for test installs it"),
    }
}

/// What it said on both channels.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A program of this build.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let folder = test.ancestors().nth(2).expect("target/debug/deps/deploy-…");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: cargo build --workspace --all-targets",
        path.display()
    );
    path
}
