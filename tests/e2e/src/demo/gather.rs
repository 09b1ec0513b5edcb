//! Puts the evidence together: from the simulator, the recording, the host and the files written beforehand.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use bollard::Docker;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    declared::Declared,
    engine_events,
    folder::{Folder, read_json, write_json},
    host_state::{self, HostState, Marks},
    identity::Identity,
    probes,
    verdict::{Evidence, JobState, Registration},
};
use crate::http::Http;

/// Written beforehand: what must happen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Declaration {
    /// The jobs. None when real repositories are served: nobody knows beforehand what they hold.
    pub jobs: Vec<Declared>,
    /// Real repositories are served.
    pub real: bool,
}

/// What the simulator, or in its place the fleet, says at the end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Story {
    /// Every job, raw.
    pub jobs: Vec<Value>,
    /// Names of the runs by id.
    #[serde(default)]
    pub runs: BTreeMap<String, String>,
    /// Registrations that still exist.
    pub registrations_left: Vec<Registration>,
    /// Registrations ever made.
    pub registrations_ever: Vec<Registration>,
    /// Calls that ask for a registration.
    pub registration_calls: u64,
}

/// Asks the simulator.
pub async fn from_simulator(simulator: &Http) -> Result<Story> {
    let requests = simulator.get("/_sim/requests").await?;
    let registration_calls = rows(&requests["by_endpoint"])
        .iter()
        .filter(|e| {
            e["route"]
                .as_str()
                .is_some_and(|r| r.ends_with("generate-jitconfig"))
        })
        .filter_map(|e| e["count"].as_u64())
        .sum();
    let ours = |list: Value| -> Vec<Registration> {
        rows(&list)
            .iter()
            .filter_map(|v| serde_json::from_value(v.clone()).ok())
            .collect()
    };
    Ok(Story {
        jobs: rows(&simulator.get("/_sim/jobs").await?),
        runs: BTreeMap::new(),
        registrations_left: ours(simulator.get("/_sim/runners").await?),
        registrations_ever: ours(simulator.get("/_sim/runners/history").await?),
        registration_calls,
    })
}

/// The rows of a list, bare or as the only list of an object.
pub fn rows(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(rows) => rows.clone(),
        Value::Object(fields) => fields
            .values()
            .find_map(Value::as_array)
            .cloned()
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Jobs of a story, each with the name of its run.
pub fn jobs(raw: &[Value], runs: &BTreeMap<String, String>) -> Vec<JobState> {
    raw.iter()
        .filter_map(|v| serde_json::from_value::<JobState>(v.clone()).ok())
        .map(|mut job| {
            if let Some(name) = runs.get(&job.run_id.to_string()) {
                job.run.clone_from(name);
            }
            job
        })
        .collect()
}

/// Name of the file that keeps which run has which id.
pub const RUNS: &str = "runs.json";

/// Everything the verdict rests on. Looks at the host now and keeps what it saw.
pub async fn evidence(engine: &Docker, folder: &Folder) -> Result<Evidence> {
    let identity: Identity = read_json(&folder.identity())?;
    let declaration: Declaration = read_json(&folder.declared())?;
    // A demo that failed half-way has no story; what it left behind is judged all the same, and its jobs count as never queued.
    let story: Story = if folder.github().exists() {
        read_json(&folder.github())?
    } else {
        Story::default()
    };
    let runs: BTreeMap<String, String> = read_json(&folder.path().join(RUNS)).unwrap_or_default();
    let before: HostState = read_json(&folder.before())?;
    let after = host_state::look(engine).await?;
    write_json(&folder.after(), &after)?;

    let lives = engine_events::lives(&engine_events::read(&folder.events())?);
    let node = format!("longshore.node={}", identity.node);
    let ours: BTreeMap<_, _> = lives
        .into_iter()
        .filter(|(_, life)| life.about.contains(&node))
        .collect();
    let mut marks = Marks {
        ours: BTreeSet::from([
            identity.node.clone(),
            identity.namespace.clone(),
            format!("LONGSHORE_DEMO_RUN={}", identity.run),
            identity.host.to_string(),
            identity.slots_cidr.trim_end_matches("0.0/16").to_owned(),
        ]),
    };
    for (id, life) in &ours {
        marks.ours.insert(id.clone());
        if let Some(instance) = word_after(&life.about, "longshore.instance=") {
            marks.ours.insert(format!("ls-{instance}-"));
            marks.ours.insert(format!("longshore_{instance}"));
        }
    }
    let strangers = after
        .processes
        .values()
        .any(|p| p.about.contains("longshore-agent") && !marks.stand_in(&p.about));

    let jobs = jobs(&story.jobs, &runs);
    let probe_jobs: BTreeSet<(&str, &str)> = declaration
        .jobs
        .iter()
        .filter(|d| d.probe)
        .map(|d| (d.run.as_str(), d.name.as_str()))
        .collect();
    let probes = jobs
        .iter()
        .zip(&story.jobs)
        .filter(|(job, _)| probe_jobs.contains(&(job.run.as_str(), job.name.as_str())))
        .flat_map(|(_, raw)| rows(&raw["steps"]))
        .filter_map(|step| step["output"].as_str().map(probes::read))
        .flatten()
        .collect();

    Ok(Evidence {
        probe_expected: !probe_jobs.is_empty(),
        declared: declaration.jobs,
        real: declaration.real,
        jobs,
        registrations_left: story.registrations_left,
        registrations_ever: story.registrations_ever,
        registration_calls: story.registration_calls,
        lives: ours.into_values().collect(),
        difference: host_state::difference(&before, &after, &marks, strangers),
        probes,
        host: after.host,
    })
}

/// The word that follows `key` in `text`.
fn word_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_once(key)?.1.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_found_bare_and_wrapped() {
        assert_eq!(rows(&json!([1, 2])).len(), 2);
        assert_eq!(rows(&json!({"total": 2, "jobs": [1, 2]})).len(), 2);
        assert!(rows(&Value::Null).is_empty());
    }

    #[test]
    fn a_job_takes_the_name_of_its_run() {
        let raw = [json!({"id": 1, "run_id": 7, "name": "build", "status": "queued"})];
        let runs = BTreeMap::from([("7".to_owned(), "ci".to_owned())]);
        assert_eq!(jobs(&raw, &runs)[0].run, "ci");
    }
}
