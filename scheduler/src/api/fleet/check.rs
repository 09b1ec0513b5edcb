//! CheckNode: a look at a node's sandbox from inside, while the caller waits.

use std::time::Duration;

use longshore_proto::v1;
use scheduler_core::model::NodeName;
use tonic::{Code, Status};

use super::Fleets;
use crate::{
    access::Who,
    api::{convert, errors},
    clock::utc,
    config::runtime,
    inbox::Request as DriverRequest,
    ports::{Demand, NodeLink, Store},
};

/// Longest wait for a node's answer: an image may have to be pulled for it.
const ANSWER: Duration = Duration::from_secs(110);
const PROFILES: [&str; 3] = ["strict", "standard", "containers"];
const NETWORKS: [&str; 3] = ["open", "allowlist", "none"];
const LONGEST_IMAGE: usize = 512;

impl<S: Store, D: Demand> Fleets<S, D> {
    pub(super) async fn check(
        &self,
        who: &Who,
        request: v1::CheckNodeRequest,
    ) -> Result<v1::CheckNodeResponse, Status> {
        let profile = word("profile", &request.profile, &PROFILES)?;
        let network_mode = word("network_mode", &request.network_mode, &NETWORKS)?;
        let runtime = runtime::class(&request.runtime)
            .map_err(|problem| errors::invalid("runtime", problem, "leave it out"))?;
        if request.image.len() > LONGEST_IMAGE {
            return Err(errors::invalid("image", "it is too long", "name an image"));
        }
        let node = self.node(&request.name)?;
        let name = NodeName::new(&node.name);
        let links = &self.parts.links;
        if links.session(&name).is_none() {
            return Err(unreachable(&node.name));
        }
        let Some((id, answered)) = links.checks.begin(&name) else {
            return Err(errors::precondition(
                "check_under_way",
                &format!("another check of node {} is under way", node.name),
                "wait for it to end",
            ));
        };
        let spec = v1::RunnerSpec {
            image: request.image.clone(),
            profile: profile.to_owned(),
            network_mode: network_mode.to_owned(),
            runtime,
            ..v1::RunnerSpec::default()
        };
        // It runs something on that node: who asked for it is kept.
        let asked = DriverRequest {
            audit: vec![who.entry(&node.name, "")],
            ..DriverRequest::default()
        };
        let posted = self.parts.inbox.post(asked).await;
        posted.map_err(|_| errors::stopping())?;
        links.send_check(
            &name,
            v1::CheckSandbox {
                id,
                spec: Some(spec),
            },
        );
        let told = match tokio::time::timeout(ANSWER, answered).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => return Err(unreachable(&node.name)),
            Err(_) => {
                return Err(errors::status(
                    Code::DeadlineExceeded,
                    "check_timed_out",
                    &format!(
                        "node {} did not answer within {} s",
                        node.name,
                        ANSWER.as_secs()
                    ),
                    "see the agent's log on that node; an agent of an older release cannot answer",
                ));
            }
        };
        if let Some(error) = told.error {
            return Err(errors::precondition(
                &error.reason,
                &format!("node {} could not look: {}", node.name, error.detail),
                "`longshore node describe` and the agent's log say more",
            ));
        }
        Ok(v1::CheckNodeResponse {
            node: node.name,
            profile: profile.to_owned(),
            network_mode: network_mode.to_owned(),
            image: request.image,
            checks: told.checks,
            checked_at: Some(convert::time(utc())),
            took: told.took,
        })
    }
}

/// One of the known words; the first when none is given.
fn word<'a>(field: &str, given: &str, known: &[&'a str]) -> Result<&'a str, Status> {
    let found = known
        .iter()
        .find(|word| given.is_empty() || **word == given);
    found.copied().ok_or_else(|| {
        let problem = format!("`{}` is not known", given.escape_debug());
        errors::invalid(field, problem, &format!("use {}", known.join(", ")))
    })
}

fn unreachable(node: &str) -> Status {
    errors::precondition(
        "node_unreachable",
        &format!("node {node} is not attached"),
        "start its agent, or see why it cannot reach the scheduler",
    )
}
