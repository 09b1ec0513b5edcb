//! Webhook payloads.

use serde_json::{Map, Value, json};

use super::model::{HookTarget, JobState, OwnerKind, Status};
use super::render::{iso_or_null, organization};
use super::text::{iso, node_id};
use super::world::World;

impl World {
    /// `repository`, `sender` and, for organisations, `organization`.
    fn around(&self, repo: u64, sender: u64) -> Map<String, Value> {
        let u = self.default_urls();
        let mut m = Map::new();
        if let Some(r) = self.repos.get(&repo) {
            let mut json = self.repo_json(&u, r);
            json["custom_properties"] = json!({});
            m.insert("repository".into(), json);
            if let Some(o) = self
                .owners
                .get(&r.owner)
                .filter(|o| o.kind == OwnerKind::Organization)
            {
                m.insert("organization".into(), organization(&u, o));
            }
        }
        m.insert("sender".into(), self.user_json(&u, sender));
        m
    }

    pub(crate) fn job_payload(&self, id: u64, action: &str, status: Status) -> Value {
        let u = self.default_urls();
        let Some(job) = self.jobs.get(&id) else {
            return Value::Null;
        };
        let actor = self.runs.get(&job.run).map_or(0, |r| r.actor);
        let state = JobState {
            status,
            ..job.state.clone()
        };
        let mut json = self.job_json(&u, job, &state);
        if state.runner.is_none() {
            // here null, where REST says 0 and "": both are seen in the wild; a fault switches the form
            for field in [
                "runner_id",
                "runner_name",
                "runner_group_id",
                "runner_group_name",
            ] {
                json[field] = Value::Null;
            }
        }
        let mut m = self.around(job.repo, actor);
        m.insert("action".into(), json!(action));
        m.insert("workflow_job".into(), json);
        if let Some(environment) = &job.spec.environment {
            m.insert(
                "deployment".into(),
                self.deployment(job.repo, job.run, environment, actor),
            );
        }
        Value::Object(m)
    }

    fn deployment(&self, repo: u64, run: u64, environment: &str, creator: u64) -> Value {
        let u = self.default_urls();
        let full_name = self.repos.get(&repo).map_or("", |r| r.full_name.as_str());
        let api = format!("{}/repos/{full_name}", u.api);
        let id = run % 1_000_000_000;
        let (sha, branch, at) = self
            .runs
            .get(&run)
            .map_or((String::new(), String::new(), 0), |r| {
                (r.head_sha.clone(), r.head_branch.clone(), r.created_ms)
            });
        json!({
            "url": format!("{api}/deployments/{id}"),
            "id": id,
            "node_id": node_id("DE", id),
            "task": "deploy",
            "original_environment": environment,
            "environment": environment,
            "description": null,
            "created_at": iso(at),
            "updated_at": iso(at),
            "statuses_url": format!("{api}/deployments/{id}/statuses"),
            "repository_url": api,
            "creator": self.user_json(&u, creator),
            "sha": sha,
            "ref": branch,
            "payload": {},
            "transient_environment": false,
            "production_environment": false,
            "performed_via_github_app": null,
        })
    }

    pub(crate) fn run_payload(&self, id: u64, action: &str) -> Value {
        let u = self.default_urls();
        let Some(run) = self.runs.get(&id) else {
            return Value::Null;
        };
        let mut m = self.around(run.repo, run.actor);
        let mut seen = run.state.clone();
        if action == "requested" && seen.status == "pending" {
            seen.status = "queued";
        }
        m.insert("action".into(), json!(action));
        m.insert("workflow_run".into(), self.run_json(&u, run, &seen));
        if let Some(repo) = self.repos.get(&run.repo) {
            m.insert(
                "workflow".into(),
                self.workflow_json(&u, repo, &run.workflow, run.workflow_id),
            );
        }
        Value::Object(m)
    }

    pub(crate) fn repository_payload(
        &self,
        id: u64,
        action: &str,
        old_name: Option<String>,
    ) -> Value {
        let sender = self.repos.get(&id).map_or(0, |r| r.owner);
        let mut m = self.around(id, sender);
        m.insert("action".into(), json!(action));
        if let Some(from) = old_name {
            m.insert(
                "changes".into(),
                json!({"repository": {"name": {"from": from}}}),
            );
        }
        Value::Object(m)
    }

    pub(crate) fn ping_payload(&self, hook: u64) -> Value {
        let u = self.default_urls();
        let Some(h) = self.hooks.get(&hook) else {
            return Value::Null;
        };
        let mut m = Map::new();
        m.insert("zen".into(), json!("Mind your words, they are important."));
        m.insert("hook_id".into(), json!(h.id));
        let mut hook_json = self.hook_json(&u, h);
        match h.target {
            HookTarget::Repository(r) => {
                let owner = self.repos.get(&r).map_or(0, |r| r.owner);
                m.extend(self.around(r, owner));
                m.remove("organization");
            }
            HookTarget::Organization(o) => {
                if let Some(owner) = self.owners.get(&o) {
                    m.insert("organization".into(), organization(&u, owner));
                }
                m.insert("sender".into(), self.user_json(&u, o));
            }
            HookTarget::App(app) => hook_json["app_id"] = json!(app),
        }
        m.insert("hook".into(), hook_json);
        Value::Object(m)
    }

    /// An installation's dates are epoch seconds in webhooks, as the published examples have them.
    fn installation_in_webhook(&self, id: u64) -> Value {
        let u = self.default_urls();
        let Some(i) = self.installations.get(&id) else {
            return Value::Null;
        };
        let mut v = self.installation_json(&u, i);
        v["created_at"] = json!(i.created_ms / 1000);
        v["updated_at"] = json!(i.created_ms / 1000);
        v["suspended_at"] = iso_or_null(i.suspended_ms);
        if let Some(m) = v.as_object_mut() {
            m.remove("client_id");
        }
        v
    }

    fn short_repositories(&self, ids: impl Iterator<Item = u64>) -> Vec<Value> {
        ids.filter_map(|id| self.repos.get(&id))
            .map(|r| {
                json!({
                    "id": r.id,
                    "node_id": node_id("R", r.id),
                    "name": r.name,
                    "full_name": r.full_name,
                    "private": r.private,
                })
            })
            .collect()
    }

    pub(crate) fn installation_payload(&self, id: u64, action: &str) -> Value {
        let u = self.default_urls();
        let Some(i) = self.installations.get(&id) else {
            return Value::Null;
        };
        let mut v = json!({
            "action": action,
            "installation": self.installation_in_webhook(id),
            "sender": self.user_json(&u, i.account),
        });
        let covered = self.covered_repositories(i);
        v["repositories"] = Value::Array(self.short_repositories(covered.into_iter()));
        v
    }

    pub(crate) fn installation_repositories_payload(
        &self,
        id: u64,
        action: &str,
        repos: &[u64],
    ) -> Value {
        let u = self.default_urls();
        let Some(i) = self.installations.get(&id) else {
            return Value::Null;
        };
        let list = self.short_repositories(repos.iter().copied());
        let none: Vec<Value> = Vec::new();
        let (added, removed) = if action == "added" {
            (list, none)
        } else {
            (none, list)
        };
        json!({
            "action": action,
            "installation": self.installation_in_webhook(id),
            "repository_selection": if i.repositories.is_some() { "selected" } else { "all" },
            "repositories_added": added,
            "repositories_removed": removed,
            "requester": null,
            "sender": self.user_json(&u, i.account),
        })
    }

    /// Ids of the repositories an installation covers.
    pub(crate) fn covered_repositories(&self, i: &super::model::Installation) -> Vec<u64> {
        match &i.repositories {
            Some(set) => set.iter().copied().collect(),
            None => self
                .repos
                .values()
                .filter(|r| r.owner == i.account)
                .map(|r| r.id)
                .collect(),
        }
    }
}
