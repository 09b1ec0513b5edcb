//! A node's container engine and the runner programs inside, as data.

use std::collections::BTreeMap;

use agent_core::{
    Event as Happened, RunnerError, RunnerSpec,
    exit::Ended,
    runtime::{Found, Outcome, Processes},
};
use github_sim::machine::{Message, RunnerError as Broker};

use crate::{
    plan::{Fault, SECOND},
    world::{Event, World},
};

#[derive(Debug, Default)]
pub(crate) struct Engine {
    pub(crate) up: bool,
    pub(crate) containers: BTreeMap<u64, Container>,
    pub(crate) made: u64,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) runner: String,
    pub(crate) spec: RunnerSpec,
    pub(crate) running: bool,
    /// Carries the runner's name: its hand-over has begun.
    pub(crate) named: bool,
    pub(crate) listener: bool,
    pub(crate) worker: bool,
    /// GitHub's id of its registration.
    pub(crate) github_id: Option<u64>,
    pub(crate) session: Option<String>,
    /// Job and request it works on.
    pub(crate) job: Option<(u64, String)>,
    pub(crate) started_utc: u64,
    pub(crate) exit_code: Option<i32>,
}

/// An engine call's end or an engine's notice, on its way to the agent.
#[derive(Debug)]
pub(crate) struct Done(pub(crate) Happened);

/// What a runner program does next.
#[derive(Debug)]
pub(crate) enum RunnerStep {
    Connect,
    Poll,
    Acquire {
        request: String,
    },
    Renew {
        request: String,
    },
    Finish {
        request: String,
        conclusion: &'static str,
    },
    Exit {
        code: i32,
    },
}

impl Engine {
    pub(crate) fn find(&self, runner: &str) -> Option<u64> {
        self.containers
            .iter()
            .find(|(_, container)| container.runner == runner)
            .map(|(id, _)| *id)
    }

    /// What the agent finds at its start; sandboxes that never began are removed.
    pub(crate) fn recover(&mut self) -> Vec<Found> {
        self.containers.retain(|_, container| container.named);
        self.containers
            .iter()
            .map(|(id, container)| Found {
                name: container.runner.clone(),
                container_id: format!("c{id}"),
                running: container.running,
                processes: Processes {
                    listener: container.listener && container.running,
                    worker: container.worker && container.running,
                },
                started_utc_ms: container.started_utc,
                lifetime_ms: container.spec.lifetime_ms,
            })
            .collect()
    }
}

fn engine_down() -> RunnerError {
    RunnerError {
        reason: agent_core::ErrorReason::EngineDown,
        detail: "the engine does not answer".to_owned(),
    }
}

impl World {
    fn done(&mut self, n: usize, low: u64, high: u64, happened: Happened) {
        let incarnation = self.nodes[n].incarnation;
        self.plan_within(
            low,
            high,
            Event::Done {
                node: n,
                incarnation,
                done: Done(happened),
            },
        );
    }

    pub(crate) fn engine_prepare(&mut self, n: usize, runner: String, spec: RunnerSpec) {
        let chance = self.plan.prepare_fails;
        if !self.nodes[n].engine.up {
            let error = engine_down();
            return self.done(n, 1, 50, Happened::PrepareFailed { runner, error });
        }
        if !self.quiet && self.dice.in_10000(chance) {
            self.fired(Fault::PrepareFails);
            let error = RunnerError {
                reason: agent_core::ErrorReason::StartFailed,
                detail: "the engine refused".to_owned(),
            };
            return self.done(n, 50, 2_000, Happened::PrepareFailed { runner, error });
        }
        let engine = &mut self.nodes[n].engine;
        engine.made += 1;
        let id = engine.made;
        let container = Container {
            runner: runner.clone(),
            spec,
            running: true,
            named: false,
            listener: false,
            worker: false,
            github_id: None,
            session: None,
            job: None,
            started_utc: 0,
            exit_code: None,
        };
        engine.containers.insert(id, container);
        let utc = self.utc();
        if let Some(container) = self.nodes[n].engine.containers.get_mut(&id) {
            container.started_utc = utc;
        }
        self.check_sandbox(n, id);
        let container_id = format!("c{id}");
        self.done(
            n,
            150,
            3_000,
            Happened::Prepared {
                runner,
                container_id,
            },
        );
    }

    pub(crate) fn engine_hand_over(&mut self, n: usize, runner: String, jit: Option<String>) {
        let chance = self.plan.hand_over_fails;
        let id = self.nodes[n].engine.find(&runner);
        let registered = jit.and_then(|jit| self.jits.get(&jit).cloned());
        let failed = !self.quiet && self.dice.in_10000(chance);
        let up = self.nodes[n].engine.up;
        let (Some(id), Some((github_id, name)), true, false) = (id, registered, up, failed) else {
            if failed {
                self.fired(Fault::HandOverFails);
            }
            let detail = "the input was cut off".to_owned();
            return self.done(n, 5, 200, Happened::HandOverFailed { runner, detail });
        };
        self.check_hand_over(n, &name, github_id);
        if name != runner {
            self.violation(format!("{runner} was handed the secret of {name}"));
        }
        if let Some(container) = self.nodes[n].engine.containers.get_mut(&id)
            && container.running
        {
            container.named = true;
            container.listener = true;
            container.github_id = Some(github_id);
            let step = RunnerStep::Connect;
            self.plan_within(
                200,
                4_000,
                Event::Runner {
                    node: n,
                    container: id,
                    step,
                },
            );
        }
        self.done(n, 5, 200, Happened::HandedOver { runner });
    }

    pub(crate) fn engine_look(&mut self, n: usize, runner: String) {
        let chance = self.plan.look_fails;
        // Also after the other faults have stopped: a runner is looked at when it has been idle, and then it is quiet.
        if !self.nodes[n].engine.up || self.dice.in_10000(chance) {
            if self.nodes[n].engine.up {
                self.fired(Fault::LookFails);
            }
            return self.done(n, 5, 500, Happened::LookFailed { runner });
        }
        let engine = &self.nodes[n].engine;
        let held = engine
            .find(&runner)
            .and_then(|id| engine.containers.get(&id));
        let processes = held.map_or_else(Processes::default, |c| Processes {
            listener: c.listener && c.running,
            worker: c.worker && c.running,
        });
        self.done(n, 5, 500, Happened::Looked { runner, processes });
    }

    /// SIGINT: a job is cancelled, then the program ends.
    pub(crate) fn engine_end(&mut self, n: usize, runner: String, grace_ms: u64) {
        if let Some(id) = self.nodes[n].engine.find(&runner) {
            self.check_end(n, id, "interrupted");
            let after = self.dice.between(100, grace_ms.clamp(200, 10_000));
            let step = RunnerStep::Exit { code: 0 };
            self.plan_in(
                after,
                Event::Runner {
                    node: n,
                    container: id,
                    step,
                },
            );
        }
        self.done(n, 5, 100, Happened::EndAsked { runner });
    }

    pub(crate) fn engine_collect(&mut self, n: usize, runner: String) {
        if !self.nodes[n].engine.up {
            return self.done(n, 5, 100, Happened::CollectFailed { runner });
        }
        let mut ended = Ended::default();
        if let Some(id) = self.nodes[n].engine.find(&runner) {
            self.check_end(n, id, "collected");
            self.stop_container(n, id, 137, true);
            if let Some(container) = self.nodes[n].engine.containers.get(&id) {
                ended.code = container.exit_code;
            }
        }
        let outcome = Outcome {
            ended,
            usage: None,
            finished_utc_ms: self.utc(),
            denied: None,
        };
        self.done(n, 20, 500, Happened::Collected { runner, outcome });
    }

    pub(crate) fn engine_remove(&mut self, n: usize, runner: String) {
        if !self.nodes[n].engine.up {
            return self.done(n, 5, 100, Happened::RemoveFailed { runner });
        }
        if let Some(id) = self.nodes[n].engine.find(&runner) {
            self.check_end(n, id, "removed");
            self.stop_container(n, id, 137, true);
            self.nodes[n].engine.containers.remove(&id);
        }
        self.done(n, 20, 500, Happened::Removed { runner });
    }

    /// Ends a container's processes; the engine tells the agent if it listens.
    pub(crate) fn stop_container(&mut self, n: usize, id: u64, code: i32, politely: bool) {
        let Some(container) = self.nodes[n].engine.containers.get_mut(&id) else {
            return;
        };
        if !container.running {
            return;
        }
        container.running = false;
        container.listener = false;
        container.worker = false;
        container.exit_code = Some(code);
        let runner = container.runner.clone();
        let session = container.session.take();
        if let Some(session) = session.filter(|_| politely) {
            // A session that is gone already is fine.
            let _ = self.github.runner_disconnect(&session);
        }
        self.done(n, 1, 300, Happened::Died { runner });
    }

    /// Everything on the engine dies without a word to GitHub.
    pub(crate) fn engine_dies(&mut self, n: usize) {
        let ids: Vec<u64> = self.nodes[n].engine.containers.keys().copied().collect();
        for id in ids {
            if let Some((job, _)) = self.nodes[n].engine.containers[&id].job {
                self.excused.insert(job);
            }
            self.stop_container(n, id, 137, false);
        }
    }

    /// The runner program goes on.
    pub(crate) fn runner_step(&mut self, n: usize, id: u64, step: RunnerStep) {
        let running = self.nodes[n]
            .engine
            .containers
            .get(&id)
            .is_some_and(|container| container.running);
        if !running {
            return;
        }
        let again = |step| Event::Runner {
            node: n,
            container: id,
            step,
        };
        match step {
            RunnerStep::Connect => {
                let github_id = self.nodes[n].engine.containers[&id].github_id.unwrap_or(0);
                match self.github.runner_connect(github_id) {
                    Ok(session) => {
                        let runner = {
                            let Some(c) = self.nodes[n].engine.containers.get_mut(&id) else {
                                return;
                            };
                            c.session = Some(session);
                            c.runner.clone()
                        };
                        self.done(n, 10, 300, Happened::Online { runner });
                        self.plan_in(100, again(RunnerStep::Poll));
                    }
                    Err(Broker::SessionConflict) => self.stop_container(n, id, 5, true),
                    Err(_) => self.stop_container(n, id, 1, true),
                }
            }
            RunnerStep::Poll => self.runner_poll(n, id),
            RunnerStep::Acquire { request } => self.runner_acquire(n, id, request),
            RunnerStep::Renew { request } => {
                let session = self.session(n, id);
                // A lost lock shows at the end.
                let _ = self.github.runner_renew(&session, &request);
                if let Ok(Some(Message::Cancel { .. })) = self.github.runner_poll(&session, true) {
                    let step = RunnerStep::Finish {
                        request: request.clone(),
                        conclusion: "cancelled",
                    };
                    self.plan_in(2_000, again(step));
                }
                self.plan_in(10 * SECOND, again(RunnerStep::Renew { request }));
            }
            RunnerStep::Finish {
                request,
                conclusion,
            } => {
                let session = self.session(n, id);
                // The job may have been ended by GitHub meanwhile.
                let _ = self.github.runner_complete(&session, &request, conclusion);
                if let Some(container) = self.nodes[n].engine.containers.get_mut(&id) {
                    container.worker = false;
                    container.job = None;
                }
                self.plan_within(100, 2_000, again(RunnerStep::Exit { code: 0 }));
            }
            RunnerStep::Exit { code } => {
                let session = self.session(n, id);
                let job = self.nodes[n].engine.containers[&id].job.clone();
                if let Some((_, request)) = job {
                    let _ = self.github.runner_complete(&session, &request, "cancelled");
                }
                self.stop_container(n, id, code, true);
            }
        }
    }

    fn session(&self, n: usize, id: u64) -> String {
        let container = self.nodes[n].engine.containers.get(&id);
        container
            .and_then(|c| c.session.clone())
            .unwrap_or_default()
    }

    fn runner_poll(&mut self, n: usize, id: u64) {
        let session = self.session(n, id);
        let chance = self.plan.runner_quits;
        match self.github.runner_poll(&session, false) {
            Ok(Some(Message::Job { request_id })) => {
                if !self.quiet && self.dice.in_10000(chance) {
                    self.fired(Fault::RunnerQuits);
                    return self.stop_container(n, id, 2, true);
                }
                if let Some(container) = self.nodes[n].engine.containers.get_mut(&id) {
                    // The worker is there before the job is taken.
                    container.worker = true;
                }
                self.hint(n, id);
                let step = RunnerStep::Acquire {
                    request: request_id,
                };
                self.plan_within(
                    50,
                    1_500,
                    Event::Runner {
                        node: n,
                        container: id,
                        step,
                    },
                );
            }
            Ok(_) => {
                let step = RunnerStep::Poll;
                self.plan_within(
                    500,
                    2_000,
                    Event::Runner {
                        node: n,
                        container: id,
                        step,
                    },
                );
            }
            Err(_) => self.stop_container(n, id, 1, true),
        }
    }

    fn runner_acquire(&mut self, n: usize, id: u64, request: String) {
        let session = self.session(n, id);
        match self.github.runner_acquire(&session, &request) {
            Ok(body) => {
                let longest = self.plan.longest_job_ms;
                let lasts = match self.dice.below(10) {
                    0 => self.dice.between(longest, 5 * longest),
                    _ => self.dice.between(2 * SECOND, longest),
                };
                if let Some(container) = self.nodes[n].engine.containers.get_mut(&id) {
                    container.job = Some((body.job_id, request.clone()));
                }
                let runner = self.nodes[n].engine.containers[&id].runner.clone();
                let node = self.nodes[n].name.clone();
                self.note(|| format!("{node} {runner} runs job {} for {lasts} ms", body.job_id));
                self.mix(&body.job_id.to_le_bytes());
                self.mix(runner.as_bytes());
                let again = |step| Event::Runner {
                    node: n,
                    container: id,
                    step,
                };
                self.plan_in(
                    10 * SECOND,
                    again(RunnerStep::Renew {
                        request: request.clone(),
                    }),
                );
                let step = RunnerStep::Finish {
                    request,
                    conclusion: "success",
                };
                self.plan_in(lasts, again(step));
            }
            // Somebody else has it: the registration is gone, the program ends.
            Err(_) => self.stop_container(n, id, 1, true),
        }
    }

    /// The agent looks when a container's processes change.
    fn hint(&mut self, n: usize, id: u64) {
        let container = &self.nodes[n].engine.containers[&id];
        let runner = container.runner.clone();
        let processes = Processes {
            listener: container.listener,
            worker: container.worker,
        };
        self.done(n, 10, 1_000, Happened::Looked { runner, processes });
    }
}
