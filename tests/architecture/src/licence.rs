//! `deny.toml` applied to the packages that are really built: licences, banned packages, sources.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::Breach;

/// The part of `deny.toml` that is enforced here.
#[derive(Debug, Deserialize)]
pub struct Policy {
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Sources {
    #[serde(rename = "allow-registry")]
    allow_registry: Vec<String>,
}

/// What the policy looks at in a package.
#[derive(Debug, Clone)]
pub struct Built {
    /// Package name.
    pub name: String,
    /// SPDX expression of its manifest.
    pub licence: Option<String>,
    /// Where it comes from; `None` for a package of this repository.
    pub source: Option<String>,
}

/// Checks every package that is built.
pub fn check(policy: &Policy, packages: &[Built]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for package in packages {
        if policy.bans.deny.iter().any(|b| b.name == package.name) {
            breaches.push(Breach::new(&package.name, "is banned by deny.toml"));
        }
        match &package.licence {
            None => breaches.push(Breach::new(&package.name, "names no licence")),
            Some(text) if !allowed(text, &policy.licenses.allow) => breaches.push(Breach::new(
                &package.name,
                format!("licence `{text}` is not among those of deny.toml"),
            )),
            Some(_) => {}
        }
        if let Some(source) = &package.source {
            let known = policy
                .sources
                .allow_registry
                .iter()
                .any(|url| source.strip_prefix("registry+") == Some(url));
            if !known {
                breaches.push(Breach::new(
                    &package.name,
                    format!("comes from {source}, which deny.toml does not know"),
                ));
            }
        }
    }
    breaches
}

/// Whether an SPDX expression can be satisfied with the allowed licences; false where it is no expression. `/` is the old way to write OR.
pub fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(&words, &mut at, allow) == Some(true) && at == words.len()
}

/// `None` is a syntax error, here and below.
fn either(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> Option<bool> {
    let mut fits = both(words, at, allow)?;
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        fits |= both(words, at, allow)?;
    }
    Some(fits)
}

fn both(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> Option<bool> {
    let mut fits = term(words, at, allow)?;
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        fits &= term(words, at, allow)?;
    }
    Some(fits)
}

fn term(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> Option<bool> {
    let word = words.get(*at)?;
    *at += 1;
    if *word == "(" {
        let fits = either(words, at, allow)?;
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return closed.then_some(fits);
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1)?;
        *at += 2;
        return Some(allow.contains(&format!("{word} WITH {exception}")));
    }
    Some(allow.contains(*word))
}
