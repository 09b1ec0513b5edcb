//! The driver's ports onto the simulated world. Each call is a place where the
//! process may die: before it, or after its effect and before its answer.

use std::{sync::Arc, time::Duration};

use github_sim::machine::Request;
use longshore_scheduler::ports::{
    Clock, GitHub, NodeLink, Registered, Registration, RegistrationFailed,
};
use scheduler_core::{
    effect::{Desired, NodeIntent},
    fact::Fact,
    input::{Deregistration, RegistrationFailure},
    model::{CredentialName, NodeName, Now, RunnerName, Scope, UtcMillis},
};
use scheduler_store::{
    AuditQuery, AuditRow, Commit, Error, JobQuery, JobRow, Loaded, Memory, Page, Raised,
    RepositoryCounts, RunnerQuery, RunnerRow, Store, TokenRow, chain::Ends,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use crate::{
    node::ToAgent,
    plan::Fault,
    workload::scope_path,
    world::{CrashPlan, Shared},
};

/// One process of the scheduler, as its ports know it.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) shared: Shared,
    pub(crate) id: u64,
    /// True time of its start, for its monotonic clock.
    pub(crate) started: u64,
}

impl Process {
    fn is_dead(&self) -> bool {
        self.shared.lock().alive != self.id
    }

    /// Goes on if the process lives; a dead one waits for ever.
    async fn point(&self, what: &'static str) {
        let dead = {
            let mut world = self.shared.lock();
            if world.alive == self.id {
                world.report.calls += 1;
                let calls = world.report.calls;
                let mut crash = world.plan.crash_at_call == Some(calls);
                if let CrashPlan::In(n) = world.crash {
                    world.crash = match n {
                        0 => CrashPlan::None,
                        n => CrashPlan::In(n - 1),
                    };
                    crash |= n == 0;
                }
                if crash {
                    world.note(|| format!("the scheduler dies at call {calls}: {what}"));
                    world.fired(Fault::SchedulerCrashAtCall);
                    world.alive = 0;
                    world.crashed.notify_one();
                }
                crash
            } else {
                true
            }
        };
        if dead {
            std::future::pending::<()>().await;
        }
    }

    async fn travel(&self, low: u64, high: u64) {
        let wait = self.shared.lock().dice.between(low, high);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
}

impl Clock for Process {
    fn now(&self) -> Now {
        let world = self.shared.lock();
        Now {
            mono: world.now - self.started + 1,
            utc: world.scheduler_utc(),
        }
    }
}

/// The store of one process; the content outlives it.
#[derive(Clone)]
pub(crate) struct SimStore {
    pub(crate) process: Process,
    pub(crate) memory: Memory,
}

impl SimStore {
    /// Remembers what is durable now, for the checks.
    fn kept(&self, facts: &[Fact]) {
        let mut world = self.process.shared.lock();
        world.report.facts += facts.len() as u64;
        for fact in facts {
            let text = format!("{fact:?}");
            world.mix(text.as_bytes());
            world.note(|| text);
            match fact {
                Fact::RunnerPlaced(placed) => {
                    let by = self.process.id;
                    world.committed_runners.insert(placed.runner.clone(), by);
                }
                Fact::RunnerStopping { runner, why, .. } => {
                    world.committed_stops.insert(runner.clone());
                    let reason = format!("{why:?}");
                    let reason = reason.split('(').next().unwrap_or_default();
                    *world.report.stops.entry(reason.to_owned()).or_default() += 1;
                }
                Fact::RunnerDeregistered { runner, .. } => {
                    world.committed_deregistrations.insert(runner.clone());
                }
                _ => {}
            }
        }
    }
}

impl Store for SimStore {
    async fn load(&self) -> Result<Loaded, Error> {
        self.process.point("load").await;
        self.memory.load().await
    }

    async fn commit(&self, commit: Commit) -> Result<u64, Error> {
        self.process.point("before a commit").await;
        let stall = {
            let mut world = self.process.shared.lock();
            let left = world.stall_until.saturating_sub(world.now);
            left + world.dice.below(4)
        };
        tokio::time::sleep(Duration::from_millis(stall)).await;
        if self.process.is_dead() {
            std::future::pending::<()>().await;
        }
        let facts = commit.facts.clone();
        let before = self.memory.faults().commits();
        let done = self.memory.commit(commit).await;
        if self.memory.faults().commits() > before {
            self.kept(&facts);
        }
        self.process.point("after a commit").await;
        done
    }

    async fn raise_epoch(&self, expected: u64, at_least: u64) -> Result<Raised, Error> {
        self.process.point("before the epoch").await;
        let done = self.memory.raise_epoch(expected, at_least).await;
        self.process.point("after the epoch").await;
        done
    }

    async fn write_snapshot(
        &self,
        expected_epoch: u64,
        sequence: u64,
        facts: Vec<Fact>,
    ) -> Result<(), Error> {
        self.memory
            .write_snapshot(expected_epoch, sequence, facts)
            .await
    }

    async fn facts_after(&self, after: u64, limit: u32) -> Result<Vec<(u64, Fact)>, Error> {
        self.memory.facts_after(after, limit).await
    }

    async fn jobs(&self, query: JobQuery) -> Result<Page<JobRow>, Error> {
        self.memory.jobs(query).await
    }

    async fn job(&self, id: scheduler_core::model::JobId) -> Result<Option<JobRow>, Error> {
        self.memory.job(id).await
    }

    async fn runners(&self, query: RunnerQuery) -> Result<Page<RunnerRow>, Error> {
        self.memory.runners(query).await
    }

    async fn runners_by_prefix(&self, prefix: &str, limit: u32) -> Result<Vec<RunnerRow>, Error> {
        self.memory.runners_by_prefix(prefix, limit).await
    }

    async fn repository_counts(
        &self,
        since: UtcMillis,
        after: Option<String>,
    ) -> Result<Vec<RepositoryCounts>, Error> {
        self.memory.repository_counts(since, after).await
    }

    async fn setting(&self, key: &str) -> Result<Option<String>, Error> {
        self.memory.setting(key).await
    }

    async fn records(&self, kind: &str) -> Result<Vec<(String, String)>, Error> {
        self.memory.records(kind).await
    }

    async fn audit(&self, query: AuditQuery) -> Result<Vec<AuditRow>, Error> {
        self.memory.audit(query).await
    }

    async fn audit_ends(&self) -> Result<Ends, Error> {
        self.memory.audit_ends().await
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>, Error> {
        self.memory.tokens().await
    }

    async fn prune(
        &self,
        history_before: UtcMillis,
        audit_before: UtcMillis,
        limit: u32,
    ) -> Result<u64, Error> {
        self.memory.prune(history_before, audit_before, limit).await
    }
}

/// GitHub's REST surface, as far as effects go.
#[derive(Clone)]
pub(crate) struct SimGitHub(pub(crate) Process);

/// A request on its way when the process dies may arrive all the same.
const ARRIVES_ANYWAY: u64 = 5_000;

impl SimGitHub {
    /// The request travels; false: it is lost with its process.
    async fn request_arrives(&self) -> bool {
        self.0.travel(20, 300).await;
        let mut world = self.0.shared.lock();
        world.alive == self.0.id || world.dice.in_10000(ARRIVES_ANYWAY)
    }
}

impl GitHub for SimGitHub {
    async fn register(&self, wanted: Registration) -> Result<Registered, RegistrationFailed> {
        self.0.point("before a registration").await;
        if !self.request_arrives().await {
            std::future::pending::<()>().await;
        }
        let path = scope_path(&wanted.scope);
        let body = json!({
            "name": wanted.runner.as_str(),
            "runner_group_id": 1,
            "labels": wanted.labels,
            "work_folder": wanted.work_folder,
        });
        let (answer, result) = {
            let mut world = self.0.shared.lock();
            world.check_registration(self.0.id, &wanted.runner, &path, &wanted.labels);
            let url = format!("/{path}/actions/runners/generate-jitconfig");
            let answer = world.call(&wanted.credential, Request::post(&url, &body));
            let value = answer.value();
            let made = world.github.runner_id(&path, wanted.runner.as_str());
            world.note(|| format!("registration of {}: {}", wanted.runner, answer.status));
            let result = match (answer.status, made) {
                (201, Some(github_id)) => {
                    // The secret itself is of no interest here, only that nobody mixes it up.
                    let jit = format!("jit-{github_id}-{}", wanted.runner);
                    let name = wanted.runner.to_string();
                    world.jits.insert(jit.clone(), (github_id, name));
                    Ok(Registered {
                        github_id,
                        jit: SecretString::from(jit),
                    })
                }
                _ => Err(RegistrationFailed {
                    failure: failure(&answer, world.scheduler_utc()),
                    detail: value["message"].as_str().unwrap_or("no answer").to_owned(),
                }),
            };
            (answer, result)
        };
        self.0.point("after a registration").await;
        self.0.travel(20, 300).await;
        tokio::time::sleep(Duration::from_millis(answer.delay_ms)).await;
        self.0.point("before a registration's answer").await;
        result
    }

    async fn deregister(
        &self,
        runner: RunnerName,
        scope: Scope,
        credential: CredentialName,
        github_id: Option<u64>,
    ) -> Deregistration {
        self.0.point("before a deregistration").await;
        if !self.request_arrives().await {
            std::future::pending::<()>().await;
        }
        let path = scope_path(&scope);
        let outcome = {
            let mut world = self.0.shared.lock();
            let id = match github_id {
                Some(id) => Ok(Some(id)),
                None => {
                    let url = format!("/{path}/actions/runners?name={runner}&per_page=100");
                    let answer = world.call(&credential, Request::get(&url));
                    let value = answer.value();
                    let found = value["runners"].as_array().into_iter().flatten();
                    let id = found
                        .filter(|known| known["name"] == runner.as_str())
                        .find_map(|known| known["id"].as_u64());
                    if answer.status == 200 {
                        Ok(id)
                    } else {
                        Err(())
                    }
                }
            };
            let outcome = match id {
                Err(()) => Deregistration::Failed,
                Ok(None) => Deregistration::Gone,
                Ok(Some(id)) => {
                    let url = format!("/{path}/actions/runners/{id}");
                    match world.call(&credential, Request::delete(&url)).status {
                        204 | 404 => Deregistration::Gone,
                        422 => Deregistration::Busy,
                        _ => Deregistration::Failed,
                    }
                }
            };
            world.note(|| format!("deregistration of {runner}: {outcome:?}"));
            outcome
        };
        self.0.point("after a deregistration").await;
        self.0.travel(20, 300).await;
        outcome
    }
}

fn failure(answer: &github_sim::machine::Response, utc: u64) -> RegistrationFailure {
    let text = String::from_utf8_lossy(&answer.body).to_lowercase();
    match answer.status {
        403 | 429 if answer.status == 429 || text.contains("rate limit") => {
            let wait = answer
                .header("retry-after")
                .and_then(|s| s.parse::<u64>().ok());
            RegistrationFailure::RateLimited {
                until: utc + wait.unwrap_or(60) * 1_000,
            }
        }
        401 | 403 => RegistrationFailure::Forbidden,
        404 => RegistrationFailure::NotFound,
        409 | 500.. | 201 | 0 => RegistrationFailure::Ambiguous,
        _ => RegistrationFailure::Transient,
    }
}

/// The nodes' streams of one process.
pub(crate) struct SimLink(pub(crate) Process);

impl NodeLink for SimLink {
    fn session(&self, node: &NodeName) -> Option<u64> {
        self.0.shared.lock().links.get(node).copied()
    }

    fn send_intent(&self, node: &NodeName, intent: NodeIntent) {
        let mut world = self.0.shared.lock();
        if world.alive != self.0.id {
            return;
        }
        for runner in &intent.runners {
            let name = &runner.name;
            let known = match runner.desired {
                Desired::Run(_) => world.committed_runners.contains_key(name),
                Desired::StopIfIdle | Desired::Kill { .. } => world.committed_stops.contains(name),
                Desired::Remove { .. } => world.committed_deregistrations.contains(name),
            };
            if !known {
                let what = format!("{:?}", runner.desired);
                world.violation(format!(
                    "{node} was told about {name} before it was committed: {what}"
                ));
            }
        }
        world.send_down(node, ToAgent::Intent(intent));
    }

    fn send_registration(&self, node: &NodeName, runner: &RunnerName, jit: SecretString) {
        let mut world = self.0.shared.lock();
        if world.alive != self.0.id {
            return;
        }
        let message = ToAgent::Registration {
            runner: runner.to_string(),
            jit: jit.expose_secret().to_owned(),
        };
        world.send_down(node, message);
    }
}

/// What a new process of the scheduler works with.
pub(crate) fn store_of(process: &Process, memory: &Memory) -> Arc<SimStore> {
    Arc::new(SimStore {
        process: process.clone(),
        memory: memory.clone(),
    })
}
