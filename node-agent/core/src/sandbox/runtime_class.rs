//! Which program makes the sandbox: the engine's own runtime, or one that a pool asks
//! for by class. A class is a word of a closed list; what the engine calls it is said
//! by the node alone, so that nothing that was asked for reaches the engine as a name.

use serde::Serialize;

/// A kind of runtime that a pool may require.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeClass {
    /// Control groups, namespaces and a filter, by the reference implementation.
    Runc,
    /// The same in C.
    Crun,
    /// gVisor: a kernel of its own in user space.
    Runsc,
    /// A virtual machine for each container.
    Kata,
    /// Namespaces with users always mapped, and a virtual `/proc`.
    Sysbox,
}

/// What is known of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub word: &'static str,
    /// Names by which engines usually have it, the likeliest first.
    pub names: &'static [&'static str],
    /// What it was run with by the tests; none: never run.
    pub verified: Option<&'static str>,
    /// The host sees no process of the job, so that a look goes through the engine.
    pub hides_processes: bool,
    /// The engine's hooks and CDI reach into it.
    pub takes_gpus: bool,
}

impl RuntimeClass {
    pub const ALL: [Self; 5] = [
        Self::Runc,
        Self::Crun,
        Self::Runsc,
        Self::Kata,
        Self::Sysbox,
    ];

    pub const fn terms(self) -> Terms {
        match self {
            Self::Runc => Terms {
                word: "runc",
                names: &["runc", "io.containerd.runc.v2"],
                verified: Some("1.1.5"),
                hides_processes: false,
                takes_gpus: true,
            },
            Self::Crun => Terms {
                word: "crun",
                names: &["crun"],
                verified: Some("1.8.1"),
                hides_processes: false,
                takes_gpus: true,
            },
            Self::Runsc => Terms {
                word: "runsc",
                names: &["runsc", "gvisor", "io.containerd.runsc.v1"],
                verified: Some("Debian 12's release of December 2022, platform ptrace"),
                hides_processes: true,
                takes_gpus: false,
            },
            Self::Kata => Terms {
                word: "kata",
                names: &["kata", "kata-runtime", "io.containerd.kata.v2"],
                verified: None,
                hides_processes: true,
                takes_gpus: false,
            },
            Self::Sysbox => Terms {
                word: "sysbox",
                names: &["sysbox-runc", "sysbox"],
                verified: None,
                hides_processes: false,
                takes_gpus: false,
            },
        }
    }

    /// As pools, the wire and properties name it.
    pub const fn word(self) -> &'static str {
        self.terms().word
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.word() == word)
    }

    /// The class of one of an engine's names.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|class| class.terms().names.contains(&name))
    }
}

/// Which classes a node's operator lets pools ask for, and by which name of the engine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedRuntimes(Vec<(RuntimeClass, Option<String>)>);

impl Default for OfferedRuntimes {
    fn default() -> Self {
        Self(
            RuntimeClass::ALL
                .into_iter()
                .map(|class| (class, None))
                .collect(),
        )
    }
}

impl OfferedRuntimes {
    /// `CLASS` or `CLASS=NAME`, with commas between them.
    pub fn parse(words: &str) -> Result<Self, String> {
        let mut offered: Vec<(RuntimeClass, Option<String>)> = Vec::new();
        for word in words.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let (class, name) = match word.split_once('=') {
                Some((class, name)) => (class.trim(), Some(name.trim())),
                None => (word, None),
            };
            let class = RuntimeClass::parse(class).ok_or_else(|| {
                let known = RuntimeClass::ALL.map(RuntimeClass::word).join(", ");
                format!("{class:?} is no runtime class; there are {known}")
            })?;
            if name.is_some_and(|name| !is_name(name)) {
                return Err(format!("{word:?} names no runtime of an engine"));
            }
            if offered.iter().any(|(known, _)| *known == class) {
                return Err(format!("{} is named twice", class.word()));
            }
            offered.push((class, name.map(str::to_owned)));
        }
        Ok(Self(offered))
    }

    /// What this engine calls each offered class that it has.
    pub fn on(&self, engine: &Registered) -> Vec<(RuntimeClass, String)> {
        if !engine.chosen_by_container {
            return Vec::new();
        }
        let has = |name: &str| engine.names.iter().any(|known| known == name);
        self.0
            .iter()
            .filter_map(|(class, given)| {
                let name = match given {
                    Some(name) => has(name).then(|| name.clone()),
                    None => {
                        let usual = class.terms().names;
                        let named = usual.iter().find(|name| has(name));
                        named.map(|name| (*name).to_owned())
                    }
                }?;
                Some((*class, name))
            })
            .collect()
    }
}

/// What an engine says of its runtimes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    pub names: Vec<String>,
    /// What a container gets that names none.
    pub default: String,
    /// A container may name one.
    pub chosen_by_container: bool,
}

/// No path: an engine's name of a runtime is a word.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docker(names: &[&str]) -> Registered {
        Registered {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            default: "runc".into(),
            chosen_by_container: true,
        }
    }

    fn words(offered: &[(RuntimeClass, String)]) -> Vec<(&str, &str)> {
        let word = |(class, name): &'_ (RuntimeClass, String)| (class.word(), name.clone());
        let list: Vec<(&str, String)> = offered.iter().map(word).collect();
        list.into_iter()
            .map(|(class, name)| (class, &*name.leak()))
            .collect()
    }

    #[test]
    fn names_lead_to_one_class_and_back() {
        for class in RuntimeClass::ALL {
            assert_eq!(RuntimeClass::parse(class.word()), Some(class));
            for name in class.terms().names {
                assert_eq!(RuntimeClass::of_name(name), Some(class), "{name}");
                assert!(is_name(name));
            }
        }
        for other in ["", "Runc", "runsc ", "/usr/bin/evil", "nvidia"] {
            assert_eq!(RuntimeClass::parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_engine_offers_what_it_has_and_its_operator_lets() {
        let engine = docker(&["io.containerd.runc.v2", "runc", "runsc", "kata-runtime"]);
        let all = OfferedRuntimes::default().on(&engine);
        assert_eq!(
            words(&all),
            [
                ("runc", "runc"),
                ("runsc", "runsc"),
                ("kata", "kata-runtime")
            ]
        );
        let few = OfferedRuntimes::parse("runsc, crun").unwrap().on(&engine);
        assert_eq!(words(&few), [("runsc", "runsc")]);
        assert!(OfferedRuntimes::parse("").unwrap().on(&engine).is_empty());
        let engine = docker(&["runsc", "runsc-systrap"]);
        let named = OfferedRuntimes::parse("runsc=runsc-systrap").unwrap();
        assert_eq!(words(&named.on(&engine)), [("runsc", "runsc-systrap")]);
        let absent = OfferedRuntimes::parse("runsc=other").unwrap();
        assert!(absent.on(&engine).is_empty());
        let podman = Registered {
            chosen_by_container: false,
            ..engine
        };
        assert!(OfferedRuntimes::default().on(&podman).is_empty());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (wrong, says) in [
            ("gvisor", "no runtime class"),
            ("runsc=/usr/bin/runsc", "names no runtime"),
            ("runsc=", "names no runtime"),
            ("runc,runc", "twice"),
        ] {
            let error = OfferedRuntimes::parse(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
