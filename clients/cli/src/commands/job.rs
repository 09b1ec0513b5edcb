//! `longshore job ...` and `longshore explain`.

use longshore_proto::v1;

use super::{client, pages, required};
use crate::args::Global;
use crate::args::job::{Explain, Job};
use crate::exit::Failure;
use crate::output::Out;
use crate::shapes;

pub(super) async fn run(global: &Global, command: Job) -> Result<(), Failure> {
    let client = client(global)?;
    let mut out = Out::new(global.output);
    match command {
        Job::List(args) => {
            let state = args.state.map(|s| s.word()).unwrap_or_default();
            let (jobs, cut) = pages::collect(Some(args.limit), async |page_size, page_token| {
                let request = v1::ListJobsRequest {
                    page_size,
                    page_token,
                    repo: args.repo.clone().unwrap_or_default(),
                    state: state.to_owned(),
                };
                let page = client.list_jobs(request).await?;
                Ok((page.jobs, page.next_page_token))
            })
            .await?;
            let jobs: Vec<_> = jobs.into_iter().map(shapes::job::Job::from).collect();
            out.list(&jobs)?;
            pages::say_if_cut(cut, jobs.len());
            Ok(())
        }
        Job::Describe(args) => {
            let answer = client.get_job(v1::GetJobRequest { id: args.id }).await?;
            out.object(&shapes::job::Job::from(required(answer.job, "job")?))
        }
    }
}

pub(super) async fn explain(global: &Global, args: Explain) -> Result<(), Failure> {
    let answer = client(global)?
        .explain_job(v1::ExplainJobRequest { id: args.id })
        .await?;
    Out::new(global.output).object(&shapes::explain::Explanation::from(answer))
}
