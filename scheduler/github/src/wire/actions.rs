//! Workflow runs and jobs, as REST and webhooks send them.

use super::{Account, Field, Repository, field::document};

document!(
    /// A workflow run.
    Run {
        id: u64,
        name: String,
        /// `.github/workflows/ci.yml`, possibly with `@ref`.
        path: String,
        run_attempt: u64,
        event: String,
        status: String,
        conclusion: String,
        head_branch: String,
        head_sha: String,
        created_at: String,
        updated_at: String,
        run_started_at: String,
        html_url: String,
        actor: Account,
        repository: Repository,
        head_repository: Repository,
    }
);

document!(
    /// `GET /repos/{o}/{r}/actions/runs`.
    RunList {
        total_count: u64,
        workflow_runs: Vec<Field<Run>>,
    }
);

document!(
    /// A job of a run.
    Job {
        id: u64,
        run_id: u64,
        run_attempt: u64,
        name: String,
        workflow_name: String,
        head_branch: String,
        head_sha: String,
        status: String,
        conclusion: String,
        labels: Vec<Field<String>>,
        created_at: String,
        started_at: String,
        completed_at: String,
        html_url: String,
        runner_id: u64,
        runner_name: String,
        runner_group_id: u64,
        runner_group_name: String,
    }
);

document!(
    /// `GET /repos/{o}/{r}/actions/runs/{id}/jobs`.
    JobList {
        total_count: u64,
        jobs: Vec<Field<Job>>,
    }
);
