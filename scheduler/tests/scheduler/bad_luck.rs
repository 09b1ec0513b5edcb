//! Failing commits, nodes that know more than we do, addresses that are not ours.

use http::StatusCode;
use longshore_proto::v1::{AttachRequest, Generation, GetNodeRequest, Hello, attach_request};
use longshore_scheduler::{
    ports::RegistrationFailed,
    serve::{ListenError, Listener},
};
use scheduler_core::input::RegistrationFailure;

use super::{
    harness::{PATIENCE, World, deliver_to, queued, until},
    node::Node,
};

#[tokio::test]
async fn a_commit_that_fails_ends_the_driver_and_nothing_of_it_went_out() {
    let world = World::new();
    let mut scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    node.until(|node| node.intent.is_some()).await;
    // The first reports are in before the fault, so that it meets the job.
    until("the fake's budget and the node", || async {
        let ready = scheduler.running.view.fleet(|fleet| {
            fleet.budgets().next().is_some() && fleet.nodes().all(|node| node.takes_new_runners())
        });
        ready.then_some(())
    })
    .await;
    world.store.faults().fail_before(1);
    assert_eq!(
        scheduler.deliver(&queued(1)).await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let failure = tokio::time::timeout(PATIENCE, scheduler.running.failed()).await;
    let failure = failure.expect("the driver ends");
    assert!(failure.contains("fault injected"), "{failure}");
    assert!(world.github.registered().is_empty());
    assert!(node.wanted().is_empty());

    // The next process finds the store as it was, and the redelivery is served.
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    assert_eq!(scheduler.deliver(&queued(1)).await, StatusCode::ACCEPTED);
    node.first_runner().await;
    assert_eq!(world.github.names().len(), 1);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_is_waited_out_and_nothing_is_promised_meanwhile() {
    let mut world = World::new();
    world.bounds.commit_timeout = std::time::Duration::from_millis(300);
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    world.store.faults().fill(true);
    for _ in 0..2 {
        assert_eq!(
            scheduler.deliver(&queued(1)).await,
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
    assert!(world.github.registered().is_empty());
    assert!(world.github.distrusted() > 0, "the sweep asks again");
    world.store.faults().fill(false);
    until("room on the disk", || async {
        let answer = scheduler.deliver(&queued(1)).await;
        (answer == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    node.first_runner().await;
    assert_eq!(world.github.names().len(), 1);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_node_that_heard_a_higher_generation_raises_our_epoch_first() {
    let scheduler = World::new().start().await;
    let highest = Generation {
        epoch: 70,
        counter: 3,
    };
    let mut node = Node::attach_with(&scheduler, "n1", Some(highest))
        .await
        .expect("attaches");
    node.until(|node| node.intent.is_some()).await;
    let generation = node.intent.as_ref().and_then(|intent| intent.generation);
    assert!(generation.expect("set").epoch > 70);
    scheduler.deliver(&queued(1)).await;
    node.first_runner().await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_node_whose_clock_is_wrong_is_told_so_and_gets_no_work() {
    let scheduler = World::new().start().await;
    let ahead = std::time::SystemTime::now() + std::time::Duration::from_secs(600);
    let hello = AttachRequest {
        message: Some(attach_request::Message::Hello(Hello {
            node: "n1".to_owned(),
            capability: Some(super::node::capability()),
            node_time: Some(ahead.into()),
            ..Hello::default()
        })),
    };
    // The stream goes on: nothing more is said on it.
    let (words, said) = tokio::sync::mpsc::channel(1);
    words.send(hello).await.expect("room");
    let mut nodes = scheduler.nodes("n1").await;
    let said = tokio_stream::wrappers::ReceiverStream::new(said);
    let _stream = nodes.attach(said).await.expect("attaches");
    let mut fleet = scheduler.fleet().await;
    let asked = GetNodeRequest {
        name: "n1".to_owned(),
    };
    let answer = fleet.get_node(asked).await.expect("it is known");
    let node = answer.into_inner().node.expect("a node");
    let offset = node.clock_offset.expect("an offset");
    assert!((590..=610).contains(&offset.seconds), "{offset:?}");
    let told = node.conditions.iter().find(|c| c.kind == "clock_offset");
    let told = told.expect("a condition");
    assert!(told.next_step.contains("time service"), "{told:?}");
    scheduler.deliver(&queued(1)).await;
    let placed = scheduler
        .running
        .view
        .fleet(|fleet| fleet.runners().count());
    assert_eq!(placed, 0, "nothing is placed on it");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_restart_raises_the_epoch() {
    let world = World::new();
    let mut epochs = Vec::new();
    for _ in 0..3 {
        let scheduler = world.start().await;
        let mut node = Node::attach(&scheduler, "n1").await;
        node.until(|node| node.intent.is_some()).await;
        let generation = node.intent.as_ref().and_then(|intent| intent.generation);
        epochs.push(generation.expect("set").epoch);
        scheduler.kill().await;
    }
    assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
}

#[tokio::test]
async fn a_node_without_a_proper_hello_is_refused() {
    let scheduler = World::new().start().await;
    for name in ["", "Upper", "../x"] {
        let refused = Node::attach_as(scheduler.nodes("n1").await, name, None).await;
        assert_eq!(
            refused.map(|_| ()).expect_err("refused").code(),
            tonic::Code::InvalidArgument,
            "{name:?}"
        );
    }
    let absurd = Generation {
        epoch: u64::MAX,
        counter: 0,
    };
    let refused = Node::attach_with(&scheduler, "n1", Some(absurd)).await;
    assert!(refused.is_err());
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_newer_stream_of_a_node_ends_the_older() {
    let scheduler = World::new().start().await;
    let mut older = Node::attach(&scheduler, "n1").await;
    let mut newer = Node::attach(&scheduler, "n1").await;
    while older.next().await.is_some() {}
    newer.until(|node| node.intent.is_some()).await;
    scheduler.deliver(&queued(1)).await;
    newer.first_runner().await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_refused_registration_is_not_forgotten() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    world.github.refuse(Some(RegistrationFailed {
        failure: RegistrationFailure::Transient,
        detail: "GitHub answered 502".to_owned(),
    }));
    scheduler.deliver(&queued(1)).await;
    until("a refused registration", || async {
        let line = "longshore_registrations_total{result=\"transient\"}";
        (scheduler.metric(line).await >= 1.0).then_some(())
    })
    .await;
    world.github.refuse(None);
    node.first_runner().await;
    assert_eq!(world.github.names().len(), 1);
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_local_listener_opens_on_nothing_but_loopback() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let refused = Listener::local("x", "x", address.parse().expect("an address")).await;
        assert!(
            matches!(refused, Err(ListenError::NotLoopback { .. })),
            "{address}"
        );
    }
    let taken = Listener::local(
        "x",
        "api-listen",
        "127.0.0.1:0".parse().expect("an address"),
    )
    .await
    .expect("binds");
    let error = Listener::local("the API", "api-listen", taken.address)
        .await
        .map(|_| ())
        .expect_err("taken")
        .to_string();
    assert!(error.contains("--api-listen"), "{error}");
}

#[tokio::test]
async fn what_was_accepted_while_going_down_is_stored() {
    let world = World::new();
    let scheduler = world.start().await;
    let node = Node::attach(&scheduler, "n1").await;
    let address = scheduler.webhooks();
    let deliveries: Vec<_> = (1..=60)
        .map(|id| tokio::spawn(async move { deliver_to(address, &queued(id)).await }))
        .collect();
    until("a first job", || async {
        let jobs = scheduler.running.view.fleet(|fleet| fleet.jobs().count());
        (jobs > 0).then_some(())
    })
    .await;
    scheduler.shutdown().await;
    drop(node);
    let mut accepted = 0;
    for delivery in deliveries {
        let answer = delivery.await.expect("no panic");
        accepted += usize::from(answer == Some(StatusCode::ACCEPTED));
    }
    assert!(accepted > 0);
    let scheduler = world.start().await;
    let known = scheduler.running.view.fleet(|fleet| fleet.jobs().count());
    assert!(known >= accepted, "{known} known of {accepted} accepted");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_and_what_follows_rebuild_the_same_state() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    scheduler.deliver(&queued(1)).await;
    node.first_runner().await;
    let store = std::sync::Arc::new(world.store.clone());
    scheduler.running.view.clone().snapshot(store).await;
    scheduler.deliver(&queued(2)).await;
    node.until(|node| node.wanted().len() == 2).await;
    let wanted = node.wanted();
    scheduler.kill().await;

    let scheduler = world.start().await;
    let (jobs, runners) = scheduler.running.view.fleet(|fleet| {
        let names = fleet.runners().map(|runner| runner.name().to_string());
        (fleet.jobs().count(), names.collect::<Vec<_>>())
    });
    assert_eq!(jobs, 2);
    assert!(
        wanted.iter().all(|name| runners.contains(name)),
        "{wanted:?} are among {runners:?}"
    );
    scheduler.shutdown().await;
}
