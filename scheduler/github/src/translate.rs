//! GitHub's words into the core's inputs. Pure.

use scheduler_core::{
    input::JobSeen,
    model::{Conclusion, CredentialName, JobId, JobPhase, Origin, Repository, Scope},
};

use crate::{
    time::millis,
    wire::{self, Job, Run},
};

/// Labels of one job, at most; GitHub's own forms have a handful.
pub(crate) const LABELS: usize = 100;
/// Letters of one label, at most.
pub(crate) const LABEL: usize = 256;
/// Letters of a name or a link, at most.
const TEXT: usize = 1_024;
/// Stands for what was left out of a job's labels. No node offers it, so the job
/// waits and its explanation says this; with fewer labels it would be given a
/// runner that GitHub never gives the job to.
pub(crate) const TOO_MUCH: &str = "(more than 100 labels, or one of more than 256 letters)";

/// Where a repository's runners register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) scope: Scope,
    pub(crate) credential: CredentialName,
}

pub(crate) fn repository(wire: &wire::Repository) -> Option<Repository> {
    let (owner, name) = wire.owner_and_name()?;
    Some(Repository {
        id: wire.id.id().unwrap_or(0),
        owner: owner.to_owned(),
        name: name.to_owned(),
        private: wire.private.get().copied(),
    })
}

pub(crate) fn origin(run: &Run) -> Origin {
    Origin {
        event: run.event.text().map(str::to_owned),
        head_repository: run
            .head_repository
            .get()
            .and_then(wire::Repository::owner_and_name)
            .map(|(owner, name)| format!("{owner}/{name}")),
    }
}

/// Phase of a job that a webhook told. `None`: the action is unknown and ignored.
///
/// Action and status can disagree (an environment's job is `queued` with status
/// `waiting`): a job is runnable only when both say queued.
pub(crate) fn webhook_phase(action: Option<&str>, status: Option<&str>) -> Option<JobPhase> {
    Some(match action? {
        "completed" => JobPhase::Completed,
        "in_progress" => rest_phase(status).max(JobPhase::InProgress),
        "queued" => rest_phase(status),
        "waiting" => JobPhase::Waiting,
        _ => return None,
    })
}

/// Phase of a job that a list told. New words wait.
pub(crate) fn rest_phase(status: Option<&str>) -> JobPhase {
    match status {
        Some("queued") => JobPhase::Queued,
        Some("in_progress") => JobPhase::InProgress,
        Some("completed") => JobPhase::Completed,
        _ => JobPhase::Waiting,
    }
}

pub(crate) fn conclusion(word: &str) -> Conclusion {
    match word {
        "success" => Conclusion::Success,
        "failure" => Conclusion::Failure,
        "cancelled" => Conclusion::Cancelled,
        "skipped" => Conclusion::Skipped,
        "timed_out" => Conclusion::TimedOut,
        other => Conclusion::Other(other.chars().take(64).collect()),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

fn labels<'a>(told: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut labels = Vec::new();
    for label in told.filter(|label| !label.is_empty()) {
        if labels.len() == LABELS || label.chars().count() > LABEL {
            labels.push(TOO_MUCH.to_owned());
            break;
        }
        labels.push(label.clone());
    }
    labels
}

/// `None` when the job has no id: nothing can be said about it.
pub(crate) fn job_seen(
    job: &Job,
    phase: JobPhase,
    repository: &Repository,
    route: &Route,
    now: u64,
) -> Option<JobSeen> {
    let time = |field: &wire::Field<String>| field.text().and_then(millis);
    let text = |field: &wire::Field<String>| cut(field.text().unwrap_or_default());
    let completed = phase == JobPhase::Completed;
    Some(JobSeen {
        id: JobId(job.id.id()?),
        run_id: job.run_id.id().unwrap_or(0),
        attempt: job
            .run_attempt
            .id()
            .and_then(|attempt| u32::try_from(attempt).ok())
            .unwrap_or(1),
        repository: repository.clone(),
        scope: route.scope.clone(),
        credential: route.credential.clone(),
        name: text(&job.name),
        workflow: text(&job.workflow_name),
        labels: labels(job.labels.items()),
        phase,
        conclusion: job.conclusion.text().filter(|_| completed).map(conclusion),
        runner_name: job.runner_name.text().map(cut),
        runner_id: job.runner_id.id(),
        origin: Origin::default(),
        created_at: time(&job.created_at)
            .or_else(|| time(&job.started_at))
            .unwrap_or(now),
        // GitHub fills it while the job is queued; then it means nothing.
        started_at: time(&job.started_at).filter(|_| phase >= JobPhase::InProgress),
        completed_at: time(&job.completed_at).filter(|_| completed),
        html_url: text(&job.html_url),
        traceparent: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn runnable_only_when_action_and_status_say_queued() {
        let cases = [
            ("queued", "queued", Some(JobPhase::Queued)),
            ("queued", "waiting", Some(JobPhase::Waiting)),
            ("queued", "brand_new", Some(JobPhase::Waiting)),
            ("waiting", "queued", Some(JobPhase::Waiting)),
            ("in_progress", "queued", Some(JobPhase::InProgress)),
            ("completed", "in_progress", Some(JobPhase::Completed)),
            ("brand_new", "queued", None),
        ];
        for (action, status, phase) in cases {
            assert_eq!(
                webhook_phase(Some(action), Some(status)),
                phase,
                "{action} {status}"
            );
        }
        assert_eq!(webhook_phase(None, Some("queued")), None);
        assert_eq!(webhook_phase(Some("queued"), None), Some(JobPhase::Waiting));
    }

    #[test]
    fn ten_times_the_labels_are_cut_and_then_nobody_offers_them() {
        let many: Vec<String> = (0..10 * LABELS).map(|n| format!("l{n}")).collect();
        let cut = labels(many.iter());
        assert_eq!(cut.len(), LABELS + 1);
        assert_eq!(cut.last().unwrap(), TOO_MUCH);
        let long = ["x".repeat(10 * LABEL), "linux".to_owned()];
        assert_eq!(labels(long.iter()), [TOO_MUCH]);
        let usual = ["self-hosted".to_owned(), String::new(), "é".repeat(LABEL)];
        assert_eq!(labels(usual.iter()).len(), 2, "as many as may be");
    }

    #[test]
    fn runner_fields_as_null_zero_or_empty_are_no_runner() {
        let route = Route {
            scope: Scope::Organization {
                login: "acme".into(),
            },
            credential: CredentialName::new("t"),
        };
        let repository = Repository {
            id: 1,
            owner: "acme".into(),
            name: "web".into(),
            private: None,
        };
        for (id, name) in [
            (json!(null), json!(null)),
            (json!(0), json!("")),
            (json!(""), json!(0)),
        ] {
            let job: Job = serde_json::from_value(json!({
                "id": 7, "runner_id": id, "runner_name": name, "labels": ["a", "", 3, null],
                "started_at": "2026-01-01T00:00:00Z", "conclusion": "startup_failure"
            }))
            .unwrap();
            let seen = job_seen(&job, JobPhase::Queued, &repository, &route, 9).unwrap();
            assert_eq!((seen.runner_id, seen.runner_name.as_deref()), (None, None));
            assert_eq!(
                (seen.labels.as_slice(), seen.started_at),
                (["a".to_owned()].as_slice(), None)
            );
            assert_eq!((seen.conclusion, seen.attempt), (None, 1));
            let done = job_seen(&job, JobPhase::Completed, &repository, &route, 9).unwrap();
            assert_eq!(
                done.conclusion,
                Some(Conclusion::Other("startup_failure".into()))
            );
        }
        assert!(job_seen(&Job::default(), JobPhase::Queued, &repository, &route, 9).is_none());
    }
}
