//! Whether foreign programs run here by emulation, which is not a capability.

use std::fs;

use serde::Serialize;

/// Emulators the kernel calls for foreign programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Emulation {
    /// `binfmt_misc` is mounted, so the list below is complete.
    pub visible: bool,
    pub handlers: Vec<Handler>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Handler {
    pub name: String,
    pub interpreter: String,
    pub enabled: bool,
    /// Flag F: opened at registration, so it also works inside containers.
    pub fixed: bool,
}

pub fn probe() -> Emulation {
    let Ok(entries) = fs::read_dir("/proc/sys/fs/binfmt_misc") else {
        return Emulation::default();
    };
    let mut emulation = Emulation::default();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.as_str() {
            "status" => emulation.visible = true,
            "register" => {}
            _ => {
                if let Ok(text) = fs::read_to_string(entry.path()) {
                    emulation.handlers.push(parse_handler(&name, &text));
                }
            }
        }
    }
    emulation.handlers.sort_by(|a, b| a.name.cmp(&b.name));
    emulation
}

pub fn parse_handler(name: &str, text: &str) -> Handler {
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    Handler {
        name: name.to_owned(),
        interpreter: value("interpreter"),
        enabled: text
            .lines()
            .next()
            .is_some_and(|line| line.trim() == "enabled"),
        fixed: value("flags:").contains('F'),
    }
}

impl Emulation {
    /// Architectures in GitHub's words that would run by emulation in a container.
    pub fn emulated(&self) -> Vec<&'static str> {
        let mut list: Vec<&'static str> = self
            .handlers
            .iter()
            .filter(|handler| handler.enabled && handler.fixed)
            .filter_map(|handler| match handler.name.as_str() {
                "qemu-aarch64" => Some("arm64"),
                "qemu-arm" => Some("arm"),
                "qemu-x86_64" => Some("x64"),
                _ => None,
            })
            .collect();
        list.sort_unstable();
        list.dedup();
        list
    }
}

/// Inside a sandbox: `uname -m` says ARM, and the processor's vendor is an x86 one.
pub fn is_emulated(uname_machine: &str, cpuinfo: &str) -> bool {
    let foreign = !matches!(crate::cpu::arch_of(uname_machine), Some("x64") | None);
    foreign && cpuinfo.lines().any(|line| line.starts_with("vendor_id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLER: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\nmagic 7f454c46\n";

    #[test]
    fn a_registered_emulator_is_evidence_not_capability() {
        let handler = parse_handler("qemu-aarch64", HANDLER);
        assert!(handler.enabled && handler.fixed);
        assert_eq!(
            handler.interpreter,
            "/usr/libexec/qemu-binfmt/aarch64-binfmt-P"
        );
        let emulation = Emulation {
            visible: true,
            handlers: vec![handler],
        };
        assert_eq!(emulation.emulated(), ["arm64"]);
    }

    #[test]
    fn a_disabled_or_unfixed_emulator_runs_nothing_in_a_container() {
        let disabled = parse_handler("qemu-aarch64", &HANDLER.replace("enabled", "disabled"));
        let unfixed = parse_handler("qemu-aarch64", &HANDLER.replace("POCF", "OC"));
        assert!(
            Emulation {
                visible: true,
                handlers: vec![disabled, unfixed]
            }
            .emulated()
            .is_empty()
        );
    }

    #[test]
    fn emulation_shows_in_the_processors_vendor() {
        let x86 = include_str!("../fixtures/cpuinfo.x86_64");
        let arm = include_str!("../fixtures/cpuinfo.aarch64");
        assert!(is_emulated("aarch64", x86));
        assert!(!is_emulated("aarch64", arm));
        assert!(!is_emulated("x86_64", x86));
    }
}
