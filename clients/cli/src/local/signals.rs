//! The signals that end a fleet in the foreground.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    detached: bool,
}

impl Signals {
    /// From here on the signals no longer end the process by themselves.
    pub(crate) fn new(detached: bool) -> Result<Signals, Failure> {
        let make =
            |kind| signal(kind).map_err(|e| Failure::failed(format!("watch for signals: {e}"), ""));
        Ok(Signals {
            interrupt: make(SignalKind::interrupt())?,
            terminate: make(SignalKind::terminate())?,
            hangup: make(SignalKind::hangup())?,
            detached,
        })
    }

    /// The next one. The terminal going away (hangup) is the user who leaves
    /// a fleet in the foreground; one in the background outlives terminals.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv(), if !self.detached => {}
        }
    }
}
