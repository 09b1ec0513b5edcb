//! Words and shapes nobody published: none may fail to parse, none may be lost.

use scheduler_github::{
    webhook::{Event, parse},
    wire::{JobList, Payload, RunList},
};
use serde_json::{Value, json};

use crate::published::documents;

/// Replacements for any one value.
fn odd_values() -> [Value; 8] {
    [
        json!(null),
        json!(""),
        json!(0),
        json!("a brand new word"),
        json!(-1.5),
        json!([]),
        json!({"surprise": [1, {"deep": null}]}),
        json!(u64::MAX),
    ]
}

fn survives<T: serde::de::DeserializeOwned + serde::Serialize>(name: &str, value: &Value) {
    let document: T =
        serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(&serde_json::to_value(document).unwrap(), value, "{name}");
}

/// Every member of the object at `pointer` replaced, removed, and joined by a new one.
fn members(value: &Value, pointer: &str) -> Vec<(String, Value)> {
    let Some(Value::Object(object)) = value.pointer(pointer) else {
        return Vec::new();
    };
    let mut variants = Vec::new();
    for key in object.keys() {
        for odd in odd_values() {
            let mut changed = value.clone();
            let what = format!("{pointer}/{key} = {odd}");
            changed.pointer_mut(pointer).unwrap()[key] = odd;
            variants.push((what, changed));
        }
        let mut changed = value.clone();
        changed
            .pointer_mut(pointer)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(key);
        variants.push((format!("{pointer}/{key} removed"), changed));
    }
    let mut changed = value.clone();
    changed.pointer_mut(pointer).unwrap()["brand_new"] = json!({"x": 1});
    variants.push((format!("{pointer}/brand_new added"), changed));
    variants
}

#[test]
fn workflow_job_payloads_survive_any_change_of_any_member() {
    let mut tried = 0;
    for folder in ["webhooks/examples", "webhooks/made"] {
        for (name, value) in documents(folder) {
            if !name.starts_with("workflow_job") {
                continue;
            }
            for pointer in ["", "/workflow_job", "/repository"] {
                for (what, changed) in members(&value, pointer) {
                    survives::<Payload>(&format!("{name} {what}"), &changed);
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 1_000, "{tried}");
}

#[test]
fn workflow_job_words_and_runner_fields_of_any_form_are_told() {
    let mut tried = 0;
    for folder in ["webhooks/examples", "webhooks/made"] {
        for (name, value) in documents(folder) {
            if !name.starts_with("workflow_job") {
                continue;
            }
            for none in [json!(null), json!(0), json!("")] {
                let mut changed = value.clone();
                changed["action"] = json!("teleported");
                let job = &mut changed["workflow_job"];
                job["status"] = json!("dreaming");
                job["conclusion"] = json!("abducted");
                for field in [
                    "runner_id",
                    "runner_name",
                    "runner_group_id",
                    "runner_group_name",
                ] {
                    job[field] = none.clone();
                }
                let text = serde_json::to_vec(&changed).unwrap();
                let Event::WorkflowJob(payload) = parse("workflow_job", &text).unwrap() else {
                    panic!("{name}");
                };
                let job = payload.workflow_job.get().unwrap();
                assert_eq!(
                    (job.runner_id.id(), job.runner_name.text()),
                    (None, None),
                    "{name} {none}"
                );
                assert_eq!(job.conclusion.text(), Some("abducted"));
                assert_eq!(job.id.id(), value["workflow_job"]["id"].as_u64());
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 3 * (7 + 6));
}

#[test]
fn one_odd_element_never_fails_its_page() {
    for (name, value) in documents("rest") {
        let (list, jobs) = if name.starts_with("actions__list-jobs-for-workflow-run") {
            ("jobs", true)
        } else if name.starts_with("actions__list-workflow-runs") {
            ("workflow_runs", false)
        } else {
            continue;
        };
        let whole = value[list].as_array().unwrap().len();
        for odd in odd_values() {
            let mut changed = value.clone();
            changed[list].as_array_mut().unwrap().insert(0, odd.clone());
            let readable = whole + usize::from(odd.is_object());
            let found = if jobs {
                survives::<JobList>(&name, &changed);
                serde_json::from_value::<JobList>(changed)
                    .unwrap()
                    .jobs
                    .items()
                    .count()
            } else {
                survives::<RunList>(&name, &changed);
                serde_json::from_value::<RunList>(changed)
                    .unwrap()
                    .workflow_runs
                    .items()
                    .count()
            };
            assert_eq!(found, readable, "{name} with {odd}");
        }
        for (what, changed) in members(&value, &format!("/{list}/0")) {
            if jobs {
                survives::<JobList>(&format!("{name} {what}"), &changed);
            } else {
                survives::<RunList>(&format!("{name} {what}"), &changed);
            }
        }
    }
}
