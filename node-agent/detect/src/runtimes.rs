//! Which runtimes pools may ask this node for, published as properties.
//!
//! A runtime is offered when a sandbox was made by it and looked at from inside.
//! What was seen to hold under one that is not the engine's own is published under
//! that runtime's name, so that the scheduler never takes a row of one for another's.

use std::collections::BTreeMap;

use agent_core::probe::{self, Check, Found};
use agent_core::sandbox::RuntimeClass;

use crate::properties::{Proof, Property, State, proven};

/// The runtimes of this engine.
#[derive(Clone, Debug, Default)]
pub struct Runtimes {
    /// What makes a sandbox that asks for none; none where its name is not known.
    pub own: Option<RuntimeClass>,
    /// What may be asked for, with the engine's name.
    pub offered: Vec<(RuntimeClass, String)>,
}

/// What came of the look at a sandbox of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    Seen { checks: Vec<Check>, at: String },
    Impossible(String),
}

impl Runtimes {
    /// Those at which a look of their own is due: the engine's own is looked at anyway.
    pub fn to_look_at(&self) -> impl Iterator<Item = RuntimeClass> {
        self.offered
            .iter()
            .map(|(class, _)| *class)
            .filter(|class| Some(*class) != self.own)
    }
}

/// `engine` are the properties by the engine's words, `own` what is published of the
/// engine's own runtime.
pub fn told(
    runtimes: &Runtimes,
    looks: &BTreeMap<RuntimeClass, Look>,
    engine: &[Property],
    own: &[Property],
) -> Vec<Property> {
    let mut list = Vec::new();
    for (class, name) in &runtimes.offered {
        if Some(*class) == runtimes.own {
            list.extend(of_the_engines_own(*class, name, own));
        } else {
            list.extend(of_another(*class, name, looks.get(class), engine));
        }
    }
    list
}

fn of_the_engines_own(class: RuntimeClass, name: &str, own: &[Property]) -> [Property; 2] {
    let seen = own
        .iter()
        .any(|property| property.name == "non_root" && property.state == State::Guaranteed);
    let (state, evidence) = match seen {
        true => (
            State::Guaranteed,
            format!("{name} is the engine's own: what is told of sandboxes here is of it"),
        ),
        false => (
            State::NotGuaranteed,
            format!("{name} is the engine's own, and no sandbox was seen to hold yet"),
        ),
    };
    [offer(class), format!("own_runtime_{}", class.word())].map(|name| Property {
        name: name.into(),
        state,
        evidence: evidence.clone(),
    })
}

fn offer(class: RuntimeClass) -> String {
    format!("runtime_{}", class.word())
}

fn of_another(
    class: RuntimeClass,
    name: &str,
    look: Option<&Look>,
    engine: &[Property],
) -> Vec<Property> {
    let only = |state, evidence| {
        vec![Property {
            name: offer(class).into(),
            state,
            evidence,
        }]
    };
    let (checks, at) = match look {
        None => {
            return only(
                State::NotGuaranteed,
                format!("no sandbox was made by {name} yet; the agent tries after its start"),
            );
        }
        Some(Look::Impossible(why)) => {
            return only(
                State::NotGuaranteed,
                format!("no sandbox could be made by {name}: {why}"),
            );
        }
        Some(Look::Seen { checks, at }) => (checks, at),
    };
    let summed = probe::by_property(checks);
    let broken: Vec<&str> = summed
        .iter()
        .filter(|check| check.found == Found::Fail)
        .map(|check| check.name)
        .collect();
    if !broken.is_empty() {
        return only(
            State::Failed,
            format!(
                "probe at {at}: a sandbox made by {name} does not hold {}",
                broken.join(", ")
            ),
        );
    }
    let engine = engine.iter().filter(|property| is_said_of(class, property));
    let under = proven(engine.cloned().collect(), Proof::Seen { checks, at });
    let open: Vec<&str> = under
        .iter()
        .filter(|property| property.state != State::Guaranteed)
        .map(|property| property.name.as_ref())
        .collect();
    let verified = match class.terms().verified {
        Some(release) => format!("verified with {release}"),
        None => "not verified by the tests of this release".into(),
    };
    let open = match open.is_empty() {
        true => "every row is guaranteed".to_owned(),
        false => format!("not guaranteed under it: {}", open.join(", ")),
    };
    let mut list = only(
        State::Guaranteed,
        format!("probe at {at}: a sandbox was made by {name}; {open}; {verified}"),
    );
    list.extend(
        under
            .into_iter()
            .filter(|property| property.state == State::Guaranteed)
            .map(|property| Property {
                name: format!("{}/{}", class.word(), property.name).into(),
                ..property
            }),
    );
    list
}

/// Whether the engine's word holds under a runtime too. Which profiles a node offers is
/// the same under every one; what the host's kernel does for a process is not seen where
/// another kernel is between them.
fn is_said_of(class: RuntimeClass, property: &Property) -> bool {
    const BY_THE_HOSTS_KERNEL: [&str; 3] = ["apparmor", "selinux", "out_of_memory_told"];
    let name = &*property.name;
    let unseen = class.terms().hides_processes && BY_THE_HOSTS_KERNEL.contains(&name);
    !unseen && !name.starts_with("profile_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Engine;
    use crate::properties::of_engine;

    fn runtimes() -> Runtimes {
        Runtimes {
            own: Some(RuntimeClass::Runc),
            offered: vec![
                (RuntimeClass::Runc, "runc".into()),
                (RuntimeClass::Runsc, "runsc".into()),
            ],
        }
    }

    fn engine() -> Vec<Property> {
        of_engine(&Engine {
            kind: "docker".into(),
            live_restore: true,
            ..Engine::default()
        })
    }

    fn looked(output: &str) -> BTreeMap<RuntimeClass, Look> {
        let look = Look::Seen {
            checks: probe::parse(output),
            at: "2026-11-22T07:00:00Z".into(),
        };
        [(RuntimeClass::Runsc, look)].into()
    }

    fn state<'a>(list: &'a [Property], name: &str) -> Option<(State, &'a str)> {
        let told = list.iter().find(|property| property.name == name)?;
        Some((told.state, told.evidence.as_str()))
    }

    #[test]
    fn nothing_is_offered_before_a_sandbox_was_made_by_it() {
        let own = proven(engine(), Proof::Awaited);
        let list = told(&runtimes(), &BTreeMap::new(), &engine(), &own);
        for name in ["runtime_runc", "own_runtime_runc", "runtime_runsc"] {
            let (state, evidence) = state(&list, name).unwrap();
            assert_eq!(state, State::NotGuaranteed, "{name}");
            assert!(evidence.contains("yet"), "{evidence}");
        }
        let failed = [(
            RuntimeClass::Runsc,
            Look::Impossible("ptrace is not permitted".into()),
        )];
        let list = told(&runtimes(), &failed.into(), &engine(), &own);
        let (_, evidence) = state(&list, "runtime_runsc").unwrap();
        assert!(evidence.contains("ptrace is not permitted"), "{evidence}");
    }

    #[test]
    fn what_holds_under_it_is_told_under_its_name_and_what_is_open_is_named() {
        let checks = "PASS 1 non_root user 1001\nNOT_GUARANTEED 3 no_escalation untold\n";
        let own = proven(
            engine(),
            Proof::Seen {
                checks: &probe::parse("PASS 1 non_root user 1001\n"),
                at: "x",
            },
        );
        let list = told(&runtimes(), &looked(checks), &engine(), &own);
        assert_eq!(
            state(&list, "own_runtime_runc").unwrap().0,
            State::Guaranteed
        );
        let (offered, evidence) = state(&list, "runtime_runsc").unwrap();
        assert_eq!(offered, State::Guaranteed);
        assert!(evidence.contains("no_escalation"), "{evidence}");
        assert_eq!(state(&list, "runsc/non_root").unwrap().0, State::Guaranteed);
        // By the engine's words, whatever makes the sandbox.
        assert!(state(&list, "runsc/live_restore").is_some());
        assert_eq!(state(&list, "runsc/no_escalation"), None);
        assert!(!list.iter().any(|p| p.name.contains("profile_")));
    }

    #[test]
    fn one_broken_row_takes_the_runtime_away() {
        let checks = "PASS 1 non_root user 1001\nFAIL 2 no_capabilities CapEff=1\n";
        let list = told(&runtimes(), &looked(checks), &engine(), &[]);
        let (offered, evidence) = state(&list, "runtime_runsc").unwrap();
        assert_eq!(offered, State::Failed);
        assert!(evidence.contains("no_capabilities"), "{evidence}");
        assert_eq!(state(&list, "runsc/non_root"), None);
    }
}
