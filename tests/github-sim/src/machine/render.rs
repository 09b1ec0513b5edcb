//! How REST prints owners, repositories, runs, jobs, runners, hooks and deliveries.

use serde_json::{Map, Value, json};

use super::model::{
    Delivery, Group, Hook, HookTarget, Installation, Job, JobState, Owner, OwnerKind, Repo, Run,
    RunState, Scope, Status, Step,
};
use super::text::{iso, node_id};
use super::world::World;

const DOCS: &str = "https://docs.github.com/rest";

/// `null` where there is nothing.
pub(crate) fn iso_or_null(ms: Option<u64>) -> Value {
    ms.map_or(Value::Null, |t| json!(iso(t)))
}

/// The shape of every error.
pub(crate) fn error_body(status: u16, message: &str) -> Value {
    json!({"message": message, "documentation_url": DOCS, "status": status.to_string()})
}

/// URLs of a form of GitHub: `api` ends in `/api/v3` for GHES.
#[derive(Debug, Clone)]
pub(crate) struct Urls {
    pub(crate) api: String,
    pub(crate) html: String,
}

impl World {
    /// The URLs used in webhooks.
    pub(crate) fn default_urls(&self) -> Urls {
        self.urls(false)
    }

    pub(crate) fn urls(&self, ghes: bool) -> Urls {
        let base = self.cfg.rest_url.clone();
        let html = if base.contains("://api.") {
            base.replacen("://api.", "://", 1)
        } else {
            base.clone()
        };
        Urls {
            api: if ghes { format!("{base}/api/v3") } else { base },
            html,
        }
    }

    pub(crate) fn user_json(&self, u: &Urls, id: u64) -> Value {
        self.owners
            .get(&id)
            .map_or_else(|| user(u, &ghost()), |o| user(u, o))
    }

    pub(crate) fn repo_json(&self, u: &Urls, repo: &Repo) -> Value {
        repository(u, repo, &self.user_json(u, repo.owner))
    }

    pub(crate) fn job_json(&self, u: &Urls, job: &Job, seen: &JobState) -> Value {
        let repo = self
            .repos
            .get(&job.repo)
            .map_or("", |r| r.full_name.as_str());
        let run = self.runs.get(&job.run);
        let runner = seen.runner.as_ref();
        // a job that was cancelled before any runner took it says 0 here, a queued one null
        let none = if seen.status == Status::Completed {
            (json!(0), json!(""))
        } else {
            (Value::Null, Value::Null)
        };
        json!({
            "id": job.id,
            "run_id": job.run,
            "workflow_name": run.map(|r| r.workflow.as_str()),
            "head_branch": run.map(|r| r.head_branch.as_str()),
            "run_url": format!("{}/repos/{repo}/actions/runs/{}", u.api, job.run),
            "run_attempt": job.attempt,
            "node_id": node_id("CR", job.id),
            "head_sha": run.map_or("", |r| r.head_sha.as_str()),
            "url": format!("{}/repos/{repo}/actions/jobs/{}", u.api, job.id),
            "html_url": format!("{}/{repo}/actions/runs/{}/job/{}", u.html, job.run, job.id),
            "status": seen.status.text(),
            "conclusion": seen.conclusion,
            "created_at": iso(job.created_ms),
            "started_at": iso(seen.started_ms.unwrap_or(job.created_ms)),
            "completed_at": iso_or_null(seen.completed_ms),
            "name": job.name,
            "steps": steps(job, seen),
            "check_run_url": format!("{}/repos/{repo}/check-runs/{}", u.api, job.id),
            "labels": job.labels,
            "runner_id": runner.map_or(none.0.clone(), |r| json!(r.id)),
            "runner_name": runner.map_or(none.1.clone(), |r| json!(r.name)),
            "runner_group_id": runner.map_or(none.0, |r| json!(r.group_id)),
            "runner_group_name": runner.map_or(none.1, |r| json!(r.group_name)),
        })
    }

    pub(crate) fn run_json(&self, u: &Urls, run: &Run, seen: &RunState) -> Value {
        let Some(repo) = self.repos.get(&run.repo) else {
            return Value::Null;
        };
        let base = format!("{}/repos/{}/actions/runs/{}", u.api, repo.full_name, run.id);
        let head = self.repos.get(&run.head_repo).unwrap_or(repo);
        let pulls: Vec<Value> = Vec::new();
        json!({
            "id": run.id,
            "name": run.workflow,
            "node_id": node_id("WFR", run.id),
            "check_suite_id": run.id + 1,
            "check_suite_node_id": node_id("CS", run.id + 1),
            "head_branch": run.head_branch,
            "head_sha": run.head_sha,
            "path": format!(".github/workflows/{}.yml", slug(&run.workflow)),
            "run_number": run.number,
            "run_attempt": seen.attempt,
            "event": run.event,
            "display_title": format!("{} #{}", run.workflow, run.number),
            "status": seen.status,
            "conclusion": seen.conclusion,
            "workflow_id": run.workflow_id,
            "url": base,
            "html_url": format!("{}/{}/actions/runs/{}", u.html, repo.full_name, run.id),
            "pull_requests": pulls,
            "created_at": iso(run.created_ms),
            "updated_at": iso(seen.updated_ms),
            "actor": self.user_json(u, run.actor),
            "triggering_actor": self.user_json(u, run.actor),
            "run_started_at": iso(seen.started_ms),
            "jobs_url": format!("{base}/jobs"),
            "logs_url": format!("{base}/logs"),
            "check_suite_url": format!("{}/repos/{}/check-suites/{}", u.api, repo.full_name, run.id + 1),
            "artifacts_url": format!("{base}/artifacts"),
            "cancel_url": format!("{base}/cancel"),
            "rerun_url": format!("{base}/rerun"),
            "previous_attempt_url": if seen.attempt > 1 { json!(format!("{base}/attempts/{}", seen.attempt - 1)) } else { Value::Null },
            "workflow_url": format!("{}/repos/{}/actions/workflows/{}", u.api, repo.full_name, run.workflow_id),
            "head_commit": {
                "id": run.head_sha,
                "tree_id": run.head_sha.chars().rev().collect::<String>(),
                "message": format!("{} {}", run.workflow, run.number),
                "timestamp": iso(run.created_ms),
                "author": {"name": "Mona", "email": "mona@example.com"},
                "committer": {"name": "Mona", "email": "mona@example.com"},
            },
            "repository": minimal_repository(u, repo, &self.user_json(u, repo.owner)),
            "head_repository": minimal_repository(u, head, &self.user_json(u, head.owner)),
        })
    }

    pub(crate) fn workflow_json(&self, u: &Urls, repo: &Repo, name: &str, id: u64) -> Value {
        let path = format!(".github/workflows/{}.yml", slug(name));
        json!({
            "id": id,
            "node_id": node_id("W", id),
            "name": name,
            "path": path,
            "state": "active",
            "created_at": iso(repo.created_ms),
            "updated_at": iso(repo.created_ms),
            "url": format!("{}/repos/{}/actions/workflows/{id}", u.api, repo.full_name),
            "html_url": format!("{}/{}/blob/main/{path}", u.html, repo.full_name),
            "badge_url": format!("{}/{}/workflows/{}/badge.svg", u.html, repo.full_name, slug(name)),
        })
    }

    /// A runner with the state a lagging and lying reader sees.
    pub(crate) fn runner_json(&mut self, id: u64) -> Value {
        let faults = self.cfg.faults.clone();
        let flip = self.roll(faults.busy_flip, "busy_flip");
        let now = self.now;
        let Some(r) = self.runners.get(&id) else {
            return Value::Null;
        };
        let (mut online, mut busy) = (r.online, r.job.is_some());
        let mut lied = false;
        if faults.list_lag_ms > 0 {
            let at = now.saturating_sub(faults.list_lag_ms);
            if let Some((_, o, b)) = r.history.iter().rev().find(|(t, _, _)| *t <= at) {
                (online, busy) = (*o, *b);
            }
        }
        if busy
            && faults.busy_lag_ms > 0
            && r.busy_since_ms
                .is_some_and(|t| t + faults.busy_lag_ms > now)
        {
            busy = false;
            lied = true;
        }
        if flip {
            busy = !busy;
        }
        let r = r.clone();
        let labels: Vec<Value> = r
            .labels
            .iter()
            .map(|l| {
                let n = self.label_ids.len() as u64 + 1;
                let id = *self.label_ids.entry(l.to_lowercase()).or_insert(n);
                json!({"id": id, "name": l, "type": label_type(l)})
            })
            .collect();
        if lied {
            self.count_fault("busy_lag_ms");
        }
        json!({
            "id": r.id,
            "name": r.name,
            "os": r.os,
            "status": if online { "online" } else { "offline" },
            "busy": busy,
            "ephemeral": r.ephemeral,
            "version": r.version,
            "runner_group_id": r.group,
            "labels": labels,
        })
    }

    pub(crate) fn group_json(&self, u: &Urls, scope: Scope, g: &Group) -> Value {
        let base = format!(
            "{}/{}/actions/runner-groups/{}",
            u.api,
            self.scope_text(scope),
            g.id
        );
        let mut v = json!({
            "id": g.id,
            "name": g.name,
            "visibility": g.visibility.text(),
            "default": g.is_default,
            "runners_url": format!("{base}/runners"),
            "allows_public_repositories": g.allows_public,
            "restricted_to_workflows": false,
            "selected_workflows": [],
            "workflow_restrictions_read_only": false,
        });
        if matches!(scope, Scope::Enterprise(_)) {
            v["selected_organizations_url"] = json!(format!("{base}/organizations"));
        } else {
            v["inherited"] = json!(false);
            if g.visibility.text() == "selected" {
                v["selected_repositories_url"] = json!(format!("{base}/repositories"));
            }
        }
        v
    }

    pub(crate) fn hook_json(&self, u: &Urls, h: &Hook) -> Value {
        let (base, kind) = match h.target {
            HookTarget::Repository(r) => (
                format!(
                    "{}/repos/{}",
                    u.api,
                    self.repos.get(&r).map_or("", |r| r.full_name.as_str())
                ),
                "Repository",
            ),
            HookTarget::Organization(o) => (
                format!(
                    "{}/orgs/{}",
                    u.api,
                    self.owners.get(&o).map_or("", |o| o.login.as_str())
                ),
                "Organization",
            ),
            HookTarget::App(_) => (format!("{}/app", u.api), "App"),
        };
        let url = format!("{base}/hooks/{}", h.id);
        let mut config =
            json!({"content_type": h.content_type, "insecure_ssl": h.insecure_ssl, "url": h.url});
        if h.secret.is_some() {
            config["secret"] = json!("********");
        }
        let mut v = json!({
            "type": kind,
            "id": h.id,
            "name": "web",
            "active": h.active,
            "events": h.events,
            "config": config,
            "updated_at": iso(h.updated_ms),
            "created_at": iso(h.created_ms),
            "url": url,
            "ping_url": format!("{url}/pings"),
            "deliveries_url": format!("{url}/deliveries"),
        });
        if kind == "Repository" {
            v["test_url"] = json!(format!("{url}/tests"));
            v["last_response"] = match &h.last {
                Some((code, status)) => {
                    json!({"code": code, "status": if status == "OK" { "active" } else { "misconfigured" }, "message": status})
                }
                None => json!({"code": null, "status": "unused", "message": null}),
            };
        }
        v
    }

    pub(crate) fn installation_json(&self, u: &Urls, i: &Installation) -> Value {
        let app = self.apps.get(&i.app);
        let account = self.owners.get(&i.account);
        let login = account.map_or("", |o| o.login.as_str());
        let organization = account.is_some_and(|o| o.kind == OwnerKind::Organization);
        let html = if organization {
            format!(
                "{}/organizations/{login}/settings/installations/{}",
                u.html, i.id
            )
        } else {
            format!("{}/settings/installations/{}", u.html, i.id)
        };
        json!({
            "id": i.id,
            "account": self.user_json(u, i.account),
            "repository_selection": if i.repositories.is_some() { "selected" } else { "all" },
            "access_tokens_url": format!("{}/app/installations/{}/access_tokens", u.api, i.id),
            "repositories_url": format!("{}/installation/repositories", u.api),
            "html_url": html,
            "app_id": i.app,
            "client_id": app.map(|a| a.client_id.as_str()),
            "app_slug": app.map_or("", |a| a.slug.as_str()),
            "target_id": i.account,
            "target_type": if organization { "Organization" } else { "User" },
            "permissions": i.permissions,
            "events": i.events,
            "created_at": iso(i.created_ms),
            "updated_at": iso(i.created_ms),
            "single_file_name": null,
            "has_multiple_single_files": false,
            "single_file_paths": [],
            "suspended_by": if i.suspended_ms.is_some() { self.user_json(u, i.account) } else { Value::Null },
            "suspended_at": iso_or_null(i.suspended_ms),
        })
    }

    pub(crate) fn delivery_json(&self, d: &Delivery) -> Value {
        json!({
            "id": d.id,
            "guid": d.guid,
            "delivered_at": iso(d.sent_ms.unwrap_or(d.created_ms)),
            "redelivery": d.redelivery,
            "duration": d.duration_ms as f64 / 1000.0,
            "status": d.status,
            "status_code": d.status_code,
            "event": d.event,
            "action": d.action,
            "installation_id": d.installation,
            "repository_id": d.repo,
            "throttled_at": null,
        })
    }
}

pub(crate) fn label_type(label: &str) -> &'static str {
    const READ_ONLY: [&str; 8] = [
        "self-hosted",
        "linux",
        "windows",
        "macos",
        "x64",
        "x86",
        "arm",
        "arm64",
    ];
    if READ_ONLY.iter().any(|l| l.eq_ignore_ascii_case(label)) {
        "read-only"
    } else {
        "custom"
    }
}

/// `Build and test` → `build-and-test`
pub(crate) fn slug(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect()
}

fn steps(job: &Job, seen: &JobState) -> Vec<Value> {
    if seen.status == Status::Queued || seen.status == Status::Waiting || seen.runner.is_none() {
        return Vec::new();
    }
    job.steps.iter().map(step).collect()
}

pub(crate) fn step(s: &Step) -> Value {
    json!({
        "name": s.name,
        "status": s.status.text(),
        "conclusion": s.conclusion,
        "number": s.number,
        "started_at": iso_or_null(s.started_ms),
        "completed_at": iso_or_null(s.completed_ms),
    })
}

fn ghost() -> Owner {
    Owner {
        id: 10_137,
        login: "ghost".into(),
        kind: OwnerKind::User,
        members: std::collections::BTreeMap::new(),
        enterprise: None,
        created_ms: 0,
        runners_enabled: "all".into(),
    }
}

fn user(u: &Urls, o: &Owner) -> Value {
    let api = format!("{}/users/{}", u.api, o.login);
    json!({
        "login": o.login,
        "id": o.id,
        "node_id": node_id(if o.kind == OwnerKind::User { "U" } else { "O" }, o.id),
        "avatar_url": format!("https://avatars.githubusercontent.com/u/{}?v=4", o.id),
        "gravatar_id": "",
        "url": api,
        "html_url": format!("{}/{}", u.html, o.login),
        "followers_url": format!("{api}/followers"),
        "following_url": format!("{api}/following{{/other_user}}"),
        "gists_url": format!("{api}/gists{{/gist_id}}"),
        "starred_url": format!("{api}/starred{{/owner}}{{/repo}}"),
        "subscriptions_url": format!("{api}/subscriptions"),
        "organizations_url": format!("{api}/orgs"),
        "repos_url": format!("{api}/repos"),
        "events_url": format!("{api}/events{{/privacy}}"),
        "received_events_url": format!("{api}/received_events"),
        "type": if o.kind == OwnerKind::User { "User" } else { "Organization" },
        "site_admin": false,
    })
}

/// An organisation as it stands in webhooks.
pub(crate) fn organization(u: &Urls, o: &Owner) -> Value {
    let api = format!("{}/orgs/{}", u.api, o.login);
    json!({
        "login": o.login,
        "id": o.id,
        "node_id": node_id("O", o.id),
        "url": api,
        "repos_url": format!("{api}/repos"),
        "events_url": format!("{api}/events"),
        "hooks_url": format!("{api}/hooks"),
        "issues_url": format!("{api}/issues"),
        "members_url": format!("{api}/members{{/member}}"),
        "public_members_url": format!("{api}/public_members{{/member}}"),
        "avatar_url": format!("https://avatars.githubusercontent.com/u/{}?v=4", o.id),
        "description": "",
    })
}

/// (name of the field, what follows the repository's URL)
const REPO_URLS: [(&str, &str); 37] = [
    ("forks_url", "/forks"),
    ("keys_url", "/keys{/key_id}"),
    ("collaborators_url", "/collaborators{/collaborator}"),
    ("teams_url", "/teams"),
    ("hooks_url", "/hooks"),
    ("issue_events_url", "/issues/events{/number}"),
    ("events_url", "/events"),
    ("assignees_url", "/assignees{/user}"),
    ("branches_url", "/branches{/branch}"),
    ("tags_url", "/tags"),
    ("blobs_url", "/git/blobs{/sha}"),
    ("git_tags_url", "/git/tags{/sha}"),
    ("git_refs_url", "/git/refs{/sha}"),
    ("trees_url", "/git/trees{/sha}"),
    ("statuses_url", "/statuses/{sha}"),
    ("languages_url", "/languages"),
    ("stargazers_url", "/stargazers"),
    ("contributors_url", "/contributors"),
    ("subscribers_url", "/subscribers"),
    ("subscription_url", "/subscription"),
    ("commits_url", "/commits{/sha}"),
    ("git_commits_url", "/git/commits{/sha}"),
    ("comments_url", "/comments{/number}"),
    ("issue_comment_url", "/issues/comments{/number}"),
    ("contents_url", "/contents/{+path}"),
    ("compare_url", "/compare/{base}...{head}"),
    ("merges_url", "/merges"),
    ("archive_url", "/{archive_format}{/ref}"),
    ("downloads_url", "/downloads"),
    ("issues_url", "/issues{/number}"),
    ("pulls_url", "/pulls{/number}"),
    ("milestones_url", "/milestones{/number}"),
    (
        "notifications_url",
        "/notifications{?since,all,participating}",
    ),
    ("labels_url", "/labels{/name}"),
    ("releases_url", "/releases{/id}"),
    ("deployments_url", "/deployments"),
    ("url", ""),
];

fn minimal_map(u: &Urls, r: &Repo, owner: &Value) -> Map<String, Value> {
    let api = format!("{}/repos/{}", u.api, r.full_name);
    let mut m = Map::new();
    m.insert("id".into(), json!(r.id));
    m.insert("node_id".into(), json!(node_id("R", r.id)));
    m.insert("name".into(), json!(r.name));
    m.insert("full_name".into(), json!(r.full_name));
    m.insert("private".into(), json!(r.private));
    m.insert("owner".into(), owner.clone());
    m.insert(
        "html_url".into(),
        json!(format!("{}/{}", u.html, r.full_name)),
    );
    m.insert("description".into(), Value::Null);
    m.insert("fork".into(), json!(r.fork));
    for (name, tail) in REPO_URLS {
        m.insert(name.into(), json!(format!("{api}{tail}")));
    }
    m
}

/// The short form that stands inside a run.
pub(crate) fn minimal_repository(u: &Urls, r: &Repo, owner: &Value) -> Value {
    Value::Object(minimal_map(u, r, owner))
}

/// The long form of lists, single reads and webhooks.
pub(crate) fn repository(u: &Urls, r: &Repo, owner: &Value) -> Value {
    let mut m = minimal_map(u, r, owner);
    let html = format!("{}/{}", u.html, r.full_name);
    let host = u
        .html
        .split("://")
        .nth(1)
        .unwrap_or("github.com")
        .to_owned();
    let rest = json!({
        "created_at": iso(r.created_ms),
        "updated_at": iso(r.created_ms),
        "pushed_at": iso(r.pushed_ms),
        "git_url": format!("git://{host}/{}.git", r.full_name),
        "ssh_url": format!("git@{host}:{}.git", r.full_name),
        "clone_url": format!("{html}.git"),
        "svn_url": html,
        "homepage": null,
        "size": 0,
        "stargazers_count": 0,
        "watchers_count": 0,
        "language": null,
        "has_issues": true,
        "has_projects": true,
        "has_downloads": true,
        "has_wiki": true,
        "has_pages": false,
        "has_discussions": false,
        "forks_count": 0,
        "mirror_url": null,
        "archived": r.archived,
        "disabled": r.disabled,
        "open_issues_count": 0,
        "license": null,
        "allow_forking": true,
        "is_template": false,
        "web_commit_signoff_required": false,
        "topics": [],
        "visibility": if r.private { "private" } else { "public" },
        "forks": 0,
        "open_issues": 0,
        "watchers": 0,
        "default_branch": "main",
    });
    if let Value::Object(rest) = rest {
        m.extend(rest);
    }
    Value::Object(m)
}

/// Who an account is, as `GET /users/{u}` says.
pub(crate) fn public_user(u: &Urls, o: &Owner, repos: u64) -> Value {
    let mut v = user(u, o);
    if let (Some(m), Value::Object(more)) = (
        v.as_object_mut(),
        json!({
            "name": o.login, "company": null, "blog": "", "location": null, "email": null, "hireable": null,
            "bio": null, "twitter_username": null, "public_repos": repos, "public_gists": 0, "followers": 0,
            "following": 0, "created_at": iso(o.created_ms), "updated_at": iso(o.created_ms), "user_view_type": "public",
        }),
    ) {
        m.extend(more);
    }
    v
}

/// `GET /user`.
pub(crate) fn private_user(u: &Urls, o: &Owner, repos: u64, private: u64) -> Value {
    let mut v = public_user(u, o, repos);
    if let (Some(m), Value::Object(more)) = (
        v.as_object_mut(),
        json!({
            "private_gists": 0, "total_private_repos": private, "owned_private_repos": private, "disk_usage": 0,
            "collaborators": 0, "two_factor_authentication": true, "user_view_type": "private",
            "plan": {"name": "pro", "space": 1, "private_repos": 9999, "collaborators": 0},
        }),
    ) {
        m.extend(more);
    }
    v
}

/// `GET /orgs/{org}`.
pub(crate) fn organization_full(u: &Urls, o: &Owner, repos: u64) -> Value {
    let mut v = organization(u, o);
    if let (Some(m), Value::Object(more)) = (
        v.as_object_mut(),
        json!({
            "html_url": format!("{}/{}", u.html, o.login), "has_organization_projects": true,
            "has_repository_projects": true, "public_repos": repos, "public_gists": 0, "followers": 0, "following": 0,
            "type": "Organization", "created_at": iso(o.created_ms), "updated_at": iso(o.created_ms),
            "archived_at": null, "name": o.login,
        }),
    ) {
        m.extend(more);
    }
    v
}
