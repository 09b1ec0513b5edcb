//! Self-hosted runners, their groups, and just-in-time configurations.

use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{Field, field::document};

document!(
    /// A label of a runner.
    RunnerLabel {
        id: u64,
        name: String,
        /// `read-only` or `custom`.
        r#type: String,
    }
);

document!(
    /// A registered runner.
    Runner {
        id: u64,
        name: String,
        os: String,
        /// `online`, `offline`, or a new word.
        status: String,
        /// Late and sometimes wrong; never a reason to kill.
        busy: bool,
        labels: Vec<Field<RunnerLabel>>,
        runner_group_id: u64,
        ephemeral: bool,
        version: String,
    }
);

document!(
    /// `GET S/actions/runners`.
    RunnerList {
        total_count: u64,
        runners: Vec<Field<Runner>>,
    }
);

document!(
    /// A runner group; ids are declared `number`.
    RunnerGroup {
        id: u64,
        name: String,
        visibility: String,
        default: bool,
        allows_public_repositories: bool,
        restricted_to_workflows: bool,
    }
);

document!(
    /// `GET S/actions/runner-groups`.
    RunnerGroupList {
        total_count: u64,
        runner_groups: Vec<Field<RunnerGroup>>,
    }
);

/// Body of `POST S/actions/runners/generate-jitconfig`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitRequest {
    pub name: String,
    pub runner_group_id: u64,
    pub labels: Vec<String>,
    pub work_folder: String,
}

/// Its answer. Read only: `encoded_jit_config` is never written anywhere.
#[derive(Deserialize)]
pub struct Jit {
    pub runner: Runner,
    pub encoded_jit_config: SecretString,
}

impl fmt::Debug for Jit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jit")
            .field("runner", &self.runner)
            .field("encoded_jit_config", &"***")
            .finish()
    }
}
