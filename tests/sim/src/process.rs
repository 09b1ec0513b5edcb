//! A process of the scheduler: the real driver on simulated ports.

use longshore_scheduler::{
    driver::{Committed, Driver, Parts, Recovered},
    inbox::{self, Inbox},
    metrics::Metrics,
};
use scheduler_core::{Entropy, Fleet, input::Input};
use scheduler_store::Memory;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    ports::{Process, SimGitHub, SimLink, store_of},
    world::Shared,
};

pub(crate) struct Scheduler {
    pub(crate) inbox: Inbox,
    task: JoinHandle<()>,
    view: JoinHandle<()>,
}

impl Scheduler {
    /// Starts a process: load, take over, drive. Its end is told by `crashed`.
    pub(crate) fn start(shared: &Shared, memory: &Memory) -> Self {
        let process = {
            let mut world = shared.lock();
            world.processes += 1;
            world.alive = world.processes;
            let id = world.alive;
            world.note(|| format!("scheduler {id} starts"));
            Process {
                shared: shared.clone(),
                id,
                started: world.now,
            }
        };
        let (inbox, outlet) = inbox::inbox();
        let (view_sender, view_receiver) = mpsc::channel(1_024);
        let store = store_of(&process, memory);
        let seed = shared.lock().dice.draw();
        let viewed = shared.clone();
        let (shadow_sender, shadow_receiver) = tokio::sync::oneshot::channel();
        let driving = process.clone();
        let run = async move {
            let (recovered, shadow) = Recovered::load(&*store).await?;
            // The view lives as long as the driver; it may be gone already.
            let _ = shadow_sender.send(shadow);
            let driver = Driver::new(
                recovered,
                Parts {
                    store,
                    github: SimGitHub(driving.clone()),
                    link: std::sync::Arc::new(SimLink(driving.clone())),
                    clock: driving,
                    outlet,
                    view: view_sender,
                    entropy: Entropy::from_seed(seed),
                    metrics: Metrics::new(),
                },
            );
            driver.run(CancellationToken::new()).await
        };
        let watched = process.clone();
        let task = tokio::spawn(async move {
            let driver = AbortOnDrop(tokio::spawn(run));
            let mut driver = driver;
            let ended = (&mut driver.0).await;
            let mut world = watched.shared.lock();
            match ended {
                Ok(ended) => world.note(|| format!("scheduler {} ends: {ended:?}", watched.id)),
                Err(error) if error.is_panic() => {
                    world.violation(format!("scheduler {} panicked: {error}", watched.id));
                }
                Err(_) => {}
            }
            if world.alive == watched.id {
                world.alive = 0;
                world.crashed.notify_one();
            }
        });
        let view = tokio::spawn(async move {
            if let Ok(shadow) = shadow_receiver.await {
                follow(viewed, shadow, view_receiver).await;
            }
        });
        Self { inbox, task, view }
    }

    /// The process is gone with everything in its memory.
    pub(crate) fn kill(self) {
        self.task.abort();
        self.view.abort();
    }

    pub(crate) async fn post(&self, inputs: Vec<Input>) {
        // A process that just died takes nothing any more.
        let _ = self.inbox.post(inputs).await;
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A second fleet fed by what is committed: what every reader sees. It must hold
/// the core's own invariants after every commit.
async fn follow(shared: Shared, shadow: Fleet, mut committed: mpsc::Receiver<Committed>) {
    shared.lock().shadow = Some(shadow);
    while let Some(batch) = committed.recv().await {
        let mut world = shared.lock();
        let Some(mut fleet) = world.shadow.take() else {
            return;
        };
        for fact in &batch.facts {
            fleet.apply(fact);
        }
        for broken in fleet.check_invariants() {
            world.violation(format!("the core's invariant is broken: {broken}"));
        }
        world.shadow = Some(fleet);
    }
}
