//! Registrations and the runner's side of the protocol.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::assign::trim;
use super::jobs::LOCK;
use super::jwt;
use super::model::{Driver, RemovedBy, Runner, Scope, Status};
use super::spec::ContainerSpec;
use super::world::{DAY, HOUR, SECOND, SimError, Timer, World};

/// The version the simulator's runners and downloads have.
pub(crate) const CURRENT_VERSION: &str = "2.336.0";
/// Without a poll for this long a runner is offline.
const SILENCE: u64 = 90 * SECOND;
/// An ephemeral runner that has not connected for this long is removed; others live 14 days.
const EPHEMERAL_EXPIRY: u64 = DAY;
const PERSISTENT_EXPIRY: u64 = 14 * DAY;

/// The id of a session.
pub type Session = String;

/// What the service refuses with; the kinds of GitHub's broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunnerError {
    #[error("RunnerNotFound: the registration does not exist")]
    RunnerNotFound,
    #[error("RunnerVersionTooOld: the runner version is deprecated and cannot receive messages")]
    RunnerVersionTooOld,
    #[error("RunnerSessionInvalid: there is no such session")]
    RunnerSessionInvalid,
    #[error("another session of this runner is open")]
    SessionConflict,
    #[error("AcknowledgeJobNotFound: the job request does not exist")]
    AcknowledgeJobNotFound,
    #[error("the job request does not exist")]
    JobNotFound,
    #[error("the job was taken by another runner or cancelled")]
    JobConflict,
    #[error("the job cannot be acquired")]
    JobUnprocessable,
}

impl RunnerError {
    /// HTTP status and the kind in the body.
    pub fn status(&self) -> (u16, &'static str) {
        match self {
            Self::RunnerNotFound => (403, "RunnerNotFound"),
            Self::RunnerVersionTooOld => (403, "RunnerVersionTooOld"),
            Self::RunnerSessionInvalid => (403, "RunnerSessionInvalid"),
            Self::SessionConflict => (409, "TaskAgentSessionConflictException"),
            Self::AcknowledgeJobNotFound => (404, "AcknowledgeJobNotFound"),
            Self::JobNotFound => (404, "JobNotFound"),
            Self::JobConflict => (409, "JobConflict"),
            Self::JobUnprocessable => (422, "JobUnprocessable"),
        }
    }
}

/// What a poll can bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Job { request_id: String },
    Cancel { job_id: u64, request_id: String },
}

/// A step of a job, as the runner gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStep {
    pub number: u64,
    pub name: String,
    pub run: String,
}

/// What acquirejob answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobBody {
    pub request_id: String,
    pub job_id: u64,
    pub name: String,
    /// `owner/name`
    pub repository: String,
    pub steps: Vec<JobStep>,
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerSpec>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, ContainerSpec>,
    pub locked_until: String,
}

/// What a runner tells of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepReport {
    pub number: u64,
    /// Appended to what is there.
    pub output: String,
    /// Set once, when the step has ended.
    pub exit_code: Option<i64>,
    /// `success`, `failure`, `cancelled`, `skipped`; set with the end of the step.
    pub conclusion: Option<String>,
}

impl World {
    /// Makes a registration; no checks.
    pub(crate) fn register(
        &mut self,
        scope: Scope,
        name: &str,
        labels: &[String],
        group: u64,
        work_folder: &str,
        ephemeral: bool,
    ) -> u64 {
        let id = self.fresh_runner_id();
        let client_id = self.chance.guid();
        let now = self.now;
        let key = if self.keys.is_empty() {
            0
        } else {
            id as usize % self.keys.len()
        };
        let runner = Runner {
            id,
            name: name.to_owned(),
            scope,
            group,
            labels: labels.to_vec(),
            folded: labels.iter().map(|l| l.to_lowercase()).collect(),
            os: "unknown".into(),
            version: None,
            ephemeral,
            driver: Driver::Program,
            online: false,
            job: None,
            busy_since_ms: None,
            created_ms: now,
            removed: None,
            used: false,
            session: None,
            last_seen_ms: now,
            client_id: client_id.clone(),
            key,
            work_folder: work_folder.to_owned(),
            history: vec![(now, false, false)],
        };
        self.runners.insert(id, runner);
        self.live
            .entry(scope)
            .or_default()
            .insert(id, name.to_owned());
        self.names.insert((scope, name.to_lowercase()), id);
        self.clients.insert(client_id, id);
        let expiry = if ephemeral {
            EPHEMERAL_EXPIRY
        } else {
            PERSISTENT_EXPIRY
        };
        self.set_timer(now + expiry, Timer::RunnerExpiry { runner: id });
        self.offer_to_simulated(id);
        id
    }

    /// Online or offline, without a program.
    pub(crate) fn set_online(&mut self, id: u64, online: bool) {
        let now = self.now;
        let Some(r) = self.runners.get_mut(&id) else {
            return;
        };
        if r.removed.is_some() {
            return;
        }
        r.online = online;
        r.last_seen_ms = now;
        r.history.push((now, online, r.job.is_some()));
        trim(&mut r.history);
        if online && r.job.is_none() {
            self.idle.insert(id);
            self.assign_runner(id);
        } else if !online {
            self.idle.remove(&id);
            let expiry = if r.ephemeral {
                EPHEMERAL_EXPIRY
            } else {
                PERSISTENT_EXPIRY
            };
            self.set_timer(now + expiry, Timer::RunnerExpiry { runner: id });
        }
    }

    /// Online or offline by hand, as the control API does it.
    pub fn runner_switch(&mut self, id: u64, online: bool) -> Result<(), SimError> {
        if self.runners.get(&id).is_none_or(|r| r.removed.is_some()) {
            return Err(SimError::NotFound {
                what: "runner",
                name: id.to_string(),
            });
        }
        self.set_online(id, online);
        Ok(())
    }

    /// Ends a registration.
    pub(crate) fn remove_runner(&mut self, id: u64, by: RemovedBy) {
        let now = self.now;
        let Some(r) = self.runners.get_mut(&id) else {
            return;
        };
        if r.removed.is_some() {
            return;
        }
        r.removed = Some((now, by));
        r.online = false;
        r.job = None;
        r.busy_since_ms = None;
        r.history.push((now, false, false));
        trim(&mut r.history);
        let key = (r.scope, r.name.to_lowercase());
        if let Some(m) = self.live.get_mut(&r.scope) {
            m.remove(&id);
        }
        if self.names.get(&key) == Some(&id) {
            self.names.remove(&key);
        }
        self.idle.remove(&id);
    }

    pub(crate) fn runner_silent(&mut self, id: u64) {
        let now = self.now;
        let Some(r) = self.runners.get(&id) else {
            return;
        };
        if r.removed.is_some() || !r.online || r.driver != Driver::Program {
            return;
        }
        let due = r.last_seen_ms + SILENCE;
        if due > now {
            self.set_timer(due, Timer::Silent { runner: id });
        } else {
            self.set_online(id, false);
        }
    }

    pub(crate) fn runner_expired(&mut self, id: u64) {
        let now = self.now;
        let Some(r) = self.runners.get(&id) else {
            return;
        };
        let limit = if r.ephemeral {
            EPHEMERAL_EXPIRY
        } else {
            PERSISTENT_EXPIRY
        };
        if r.removed.is_none() && !r.online && r.last_seen_ms + limit <= now {
            self.remove_runner(id, RemovedBy::Expired);
        }
    }

    // ---- the protocol ---------------------------------------------------------------------------------------------

    /// The OAuth step: a signed assertion becomes an access token.
    pub(crate) fn runner_token(&mut self, assertion: &str) -> Option<(String, u64)> {
        let claims = jwt::claims(assertion)?;
        let client = claims
            .get("sub")
            .or(claims.get("iss"))
            .and_then(Value::as_str)?;
        let id = *self.clients.get(client)?;
        let r = self.runners.get(&id)?;
        if r.removed.is_some() && !self.cfg.faults.ghost_runner {
            return None;
        }
        let key = self.keys.get(r.key)?;
        if !jwt::signed_by(assertion, &key.public_der) {
            return None;
        }
        let now = self.now / 1000;
        let exp = claims.get("exp").and_then(Value::as_u64)?;
        // more than five minutes apart and the service refuses
        let not_before = claims
            .get("nbf")
            .or(claims.get("iat"))
            .and_then(Value::as_u64)
            .unwrap_or(now);
        if exp <= now || exp > now + HOUR / 1000 || not_before > now + 300 {
            return None;
        }
        let token = self.chance.alphanumeric(64);
        self.runner_tokens
            .insert(token.clone(), (id, self.now + HOUR));
        Some((token, HOUR / 1000))
    }

    /// The runner a token of `runner_token` belongs to.
    pub(crate) fn runner_of_token(&self, token: &str) -> Option<u64> {
        self.runner_tokens
            .get(token)
            .filter(|(_, t)| *t > self.now)
            .map(|(id, _)| *id)
    }

    /// Opens a session: the runner is online.
    pub fn runner_connect(&mut self, id: u64) -> Result<Session, RunnerError> {
        if self.cfg.faults.runner_version_too_old {
            self.count_fault("runner_version_too_old");
            return Err(RunnerError::RunnerVersionTooOld);
        }
        let session = self.chance.guid();
        let now = self.now;
        let Some(r) = self.runners.get_mut(&id) else {
            return Err(RunnerError::RunnerNotFound);
        };
        if r.removed.is_some() {
            return Err(RunnerError::RunnerNotFound);
        }
        // a JIT registration serves one connection; a second start with the same string never works
        if r.session.is_some() || r.used {
            return Err(RunnerError::SessionConflict);
        }
        r.used = r.ephemeral;
        r.session = Some(session.clone());
        r.os = "Linux".into();
        r.version = Some(CURRENT_VERSION.into());
        r.driver = Driver::Program;
        self.sessions.insert(session.clone(), id);
        self.set_online(id, true);
        self.set_timer(now + SILENCE, Timer::Silent { runner: id });
        Ok(session)
    }

    fn runner_of_session(&self, session: &str) -> Result<u64, RunnerError> {
        self.sessions
            .get(session)
            .copied()
            .ok_or(RunnerError::RunnerSessionInvalid)
    }

    /// At most one message. Also the sign of life.
    pub fn runner_poll(
        &mut self,
        session: &str,
        _busy: bool,
    ) -> Result<Option<Message>, RunnerError> {
        let id = self.runner_of_session(session)?;
        let now = self.now;
        let (ghosts, loops) = (self.cfg.faults.ghost_runner, self.cfg.faults.cancel_loop);
        let Some(r) = self.runners.get_mut(&id) else {
            return Err(RunnerError::RunnerNotFound);
        };
        if r.removed.is_some() {
            if ghosts {
                self.count_fault("ghost_runner");
                return Ok(None);
            }
            return Err(RunnerError::RunnerNotFound);
        }
        r.last_seen_ms = now;
        if !r.online {
            self.set_online(id, true);
            self.set_timer(now + SILENCE, Timer::Silent { runner: id });
        }
        let Some(job_id) = self.runners.get(&id).and_then(|r| r.job) else {
            return Ok(None);
        };
        let Some(job) = self.jobs.get_mut(&job_id) else {
            return Ok(None);
        };
        let Some(request_id) = job.request.clone() else {
            return Ok(None);
        };
        match job.state.status {
            Status::Queued if !job.told => {
                job.told = true;
                Ok(Some(Message::Job { request_id }))
            }
            Status::InProgress if job.cancel_requested && (loops || !job.cancel_told) => {
                let again = job.cancel_told;
                job.cancel_told = true;
                if again {
                    self.count_fault("cancel_loop");
                }
                Ok(Some(Message::Cancel { job_id, request_id }))
            }
            _ => Ok(None),
        }
    }

    /// The runner a session belongs to.
    pub(crate) fn session_owner(&self, session: &str) -> Option<u64> {
        self.sessions.get(session).copied()
    }

    /// The open session of a runner.
    pub(crate) fn session_of_runner(&self, id: u64) -> Option<Session> {
        self.runners.get(&id).and_then(|r| r.session.clone())
    }

    /// Whether a poll would bring something, without counting as one.
    pub(crate) fn runner_has_message(&self, session: &str) -> bool {
        let Some(r) = self
            .sessions
            .get(session)
            .and_then(|id| self.runners.get(id))
        else {
            return true;
        };
        if r.removed.is_some() {
            return !self.cfg.faults.ghost_runner;
        }
        r.job
            .and_then(|j| self.jobs.get(&j))
            .is_some_and(|j| match j.state.status {
                Status::Queued => !j.told,
                Status::InProgress => {
                    j.cancel_requested && (!j.cancel_told || self.cfg.faults.cancel_loop)
                }
                _ => false,
            })
    }

    pub fn runner_acknowledge(
        &mut self,
        session: &str,
        request_id: &str,
    ) -> Result<(), RunnerError> {
        self.runner_of_session(session)?;
        if self.requests_of_jobs.contains_key(request_id) {
            Ok(())
        } else {
            Err(RunnerError::AcknowledgeJobNotFound)
        }
    }

    /// Takes the job: it is in_progress from here. A failure ends an ephemeral registration.
    pub fn runner_acquire(
        &mut self,
        session: &str,
        request_id: &str,
    ) -> Result<JobBody, RunnerError> {
        let runner = self.runner_of_session(session)?;
        let taken = self.acquirable(runner, request_id);
        let job_id = match taken {
            Ok(job) if self.roll(self.cfg.faults.acquire_conflict, "acquire_conflict") => {
                // somebody else has it: back into the queue
                if let Some(j) = self.jobs.get_mut(&job) {
                    j.assigned_ms = Some(0);
                }
                if let Some(r) = self.runners.get_mut(&runner) {
                    r.online = false;
                }
                self.job_not_picked_up(job);
                Err(RunnerError::JobConflict)
            }
            other => other,
        };
        let job_id = match job_id {
            Ok(id) => id,
            Err(e) => {
                if self.runners.get(&runner).is_some_and(|r| r.ephemeral) {
                    self.remove_runner(runner, RemovedBy::AcquireFailed);
                }
                return Err(e);
            }
        };
        let Some(reference) = self.runner_ref(runner) else {
            return Err(RunnerError::RunnerNotFound);
        };
        self.job_started(job_id, reference);
        self.start_lock(job_id);
        let Some(job) = self.jobs.get(&job_id) else {
            return Err(RunnerError::JobNotFound);
        };
        Ok(JobBody {
            request_id: request_id.to_owned(),
            job_id,
            name: job.name.clone(),
            repository: self
                .repos
                .get(&job.repo)
                .map_or_else(String::new, |r| r.full_name.clone()),
            steps: job
                .steps
                .iter()
                .map(|s| JobStep {
                    number: s.number,
                    name: s.name.clone(),
                    run: s.run.clone(),
                })
                .collect(),
            env: job.spec.env.clone(),
            container: job.spec.container.clone(),
            services: job.spec.services.clone(),
            locked_until: super::text::iso(self.now + LOCK),
        })
    }

    fn acquirable(&self, runner: u64, request_id: &str) -> Result<u64, RunnerError> {
        if self
            .runners
            .get(&runner)
            .is_none_or(|r| r.removed.is_some())
        {
            return Err(RunnerError::JobNotFound);
        }
        let job_id = self
            .requests_of_jobs
            .get(request_id)
            .copied()
            .ok_or(RunnerError::JobNotFound)?;
        let job = self.jobs.get(&job_id).ok_or(RunnerError::JobNotFound)?;
        if job.assigned != Some(runner) {
            return Err(RunnerError::JobConflict);
        }
        if job.state.status != Status::Queued {
            return Err(RunnerError::JobUnprocessable);
        }
        Ok(job_id)
    }

    fn running(&self, session: &str, request_id: &str) -> Result<(u64, u64), RunnerError> {
        let runner = self.runner_of_session(session)?;
        let job = self
            .requests_of_jobs
            .get(request_id)
            .copied()
            .ok_or(RunnerError::JobNotFound)?;
        match self.jobs.get(&job) {
            Some(j) if j.assigned == Some(runner) && j.state.status == Status::InProgress => {
                Ok((runner, job))
            }
            _ => Err(RunnerError::JobNotFound),
        }
    }

    /// Prolongs the lock; gives the time it ends, milliseconds since the epoch.
    pub fn runner_renew(&mut self, session: &str, request_id: &str) -> Result<u64, RunnerError> {
        let (_, job) = self.running(session, request_id)?;
        let until = self.now + LOCK;
        if let Some(j) = self.jobs.get_mut(&job) {
            j.lock_until_ms = until;
        }
        Ok(until)
    }

    /// Output, and at its end the exit code, of a step.
    pub fn runner_step(
        &mut self,
        session: &str,
        request_id: &str,
        report: &StepReport,
    ) -> Result<(), RunnerError> {
        let (_, job) = self.running(session, request_id)?;
        let now = self.now;
        let Some(step) = self
            .jobs
            .get_mut(&job)
            .and_then(|j| j.steps.iter_mut().find(|s| s.number == report.number))
        else {
            return Err(RunnerError::JobUnprocessable);
        };
        if step.status == Status::Completed {
            return Ok(());
        }
        step.started_ms.get_or_insert(now);
        step.status = Status::InProgress;
        Self::append_output(step, &report.output);
        if report.exit_code.is_some() || report.conclusion.is_some() {
            step.exit_code = report.exit_code;
            let by_code = if report.exit_code == Some(0) {
                "success"
            } else {
                "failure"
            };
            step.conclusion = Some(
                report
                    .conclusion
                    .clone()
                    .unwrap_or_else(|| by_code.to_owned()),
            );
            step.status = Status::Completed;
            step.completed_ms = Some(now);
        }
        Ok(())
    }

    /// Ends the job; an ephemeral registration ends with it.
    pub fn runner_complete(
        &mut self,
        session: &str,
        request_id: &str,
        conclusion: &str,
    ) -> Result<(), RunnerError> {
        let (_, job) = self.running(session, request_id)?;
        self.job_completed(job, conclusion);
        Ok(())
    }

    /// Ends the session: offline, and a job that runs will lose its lock.
    pub fn runner_disconnect(&mut self, session: &str) -> Result<(), RunnerError> {
        let id = self
            .sessions
            .remove(session)
            .ok_or(RunnerError::RunnerSessionInvalid)?;
        if let Some(r) = self.runners.get_mut(&id) {
            r.session = None;
        }
        self.set_online(id, false);
        // what was given to it but not taken goes back at once
        let untaken = self.runners.get(&id).and_then(|r| r.job).filter(|j| {
            self.jobs
                .get(j)
                .is_some_and(|j| j.state.status == Status::Queued)
        });
        if let Some(job) = untaken {
            if let Some(j) = self.jobs.get_mut(&job) {
                j.assigned_ms = Some(0);
            }
            self.job_not_picked_up(job);
        }
        Ok(())
    }

    /// Connects, takes the job the runner is given, and completes it. `Ok(None)`: it was given none.
    pub fn run_job_on(
        &mut self,
        runner: u64,
        conclusion: &str,
    ) -> Result<Option<u64>, RunnerError> {
        let session = self.runner_connect(runner)?;
        let Some(Message::Job { request_id }) = self.runner_poll(&session, false)? else {
            return Ok(None);
        };
        let body = self.runner_acquire(&session, &request_id)?;
        for step in &body.steps {
            let ok = conclusion == "success";
            let report = StepReport {
                number: step.number,
                exit_code: Some(i64::from(!ok)),
                ..StepReport::default()
            };
            self.runner_step(&session, &request_id, &report)?;
        }
        self.runner_complete(&session, &request_id, conclusion)?;
        Ok(Some(body.job_id))
    }

    /// The runners a (perhaps lagging) reader of a list sees, by id.
    pub(crate) fn seen_runners(&self, scope: Scope) -> Vec<u64> {
        let lag = self.cfg.faults.list_lag_ms;
        if lag == 0 {
            return self
                .live
                .get(&scope)
                .map(|m| m.keys().copied().collect())
                .unwrap_or_default();
        }
        let at = self.now.saturating_sub(lag);
        self.runners
            .values()
            .filter(|r| {
                r.scope == scope && r.created_ms <= at && r.removed.is_none_or(|(t, _)| t > at)
            })
            .map(|r| r.id)
            .collect()
    }

    /// `{runner_request_id, run_service_url}` or `{jobId, timeout}` around a message, as the broker sends it.
    pub(crate) fn broker_message(&mut self, message: &Message) -> Value {
        let id = self.fresh_id();
        let url = format!("{}/run", self.cfg.runner_url);
        let (kind, body) = match message {
            Message::Job { request_id } => (
                "RunnerJobRequest",
                json!({"runner_request_id": request_id, "run_service_url": url, "should_acknowledge": true}),
            ),
            Message::Cancel { request_id, .. } => (
                "JobCancellation",
                json!({"jobId": request_id, "timeout": "00:05:00"}),
            ),
        };
        json!({"messageId": id, "messageType": kind, "body": body.to_string()})
    }
}
