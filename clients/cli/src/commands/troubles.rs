//! What keeps a fleet that has just started from working, a line each.

use std::time::Duration;

use longshore_client::{Client, Error};
use longshore_proto::v1;
use tokio::time::Instant;

use crate::exit::Failure;
use crate::output::Out;

/// So long is waited for the first word of GitHub and of the engine.
const PATIENCE: Duration = Duration::from_secs(3);
const BETWEEN: Duration = Duration::from_millis(100);

/// Says them to people. That the fleet cannot be asked is no reason to stop it.
pub(super) async fn say(client: &Client, out: &mut Out) -> Result<(), Failure> {
    if !out.for_people() {
        return Ok(());
    }
    for line in of(client).await.unwrap_or_default() {
        out.say(&line)?;
    }
    Ok(())
}

/// What is known once GitHub and the engine have answered, or after 3 s.
async fn of(client: &Client) -> Result<Vec<String>, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = client.get_status(v1::GetStatusRequest {}).await?;
        let nodes = client.list_nodes(v1::ListNodesRequest::default()).await?;
        if settled(&status, &nodes.nodes) || Instant::now() >= deadline {
            return Ok(lines(&status, &nodes.nodes));
        }
        tokio::time::sleep(BETWEEN).await;
    }
}

fn settled(status: &v1::GetStatusResponse, nodes: &[v1::Node]) -> bool {
    let answered = |node: &v1::Node| node.state == "ready" || !node.conditions.is_empty();
    status.iterations > 0 && !nodes.is_empty() && nodes.iter().all(answered)
}

fn lines(status: &v1::GetStatusResponse, nodes: &[v1::Node]) -> Vec<String> {
    let mut lines = Vec::new();
    if !status.running {
        lines.push("Scaling is off: `longshore runner start` turns it on.".to_owned());
    }
    let sick = status.credentials.iter().filter(|c| !c.problem.is_empty());
    lines.extend(sick.map(|credential| format!("GitHub: {}", credential.problem)));
    for node in nodes {
        for condition in &node.conditions {
            let (detail, next) = (&condition.detail, &condition.next_step);
            lines.push(format!("Node {}: {detail}; {next}", node.name));
        }
    }
    lines
}
