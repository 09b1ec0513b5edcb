//! `longshore runner ...`.

mod logs;
mod start;

use std::collections::BTreeMap;

use longshore_proto::v1;

use super::{client, pages, request_id, required};
use crate::args::Global;
use crate::args::runner::{ListContainers, ListWorkflows, Provision, Runner, StopContainer};
use crate::exit::{self, Failure};
use crate::local;
use crate::output::{Out, filtered_lines};
use crate::shapes::outcome::{Stopped, StoppedContainer};
use crate::shapes::provisioned::Provisioned;
use crate::shapes::queue::Queue;
use crate::shapes::runner::Container;
use crate::shapes::status::Status;

pub(super) async fn run(global: &Global, command: Runner) -> Result<(), Failure> {
    match command {
        Runner::Start(args) => start::run(global, *args).await,
        Runner::Stop => stop(global).await,
        Runner::Status => {
            let status = client(global)?.get_status(v1::GetStatusRequest {}).await?;
            Out::json_when_piped(global.output).object(&Status::from(status))
        }
        Runner::ListWorkflows(args) => list_workflows(global, args).await,
        Runner::ListContainers(args) => list_containers(global, args).await,
        Runner::Provision(args) => provision(global, args).await,
        Runner::StopContainer(args) => stop_container(global, args).await,
        Runner::Logs(args) => logs::run(global, args).await,
    }
}

async fn stop(global: &Global) -> Result<(), Failure> {
    let request = v1::StopAutoscalerRequest {
        request_id: request_id(),
    };
    let was_running = client(global)?.stop_autoscaler(request).await?.was_running;
    let mut out = Out::new(global.output);
    out.object(&Stopped {
        running: false,
        was_running,
    })?;
    if local::is_up(&global.scheduler) {
        out.say("The processes go on; `longshore down` stops them.")?;
    }
    Ok(())
}

async fn list_workflows(global: &Global, args: ListWorkflows) -> Result<(), Failure> {
    let client = client(global)?;
    let (pages, cut) = pages::collect(None, async |page_size, page_token| {
        let request = v1::ListWorkflowQueuesRequest {
            page_size,
            page_token,
            owner: args.owner.clone().unwrap_or_default(),
        };
        let page = client.list_workflow_queues(request).await?;
        let filtered = page.filtered;
        let queues = page.queues.into_iter().map(|q| (q, filtered.clone()));
        Ok((queues.collect(), page.next_page_token))
    })
    .await?;
    // Each page carries the sum over all queues; one is enough.
    let filtered: BTreeMap<_, _> = match pages.first() {
        Some((_, filtered)) => filtered.clone().into_iter().collect(),
        None => BTreeMap::new(),
    };
    let queues: Vec<_> = pages.into_iter().map(|(q, _)| Queue::from(q)).collect();
    let mut out = Out::json_when_piped(global.output);
    out.list(&queues)?;
    for line in filtered_lines(&filtered) {
        out.say(&line)?;
    }
    pages::say_if_cut(cut, queues.len());
    Ok(())
}

async fn list_containers(global: &Global, args: ListContainers) -> Result<(), Failure> {
    let client = client(global)?;
    let (runners, cut) = pages::collect(None, async |page_size, page_token| {
        let request = v1::ListRunnersRequest {
            page_size,
            page_token,
            repo: args.repo.clone().unwrap_or_default(),
            node: args.node.clone().unwrap_or_default(),
            include_finished: args.all,
        };
        let page = client.list_runners(request).await?;
        Ok((page.runners, page.next_page_token))
    })
    .await?;
    // Nothing on a node that exists is an answer; a node nobody knows is a mistake.
    if let (true, Some(name)) = (runners.is_empty(), args.node) {
        client.get_node(v1::GetNodeRequest { name }).await?;
    }
    let containers: Vec<_> = runners
        .into_iter()
        .filter(|r| args.all || !r.container_id.is_empty())
        .map(Container::from)
        .collect();
    Out::json_when_piped(global.output).list(&containers)?;
    pages::say_if_cut(cut, containers.len());
    Ok(())
}

async fn provision(global: &Global, args: Provision) -> Result<(), Failure> {
    let request = v1::ProvisionRunnersRequest {
        repo: args.repo.unwrap_or_default(),
        count: args.count,
        pool: args.pool.unwrap_or_default(),
        labels: args.labels,
        request_id: request_id(),
        validate_only: args.dry_run,
    };
    let answer = client(global)?.provision_runners(request).await?;
    let provisioned: Vec<_> = answer
        .provisioned
        .into_iter()
        .map(Provisioned::from)
        .collect();
    let mut out = Out::new(global.output);
    out.list(&provisioned)?;
    if provisioned.is_empty() {
        out.say("Nothing to provision: no repository has waiting jobs.")?;
    }
    // Told apart from success only when nothing at all can start.
    match provisioned.iter().find_map(|p| p.problem.as_deref()) {
        Some(problem) if provisioned.iter().all(|p| p.problem.is_some()) => Err(Failure::said(
            exit::REFUSED,
            format!("nothing can be provisioned: {problem}"),
            "see what the nodes offer: longshore node list -o wide",
        )),
        _ => Ok(()),
    }
}

async fn stop_container(global: &Global, args: StopContainer) -> Result<(), Failure> {
    if args.container.is_empty() {
        return Err(Failure::usage(
            "--container is empty",
            "list the containers: longshore runner list-containers",
        ));
    }
    let request = v1::StopRunnerRequest {
        name: args.container,
        reason: args.reason,
        request_id: request_id(),
    };
    let answer = client(global)?.stop_runner(request).await?;
    Out::new(global.output).object(&StoppedContainer {
        container: required(answer.runner, "runner")?.into(),
        job_cancelled: answer.job_cancelled,
    })
}
