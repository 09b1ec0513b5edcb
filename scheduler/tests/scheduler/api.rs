//! FleetService: settings, commands, lists, and errors that say the next step.

use std::time::Duration;

use longshore_proto::v1::{self, attach_response, fleet_service_client::FleetServiceClient};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    harness::{Authorized, World, queued, until},
    node::Node,
};

type Fleet = FleetServiceClient<Authorized>;

/// Code, reason and next step of an error.
fn error(status: &Status) -> (Code, String, String) {
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.domain, "longshore");
    let next_step = info.metadata.get("next_step").expect("a next step");
    assert!(status.message().contains(next_step.as_str()));
    (status.code(), info.reason, next_step.clone())
}

#[tokio::test]
async fn what_is_not_there_is_not_found_with_a_next_step() {
    let scheduler = World::new().start().await;
    let mut fleet = scheduler.fleet().await;
    let name = || "ls-f1-absent".to_owned();
    let missing = [
        fleet
            .get_runner(v1::GetRunnerRequest { name: name() })
            .await
            .map(|_| ())
            .expect_err("runner"),
        fleet
            .stop_runner(v1::StopRunnerRequest {
                name: name(),
                ..Default::default()
            })
            .await
            .map(|_| ())
            .expect_err("container"),
        fleet
            .get_node(v1::GetNodeRequest { name: name() })
            .await
            .map(|_| ())
            .expect_err("node"),
        fleet
            .drain_node(v1::DrainNodeRequest {
                name: name(),
                ..Default::default()
            })
            .await
            .map(|_| ())
            .expect_err("node to drain"),
        fleet
            .get_job(v1::GetJobRequest { id: 5 })
            .await
            .map(|_| ())
            .expect_err("job"),
        fleet
            .explain_job(v1::ExplainJobRequest { id: 5 })
            .await
            .map(|_| ())
            .expect_err("job to explain"),
        fleet
            .delete_pool(v1::DeletePoolRequest {
                name: name(),
                ..Default::default()
            })
            .await
            .map(|_| ())
            .expect_err("pool"),
        fleet
            .provision_runners(v1::ProvisionRunnersRequest {
                repo: "nobody/nothing".to_owned(),
                ..Default::default()
            })
            .await
            .map(|_| ())
            .expect_err("repository"),
    ];
    let reasons: Vec<String> = missing
        .iter()
        .map(|status| {
            let (code, reason, next_step) = error(status);
            assert_eq!(code, Code::NotFound, "{status:?}");
            assert!(!next_step.is_empty());
            reason
        })
        .collect();
    assert_eq!(
        reasons,
        [
            "runner_not_found",
            "runner_not_found",
            "node_not_found",
            "node_not_found",
            "job_not_found",
            "job_not_found",
            "pool_not_found",
            "repository_not_found"
        ]
    );
    scheduler.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_provisioned_is_said_in_words() {
    let scheduler = World::new().start().await;
    let _node = Node::attach(&scheduler, "n1").await;
    let mut fleet = scheduler.fleet().await;
    let mut problem = async |labels: &[&str]| {
        let request = v1::ProvisionRunnersRequest {
            repo: "acme/web".to_owned(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            validate_only: true,
            ..Default::default()
        };
        let answer = fleet.provision_runners(request).await.expect("known");
        answer.into_inner().provisioned.remove(0).problem
    };
    assert_eq!(problem(&["self-hosted", "linux"]).await, "");
    assert_eq!(
        problem(&["linux", "quantum"]).await,
        "no node carries the label quantum; attach one that does"
    );
    assert_eq!(
        problem(&["linux", "quantum", "exotic"]).await,
        "no node carries the labels exotic, quantum; attach one that does"
    );
    // A pool's own label is proven by no node: the pool grants it.
    let pool = v1::Pool {
        name: "lab".to_owned(),
        labels: ["linux", "quantum"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let set = v1::SetPoolRequest {
        pool: Some(pool),
        ..Default::default()
    };
    let mut pools = scheduler.fleet().await;
    pools.set_pool(set).await.expect("set");
    assert_eq!(problem(&["linux", "quantum"]).await, "");
    assert_eq!(
        problem(&["linux", "quantum", "exotic"]).await,
        "no node carries the label exotic; attach one that does"
    );
    scheduler.shutdown().await;
}

async fn status(fleet: &mut Fleet) -> v1::GetStatusResponse {
    let status = fleet.get_status(v1::GetStatusRequest {}).await;
    status.expect("answers").into_inner()
}

#[tokio::test]
async fn settings_of_the_api_survive_a_restart_and_stand_over_the_configuration() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut fleet = scheduler.fleet().await;
    let request = |validate_only| v1::StartAutoscalerRequest {
        settings: Some(v1::AutoscalerSettings {
            owners: vec!["acme".to_owned()],
            poll_interval: Some(prost_types::Duration {
                seconds: 30,
                nanos: 0,
            }),
            max_runners: 7,
            ..Default::default()
        }),
        request_id: String::new(),
        validate_only,
    };
    fleet.start_autoscaler(request(true)).await.expect("valid");
    let before = status(&mut fleet).await.settings.expect("set");
    assert_eq!(before.max_runners, 0, "validating changes nothing");
    fleet.start_autoscaler(request(false)).await.expect("set");
    scheduler.kill().await;

    let scheduler = world.start().await;
    let settings = status(&mut scheduler.fleet().await).await.settings;
    let settings = settings.expect("set");
    assert_eq!(settings.max_runners, 7);
    assert_eq!(settings.owners, ["acme"]);
    assert_eq!(settings.poll_interval.expect("set").seconds, 30);
    assert_eq!(scheduler.running.view.fleet(|fleet| fleet.max_runners()), 7);
    scheduler.shutdown().await;

    // A flag given since stands over what was stored.
    let world = world.with_flags(&["--max-runners", "3"]);
    let scheduler = world.start().await;
    assert_eq!(scheduler.running.view.fleet(|fleet| fleet.max_runners()), 3);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn stopped_scaling_stays_stopped_and_explains_itself() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut fleet = scheduler.fleet().await;
    let stop = v1::StopAutoscalerRequest::default();
    let stopped = fleet.stop_autoscaler(stop).await.expect("stops");
    assert!(stopped.into_inner().was_running);
    scheduler.kill().await;
    let scheduler = world.start().await;
    let mut fleet = scheduler.fleet().await;
    assert!(!status(&mut fleet).await.running);
    let mut node = Node::attach(&scheduler, "n1").await;
    scheduler.deliver(&queued(1)).await;
    let explained = fleet
        .explain_job(v1::ExplainJobRequest { id: 1 })
        .await
        .expect("known")
        .into_inner();
    assert_eq!(explained.reason, "autoscaler_stopped");
    assert!(!explained.next_step.is_empty());
    fleet
        .start_autoscaler(v1::StartAutoscalerRequest::default())
        .await
        .expect("starts");
    node.first_runner().await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_job_no_node_can_run_is_counted_by_what_is_missing_and_explained_per_node() {
    let scheduler = World::new().start().await;
    let _node = Node::attach(&scheduler, "n1").await;
    let arm = serde_json::json!({
        "id": 9, "status": "queued", "labels": ["self-hosted", "linux", "arm64"],
    });
    scheduler.deliver(&arm).await;
    let mut fleet = scheduler.fleet().await;
    let explained = fleet
        .explain_job(v1::ExplainJobRequest { id: 9 })
        .await
        .expect("known")
        .into_inner();
    assert_eq!(explained.reason, "missing_label");
    assert_eq!(explained.nodes.len(), 1);
    assert!(!explained.nodes[0].feasible);
    assert_eq!(status(&mut fleet).await.filtered.get("arm64"), Some(&1));
    let queues = fleet
        .list_workflow_queues(v1::ListWorkflowQueuesRequest::default())
        .await
        .expect("lists")
        .into_inner();
    assert_eq!(queues.filtered.get("arm64"), Some(&1));
    assert_eq!(queues.queues.len(), 1);
    assert_eq!(queues.queues[0].repo, "acme/web");
    assert_eq!(queues.queues[0].pending, 1);
    let other = fleet
        .list_workflow_queues(v1::ListWorkflowQueuesRequest {
            owner: "somebody".to_owned(),
            ..Default::default()
        })
        .await
        .expect("lists")
        .into_inner();
    assert!(other.queues.is_empty());
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_list_tells_a_strangers_fork_from_the_repositorys_own_jobs() {
    let scheduler = World::new().start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    let mut fork = queued(2);
    fork["event"] = "pull_request".into();
    fork["head_repository"] = "stranger/web".into();
    // The same repository and labels: only the code's origin differs.
    scheduler.deliver(&queued(1)).await;
    scheduler.deliver(&fork).await;
    node.first_runner().await;
    let mut fleet = scheduler.fleet().await;
    let listed = fleet.list_jobs(v1::ListJobsRequest::default()).await;
    for job in listed.expect("lists").into_inner().jobs {
        let asked = v1::ExplainJobRequest { id: job.id };
        let explained = fleet.explain_job(asked).await.expect("known").into_inner();
        assert_eq!(job.waiting_reason, explained.reason, "job {}", job.id);
        assert_eq!(job.waiting_reason == "fork_refused", job.id == 2);
    }
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_check_is_answered_by_the_node_and_by_nobody_else() {
    let scheduler = World::new().start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    let ask = |name: &str, profile: &str| {
        let request = v1::CheckNodeRequest {
            name: name.to_owned(),
            profile: profile.to_owned(),
            ..Default::default()
        };
        let fleet = scheduler.fleet();
        async move { fleet.await.check_node(request).await }
    };
    let refused = ask("n2", "").await.expect_err("no such node");
    assert_eq!(error(&refused).1, "node_not_found");
    let refused = ask("n1", "loose").await.expect_err("no such profile");
    assert_eq!(error(&refused).1, "invalid_argument");

    let check = v1::Check {
        row: 22,
        name: "no_host_services".to_owned(),
        state: v1::property::State::Failed.into(),
        detail: "reached 10.0.0.1:22".to_owned(),
    };
    let asked = async {
        let question = loop {
            if let Some(attach_response::Message::Check(question)) = node.next().await {
                break question;
            }
        };
        let spec = question.spec.as_ref().expect("a spec");
        assert_eq!((&*spec.profile, &*spec.network_mode), ("standard", "open"));
        // Another while this one is under way is refused at once.
        let second = ask("n1", "standard").await.expect_err("one at a time");
        assert_eq!(error(&second).1, "check_under_way");
        let told = v1::SandboxChecked {
            id: question.id,
            checks: vec![check.clone()],
            ..Default::default()
        };
        node.checked(told).await;
    };
    let (answer, ()) = tokio::join!(ask("n1", "standard"), asked);
    let answer = answer.expect("an answer").into_inner();
    assert_eq!(answer.checks, [check]);
    assert_eq!((&*answer.node, &*answer.profile), ("n1", "standard"));

    // The stream ends while somebody waits.
    let (answer, ()) = tokio::join!(ask("n1", ""), async move {
        while !matches!(node.next().await, Some(attach_response::Message::Check(_))) {}
        drop(node);
    });
    assert_eq!(error(&answer.expect_err("it left")).1, "node_unreachable");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn nodes_are_cordoned_drained_and_removed_and_the_answer_shows_it() {
    let scheduler = World::new().start().await;
    let _node = Node::attach(&scheduler, "n1").await;
    let mut fleet = scheduler.fleet().await;
    let name = || "n1".to_owned();
    let cordoned = fleet
        .cordon_node(v1::CordonNodeRequest {
            name: name(),
            ..Default::default()
        })
        .await
        .expect("cordons");
    assert_eq!(cordoned.into_inner().node.expect("set").state, "cordoned");
    let back = fleet
        .uncordon_node(v1::UncordonNodeRequest {
            name: name(),
            ..Default::default()
        })
        .await
        .expect("uncordons");
    assert_eq!(back.into_inner().node.expect("set").state, "ready");
    let drained = fleet
        .drain_node(v1::DrainNodeRequest {
            name: name(),
            deadline: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
            ..Default::default()
        })
        .await
        .expect("drains")
        .into_inner()
        .node
        .expect("set");
    assert_eq!(drained.state, "draining");
    assert!(drained.drain_deadline.is_some());
    fleet
        .remove_node(v1::RemoveNodeRequest {
            name: name(),
            ..Default::default()
        })
        .await
        .expect("removes");
    let gone = fleet.get_node(v1::GetNodeRequest { name: name() }).await;
    assert_eq!(gone.expect_err("gone").code(), Code::NotFound);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_request_id_makes_a_write_happen_once() {
    let scheduler = World::new().start().await;
    let mut fleet = scheduler.fleet().await;
    let stop = || v1::StopAutoscalerRequest {
        request_id: "r1".to_owned(),
    };
    for _ in 0..2 {
        // The second answer is the first one's, though scaling is off by then.
        let answer = fleet.stop_autoscaler(stop()).await.expect("answers");
        assert!(answer.into_inner().was_running);
    }
    let reused = fleet
        .cordon_node(v1::CordonNodeRequest {
            name: "n1".to_owned(),
            request_id: "r1".to_owned(),
        })
        .await
        .expect_err("another request");
    assert_eq!(error(&reused).1, "request_id_reused");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_floor_of_runners_starts_without_a_job_and_says_why_it_cannot() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut fleet = scheduler.fleet().await;
    let request = |labels: &[&str]| v1::ProvisionRunnersRequest {
        repo: "acme/web".to_owned(),
        count: 2,
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..Default::default()
    };
    let labels = ["self-hosted", "linux", "x64"];
    let early = fleet.provision_runners(request(&labels)).await;
    let early = early.expect("answers").into_inner().provisioned;
    assert!(
        early[0].problem.contains("no node is attached"),
        "{early:?}"
    );
    let mut node = Node::attach(&scheduler, "n1").await;
    let told = fleet.provision_runners(request(&labels)).await;
    let told = told.expect("answers").into_inner().provisioned;
    assert_eq!((told[0].count, told[0].problem.as_str()), (2, ""));
    let until_ms = told[0].until.expect("set").seconds as u64 * 1_000;
    let ttl = until_ms.saturating_sub(longshore_scheduler::clock::utc());
    assert!(ttl > 9 * 60_000 && ttl <= 10 * 60_000, "{ttl} ms");
    node.until(|node| node.wanted().len() == 2).await;
    let gpu = fleet
        .provision_runners(request(&["self-hosted", "gpu"]))
        .await;
    let gpu = gpu.expect("answers").into_inner().provisioned;
    assert!(gpu[0].problem.contains("gpu"), "{gpu:?}");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn pools_and_shares_are_set_checked_and_kept() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut fleet = scheduler.fleet().await;
    let pool = |priority: &str| v1::SetPoolRequest {
        pool: Some(v1::Pool {
            name: "fast".to_owned(),
            priority: priority.to_owned(),
            labels: vec!["Linux".to_owned()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let wrong = fleet.set_pool(pool("urgent")).await.expect_err("refused");
    assert_eq!(error(&wrong).0, Code::InvalidArgument);
    let mut tiny = pool("high");
    if let Some(pool) = &mut tiny.pool {
        pool.resources = Some(v1::Resources {
            memory_bytes: 1,
            ..Default::default()
        });
    }
    let wrong = fleet.set_pool(tiny).await.expect_err("refused");
    assert_eq!(error(&wrong).0, Code::InvalidArgument);
    assert!(wrong.message().contains("64 MiB"), "{}", wrong.message());
    let set = fleet
        .set_pool(pool("high"))
        .await
        .expect("set")
        .into_inner();
    let set = set.pool.expect("set");
    assert_eq!(
        (set.origin.as_str(), set.priority.as_str()),
        ("api", "high")
    );
    assert_eq!(set.resources.expect("default").cpu_millis, 2_000);
    let share = |weight| v1::SetShareRequest {
        subject: "acme/web".to_owned(),
        weight,
        ..Default::default()
    };
    assert!(fleet.set_share(share(0)).await.is_err());
    fleet.set_share(share(4)).await.expect("set");
    scheduler.kill().await;

    let scheduler = world.start().await;
    let mut fleet = scheduler.fleet().await;
    let pools = fleet.list_pools(v1::ListPoolsRequest::default()).await;
    let pools = pools.expect("lists").into_inner().pools;
    assert!(pools.iter().any(|pool| pool.name == "fast"));
    let weight = scheduler
        .running
        .view
        .fleet(|fleet| fleet.shares().map(|(_, share)| share.weight).max());
    assert_eq!(weight, Some(4));
    let built_in = pools
        .iter()
        .find(|pool| pool.origin == "built in")
        .expect("a built-in pool");
    let refused = fleet
        .delete_pool(v1::DeletePoolRequest {
            name: built_in.name.clone(),
            ..Default::default()
        })
        .await
        .expect_err("refused");
    assert_eq!(error(&refused).0, Code::FailedPrecondition);
    fleet
        .delete_pool(v1::DeletePoolRequest {
            name: "fast".to_owned(),
            ..Default::default()
        })
        .await
        .expect("deleted");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let scheduler = World::new().start().await;
    for id in 1..=25 {
        scheduler.deliver(&queued(id)).await;
    }
    let mut fleet = scheduler.fleet().await;
    let mut ids = std::collections::BTreeSet::new();
    let mut token = String::new();
    loop {
        let page = fleet
            .list_jobs(v1::ListJobsRequest {
                page_size: 10,
                page_token: token,
                state: "queued".to_owned(),
                ..Default::default()
            })
            .await
            .expect("lists")
            .into_inner();
        assert!(page.jobs.len() <= 10);
        ids.extend(page.jobs.iter().map(|job| job.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(ids.len(), 25);
    for (state, code) in [("done", Code::InvalidArgument)] {
        let request = v1::ListJobsRequest {
            state: state.to_owned(),
            ..Default::default()
        };
        let refused = fleet.list_jobs(request).await.expect_err("refused");
        assert_eq!(error(&refused).0, code);
    }
    let token = v1::ListJobsRequest {
        page_token: "nonsense".to_owned(),
        ..Default::default()
    };
    let refused = fleet.list_jobs(token).await.expect_err("refused");
    assert_eq!(error(&refused).0, Code::InvalidArgument);
    let elsewhere = v1::ListJobsRequest {
        repo: "acme/nowhere".to_owned(),
        ..Default::default()
    };
    let refused = fleet.list_jobs(elsewhere).await.expect_err("refused");
    assert_eq!(error(&refused).0, Code::NotFound);
    assert!(refused.message().contains("acme/nowhere"));
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_runner_is_stopped_by_its_name_and_the_node_is_told() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    scheduler.deliver(&queued(1)).await;
    let name = node.first_runner().await;
    let mut fleet = scheduler.fleet().await;
    let stopped = fleet
        .stop_runner(v1::StopRunnerRequest {
            name: name[..name.len() - 2].to_owned(),
            reason: "tidying up".to_owned(),
            ..Default::default()
        })
        .await
        .expect("stops")
        .into_inner();
    assert!(!stopped.job_cancelled, "no job ran in it");
    assert_eq!(stopped.runner.expect("set").name, name);
    node.until(|node| !node.wanted().contains(&name)).await;
    // Its word is the end of it; the job gets another runner.
    node.observe(&name, v1::observed_runner::Phase::Exited)
        .await;
    until("its end", || async {
        let runner = scheduler
            .fleet()
            .await
            .get_runner(v1::GetRunnerRequest { name: name.clone() })
            .await
            .expect("known")
            .into_inner()
            .runner
            .expect("set");
        (runner.status == "exited").then_some(())
    })
    .await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_write_waits_only_so_long_for_the_store() {
    let world = World::new();
    let scheduler = world.start().await;
    world.store.faults().stall(true);
    let mut fleet = scheduler.fleet().await;
    let stop = fleet.stop_autoscaler(v1::StopAutoscalerRequest::default());
    let answer = tokio::time::timeout(Duration::from_secs(15), stop).await;
    let refused = answer.expect("an answer in time").expect_err("refused");
    assert_eq!(error(&refused).1, "store_slow");
    world.store.faults().stall(false);
    scheduler.shutdown().await;
}
