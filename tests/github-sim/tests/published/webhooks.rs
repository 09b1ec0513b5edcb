//! Every webhook the simulator sends fits the published schema, and is signed as GitHub signs.

use std::collections::BTreeSet;

use aws_lc_rs::hmac;
use github_sim::machine::{
    AppSpec, DeliveryOutcome, HookSpec, InstallationSpec, JobSpec, OwnerSpec, RepoSpec, RunSpec,
    WebhookSpec, World, WorldConfig,
};
use serde_json::Value;

use crate::schema::{WebhookSchema, without};

const SECRET: &str = "It's a Secret to Everybody";

/// Event, headers and body.
type Sent = (String, Vec<(String, String)>, Vec<u8>);

/// A world in which everything that can be sent is sent.
fn send_everything() -> Vec<Sent> {
    let mut w = World::new(9, WorldConfig::default());
    w.add_owner(OwnerSpec::organization("acme")).unwrap();
    w.add_owner(OwnerSpec::user("mona")).unwrap();
    for (owner, name) in [("acme", "web"), ("acme", "api"), ("mona", "own")] {
        w.add_repo(RepoSpec::new(owner, name)).unwrap();
    }
    let events: Vec<String> = ["workflow_job", "workflow_run", "repository"]
        .iter()
        .map(|e| (*e).to_owned())
        .collect();
    w.add_hook(HookSpec {
        events: events.clone(),
        ..HookSpec::organization("acme", "http://receiver/", SECRET)
    })
    .unwrap();
    w.add_hook(HookSpec {
        events: events.clone(),
        ..HookSpec::repository("mona/own", "http://receiver/", SECRET)
    })
    .unwrap();
    let app = AppSpec {
        slug: "fleet".into(),
        permissions: [("actions".to_owned(), "read".to_owned())].into(),
        events,
        webhook: Some(WebhookSpec {
            url: "http://receiver/".into(),
            secret: SECRET.into(),
        }),
        public_key: Vec::new(),
    };
    let (app, _) = w.add_app(app).unwrap();
    let on_acme = InstallationSpec {
        app_id: app,
        account: "acme".into(),
        repositories: Some(vec!["acme/web".into()]),
        permissions: None,
    };
    let installation = w.add_installation(on_acme).unwrap();
    w.change_installation_repositories(installation, &["acme/api".into()], &[])
        .unwrap();
    w.change_installation_repositories(installation, &[], &["acme/api".into()])
        .unwrap();
    w.suspend_installation(installation, true).unwrap();
    w.suspend_installation(installation, false).unwrap();
    for repo in ["acme/web", "mona/own"] {
        let jobs = vec![
            JobSpec::new("build", &["self-hosted"]).steps(&["true", "false"]),
            JobSpec::new("ship", &["self-hosted"]).environment("prod"),
            JobSpec::new("after", &["self-hosted"]).needs(&["build"]),
        ];
        let run = w.queue_run(&RunSpec::new(repo, jobs)).unwrap();
        let first = w.run(run).unwrap().jobs()[0];
        w.start_job(first, Some("a-runner")).unwrap();
        w.complete_job(first, "failure").unwrap();
        w.approve_run(run).unwrap();
        w.cancel_run(run, false).unwrap();
        w.rerun(run, true, None).unwrap();
        w.cancel_run(run, true).unwrap();
    }
    w.rename_repo("acme/web", "site").unwrap();
    w.set_archived("acme/site", true).unwrap();
    w.delete_installation(installation).unwrap();
    let mut out = Vec::new();
    loop {
        let batch = w.take_deliveries();
        if batch.is_empty() {
            return out;
        }
        for d in batch {
            w.delivery_done(
                d.attempt,
                DeliveryOutcome::Answered {
                    status: 200,
                    duration_ms: 1,
                    body: String::new(),
                },
            );
            out.push((d.event, d.headers, d.body.to_vec()));
        }
    }
}

#[test]
fn every_payload_fits_the_published_schema() {
    let mut schema = WebhookSchema::load(true);
    let mut problems = Vec::new();
    let mut kinds = BTreeSet::new();
    for (event, _, body) in send_everything() {
        let payload: Value = serde_json::from_slice(&body).unwrap();
        kinds.insert(format!(
            "{event}.{}",
            payload["action"].as_str().unwrap_or("")
        ));
        for p in schema.faults(&event, &payload) {
            if !problems.contains(&p) {
                problems.push(p);
            }
        }
    }
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
    for kind in [
        "ping.",
        "installation.created",
        "installation.deleted",
        "installation.suspend",
        "installation.unsuspend",
        "installation_repositories.added",
        "installation_repositories.removed",
        "repository.renamed",
        "repository.archived",
        "workflow_job.queued",
        "workflow_job.waiting",
        "workflow_job.in_progress",
        "workflow_job.completed",
        "workflow_run.requested",
        "workflow_run.in_progress",
        "workflow_run.completed",
    ] {
        assert!(
            kinds.contains(kind),
            "{kind} was never sent; sent were {kinds:?}"
        );
    }
}

#[test]
fn a_payload_without_any_one_required_field_of_the_job_is_rejected() {
    let mut schema = WebhookSchema::load(true);
    let required =
        crate::schema::read("webhooks/schema.json")["definitions"]["workflow-job"]["required"]
            .clone();
    let mut tried = 0;
    for (event, _, body) in send_everything() {
        if event != "workflow_job" {
            continue;
        }
        let payload: Value = serde_json::from_slice(&body).unwrap();
        for field in required.as_array().unwrap() {
            let field = field.as_str().unwrap();
            let broken = without(&payload, "/workflow_job", field).unwrap();
            assert!(
                !schema.faults(&event, &broken).is_empty(),
                "still valid without {field}"
            );
            tried += 1;
        }
    }
    assert!(tried > 100);
}

#[test]
fn deliveries_carry_the_headers_and_a_signature_over_the_raw_body() {
    for (event, headers, body) in send_everything() {
        let header = |name: &str| {
            let found = headers.iter().find(|(n, _)| n == name);
            found
                .unwrap_or_else(|| panic!("{event} has no {name}"))
                .1
                .clone()
        };
        assert_eq!(header("X-GitHub-Event"), event);
        assert_eq!(header("Content-Type"), "application/json");
        assert!(header("User-Agent").starts_with("GitHub-Hookshot/"));
        assert_eq!(header("X-GitHub-Delivery").len(), 36);
        for name in ["X-GitHub-Hook-ID", "X-GitHub-Hook-Installation-Target-ID"] {
            assert!(header(name).parse::<u64>().is_ok());
        }
        assert!(
            ["repository", "organization", "integration"]
                .contains(&header("X-GitHub-Hook-Installation-Target-Type").as_str())
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        let signature = hex::decode(
            header("X-Hub-Signature-256")
                .strip_prefix("sha256=")
                .unwrap(),
        )
        .unwrap();
        assert!(hmac::verify(&key, &body, &signature).is_ok());
    }
}
