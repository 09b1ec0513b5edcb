//! The rules of the repository that a machine can hold: who may depend on whom, what may be built in, what a source file may contain.
//!
//! Each rule is data (`rules`, `deny.toml`) and each check is a pure function from a value to a list of breaches, so that the tests can show every rule
//! biting on a made-up input before they apply it to the real workspace.

pub mod graph;
pub mod licence;
pub mod rules;
pub mod tree;

/// A broken rule: what was found and which rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Breach {
    /// Package or file.
    pub subject: String,
    /// What is wrong and what to do.
    pub problem: String,
}

impl Breach {
    /// Says what is wrong with `subject`.
    pub fn new(subject: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            problem: problem.into(),
        }
    }
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.subject, self.problem)
    }
}

/// One line per breach, for a test's message.
pub fn listing(breaches: &[Breach]) -> String {
    breaches
        .iter()
        .map(|b| format!("  {b}\n"))
        .collect::<String>()
}
