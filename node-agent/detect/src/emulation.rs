//! Whether foreign programs run here by emulation, which is not a capability.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::cpu::arch_of;

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
    /// GitHub's word for the programs that it runs; empty for others.
    pub arch: &'static str,
}

/// Architectures that the operator wants offered by emulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked([bool; ARCHS.len()]);

const ARCHS: [&str; 3] = ["x64", "arm64", "arm"];

impl Asked {
    /// Comma separated; nothing for none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match ARCHS.iter().position(|arch| *arch == word) {
                Some(at) => asked.0[at] = true,
                None => return Err(format!("must be of {}", ARCHS.join(", "))),
            }
        }
        Ok(asked)
    }

    pub fn list(self) -> impl Iterator<Item = &'static str> {
        let named = move |at: &usize| self.0[*at];
        (0..ARCHS.len()).filter(named).map(|at| ARCHS[at])
    }
}

/// Reads the emulators that are registered below `root`, here or on a recorded host.
pub fn probe(root: &Path) -> Emulation {
    let Ok(entries) = fs::read_dir(root.join("proc/sys/fs/binfmt_misc")) else {
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
        arch: arch_of_magic(&value("magic")),
    }
}

/// An ELF header says the machine that a program is for; a handler's name is only a name.
fn arch_of_magic(hex: &str) -> &'static str {
    let byte = |at: usize| {
        let digits = hex.get(2 * at..2 * at + 2)?;
        u8::from_str_radix(digits, 16).ok()
    };
    let begins = (0..4).map(byte).eq([0x7f, 0x45, 0x4c, 0x46].map(Some));
    // Byte 5 is 1 for little endian, and then the machine's low byte comes first.
    match (begins, byte(5), byte(18), byte(19)) {
        (true, Some(1), Some(0xb7), Some(0)) => "arm64",
        (true, Some(1), Some(0x28), Some(0)) => "arm",
        (true, Some(1), Some(0x3e), Some(0)) => "x64",
        _ => "",
    }
}

impl Emulation {
    /// Architectures in GitHub's words that would run by emulation in a container.
    pub fn emulated(&self) -> Vec<&'static str> {
        let mut list: Vec<&'static str> = self
            .handlers
            .iter()
            .filter(|handler| handler.enabled && handler.fixed && !handler.arch.is_empty())
            .map(|handler| handler.arch)
            .collect();
        list.sort_unstable();
        list.dedup();
        list
    }

    /// Why programs of this architecture do not run here by emulation; none when they do.
    pub fn gap(&self, arch: &str) -> Option<String> {
        let mut of = self.handlers.iter().filter(|handler| handler.arch == arch);
        if self.emulated().contains(&arch) {
            return None;
        }
        Some(match of.next() {
            _ if !self.visible => {
                "/proc/sys/fs/binfmt_misc is not mounted, or the agent may not see it".into()
            }
            None => format!(
                "no emulator for {arch} is registered; install qemu-user-static, and binfmt-support where there is no systemd"
            ),
            Some(handler) if !handler.enabled => format!("emulator {} is disabled", handler.name),
            Some(handler) => format!(
                "emulator {} is registered without flag F, so it works in no container",
                handler.name
            ),
        })
    }
}

/// A machine name of ARM beside the vendor of an x86 processor: what says the name runs
/// by emulation. Inside a sandbox that is the sandbox; for an agent it is the agent.
pub fn is_emulated(uname_machine: &str, cpuinfo_vendor_id: bool) -> bool {
    matches!(arch_of(uname_machine), Some("arm64" | "arm")) && cpuinfo_vendor_id
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLER: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\nmagic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn of(handlers: Vec<Handler>) -> Emulation {
        Emulation {
            visible: true,
            handlers,
        }
    }

    #[test]
    fn a_registered_emulator_is_evidence_not_capability() {
        let handler = parse_handler("any-name", HANDLER);
        assert!(handler.enabled && handler.fixed);
        assert_eq!(handler.interpreter, "/usr/bin/qemu-aarch64-static");
        let emulation = of(vec![handler]);
        assert_eq!(emulation.emulated(), ["arm64"]);
        assert_eq!(emulation.gap("arm64"), None);
        assert!(
            emulation
                .gap("arm")
                .is_some_and(|why| why.contains("qemu-user-static"))
        );
    }

    #[test]
    fn a_disabled_or_unfixed_emulator_runs_nothing_in_a_container() {
        for (change, with, told) in [("enabled", "disabled", "disabled"), ("OCF", "OC", "flag F")] {
            let handler = parse_handler("qemu-aarch64", &HANDLER.replace(change, with));
            let emulation = of(vec![handler]);
            assert!(emulation.emulated().is_empty());
            assert!(emulation.gap("arm64").is_some_and(|why| why.contains(told)));
        }
        let unseen = Emulation::default().gap("arm64");
        assert!(unseen.is_some_and(|why| why.contains("not mounted")));
    }

    #[test]
    fn the_programs_header_says_the_machine_and_not_the_handlers_name() {
        let arm = HANDLER.replace("460201", "460101").replace("b700", "2800");
        let big_endian = HANDLER.replace("460201", "460202");
        let script = HANDLER.replace("7f454c46", "23212f00");
        for (text, arch) in [
            (arm.as_str(), "arm"),
            (&big_endian, ""),
            (&script, ""),
            ("enabled\n", ""),
        ] {
            assert_eq!(parse_handler("qemu-aarch64", text).arch, arch, "{text}");
        }
    }

    #[test]
    fn emulation_shows_in_the_processors_vendor() {
        assert!(is_emulated("aarch64", true) && is_emulated("armv7l", true));
        assert!(!is_emulated("aarch64", false) && !is_emulated("x86_64", true));
    }

    #[test]
    fn an_operator_asks_for_known_architectures() {
        let asked = Asked::parse(" arm, arm64 ").unwrap();
        assert_eq!(asked.list().collect::<Vec<_>>(), ["arm64", "arm"]);
        assert_eq!(Asked::parse("").unwrap(), Asked::default());
        assert!(Asked::parse("riscv64").is_err());
    }
}
