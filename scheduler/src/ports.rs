//! What the driver needs of the world, so that the simulation runs the real driver.
//!
//! The store's trait is the port itself; the other three are here. Production
//! implements them in `app`, `links` and `clock`; tests bring their own.

use std::{future::Future, sync::Arc};

use scheduler_core::{
    effect::NodeIntent,
    input::{Deregistration, Input, RegistrationFailure},
    model::{CredentialName, NodeName, Now, RunnerName, Scope},
};
use secrecy::SecretString;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::WatchSettings;

pub use scheduler_github::{
    KnownJob, RateStatus, Registered, Registration, SweepStatus,
    webhook::{Delivery, WebhookError},
};
pub use scheduler_store::Store;

/// Time, as the core wants it.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Now;
}

/// GitHub as the effects need it. Cheap to clone; clones share everything.
pub trait GitHub: Clone + Send + Sync + 'static {
    /// Creates a registration. Not idempotent: after a failure the name is burnt.
    fn register(
        &self,
        wanted: Registration,
    ) -> impl Future<Output = Result<Registered, RegistrationFailed>> + Send;

    /// Deletes a registration, by id when known, else by name.
    fn deregister(
        &self,
        runner: RunnerName,
        scope: Scope,
        credential: CredentialName,
        github_id: Option<u64>,
    ) -> impl Future<Output = Deregistration> + Send;
}

/// A registration that was not made; `detail` holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationFailed {
    pub failure: RegistrationFailure,
    pub detail: String,
}

/// GitHub as the webhook listener and the surfaces need it.
pub trait Demand: Clone + Send + Sync + 'static {
    /// Verifies, parses and translates one delivery.
    fn receive(
        &self,
        delivery: Delivery<'_>,
    ) -> impl Future<Output = Result<Vec<Input>, WebhookError>> + Send;

    /// Where runners for `owner/name` register; `None`: nothing we hold reaches it.
    fn resolve(
        &self,
        owner: &str,
        name: &str,
    ) -> impl Future<Output = Option<(Scope, CredentialName)>> + Send;

    /// The last sweep's report.
    fn sweep(&self) -> SweepStatus;

    /// Limits as the last replies told them.
    fn rates(&self) -> Vec<RateStatus>;

    /// Sweeps soon, within the budget.
    fn nudge(&self);

    /// A delivery was understood and then not stored: what it told must be found again.
    fn distrust(&self) {}
}

/// Jobs that are not over, as the fleet knows them at the time of the call.
pub type OpenJobs = Arc<dyn Fn() -> Vec<KnownJob> + Send + Sync>;

/// GitHub as a source of inputs on its own account: sweeps, lists, budgets.
pub trait Source: Clone + Send + Sync + 'static {
    /// Watches until `stop`, starting anew when the settings change. `jobs` gives
    /// those that are not over, to be asked about when GitHub's lists lack them.
    fn watch(
        self,
        jobs: OpenJobs,
        inputs: mpsc::Sender<Vec<Input>>,
        changes: watch::Receiver<WatchSettings>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send;
}

/// The nodes' streams. Sending never waits: the newest intent replaces an
/// unsent older one, and a node without a stream hears it when it attaches.
pub trait NodeLink: Send + Sync + 'static {
    /// Number of the node's open stream.
    fn session(&self, node: &NodeName) -> Option<u64>;

    fn send_intent(&self, node: &NodeName, intent: NodeIntent);

    fn send_registration(&self, node: &NodeName, runner: &RunnerName, registration: SecretString);
}
