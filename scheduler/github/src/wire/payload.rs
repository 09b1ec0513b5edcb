//! The body of a webhook, whatever its event.

use super::{Account, Field, Hook, Installation, Job, Repository, Run, field::document};

document!(
    /// One payload; which fields are there depends on the event.
    Payload {
        action: String,
        workflow_job: Job,
        workflow_run: Run,
        repository: Repository,
        organization: Account,
        enterprise: Account,
        sender: Account,
        /// Full in `installation*` events, `{id, node_id}` elsewhere.
        installation: Installation,
        repositories: Vec<Field<Repository>>,
        repositories_added: Vec<Field<Repository>>,
        repositories_removed: Vec<Field<Repository>>,
        zen: String,
        hook_id: u64,
        hook: Hook,
    }
);
