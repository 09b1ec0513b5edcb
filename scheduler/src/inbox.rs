//! The one way into the driver: bounded, with an answer after the commit.

use scheduler_core::input::Input;
use scheduler_store::{AuditEntry, RecordChange, TokenChange};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait for the driver.
const WAITING: usize = 4_096;

/// What one caller hands in; it is committed as a whole.
#[derive(Debug, Default)]
pub struct Request {
    pub inputs: Vec<Input>,
    /// Settings to write in the same transaction; `None` deletes.
    pub settings: Vec<(String, Option<String>)>,
    pub audit: Vec<AuditEntry>,
    pub tokens: Vec<TokenChange>,
    pub records: Vec<RecordChange>,
}

impl From<Vec<Input>> for Request {
    fn from(inputs: Vec<Input>) -> Self {
        Self {
            inputs,
            ..Self::default()
        }
    }
}

impl From<Input> for Request {
    fn from(input: Input) -> Self {
        vec![input].into()
    }
}

/// A request and who waits for its commit.
#[derive(Debug)]
pub struct Envelope {
    pub(crate) request: Request,
    /// Told the sequence up to which everything is durable.
    pub(crate) done: Option<oneshot::Sender<u64>>,
}

/// The driver has stopped: nothing more is accepted by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scheduler is stopping; try again in a moment")]
pub struct Stopped;

/// Where inputs go in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    sender: mpsc::Sender<Envelope>,
}

/// The driver's end.
pub type Outlet = mpsc::Receiver<Envelope>;

/// Both ends.
pub fn inbox() -> (Inbox, Outlet) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Inbox { sender }, receiver)
}

impl Inbox {
    /// Hands in and waits until it is durable; the sequence that is durable then.
    ///
    /// Dropping the future half-way does not take the request back.
    pub async fn submit(&self, request: impl Into<Request>) -> Result<u64, Stopped> {
        let (done, answer) = oneshot::channel();
        self.sender
            .send(Envelope {
                request: request.into(),
                done: Some(done),
            })
            .await
            .map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Hands in without waiting for the commit. Waits for room only.
    pub async fn post(&self, request: impl Into<Request>) -> Result<(), Stopped> {
        self.sender
            .send(Envelope {
                request: request.into(),
                done: None,
            })
            .await
            .map_err(|_| Stopped)
    }

    /// The driver no longer listens.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
