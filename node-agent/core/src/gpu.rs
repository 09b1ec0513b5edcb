//! A GPU in a sandbox: how the engine is asked for it, and what a container that
//! was started with it must see before it is offered.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// GPUs of one sandbox at most.
pub const MOST: usize = 16;
/// What a job without a GPU finds in `NVIDIA_VISIBLE_DEVICES`, whatever its image says.
pub const NONE: &str = "void";

/// By which of its ways an engine puts a GPU into a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Injection {
    /// A CDI spec that names the device.
    Cdi,
    /// NVIDIA's hook, by the engine's driver `nvidia`.
    Hook,
}

impl Injection {
    pub fn word(self) -> &'static str {
        match self {
            Self::Cdi => "CDI",
            Self::Hook => "the nvidia hook",
        }
    }
}

/// A GPU that a sandbox is to have, by UUID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lease {
    pub uuid: String,
    pub by: Injection,
}

/// One device request of a container. Never a count: it would be any GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceAsk {
    pub driver: &'static str,
    pub ids: Vec<String>,
    pub capabilities: Vec<&'static str>,
}

/// `GPU-...` or `MIG-...` of letters, digits, dashes and, in old MIG names, slashes.
pub fn is_uuid(text: &str) -> bool {
    let rest = text
        .strip_prefix("GPU-")
        .or_else(|| text.strip_prefix("MIG-"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && text.len() <= 96
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'/')
    })
}

/// What the engine is asked for: exactly these devices.
pub fn requests(leases: &[Lease]) -> Vec<DeviceAsk> {
    let by = |way: Injection| leases.iter().filter(move |lease| lease.by == way);
    let mut asks = Vec::new();
    let cdi: Vec<String> = by(Injection::Cdi)
        .map(|lease| format!("nvidia.com/gpu={}", lease.uuid))
        .collect();
    if !cdi.is_empty() {
        asks.push(DeviceAsk {
            driver: "cdi",
            ids: cdi,
            capabilities: vec![],
        });
    }
    let hook: Vec<String> = by(Injection::Hook)
        .map(|lease| lease.uuid.clone())
        .collect();
    if !hook.is_empty() {
        asks.push(DeviceAsk {
            driver: "nvidia",
            ids: hook,
            // Computing and nvidia-smi; no display.
            capabilities: vec!["gpu", "compute", "utility"],
        });
    }
    asks
}

/// `NVIDIA_VISIBLE_DEVICES` of a sandbox. The hook reads it, and an image may set
/// it: so it is always set, and to no more than the lease.
pub fn visible(leases: &[Lease]) -> String {
    let hooked: Vec<&str> = leases
        .iter()
        .filter(|lease| lease.by == Injection::Hook)
        .map(|lease| lease.uuid.as_str())
        .collect();
    match hooked[..] {
        // CDI injects by itself; a hook beside it must not do so again.
        [] => NONE.to_owned(),
        _ => hooked.join(","),
    }
}

/// The GPU that a proving container was started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub uuid: String,
    /// N of its `/dev/nvidiaN`, its GPU's for an instance; none when unknown.
    pub minor: Option<u32>,
    /// An instance: its GPU is seen beside it.
    pub parent_uuid: String,
}

/// What the program in the proving container saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// Numbers of `/dev/nvidiaN`.
    pub nodes: Vec<u32>,
    /// Those of them that could not be opened, and why.
    pub unopened: Vec<String>,
    /// What the driver's library listed there; instances with their GPUs.
    pub uuids: Vec<String>,
    /// Why the library said nothing; empty when it answered.
    pub unusable: String,
}

/// Whether exactly the wanted GPU was seen: the evidence, or what is wrong.
pub fn judge(wanted: &Wanted, sight: &Sight) -> Result<String, String> {
    let instance = !wanted.parent_uuid.is_empty();
    if sight.nodes.is_empty() {
        return Err("the container saw no /dev/nvidiaN".into());
    }
    if let [first, ..] = &sight.unopened[..] {
        return Err(format!("the container could not open {first}"));
    }
    let nodes: BTreeSet<u32> = sight.nodes.iter().copied().collect();
    let other_node = wanted
        .minor
        .is_some_and(|minor| nodes != BTreeSet::from([minor]));
    if other_node || nodes.len() != 1 {
        return Err(format!("the container saw other GPUs: {}", list(&nodes)));
    }
    if sight.unusable.is_empty() {
        let expected = [&wanted.uuid, &wanted.parent_uuid];
        let stranger = sight.uuids.iter().find(|uuid| !expected.contains(uuid));
        if let Some(stranger) = stranger {
            return Err(format!("the container saw another GPU: {stranger}"));
        }
        return match sight.uuids.contains(&wanted.uuid) {
            true => Ok(format!("its driver library listed {} alone", wanted.uuid)),
            false => Err(format!("the container did not see {}", wanted.uuid)),
        };
    }
    if instance {
        return Err(format!(
            "the container saw /dev/nvidia{}, which does not tell one instance from another, and the driver's library told nothing there: {}",
            sight.nodes[0], sight.unusable
        ));
    }
    Ok(format!("it opened /dev/nvidia{} alone", sight.nodes[0]))
}

fn list(nodes: &BTreeSet<u32>) -> String {
    let names: Vec<String> = nodes.iter().map(|n| format!("/dev/nvidia{n}")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(uuid: &str, by: Injection) -> Lease {
        Lease {
            uuid: uuid.into(),
            by,
        }
    }

    #[test]
    fn uuids_are_told_from_other_words() {
        for good in [
            "GPU-5a5e9b22-0000-4000-8000-1234567890ab",
            "MIG-7c70bd44-0000-4000-8000-1234567890ab",
            "MIG-GPU-5a5e9b22/1/0",
        ] {
            assert!(is_uuid(good), "{good}");
        }
        for bad in [
            "",
            "0",
            "all",
            "GPU-",
            "GPU-1,GPU-2",
            "GPU-1 ",
            "nvidia.com/gpu=all",
        ] {
            assert!(!is_uuid(bad), "{bad}");
        }
    }

    #[test]
    fn an_engine_is_asked_for_exactly_the_leased_devices() {
        assert_eq!(requests(&[]), []);
        assert_eq!(visible(&[]), "void");
        let hook = [
            lease("GPU-1", Injection::Hook),
            lease("GPU-2", Injection::Hook),
        ];
        let asked = requests(&hook);
        assert_eq!(asked.len(), 1);
        assert_eq!(
            (asked[0].driver, &asked[0].ids[..]),
            ("nvidia", &["GPU-1".to_owned(), "GPU-2".into()][..])
        );
        assert_eq!(visible(&hook), "GPU-1,GPU-2");
        let cdi = [lease("GPU-1", Injection::Cdi)];
        assert_eq!(requests(&cdi)[0].ids, ["nvidia.com/gpu=GPU-1"]);
        assert_eq!(visible(&cdi), "void");
    }

    #[test]
    fn a_container_must_see_that_gpu_and_no_other() {
        let wanted = Wanted {
            uuid: "GPU-1".into(),
            minor: Some(3),
            parent_uuid: String::new(),
        };
        let good = Sight {
            nodes: vec![3],
            uuids: vec!["GPU-1".into()],
            ..Sight::default()
        };
        assert!(judge(&wanted, &good).unwrap().contains("GPU-1 alone"));
        let without_library = Sight {
            unusable: "not there".into(),
            uuids: vec![],
            ..good.clone()
        };
        assert!(
            judge(&wanted, &without_library)
                .unwrap()
                .contains("nvidia3")
        );
        for (sight, words) in [
            (Sight::default(), "saw no /dev/nvidiaN"),
            (
                Sight {
                    nodes: vec![0],
                    ..good.clone()
                },
                "other GPUs: /dev/nvidia0",
            ),
            (
                Sight {
                    nodes: vec![0, 3],
                    ..good.clone()
                },
                "other GPUs",
            ),
            (
                Sight {
                    unopened: vec!["/dev/nvidia3: not permitted".into()],
                    ..good.clone()
                },
                "not permitted",
            ),
            (
                Sight {
                    uuids: vec!["GPU-1".into(), "GPU-2".into()],
                    ..good.clone()
                },
                "another GPU: GPU-2",
            ),
            (
                Sight {
                    uuids: vec![],
                    ..good.clone()
                },
                "did not see GPU-1",
            ),
        ] {
            let told = judge(&wanted, &sight).unwrap_err();
            assert!(told.contains(words), "{told}");
        }
        let unnumbered = Wanted {
            minor: None,
            ..wanted
        };
        assert!(
            judge(
                &unnumbered,
                &Sight {
                    nodes: vec![0, 3],
                    ..good
                }
            )
            .is_err()
        );
    }

    #[test]
    fn an_instance_is_told_from_its_neighbours() {
        let wanted = Wanted {
            uuid: "MIG-1".into(),
            minor: Some(0),
            parent_uuid: "GPU-1".into(),
        };
        let sight = Sight {
            nodes: vec![0],
            uuids: vec!["GPU-1".into(), "MIG-1".into()],
            ..Sight::default()
        };
        assert!(judge(&wanted, &sight).is_ok());
        let neighbour = Sight {
            uuids: vec!["GPU-1".into(), "MIG-2".into()],
            ..sight.clone()
        };
        assert!(judge(&wanted, &neighbour).unwrap_err().contains("MIG-2"));
        let blind = Sight {
            unusable: "absent".into(),
            uuids: vec![],
            ..sight
        };
        assert!(
            judge(&wanted, &blind)
                .unwrap_err()
                .contains("does not tell one instance")
        );
    }
}
