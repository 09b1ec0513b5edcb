//! One job's way through the scheduler, and what readers see of it on the way and afterwards.

use longshore_proto::v1::{
    self, GetJobRequest, GetRunnerRequest, ListRunnersRequest, PushLogsRequest,
    StreamRunnerLogsRequest, observed_runner::Phase,
};
use tokio_stream::StreamExt;

use super::{
    harness::{Scheduler, World, queued, until},
    node::Node,
};

async fn runner(scheduler: &Scheduler, name: &str) -> v1::Runner {
    let request = GetRunnerRequest {
        name: name.to_owned(),
    };
    let runner = scheduler.fleet().await.get_runner(request).await;
    runner.expect("known").into_inner().runner.expect("set")
}

async fn status(scheduler: &Scheduler, name: &str, status: &str) {
    until(status, || async {
        (runner(scheduler, name).await.status == status).then_some(())
    })
    .await;
}

async fn push(scheduler: &Scheduler, chunks: Vec<PushLogsRequest>) {
    let mut nodes = scheduler.nodes("n1").await;
    nodes
        .push_logs(tokio_stream::iter(chunks))
        .await
        .expect("taken");
}

fn chunk(runner: &str, offset: u64, text: &str, end: bool) -> PushLogsRequest {
    PushLogsRequest {
        runner: runner.to_owned(),
        offset,
        chunk: text.as_bytes().to_vec(),
        skipped: 0,
        end,
    }
}

async fn output(scheduler: &Scheduler, runner: &str, follow: bool) -> String {
    let request = StreamRunnerLogsRequest {
        name: runner.to_owned(),
        follow,
        tail_bytes: 0,
    };
    let mut fleet = scheduler.fleet().await;
    let mut stream = fleet
        .stream_runner_logs(request)
        .await
        .expect("known")
        .into_inner();
    let mut text = Vec::new();
    while let Some(piece) = stream.next().await {
        text.extend(piece.expect("a piece").chunk);
    }
    String::from_utf8(text).expect("text")
}

#[tokio::test]
async fn a_job_gets_a_runner_with_exactly_its_labels_and_the_history_keeps_its_usage() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    scheduler.deliver(&queued(41)).await;
    let name = node.first_runner().await;
    assert!(name.starts_with("ls-f1-"), "{name}");
    assert_eq!(
        node.registrations[&name],
        super::fake_github::FakeGitHub::jit(&name)
    );
    let registered = world.github.registered();
    assert_eq!(registered[0].labels, ["linux", "self-hosted", "x64"]);

    node.observe(&name, Phase::Consumed).await;
    status(&scheduler, &name, "starting").await;
    node.observe(&name, Phase::Online).await;
    status(&scheduler, &name, "idle").await;
    let taken = serde_json::json!({
        "id": 41, "status": "in_progress", "runner_name": name,
        "labels": ["self-hosted", "linux", "x64"],
    });
    scheduler.deliver(&taken).await;
    node.observe(&name, Phase::Busy).await;
    status(&scheduler, &name, "busy").await;
    // Names may be shortened as long as they are clear, and containers are names too.
    assert_eq!(runner(&scheduler, "c0ffee12").await.job_id, 41);

    push(&scheduler, vec![chunk(&name, 0, "hello ", false)]).await;
    let follower = {
        let scheduler = &scheduler;
        let name = name.clone();
        async move { output(scheduler, &name, true).await }
    };
    let pusher = push(&scheduler, vec![chunk(&name, 6, "world\n", true)]);
    let (followed, ()) = tokio::join!(follower, pusher);
    assert_eq!(followed, "hello world\n");

    let done = serde_json::json!({
        "id": 41, "status": "completed", "runner_name": name,
        "labels": ["self-hosted", "linux", "x64"],
    });
    scheduler.deliver(&done).await;
    node.observe(&name, Phase::Exited).await;
    status(&scheduler, &name, "exited").await;

    // Gone from the fleet, yet everything about it can still be asked.
    let mut fleet = scheduler.fleet().await;
    let living = fleet.list_runners(ListRunnersRequest::default()).await;
    assert!(living.expect("lists").into_inner().runners.is_empty());
    let all = fleet
        .list_runners(ListRunnersRequest {
            include_finished: true,
            ..ListRunnersRequest::default()
        })
        .await
        .expect("lists")
        .into_inner()
        .runners;
    assert_eq!(all.len(), 1);
    let exit = all[0].exit.as_ref().expect("an exit");
    assert_eq!(exit.cause(), v1::runner_exit::Cause::Finished);
    let job = fleet
        .get_job(GetJobRequest { id: 41 })
        .await
        .expect("known")
        .into_inner()
        .job
        .expect("set");
    assert_eq!(
        (job.state.as_str(), job.conclusion.as_str()),
        ("completed", "success")
    );
    assert_eq!(
        (job.runner.as_str(), job.node.as_str()),
        (name.as_str(), "n1")
    );
    let usage = job.usage.expect("usage");
    assert_eq!(usage.peak_memory_bytes, 1 << 20);
    assert_eq!((usage.read_bytes, usage.written_bytes), (Some(4_096), None));
    let ending = job.ending.expect("it ended");
    assert_eq!(ending.kind(), v1::job_ending::Kind::Result);
    assert_eq!(
        (ending.reason.as_str(), ending.exit_code),
        ("success", Some(0))
    );
    let counted = "longshore_job_endings_total{kind=\"result\",reason=\"success\"}";
    assert_eq!(scheduler.metric(counted).await, 1.0);
    let denied = job.denied.expect("what it was denied");
    assert_eq!(
        exit.denied.as_ref(),
        Some(&denied),
        "its runner says so too"
    );
    assert!(denied.known && denied.more, "eight were cut off");
    assert_eq!((denied.total, denied.destinations.len()), (5_000, 32));
    let first = &denied.destinations[0];
    assert_eq!(
        (first.destination.as_str(), first.port, first.count),
        ("10.0.0.0[2J", 22, 100),
        "nothing that moves a cursor is kept"
    );
    assert_eq!(output(&scheduler, &name, false).await, "hello world\n");
    scheduler.shutdown().await;

    // And after a restart.
    let scheduler = world.start().await;
    assert_eq!(output(&scheduler, &name, false).await, "hello world\n");
    assert_eq!(runner(&scheduler, &name).await.status, "exited");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_registration_is_sent_again_until_the_node_consumed_it() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    scheduler.deliver(&queued(1)).await;
    let name = node.first_runner().await;
    let jit = node.registrations[&name].clone();
    // The stream breaks before the node could use it: a new one brings it again.
    let mut second = Node::attach(&scheduler, "n1").await;
    assert_eq!(second.first_runner().await, name);
    assert_eq!(second.registrations[&name], jit);
    second.observe(&name, Phase::Consumed).await;
    status(&scheduler, &name, "starting").await;
    let mut third = Node::attach(&scheduler, "n1").await;
    third.observe(&name, Phase::Consumed).await;
    third.until(|node| !node.wanted().is_empty()).await;
    // What follows the intent would be the registration: a cordon shows the end of the line.
    let cordon = v1::CordonNodeRequest {
        name: "n1".to_owned(),
        request_id: String::new(),
    };
    scheduler
        .fleet()
        .await
        .cordon_node(cordon)
        .await
        .expect("cordons");
    third
        .until(|node| node.intent.as_ref().is_some_and(|intent| intent.cordoned))
        .await;
    assert!(third.registrations.is_empty(), "consumed once is enough");
    assert_eq!(world.github.names().len(), 1);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn output_of_unknown_runners_is_not_kept() {
    let scheduler = World::new().start().await;
    push(&scheduler, vec![chunk("ls-f1-stranger", 0, "x", false)]).await;
    let request = StreamRunnerLogsRequest {
        name: "ls-f1-stranger".to_owned(),
        ..StreamRunnerLogsRequest::default()
    };
    let refused = scheduler.fleet().await.stream_runner_logs(request).await;
    assert_eq!(
        refused.map(|_| ()).expect_err("unknown").code(),
        tonic::Code::NotFound
    );
    scheduler.shutdown().await;
}

#[tokio::test]
async fn the_end_of_a_job_says_whose_doing_it_was_before_and_after_githubs_word() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    scheduler.deliver(&queued(41)).await;
    let name = node.first_runner().await;
    node.observe(&name, Phase::Online).await;
    let word = |status: &str| {
        serde_json::json!({
            "id": 41, "status": status, "runner_name": name, "conclusion": "failure",
            "labels": ["self-hosted", "linux", "x64"],
        })
    };
    scheduler.deliver(&word("in_progress")).await;
    node.observe(&name, Phase::Busy).await;
    let cause = v1::runner_exit::Cause::OutOfMemory;
    node.ended(&name, (137, cause, "the memory limit was reached"))
        .await;
    status(&scheduler, &name, "exited").await;

    let mut fleet = scheduler.fleet().await;
    let counted = "longshore_job_endings_total{kind=\"infrastructure\",reason=\"out_of_memory\"}";
    for state in ["in_progress", "completed"] {
        if state == "completed" {
            scheduler.deliver(&word("completed")).await;
        }
        let request = GetJobRequest { id: 41 };
        let job = fleet.get_job(request).await.expect("known").into_inner();
        let job = job.job.expect("set");
        assert_eq!(job.state, state);
        let ending = job.ending.clone().expect("the fleet knows it");
        assert_eq!(
            ending.kind(),
            v1::job_ending::Kind::Infrastructure,
            "{job:?}"
        );
        assert_eq!(
            (
                ending.reason.as_str(),
                ending.detail.as_str(),
                ending.exit_code
            ),
            ("out_of_memory", "the memory limit was reached", Some(137))
        );
        assert_eq!(scheduler.metric(counted).await, 1.0, "counted once");
    }
    scheduler.shutdown().await;
}
