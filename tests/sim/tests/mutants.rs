//! A shard of the planted bugs in every test run; `make mutants` shows all.

use longshore_sim::mutants::{self, MUTANTS, SHARD};

#[test]
fn five_planted_bugs_are_found() {
    mutants::run(&SHARD.map(str::to_owned)).expect("every planted bug is found");
}

#[test]
fn planted_bugs_have_names_of_their_own() {
    let names: std::collections::BTreeSet<_> = MUTANTS.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), MUTANTS.len());
    assert!(names.len() >= 20, "{} planted bugs", names.len());
}
