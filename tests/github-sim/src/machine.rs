//! The pure state machine: GitHub as data and rules.

mod assign;
mod chance;
mod faults;
mod hooks;
mod jit;
mod jobs;
mod jwt;
mod limits;
mod model;
mod payload;
mod render;
mod rest;
mod runners;
mod runs;
mod spec;
mod text;
mod tokens;
mod view;
mod world;

pub use faults::{Delay, Faults, Limits, RunnerFields};
pub use hooks::{DeliveryOutcome, Outgoing};
pub use jit::RunnerKey;
pub(crate) use jit::pkcs1_in_pkcs8;
pub use model::{
    Delivery, Driver, Group, Hook, HookTarget, Job, JobState, OwnerKind, RemovedBy, Run, Runner,
    Scope, Status, Step, Visibility,
};
pub use rest::{Request, RequestLog, Response};
pub use runners::{JobBody, JobStep, Message, RunnerError, Session, StepReport};
pub use spec::{
    AppSpec, ForeignRunnerSpec, GroupSpec, HookSpec, InstallationSpec, JobSpec, OwnerSpec,
    RepoSpec, RunSpec, Simulate, StepSpec, TokenSpec, WebhookSpec,
};
pub use text::iso;
pub(crate) use text::query_pairs;
pub use view::{JobView, RunView, RunnerView, StepView, Summary, Until};
pub use world::{SimError, World, WorldConfig};
