//! `[[pools]]` and `[shares]` of the file.

use std::collections::{BTreeMap, BTreeSet};

use scheduler_core::{
    input::Defaults,
    model::{Admission, Placement, Pool, Priority, Resources},
};

use super::{
    domains,
    keys::{POOL_KEYS, SHARE_KEYS},
    lines, runtime, suggestion, values,
};

/// All pools of the file; what is wrong goes to `problems`.
pub(super) fn pools(
    tables: &[toml::Table],
    file: &str,
    defaults: &Defaults,
    problems: &mut Vec<String>,
) -> Vec<Pool> {
    let mut pools: Vec<Pool> = Vec::new();
    for (index, table) in tables.iter().enumerate() {
        let name = table.get("name").and_then(toml::Value::as_str);
        let at = |key: &str| line(lines::of(file, "pools", Some(index), key));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            let at = at("");
            problems.push(format!("pool number {} has no `name`{at}", index + 1));
            continue;
        };
        if pools.iter().any(|pool| pool.name.as_str() == name) {
            problems.push(format!("two pools are named `{name}`{}", at("name")));
        }
        let mut pool = defaults.pool(name);
        for (key, value) in table {
            if let Err(problem) = set(&mut pool, key, value) {
                problems.push(format!("pool `{name}`: {problem}{}", at(key)));
            }
        }
        if let Err(problem) = domains::list(&pool.network_mode, &pool.allowed_domains) {
            problems.push(format!("pool `{name}`: {problem}"));
        }
        if let Err(problem) = runtime::suits(&pool.runtime, &pool.profile, pool.resources.gpus) {
            problems.push(format!("pool `{name}`: {problem}"));
        }
        pools.push(pool);
    }
    pools
}

/// Keys that the file gives each pool, by the pool's name.
pub(super) fn written(tables: &[toml::Table]) -> BTreeMap<String, BTreeSet<String>> {
    let named = |table: &toml::Table| Some(table.get("name")?.as_str()?.to_owned());
    let keys = |table: &toml::Table| table.keys().cloned().collect();
    tables
        .iter()
        .filter_map(|table| Some((named(table)?, keys(table))))
        .collect()
}

/// What is in force in a pool, in the words of `set`. A runner group that is GitHub's
/// default one has no word and is left out.
pub(super) fn values(pool: &Pool) -> Vec<(&'static str, toml::Value)> {
    let text = |text: &str| toml::Value::from(text);
    let list = |texts: &[String]| toml::Value::from(texts.to_vec());
    let set = |texts: &BTreeSet<String>| toml::Value::from(Vec::from_iter(texts.iter().cloned()));
    let number = |number: u32| toml::Value::from(i64::from(number));
    let (major, minor) = pool.gpu.compute_capability;
    let mut values = vec![
        ("name", text(pool.name.as_str())),
        ("labels", set(&pool.labels)),
        ("repositories", list(&pool.repositories)),
        (
            "public_repositories",
            text(admission_word(pool.public_repositories)),
        ),
        (
            "fork_pull_requests",
            text(admission_word(pool.fork_pull_requests)),
        ),
        ("image", text(&pool.image)),
        ("name_prefix", text(&pool.name_prefix)),
        ("cpu", text(&format!("{}m", pool.resources.cpu_millis))),
        ("memory", text(&values::size(pool.resources.memory_bytes))),
        ("gpus", number(pool.resources.gpus)),
        ("profile", text(&pool.profile)),
        ("network_mode", text(&pool.network_mode)),
        ("allowed_domains", list(&pool.allowed_domains)),
        ("runtime", text(&pool.runtime)),
        ("idle_floor", number(pool.idle_floor)),
        ("maximum", number(pool.maximum)),
        ("priority", text(priority_word(pool.priority))),
        ("placement", text(placement_word(pool.placement))),
        ("required_properties", set(&pool.required_properties)),
        ("idle_timeout", text(&values::span(pool.idle_timeout))),
        ("lifetime", text(&values::span(pool.lifetime))),
        ("bare_self_hosted", text(&pool.bare_self_hosted.to_string())),
        ("precedence", toml::Value::from(i64::from(pool.precedence))),
    ];
    if let Some(group) = &pool.runner_group {
        values.push(("runner_group", text(group)));
    }
    if pool.gpu.memory_mib > 0 {
        values.push(("gpu_memory", text(&format!("{}MiB", pool.gpu.memory_mib))));
    }
    if (major, minor) != (0, 0) {
        values.push(("gpu_compute_capability", text(&format!("{major}.{minor}"))));
    }
    if !pool.gpu.models.is_empty() {
        values.push(("gpu_models", list(&pool.gpu.models)));
    }
    values
}

fn set(pool: &mut Pool, key: &str, value: &toml::Value) -> Result<(), String> {
    match key {
        "name" => {}
        "labels" => {
            pool.labels = list(key, value)?
                .into_iter()
                .map(|l| l.to_lowercase())
                .collect()
        }
        "repositories" => pool.repositories = list(key, value)?,
        "public_repositories" => pool.public_repositories = admission(&text(key, value)?)?,
        "fork_pull_requests" => pool.fork_pull_requests = admission(&text(key, value)?)?,
        "image" => pool.image = text(key, value)?,
        "runner_group" => pool.runner_group = Some(text(key, value)?),
        "name_prefix" => pool.name_prefix = text(key, value)?,
        "cpu" => pool.resources.cpu_millis = values::cpu_millis(&text(key, value)?)?,
        "memory" => pool.resources.memory_bytes = values::runner_bytes(&text(key, value)?)?,
        "gpus" => {
            pool.resources = Resources {
                gpus: number(key, value)?,
                ..pool.resources
            }
        }
        "gpu_memory" => pool.gpu.memory_mib = values::bytes(&text(key, value)?)?.div_ceil(1 << 20),
        "gpu_compute_capability" => {
            pool.gpu.compute_capability = compute_capability(&text(key, value)?)?
        }
        "gpu_models" => pool.gpu.models = list(key, value)?,
        "profile" => {
            pool.profile = one_of(
                key,
                &text(key, value)?,
                &["strict", "standard", "containers"],
            )?
        }
        "network_mode" => {
            pool.network_mode = one_of(key, &text(key, value)?, &["open", "allowlist", "none"])?
        }
        "runtime" => pool.runtime = runtime::class(&text(key, value)?)?,
        "allowed_domains" => pool.allowed_domains = list(key, value)?,
        "idle_floor" => pool.idle_floor = number(key, value)?,
        "maximum" => pool.maximum = number(key, value)?,
        "priority" => pool.priority = priority(&text(key, value)?)?,
        "placement" => pool.placement = placement(&text(key, value)?)?,
        "required_properties" => pool.required_properties = list(key, value)?.into_iter().collect(),
        "idle_timeout" => pool.idle_timeout = values::duration(&text(key, value)?)?,
        "lifetime" => pool.lifetime = values::duration(&text(key, value)?)?,
        "bare_self_hosted" => pool.bare_self_hosted = values::boolean(&text(key, value)?)?,
        "precedence" => {
            pool.precedence = value
                .as_integer()
                .and_then(|number| i32::try_from(number).ok())
                .ok_or("`precedence` takes a whole number")?
        }
        unknown => {
            let hint = suggestion(unknown, POOL_KEYS.iter().copied());
            return Err(format!("unknown key `{unknown}`{hint}"));
        }
    }
    Ok(())
}

/// `[shares]`: `"owner" = 2` or `"owner/name" = { weight = 2, maximum = 10 }`.
pub(super) fn shares(
    table: &toml::Table,
    file: &str,
    problems: &mut Vec<String>,
) -> Vec<(String, u32, u32)> {
    let mut shares = Vec::new();
    for (subject, value) in table {
        let at = line(lines::of(file, "shares", None, subject));
        let (weight, maximum) = match value {
            toml::Value::Integer(_) => (number("weight", value), Ok(0)),
            toml::Value::Table(entry) => {
                for key in entry.keys().filter(|k| !SHARE_KEYS.contains(&k.as_str())) {
                    let hint = suggestion(key, SHARE_KEYS.iter().copied());
                    problems.push(format!("share `{subject}`: unknown key `{key}`{hint}{at}"));
                }
                let read = |key: &str, default| {
                    entry
                        .get(key)
                        .map_or(Ok(default), |value| number(key, value))
                };
                (read("weight", 1), read("maximum", 0))
            }
            _ => (
                Err("write a weight, or { weight = 2, maximum = 10 }".to_owned()),
                Ok(0),
            ),
        };
        match (weight, maximum) {
            (Ok(weight), Ok(maximum)) if (1..=1_000).contains(&weight) => {
                shares.push((subject.clone(), weight, maximum));
            }
            (Ok(_), Ok(_)) => {
                problems.push(format!("share `{subject}`: a weight is from 1 to 1000{at}"));
            }
            (Err(problem), _) | (_, Err(problem)) => {
                problems.push(format!("share `{subject}`: {problem}{at}"));
            }
        }
    }
    shares
}

/// What names a line at the end of a problem.
fn line(number: Option<usize>) -> String {
    number.map_or(String::new(), |number| format!(" (line {number})"))
}

/// `8.0`, as NVIDIA writes it.
pub(crate) fn compute_capability(text: &str) -> Result<(u32, u32), String> {
    scheduler_core::model::compute_capability(text)
        .ok_or_else(|| format!("`{text}` is not a compute capability; write it like 8.0"))
}

/// `refuse`, `strict` or `allow`.
pub(crate) fn admission(word: &str) -> Result<Admission, String> {
    match word {
        "refuse" => Ok(Admission::Refuse),
        "strict" => Ok(Admission::StrictOnly),
        "allow" => Ok(Admission::Allow),
        _ => Err(format!("`{word}` is none of refuse, strict, allow")),
    }
}

fn admission_word(admission: Admission) -> &'static str {
    match admission {
        Admission::Refuse => "refuse",
        Admission::StrictOnly => "strict",
        Admission::Allow => "allow",
    }
}

/// `low`, `normal` or `high`.
pub(crate) fn priority(word: &str) -> Result<Priority, String> {
    match word {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        _ => Err(format!("`{word}` is none of low, normal, high")),
    }
}

fn priority_word(priority: Priority) -> &'static str {
    match priority {
        Priority::Low => "low",
        Priority::Normal => "normal",
        Priority::High => "high",
    }
}

/// `pack` or `spread`.
pub(crate) fn placement(word: &str) -> Result<Placement, String> {
    match word {
        "pack" => Ok(Placement::Pack),
        "spread" => Ok(Placement::Spread),
        _ => Err(format!("`{word}` is neither pack nor spread")),
    }
}

fn placement_word(placement: Placement) -> &'static str {
    match placement {
        Placement::Pack => "pack",
        Placement::Spread => "spread",
    }
}

/// A word of a closed list.
pub(crate) fn one_of(key: &str, word: &str, words: &[&str]) -> Result<String, String> {
    if words.contains(&word) {
        return Ok(word.to_owned());
    }
    Err(format!("`{key}` is `{word}`, none of {}", words.join(", ")))
}

fn text(key: &str, value: &toml::Value) -> Result<String, String> {
    match super::texts(value) {
        Some(mut texts) if texts.len() == 1 && !value.is_array() => Ok(texts.remove(0)),
        _ => Err(format!("`{key}` takes one value")),
    }
}

fn list(key: &str, value: &toml::Value) -> Result<Vec<String>, String> {
    super::texts(value).ok_or_else(|| format!("`{key}` takes a list of texts"))
}

fn number(key: &str, value: &toml::Value) -> Result<u32, String> {
    value
        .as_integer()
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| format!("`{key}` takes a whole number"))
}
