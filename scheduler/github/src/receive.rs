//! A delivery, from raw bytes to inputs.

use std::sync::Arc;

use scheduler_core::{
    input::Input,
    model::{Conclusion, JobPhase, UtcMillis},
};

use crate::{
    credential::{lock, utc_now},
    deliveries::Hook,
    directory::Watched,
    discovery::forget,
    github::Inner,
    ledger::RunState,
    translate::{job_seen, origin, repository, webhook_phase},
    webhook::{Delivery, Event, MAX_BODY, WebhookError, json_of, parse, verify},
    wire::Payload,
};

pub(crate) async fn receive(
    inner: &Inner,
    delivery: Delivery<'_>,
) -> Result<Vec<Input>, WebhookError> {
    if delivery.body.len() > MAX_BODY {
        return Err(WebhookError::TooLarge);
    }
    verify(&inner.webhook_secrets(), delivery.signature, delivery.body)?;
    let json = json_of(delivery.content_type, delivery.body)?;
    let event = parse(delivery.event, &json)?;
    let now = utc_now();
    lock(&inner.health).delivered(now);
    if let Event::WorkflowJob(payload) | Event::WorkflowRun(payload) | Event::Ping(payload) = &event
        && let Some(hook) = Hook::of(&delivery, payload)
    {
        inner.hooks.learn(hook);
    }
    Ok(match event {
        Event::WorkflowJob(payload) => {
            workflow_job(inner, &payload, delivery.traceparent, now).await
        }
        Event::WorkflowRun(payload) => workflow_run(inner, &payload, now),
        Event::Ping(payload) => ping(inner, &payload, now),
        Event::Installation(payload) => installation(inner, &payload),
        Event::InstallationRepositories(payload) => {
            inner.discover_now.notify_one();
            removed(inner, &payload)
        }
        Event::Repository(payload) => repository_event(inner, &payload),
        Event::Meta(payload) => meta(inner, &payload, now),
        Event::Unknown { event } => {
            tracing::debug!(event, guid = delivery.guid, "webhook event ignored");
            Vec::new()
        }
    })
}

async fn workflow_job(
    inner: &Inner,
    payload: &Payload,
    traceparent: Option<&str>,
    now: UtcMillis,
) -> Vec<Input> {
    let (Some(job), Some(wire)) = (payload.workflow_job.get(), payload.repository.get()) else {
        return Vec::new();
    };
    let Some(phase) = webhook_phase(payload.action.text(), job.status.text()) else {
        return Vec::new();
    };
    let Some(repository) = repository(wire) else {
        return Vec::new();
    };
    let Some(route) = inner.route(&repository.owner, &repository.name).await else {
        return Vec::new();
    };
    let Some(mut seen) = job_seen(job, phase, &repository, &route, now) else {
        return Vec::new();
    };
    seen.origin = inner.origin(seen.run_id);
    seen.traceparent = traceparent.map(str::to_owned);
    watch(inner, &repository, now);
    let moved = phase >= JobPhase::InProgress;
    lock(&inner.coverage).told(repository.id, seen.run_id, moved, now);
    let run_over = {
        let mut live = lock(&inner.live);
        live.note(&seen);
        !live.has_run(seen.run_id)
    };
    let mut ledger = lock(&inner.ledger);
    match phase {
        JobPhase::Completed => {
            if matches!(
                seen.conclusion,
                Some(Conclusion::Failure | Conclusion::TimedOut)
            ) {
                ledger.fail(repository.id, seen.run_id);
            }
            if run_over {
                ledger.finish(repository.id, seen.run_id);
            }
        }
        JobPhase::InProgress => {
            ledger.set(repository.id, seen.run_id, RunState::Running, None, now);
        }
        JobPhase::Queued => ledger.set(repository.id, seen.run_id, RunState::Queued, None, now),
        JobPhase::Waiting => {}
    }
    drop(ledger);
    vec![Input::JobSeen(Arc::new(seen))]
}

/// A repository that speaks by webhook is swept too, whatever the lists say of its activity.
fn watch(inner: &Inner, repository: &scheduler_core::model::Repository, now: UtcMillis) {
    let mut directory = lock(&inner.directory);
    let current = directory
        .watched(&repository.owner, &repository.name)
        .is_some_and(|watched| watched.repository.id == repository.id);
    if current {
        directory.touch(&repository.owner, &repository.name, now);
        return;
    }
    let reader = directory
        .owner(&repository.owner)
        .map(|owner| owner.credential.clone());
    if let Some(reader) = reader {
        directory.watch(Watched {
            repository: repository.clone(),
            reader,
            last_activity: now,
            admin: None,
        });
    }
}

fn workflow_run(inner: &Inner, payload: &Payload, now: UtcMillis) -> Vec<Input> {
    let Some(run) = payload.workflow_run.get() else {
        return Vec::new();
    };
    let Some(run_id) = run.id.id() else {
        return Vec::new();
    };
    let wire = payload.repository.get().or(run.repository.get());
    let Some(repository) = wire.and_then(repository) else {
        return Vec::new();
    };
    if !inner.config.wants(&repository.owner, &repository.name) {
        return Vec::new();
    }
    let origin = origin(run);
    inner.set_origin(run_id, &origin);
    let state = RunState::of(run.status.text(), run.conclusion.text());
    let path = run.path.text();
    lock(&inner.ledger).set(repository.id, run_id, state, path, now);
    lock(&inner.directory).touch(&repository.owner, &repository.name, now);
    vec![Input::RunSeen { run_id, origin }]
}

fn ping(inner: &Inner, payload: &Payload, now: UtcMillis) -> Vec<Input> {
    let hook = payload.hook.get().cloned().unwrap_or_default();
    let subject = format!("webhook {}", payload.hook_id.id().unwrap_or(0));
    let told = hook
        .events
        .items()
        .any(|event| event == "workflow_job" || event == "*");
    if told {
        inner.problems.clear(&subject);
    } else {
        inner.problems.set(
            &subject,
            "the hook does not send 'workflow_job': tick Workflow jobs (and Workflow runs) in its settings at GitHub".to_owned(),
            now,
        );
    }
    Vec::new()
}

fn installation(inner: &Inner, payload: &Payload) -> Vec<Input> {
    inner.discover_now.notify_one();
    let id = payload.installation.get().and_then(|found| found.id.id());
    match (payload.action.text(), id) {
        (Some("deleted" | "suspend"), Some(id)) => {
            inner.client.forget_installation(id);
            let lost = lock(&inner.directory).remove_installation(id);
            forget(inner, lost)
        }
        _ => Vec::new(),
    }
}

fn removed(inner: &Inner, payload: &Payload) -> Vec<Input> {
    let lost: Vec<Watched> = payload
        .repositories_removed
        .items()
        .filter_map(|wire| {
            let (owner, name) = wire.owner_and_name()?;
            lock(&inner.directory).remove(owner, name)
        })
        .collect();
    forget(inner, lost)
}

fn repository_event(inner: &Inner, payload: &Payload) -> Vec<Input> {
    inner.discover_now.notify_one();
    let Some(repository) = payload.repository.get().and_then(repository) else {
        return Vec::new();
    };
    let mut directory = lock(&inner.directory);
    match payload.action.text() {
        Some("archived" | "deleted") => {
            let lost = directory.remove(&repository.owner, &repository.name);
            drop(directory);
            forget(inner, lost.into_iter().collect())
        }
        Some("renamed" | "transferred" | "privatized" | "publicized") => {
            // Keyed by id: the same repository under its new name and visibility.
            let known = directory
                .repositories()
                .find(|watched| watched.repository.id == repository.id)
                .cloned();
            if let Some(mut watched) = known
                && watched
                    .repository
                    .owner
                    .eq_ignore_ascii_case(&repository.owner)
            {
                watched.repository = repository;
                directory.watch(watched);
            }
            Vec::new()
        }
        _ => Vec::new(),
    }
}

fn meta(inner: &Inner, payload: &Payload, now: UtcMillis) -> Vec<Input> {
    if payload.action.text() == Some("deleted") {
        lock(&inner.health).missed(now);
        inner.problems.set(
            &format!("webhook {}", payload.hook_id.id().unwrap_or(0)),
            "the hook was deleted at GitHub: jobs are seen by the sweep only until a new one is made".to_owned(),
            now,
        );
    }
    Vec::new()
}
