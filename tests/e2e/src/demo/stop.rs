//! Ctrl-C and SIGTERM as a question that a loop can ask, so that everything started is stopped in order.

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Whether somebody asked to stop.
#[derive(Debug)]
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    asked: bool,
}

impl Stop {
    /// From here on the two signals no longer end the process.
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            asked: false,
        })
    }

    /// Whether a signal came since the last question.
    pub fn asked(&mut self) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let came = |s: &mut Signal, c: &mut std::task::Context<'_>| s.poll_recv(c).is_ready();
        if came(&mut self.interrupt, &mut context) || came(&mut self.terminate, &mut context) {
            self.asked = true;
        }
        self.asked
    }

    /// Waits for a signal.
    pub async fn wait(&mut self) {
        if self.asked {
            return;
        }
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.asked = true;
    }
}
