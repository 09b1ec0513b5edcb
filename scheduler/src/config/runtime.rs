//! `runtime` of a pool: said to be wrong here, before a node refuses a job for it.

use scheduler_core::profile::RUNTIMES;

/// A class of the closed list; none given is the engine's own.
pub fn class(word: &str) -> Result<String, String> {
    if word.is_empty() || RUNTIMES.contains(&word) {
        return Ok(word.to_owned());
    }
    Err(format!(
        "`runtime` is `{word}`, none of {}",
        RUNTIMES.join(", ")
    ))
}

/// Whether a class can make sandboxes of this profile and with this many GPUs.
pub fn suits(class: &str, profile: &str, gpus: u32) -> Result<(), String> {
    if class.is_empty() {
        return Ok(());
    }
    if profile == "containers" {
        return Err(format!(
            "profile containers needs the engine's own runtime, not {class}; leave runtime out"
        ));
    }
    if gpus > 0 && !["runc", "crun"].contains(&class) {
        return Err(format!(
            "GPUs are given by the engine's hooks, which do not reach into {class}; leave runtime out"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_a_word_of_the_list_and_has_to_suit() {
        assert_eq!(class("").as_deref(), Ok(""));
        assert_eq!(class("runsc").as_deref(), Ok("runsc"));
        let error = class("/usr/bin/runsc").unwrap_err();
        assert!(error.contains("crun, runsc"), "{error}");
        assert!(suits("", "containers", 2).is_ok());
        assert!(suits("runsc", "strict", 0).is_ok());
        assert!(suits("crun", "standard", 1).is_ok());
        assert!(suits("crun", "containers", 0).is_err());
        assert!(suits("runsc", "strict", 1).is_err());
    }
}
