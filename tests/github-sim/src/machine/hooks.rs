//! Webhooks out: who hears of an event, in which order deliveries leave, what became of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_lc_rs::hmac;
use serde_json::{Value, json};

use super::faults::RunnerFields;
use super::model::{Delivery, Hook, HookTarget, Status};
use super::text::form_encode;
use super::world::{DAY, World};

/// A delivery that leaves now.
#[derive(Clone)]
pub struct Outgoing {
    /// Give it back to `delivery_done`.
    pub attempt: u64,
    pub guid: String,
    pub hook_id: u64,
    pub event: String,
    pub action: Option<String>,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Arc<[u8]>,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryOutcome {
    Answered {
        status: u16,
        duration_ms: u64,
        body: String,
    },
    /// `failed to connect to host`, `timed out`
    Failed { why: String, duration_ms: u64 },
}

/// Deliveries: waiting, in flight, done.
pub(crate) struct Outbox {
    keep: usize,
    pub(crate) all: BTreeMap<u64, Delivery>,
    due: BTreeSet<(u64, u64)>,
    in_flight: BTreeSet<(u64, u64)>,
    flying: BTreeSet<u64>,
}

impl Outbox {
    pub(crate) fn new(keep: usize) -> Self {
        Self {
            keep: keep.max(1),
            all: BTreeMap::new(),
            due: BTreeSet::new(),
            in_flight: BTreeSet::new(),
            flying: BTreeSet::new(),
        }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(t, _)| *t)
    }

    /// Deliveries that wait or fly.
    pub(crate) fn open(&self) -> usize {
        self.due.len() + self.flying.len()
    }

    fn forget_old(&mut self) {
        while self.all.len() > self.keep {
            let Some(old) = self
                .all
                .iter()
                .find(|(_, d)| d.sent_ms.is_some() && d.status != "in flight")
                .map(|(k, _)| *k)
            else {
                return;
            };
            self.all.remove(&old);
        }
    }
}

/// An event before it is known who hears of it.
struct Event<'a> {
    name: &'a str,
    action: Option<&'a str>,
    repo: Option<u64>,
    account: Option<u64>,
    job: Option<u64>,
    order_key: u64,
    body: Value,
}

impl World {
    /// `workflow_job` with the state the job has.
    pub(crate) fn emit_job(&mut self, id: u64, action: &str) {
        if let Some(status) = self.jobs.get(&id).map(|j| j.state.status) {
            self.emit_job_as(id, action, status);
        }
    }

    /// `workflow_job` with another status than the job's.
    pub(crate) fn emit_job_as(&mut self, id: u64, action: &str, status: Status) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let repo = job.repo;
        if self.listeners("workflow_job", Some(repo), None).is_empty() {
            return;
        }
        let mut body = self.job_payload(id, action, status);
        if self.roll(self.cfg.faults.webhook_empty_labels, "webhook_empty_labels")
            && let Some(job) = body.get_mut("workflow_job")
        {
            job["labels"] = json!([]);
        }
        let untouched = self.jobs.get(&id).is_some_and(|j| j.state.runner.is_none());
        if untouched && self.cfg.faults.webhook_runner_fields != RunnerFields::Null {
            let (number, text) = match self.cfg.faults.webhook_runner_fields {
                RunnerFields::Zero => (json!(0), json!("")),
                RunnerFields::Empty => (Value::Null, json!("")),
                RunnerFields::Null => (Value::Null, Value::Null),
            };
            self.count_fault("webhook_runner_fields");
            if let Some(job) = body.get_mut("workflow_job") {
                job["runner_id"] = number.clone();
                job["runner_group_id"] = number;
                job["runner_name"] = text.clone();
                job["runner_group_name"] = text;
            }
        }
        self.emit(Event {
            name: "workflow_job",
            action: Some(action),
            repo: Some(repo),
            account: None,
            job: Some(id),
            order_key: id,
            body,
        });
    }

    pub(crate) fn emit_run(&mut self, id: u64, action: &str) {
        let Some(run) = self.runs.get(&id) else {
            return;
        };
        let repo = run.repo;
        if self.listeners("workflow_run", Some(repo), None).is_empty() {
            return;
        }
        let body = self.run_payload(id, action);
        self.emit(Event {
            name: "workflow_run",
            action: Some(action),
            repo: Some(repo),
            account: None,
            job: None,
            order_key: id,
            body,
        });
    }

    pub(crate) fn emit_repository(&mut self, id: u64, action: &str, old_name: Option<String>) {
        let body = self.repository_payload(id, action, old_name);
        self.emit(Event {
            name: "repository",
            action: Some(action),
            repo: Some(id),
            account: None,
            job: None,
            order_key: id,
            body,
        });
    }

    pub(crate) fn emit_ping(&mut self, hook: u64) {
        let body = self.ping_payload(hook);
        let guid = self.chance.guid();
        self.enqueue(
            hook, &guid, "ping", None, None, None, None, hook, &body, false,
        );
    }

    pub(crate) fn emit_installation(&mut self, id: u64, action: &str) {
        let Some(account) = self.installations.get(&id).map(|i| i.account) else {
            return;
        };
        let body = self.installation_payload(id, action);
        self.emit(Event {
            name: "installation",
            action: Some(action),
            repo: None,
            account: Some(account),
            job: None,
            order_key: id,
            body,
        });
    }

    pub(crate) fn emit_installation_repositories(&mut self, id: u64, action: &str, repos: &[u64]) {
        let Some(account) = self.installations.get(&id).map(|i| i.account) else {
            return;
        };
        let body = self.installation_repositories_payload(id, action, repos);
        self.emit(Event {
            name: "installation_repositories",
            action: Some(action),
            repo: None,
            account: Some(account),
            job: None,
            order_key: id,
            body,
        });
    }

    /// (hook, installation) pairs that hear of an event.
    fn listeners(
        &self,
        event: &str,
        repo: Option<u64>,
        account: Option<u64>,
    ) -> Vec<(u64, Option<u64>)> {
        let owner = repo
            .and_then(|r| self.repos.get(&r))
            .map(|r| r.owner)
            .or(account);
        let app_event = event.starts_with("installation");
        let mut out = Vec::new();
        for hook in self.hooks.values().filter(|h| h.active) {
            let wants = app_event || hook.events.iter().any(|e| e == event || e == "*");
            if !wants {
                continue;
            }
            match hook.target {
                HookTarget::Repository(r) if Some(r) == repo && !app_event => {
                    out.push((hook.id, None))
                }
                HookTarget::Organization(o) if Some(o) == owner && !app_event => {
                    out.push((hook.id, None))
                }
                HookTarget::App(app) => {
                    let installed = self
                        .installations
                        .values()
                        .find(|i| i.app == app && Some(i.account) == owner);
                    let Some(i) = installed else { continue };
                    let covers =
                        repo.is_none_or(|r| i.repositories.as_ref().is_none_or(|s| s.contains(&r)));
                    if covers && (app_event || i.suspended_ms.is_none()) {
                        out.push((hook.id, Some(i.id)));
                    }
                }
                _ => {}
            }
        }
        out
    }

    fn emit(&mut self, event: Event<'_>) {
        let listeners = self.listeners(event.name, event.repo, event.account);
        if listeners.is_empty() {
            return;
        }
        // every hook of one event carries the same GUID
        let guid = self.chance.guid();
        for (hook, installation) in listeners {
            let mut body = event.body.clone();
            if let Some(id) = installation
                && !event.name.starts_with("installation")
            {
                body["installation"] =
                    json!({"id": id, "node_id": super::text::node_id("MDIz", id)});
            }
            self.enqueue(
                hook,
                &guid,
                event.name,
                event.action,
                event.job,
                event.repo,
                installation,
                event.order_key,
                &body,
                false,
            );
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn enqueue(
        &mut self,
        hook: u64,
        guid: &str,
        event: &str,
        action: Option<&str>,
        job: Option<u64>,
        repo: Option<u64>,
        installation: Option<u64>,
        order_key: u64,
        body: &Value,
        redelivery: bool,
    ) {
        let Some(json_form) = self.hooks.get(&hook).map(|h| h.content_type == "json") else {
            return;
        };
        let mut text = body.to_string();
        let pad = self.cfg.faults.webhook_pad_bytes as usize;
        if pad > text.len() {
            // white space after the document keeps it valid JSON
            text.push_str(&" ".repeat(pad - text.len()));
            self.count_fault("webhook_pad_bytes");
        }
        let bytes = if json_form {
            text.into_bytes()
        } else {
            format!("payload={}", form_encode(text.as_bytes())).into_bytes()
        };
        let plain = event != "ping" && !redelivery;
        let dropped = plain && self.roll(self.cfg.faults.webhook_drop, "webhook_drop");
        let twice = plain && self.roll(self.cfg.faults.webhook_duplicate, "webhook_duplicate");
        let bad_signature = plain
            && self.roll(
                self.cfg.faults.webhook_bad_signature,
                "webhook_bad_signature",
            );
        let body: Arc<[u8]> = bytes.into();
        for copy in 0..if twice { 2 } else { 1 } {
            let mut due = self.now;
            if plain {
                due += self.hold_back(action);
            }
            let id = self.fresh_id();
            let delivery = Delivery {
                id,
                guid: guid.to_owned(),
                hook,
                event: event.to_owned(),
                action: action.map(str::to_owned),
                job,
                repo,
                installation,
                redelivery,
                status: "pending".into(),
                status_code: 0,
                duration_ms: 0,
                created_ms: self.now,
                sent_ms: None,
                body: Arc::clone(&body),
                order_key,
                bad_signature,
                headers: Vec::new(),
                response_body: String::new(),
            };
            self.outbox.all.insert(id, delivery);
            if dropped && copy == 0 {
                // lost inside GitHub: it is listed as failed and nothing was sent
                if let Some(d) = self.outbox.all.get_mut(&id) {
                    d.status = "failed to connect to host".into();
                    // without an answer there is no code: such a failure is in neither status filter
                    d.status_code = if id.is_multiple_of(3) { 0 } else { 502 };
                    d.sent_ms = Some(self.now);
                }
            } else {
                self.outbox.due.insert((due, id));
            }
        }
        self.outbox.forget_old();
    }

    fn hold_back(&mut self, action: Option<&str>) -> u64 {
        let mut wait = 0;
        if self.roll(self.cfg.faults.webhook_reorder, "webhook_reorder") {
            wait += self.chance.below(3_000);
        }
        let d = self.cfg.faults.webhook_delay.clone();
        let applies =
            d.actions.is_empty() || action.is_some_and(|a| d.actions.iter().any(|x| x == a));
        if applies && self.roll(d.probability, "webhook_delay") {
            wait += d.min_ms + self.chance.below(d.max_ms.saturating_sub(d.min_ms) + 1);
        }
        wait
    }

    /// Deliveries that leave now. Of one hook and job the next one leaves when `delivery_done` was called for the one before.
    pub fn take_deliveries(&mut self) -> Vec<Outgoing> {
        let ready: Vec<(u64, u64)> = self
            .outbox
            .due
            .iter()
            .take_while(|(t, _)| *t <= self.now)
            .copied()
            .collect();
        let mut out = Vec::new();
        for entry in ready {
            let id = entry.1;
            let Some(d) = self.outbox.all.get(&id) else {
                self.outbox.due.remove(&entry);
                continue;
            };
            let key = (d.hook, d.order_key);
            if self.outbox.in_flight.contains(&key) {
                continue;
            }
            self.outbox.due.remove(&entry);
            let Some(hook) = self.hooks.get(&d.hook) else {
                self.outbox.all.remove(&id);
                continue;
            };
            let headers = self.delivery_headers(hook, d);
            let outgoing = Outgoing {
                attempt: id,
                guid: d.guid.clone(),
                hook_id: d.hook,
                event: d.event.clone(),
                action: d.action.clone(),
                url: hook.url.clone(),
                headers: headers.clone(),
                body: Arc::clone(&d.body),
            };
            self.outbox.in_flight.insert(key);
            self.outbox.flying.insert(id);
            let now = self.now;
            if let Some(d) = self.outbox.all.get_mut(&id) {
                d.headers = headers;
                d.status = "in flight".into();
                d.sent_ms = Some(now);
            }
            out.push(outgoing);
        }
        out
    }

    fn delivery_headers(&self, hook: &Hook, d: &Delivery) -> Vec<(String, String)> {
        let (kind, target) = match hook.target {
            HookTarget::Repository(r) => ("repository", r),
            HookTarget::Organization(o) => ("organization", o),
            HookTarget::App(a) => ("integration", a),
        };
        let content_type = if hook.content_type == "json" {
            "application/json"
        } else {
            "application/x-www-form-urlencoded"
        };
        let mut headers = vec![
            ("Accept".to_owned(), "*/*".to_owned()),
            ("Content-Type".to_owned(), content_type.to_owned()),
            (
                "User-Agent".to_owned(),
                "GitHub-Hookshot/51a6f2e".to_owned(),
            ),
            ("X-GitHub-Delivery".to_owned(), d.guid.clone()),
            ("X-GitHub-Event".to_owned(), d.event.clone()),
            ("X-GitHub-Hook-ID".to_owned(), hook.id.to_string()),
            (
                "X-GitHub-Hook-Installation-Target-ID".to_owned(),
                target.to_string(),
            ),
            (
                "X-GitHub-Hook-Installation-Target-Type".to_owned(),
                kind.to_owned(),
            ),
        ];
        if self.cfg.ghes {
            let host = self
                .cfg
                .rest_url
                .split("://")
                .nth(1)
                .unwrap_or("ghes")
                .to_owned();
            headers.push((
                "X-GitHub-Enterprise-Version".to_owned(),
                "3.17.0".to_owned(),
            ));
            headers.push(("X-GitHub-Enterprise-Host".to_owned(), host));
        }
        if let Some(secret) = &hook.secret {
            let mut sha256 = sign(hmac::HMAC_SHA256, secret, &d.body);
            if d.bad_signature {
                let flipped = if sha256.starts_with('0') { "1" } else { "0" };
                sha256.replace_range(..1, flipped);
            }
            let sha1 = sign(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret, &d.body);
            headers.push(("X-Hub-Signature".to_owned(), format!("sha1={sha1}")));
            headers.push(("X-Hub-Signature-256".to_owned(), format!("sha256={sha256}")));
        }
        headers
    }

    /// Tells what became of a delivery.
    pub fn delivery_done(&mut self, attempt: u64, outcome: DeliveryOutcome) {
        self.outbox.flying.remove(&attempt);
        let Some(d) = self.outbox.all.get_mut(&attempt) else {
            return;
        };
        match outcome {
            DeliveryOutcome::Answered {
                status,
                duration_ms,
                body,
            } => {
                d.status = if (200..300).contains(&status) {
                    "OK".into()
                } else {
                    format!("Invalid HTTP Response: {status}")
                };
                d.status_code = status;
                d.duration_ms = duration_ms;
                d.response_body = body;
            }
            DeliveryOutcome::Failed { why, duration_ms } => {
                d.status = why;
                d.status_code = 502;
                d.duration_ms = duration_ms;
            }
        }
        let key = (d.hook, d.order_key);
        let (hook, code, text) = (d.hook, u64::from(d.status_code), d.status.clone());
        self.outbox.in_flight.remove(&key);
        if let Some(h) = self.hooks.get_mut(&hook) {
            h.last = Some((code, text));
        }
    }

    /// Sends a delivery again, with its old GUID. `None`: it is older than three days or forgotten.
    pub(crate) fn redeliver(&mut self, hook: u64, delivery: u64) -> Option<u64> {
        let old = self
            .outbox
            .all
            .get(&delivery)
            .filter(|d| d.hook == hook)?
            .clone();
        if old.created_ms + 3 * DAY < self.now {
            return None;
        }
        let id = self.fresh_id();
        let again = Delivery {
            id,
            redelivery: true,
            status: "pending".into(),
            status_code: 0,
            duration_ms: 0,
            created_ms: self.now,
            sent_ms: None,
            bad_signature: false,
            headers: Vec::new(),
            response_body: String::new(),
            ..old
        };
        self.outbox.all.insert(id, again);
        self.outbox.due.insert((self.now, id));
        Some(id)
    }

    /// Delivery attempts that are remembered, oldest first.
    pub fn deliveries(&self) -> impl Iterator<Item = &Delivery> {
        self.outbox.all.values()
    }

    /// Nothing waits and nothing is in flight.
    pub fn deliveries_idle(&self) -> bool {
        self.outbox.open() == 0
    }
}

fn sign(algorithm: hmac::Algorithm, secret: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(algorithm, secret.as_bytes());
    hex::encode(hmac::sign(&key, body).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_githubs_published_vector() {
        let got = sign(
            hmac::HMAC_SHA256,
            "It's a Secret to Everybody",
            b"Hello, World!",
        );
        assert_eq!(
            got,
            "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
    }
}
