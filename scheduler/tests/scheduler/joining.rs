//! Who becomes a node, who stays one, and what everybody else is told.

use std::time::Duration;

use longshore_proto::{
    SCHEDULER_NAME,
    join_token::JoinToken,
    v1::{
        EnrollRequest, ListJoinTokensRequest, PushLogsRequest, RemoveNodeRequest, RenewRequest,
        RevokeJoinTokenRequest, StreamRunnerLogsRequest, attach_response,
        node_service_client::NodeServiceClient, observed_runner::Phase,
    },
};
use tonic::{
    Code, Status,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

use super::{
    harness::{PATIENCE, Scheduler, World, queued},
    joined::request_for,
    node::Node,
};

fn reason(status: &Status) -> String {
    use tonic_types::StatusExt;
    let details = status.get_error_details();
    let info = details.error_info().expect("an ErrorInfo");
    assert!(info.metadata["next_step"].len() > 5, "{status:?}");
    info.reason.clone()
}

async fn refusal(scheduler: &Scheduler, node: &str, token: &str) -> String {
    let refused = scheduler.enroll(node, token).await;
    reason(&refused.map(drop).expect_err("refused"))
}

#[tokio::test]
async fn a_join_token_admits_one_host_and_every_other_use_of_it_is_told() {
    let scheduler = World::new().start().await;
    let token = scheduler.join_token("").await;
    scheduler.enroll("n1", &token).await.expect("joins");
    assert_eq!(refusal(&scheduler, "n2", &token).await, "join_token_used");
    // The same name with another key is somebody else.
    assert_eq!(refusal(&scheduler, "n1", &token).await, "join_token_used");

    let fresh = scheduler.join_token("").await;
    assert_eq!(refusal(&scheduler, "n1", &fresh).await, "node_name_taken");
    let cut = &fresh[..fresh.len() - 9];
    assert_eq!(refusal(&scheduler, "n2", cut).await, "invalid_argument");
    let foreign = World::new().start().await;
    let theirs = foreign.join_token("").await;
    let told = refusal(&scheduler, "n2", &theirs).await;
    assert_eq!(told, "join_token_unknown");
    let bound = scheduler.join_token("n3").await;
    let told = refusal(&scheduler, "n2", &bound).await;
    assert_eq!(told, "join_token_other_node");

    let id = fresh.parse::<JoinToken>().expect("a token").id;
    let revoke = RevokeJoinTokenRequest {
        id,
        ..RevokeJoinTokenRequest::default()
    };
    let revoked = scheduler.admin().await.revoke_join_token(revoke).await;
    assert!(revoked.is_ok());
    let told = refusal(&scheduler, "n2", &fresh).await;
    assert_eq!(told, "join_token_revoked");
    let list = scheduler.admin().await;
    let list = { list }.list_join_tokens(ListJoinTokensRequest {}).await;
    let shown = format!("{:?}", list.expect("lists"));
    assert!(shown.contains("n1"), "who came with it: {shown}");
    let secret = token.parse::<JoinToken>().expect("a token").secret;
    assert!(!shown.contains(&secret));
    scheduler.shutdown().await;
    foreign.shutdown().await;
}

#[tokio::test]
async fn a_request_for_another_node_and_a_broken_one_spend_no_token() {
    let scheduler = World::new().start().await;
    let token = scheduler.join_token("").await;
    let (_, other) = request_for("n2");
    for csr_pem in [other, "nothing".to_owned(), "x".repeat(20_000)] {
        let channel = scheduler.dial(None).await.expect("connects");
        let request = EnrollRequest {
            node: "n1".to_owned(),
            join_token: token.clone(),
            csr_pem,
        };
        let refused = NodeServiceClient::new(channel).enroll(request).await;
        let refused = refused.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("csr_pem"), "{refused}");
    }
    scheduler.enroll("n1", &token).await.expect("joins");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn without_a_certificate_that_counts_nothing_but_joining_is_answered() {
    let world = World::new();
    let scheduler = world.start().await;
    let channel = scheduler.dial(None).await.expect("connects");
    let mut stranger = NodeServiceClient::new(channel);
    let missing = "certificate_missing";
    let attached = stranger.attach(tokio_stream::empty()).await;
    assert_eq!(reason(&attached.map(|_| ()).expect_err("refused")), missing);
    let pushed = stranger.push_logs(tokio_stream::empty()).await;
    assert_eq!(reason(&pushed.expect_err("refused")), missing);
    let (_, csr_pem) = request_for("n1");
    let renewed = stranger.renew(RenewRequest { csr_pem }).await;
    assert_eq!(reason(&renewed.expect_err("refused")), missing);

    // A certificate of another fleet's authority: the handshake fails.
    let foreign = World::new().start().await;
    let theirs = foreign.identity("n1").await;
    let called = async {
        let channel = scheduler.dial(Some(theirs)).await.ok()?;
        let mut client = NodeServiceClient::new(channel);
        client.push_logs(tokio_stream::empty()).await.ok()
    };
    assert!(called.await.is_none(), "a foreign certificate is taken");
    scheduler.shutdown().await;
    foreign.shutdown().await;
}

#[tokio::test]
async fn a_node_speaks_for_itself_only() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    scheduler.deliver(&queued(41)).await;
    let runner = node.first_runner().await;

    // The stolen certificate of n2 says that it is n1.
    let stolen = scheduler.identity("n2").await;
    scheduler.joined.lock().await.insert("n1".into(), stolen);
    let refused = Node::attach_with(&scheduler, "n1", None).await;
    let refused = refused.err().expect("refused");
    assert_eq!(reason(&refused), "other_node");
    assert!(refused.message().contains("n2"), "{refused}");

    // It writes into the output of n1's runner: nothing of it is kept.
    let chunk = PushLogsRequest {
        runner: runner.clone(),
        chunk: b"forged".to_vec(),
        ..PushLogsRequest::default()
    };
    let mut thief = scheduler.nodes("n2").await;
    let pushed = thief.push_logs(tokio_stream::iter([chunk])).await;
    pushed.expect("answered");
    let request = StreamRunnerLogsRequest {
        name: runner.clone(),
        ..StreamRunnerLogsRequest::default()
    };
    let output = scheduler.fleet().await.stream_runner_logs(request).await;
    let first = output.expect("streams").into_inner().message().await;
    let text = first.expect("well").map(|piece| piece.chunk);
    assert!(text.is_none_or(|text| text.is_empty()), "forged output");

    // It reports n1's runner as its own: that changes nothing for n1.
    let mut other = Node::attach(&scheduler, "n2").await;
    other.observe(&runner, Phase::Busy).await;
    node.observe(&runner, Phase::Consumed).await;
    let request = longshore_proto::v1::GetRunnerRequest { name: runner };
    super::harness::until("starting", || async {
        let mut fleet = scheduler.fleet().await;
        let told = fleet.get_runner(request.clone()).await.expect("known");
        (told.into_inner().runner.expect("set").status == "starting").then_some(())
    })
    .await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_removed_node_is_cut_off_and_joins_again_by_a_token_for_its_name() {
    let world = World::new();
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    let request = RemoveNodeRequest {
        name: "n1".to_owned(),
        ..RemoveNodeRequest::default()
    };
    let removed = scheduler.fleet().await.remove_node(request).await;
    removed.expect("removed");
    while let Some(message) = node.next().await {
        assert!(!matches!(message, attach_response::Message::Welcome(_)));
    }
    let refused = Node::attach_with(&scheduler, "n1", None).await;
    let refused = refused.err().expect("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(reason(&refused), "certificate_revoked");
    let renewed = {
        let (_, csr_pem) = request_for("n1");
        let mut client = scheduler.nodes("n1").await;
        client.renew(RenewRequest { csr_pem }).await
    };
    assert_eq!(
        reason(&renewed.expect_err("refused")),
        "certificate_revoked"
    );
    // Also after a restart.
    scheduler.shutdown().await;
    let scheduler = world.start().await;
    let refused = Node::attach_with(&scheduler, "n1", None).await;
    assert_eq!(
        reason(&refused.map(drop).expect_err("refused")),
        "certificate_revoked"
    );
    scheduler.joined.lock().await.clear();
    Node::attach(&scheduler, "n1").await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn who_joined_is_known_after_a_restart_and_a_crash() {
    let world = World::new();
    let scheduler = world.start().await;
    let open = scheduler.join_token("").await;
    let used = scheduler.join_token("").await;
    scheduler.enroll("n2", &used).await.expect("joins");
    Node::attach(&scheduler, "n1").await;
    scheduler.kill().await;
    let scheduler = world.start().await;
    Node::attach(&scheduler, "n1").await;
    assert_eq!(refusal(&scheduler, "n3", &used).await, "join_token_used");
    scheduler.enroll("n3", &open).await.expect("joins");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_certificate_that_ran_out_opens_nothing() {
    let world = World::new().with_flags(&["--certificate-life", "10s"]);
    let scheduler = world.start().await;
    Node::attach(&scheduler, "n1").await;
    let stale = scheduler.identity("n1").await;
    let refused = async {
        loop {
            let Ok(channel) = scheduler.dial(Some(stale.clone())).await else {
                return "at the handshake".to_owned();
            };
            let mut client = NodeServiceClient::new(channel);
            match client.push_logs(tokio_stream::empty()).await {
                Err(refused) => return refused.to_string(),
                Ok(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE + Duration::from_secs(10), refused).await;
    told.expect("the certificate runs out");
    scheduler.shutdown().await;
}

#[tokio::test]
async fn a_renewed_certificate_carries_an_open_stream_on() {
    let world = World::new().with_flags(&["--certificate-life", "10s"]);
    let scheduler = world.start().await;
    let mut node = Node::attach(&scheduler, "n1").await;
    let (key, csr_pem) = request_for("n1");
    let mut client = scheduler.nodes("n1").await;
    let renewed = client.renew(RenewRequest { csr_pem }).await;
    let pem = renewed.expect("renewed").into_inner().certificate_pem;
    let fresh = tonic::transport::Identity::from_pem(pem, key.serialize_pem());
    scheduler.joined.lock().await.insert("n1".into(), fresh);
    scheduler.deliver(&queued(1)).await;
    node.first_runner().await;
    Node::attach(&scheduler, "n1").await;
    scheduler.shutdown().await;
}

#[tokio::test]
async fn plain_text_to_the_nodes_listener_is_no_connection_and_tls_elsewhere_neither() {
    let scheduler = World::new().start().await;
    let plain = format!("http://{}", scheduler.running.addresses.nodes);
    let endpoint = Endpoint::from_shared(plain).expect("a URL");
    let called = async {
        let channel = endpoint.connect().await.ok()?;
        let mut client = NodeServiceClient::new(channel);
        client.push_logs(tokio_stream::empty()).await.ok()
    };
    let called = tokio::time::timeout(PATIENCE, called).await;
    assert!(called.expect("told at once").is_none());

    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&scheduler.authority))
        .domain_name(SCHEDULER_NAME);
    let secure = format!("https://{}", scheduler.running.addresses.webhooks);
    let endpoint = Endpoint::from_shared(secure).expect("a URL");
    let endpoint = endpoint.tls_config(tls).expect("TLS");
    let connected = tokio::time::timeout(PATIENCE, endpoint.connect()).await;
    assert!(connected.expect("told at once").is_err());
    Node::attach(&scheduler, "n1").await;
    scheduler.shutdown().await;
}

/// What Python's and Node's gRPC clients stand on.
#[tokio::test]
async fn openssl_verifies_the_chain_and_the_names() {
    let world = World::new().with_flags(&["--name", "ci.example.org"]);
    let scheduler = world.start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let authority = folder.path().join("ca.pem");
    std::fs::write(&authority, &scheduler.authority).expect("written");
    let address = scheduler.running.addresses.nodes.to_string();
    let verifies = async |name: [&str; 2]| {
        let told = tokio::process::Command::new("openssl")
            .args(["s_client", "-connect", &address, "-brief", "-alpn", "h2"])
            .args(["-verify_return_error", "-CAfile"])
            .arg(&authority)
            .args(name)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output();
        let told = tokio::time::timeout(PATIENCE, told).await;
        told.expect("in time")
            .expect("openssl runs")
            .status
            .success()
    };
    for name in [SCHEDULER_NAME, "ci.example.org", "localhost"] {
        assert!(verifies(["-verify_hostname", name]).await, "{name}");
    }
    assert!(verifies(["-verify_ip", "127.0.0.1"]).await);
    assert!(!verifies(["-verify_hostname", "example.org"]).await);
    let other = World::new().start().await;
    std::fs::write(&authority, &other.authority).expect("written");
    assert!(!verifies(["-verify_hostname", "localhost"]).await);
    scheduler.shutdown().await;
    other.shutdown().await;
}
