//! Which profiles this node offers, published as properties.

use agent_core::sandbox::{Offered, Profile};

use crate::capability::Engine;
use crate::properties::{Property, State};

/// Engines whose networks and standard streams the broker of job containers was
/// run on.
const BROKERED: &str = "docker";

/// One property for each profile. What a profile stands on is published beside
/// these, and the scheduler asks for it too.
pub fn offers(engine: &Engine, offered: Offered) -> Vec<Property> {
    Profile::ALL
        .into_iter()
        .map(|profile| {
            let (state, evidence) = offer(engine, offered, profile);
            Property {
                name: name(profile).into(),
                state,
                evidence,
            }
        })
        .collect()
}

fn offer(engine: &Engine, offered: Offered, profile: Profile) -> (State, String) {
    if !offered.has(profile) {
        return (
            State::NotGuaranteed,
            "left out of profiles in the agent's configuration".into(),
        );
    }
    if profile.terms().containers && engine.kind != BROKERED {
        return (
            State::NotGuaranteed,
            format!("job containers are not verified on {}", engine.kind),
        );
    }
    let mapped = engine.maps_users();
    let sudo = match (profile, mapped) {
        (Profile::Strict, _) => "without sudo",
        (_, true) => "with sudo, since the engine maps users (userns-remap)",
        (_, false) => "without sudo, since the engine does not map users (userns-remap)",
    };
    (State::Guaranteed, format!("offered, {sudo}"))
}

fn name(profile: Profile) -> &'static str {
    match profile {
        Profile::Strict => "profile_strict",
        Profile::Standard => "profile_standard",
        Profile::Containers => "profile_containers",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(engine: &Engine, words: &str) -> Vec<(String, bool)> {
        offers(engine, Offered::parse(words).unwrap())
            .into_iter()
            .map(|told| {
                assert!(!told.evidence.is_empty());
                (told.name.into_owned(), told.state == State::Guaranteed)
            })
            .collect()
    }

    #[test]
    fn an_operator_and_the_engine_take_profiles_away() {
        let docker = Engine {
            kind: "docker".into(),
            ..Engine::default()
        };
        let podman = Engine {
            kind: "podman".into(),
            ..Engine::default()
        };
        let all = "strict,standard,containers";
        let expect = |strict, standard, containers| {
            vec![
                ("profile_strict".to_owned(), strict),
                ("profile_standard".to_owned(), standard),
                ("profile_containers".to_owned(), containers),
            ]
        };
        assert_eq!(states(&docker, all), expect(true, true, true));
        assert_eq!(states(&podman, all), expect(true, true, false));
        assert_eq!(states(&docker, "strict"), expect(true, false, false));
    }

    #[test]
    fn whether_there_is_sudo_is_told() {
        let mut engine = Engine {
            kind: "docker".into(),
            ..Engine::default()
        };
        let told = |engine: &Engine| offers(engine, Offered::default())[1].evidence.clone();
        assert!(told(&engine).contains("without sudo"));
        engine.security_options = vec!["name=userns".into()];
        assert!(told(&engine).contains("with sudo"));
    }
}
