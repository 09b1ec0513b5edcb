//! Builds the probe as one static file, so that it runs in any image, and small
//! enough to be carried by the agent.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=program");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = PathBuf::from(variable("OUT_DIR")).join("longshore-probe");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args(["--crate-name", "longshore_probe", "--crate-type", "bin"])
        .args(["--edition", "2024", "--target", &variable("TARGET")])
        .args(["-C", "target-feature=+crt-static", "-C", "panic=abort"])
        .args(["-C", "opt-level=z", "-C", "lto", "-C", "codegen-units=1"])
        .args(["-C", "strip=symbols", "-A", "warnings"])
        .args(["--cfg", "embedded", "--check-cfg", "cfg(embedded)"])
        .arg("-o")
        .arg(&out)
        .arg("program/main.rs");
    // Cargo names a linker here when one is configured for this target.
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let status = rustc.status().expect("rustc runs");
    assert!(
        status.success(),
        "the probe could not be built as a static program; it needs the C library's static files (libc6-dev)"
    );
    println!("cargo::rustc-env=LONGSHORE_PROBE={}", out.display());
}
