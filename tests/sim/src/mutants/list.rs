//! The planted bugs.

use super::Mutant;

const DRIVER: &str = "scheduler/src/driver.rs";
const RECONCILE: &str = "scheduler/core/src/reconcile.rs";
const DECIDE: &str = "scheduler/core/src/decide.rs";
const STATE: &str = "scheduler/core/src/state.rs";
const AGENT: &str = "node-agent/core/src/reconcile.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "effect_before_commit",
        file: DRIVER,
        find: "        if !(facts.is_empty() && settings.is_empty() && audit.is_empty()) {",
        replace: "        if PLANTED {\n            self.deliver(&inputs);\n            self.dispatch();\n        }\n        if !(facts.is_empty() && settings.is_empty() && audit.is_empty()) {",
        found_by: "calm",
    },
    Mutant {
        name: "commit_left_out",
        file: DRIVER,
        find: "            let facts = self.commit(commit, stop).await?;",
        replace: "            let facts = if PLANTED {\n                commit.facts\n            } else {\n                self.commit(commit, stop).await?\n            };",
        found_by: "calm",
    },
    Mutant {
        name: "answers_never_settle",
        file: DRIVER,
        find: "            self.effects.forget(key);",
        replace: "            if !PLANTED {\n                self.effects.forget(key);\n            }",
        found_by: "storm",
    },
    Mutant {
        name: "nothing_is_sent_again_after_a_reconnect",
        file: DRIVER,
        find: "            self.sent.remove(&node);\n            self.send_intent(&node);",
        replace: "            if PLANTED {\n                continue;\n            }\n            self.sent.remove(&node);\n            self.send_intent(&node);",
        found_by: "storm",
    },
    Mutant {
        name: "double_lease",
        file: STATE,
        find: "gpu.proven && !self.leases.contains_key(&gpu.uuid)",
        replace: "gpu.proven && (PLANTED || !self.leases.contains_key(&gpu.uuid))",
        found_by: "calm",
    },
    Mutant {
        name: "used_cpu_not_counted",
        file: STATE,
        find: ".saturating_sub(self.used.cpu_millis)",
        replace: ".saturating_sub(if PLANTED { 0 } else { self.used.cpu_millis })",
        found_by: "calm",
    },
    Mutant {
        name: "used_memory_not_counted",
        file: STATE,
        find: ".saturating_sub(self.used.memory_bytes)",
        replace: ".saturating_sub(if PLANTED { 0 } else { self.used.memory_bytes })",
        found_by: "calm",
    },
    Mutant {
        name: "node_maximum_ignored",
        file: STATE,
        find: "(self.capability.max_runners > 0).then(",
        replace: "(!PLANTED && self.capability.max_runners > 0).then(",
        found_by: "calm",
    },
    Mutant {
        name: "labels_ignored",
        file: "scheduler/core/src/labels.rs",
        find: ".all(|(at, word)| word & !other",
        replace: ".all(|(at, word)| PLANTED || word & !other",
        found_by: "calm",
    },
    Mutant {
        name: "generation_not_counted",
        file: "scheduler/core/src/fleet.rs",
        find: ".filter(|node| node.generation.epoch == self.epoch)\n            .map_or(0, |node| node.generation.counter);",
        replace: ".filter(|node| !PLANTED && node.generation.epoch == self.epoch)\n            .map_or(0, |node| node.generation.counter);",
        found_by: "calm",
    },
    Mutant {
        name: "a_late_echo_takes_a_job_back",
        file: DECIDE,
        find: "if seen.phase > known.phase\n",
        replace: "if (if PLANTED { seen.phase != known.phase } else { seen.phase > known.phase })\n",
        found_by: "shuffled_webhooks",
    },
    Mutant {
        name: "supply_counted_twice",
        file: "scheduler/core/src/demand.rs",
        find: "        self.groups[group as usize].supply += 1;",
        replace: "        self.groups[group as usize].supply += if PLANTED { 2 } else { 1 };",
        found_by: "calm",
    },
    Mutant {
        name: "ups_minus_downs",
        file: "scheduler/core/src/demand.rs",
        find: "        self.groups[group as usize].supply -= 1;",
        replace: "        self.groups[group as usize].supply -= if PLANTED { 0 } else { 1 };",
        found_by: "calm",
    },
    Mutant {
        name: "runner_name_used_again",
        file: "scheduler/core/src/entropy.rs",
        find: "        let mut bits = self.next_u64();",
        replace: "        let mut bits = if PLANTED { self.next_u64() & 3 } else { self.next_u64() };",
        found_by: "calm",
    },
    Mutant {
        name: "orphan_sweep_ignores_the_fleet",
        file: RECONCILE,
        find: ".filter(|runner| runner.name.as_str().starts_with(&prefix))",
        replace: ".filter(|runner| PLANTED || runner.name.as_str().starts_with(&prefix))",
        found_by: "calm",
    },
    Mutant {
        name: "an_end_is_not_heard",
        file: RECONCILE,
        find: "        if matches!(seen.phase, ObservedPhase::Exited | ObservedPhase::Failed) {",
        replace: "        if !PLANTED && matches!(seen.phase, ObservedPhase::Exited | ObservedPhase::Failed) {",
        found_by: "calm",
    },
    Mutant {
        name: "idle_runner_never_stops",
        file: "scheduler/core/src/timers.rs",
        find: "            if since + timeout > now.mono {",
        replace: "            if PLANTED || since + timeout > now.mono {",
        found_by: "storm",
    },
    Mutant {
        name: "missing_runner_replaced_at_once",
        file: RECONCILE,
        find: "        if accepted < runner.placed.generation {\n            return;\n        }",
        replace: "        if PLANTED {\n            self.retire(now, name, None, RetireReason::Vanished, facts);\n            return;\n        }\n        if accepted < runner.placed.generation {\n            return;\n        }",
        found_by: "storm",
    },
    Mutant {
        name: "idle_kills_busy",
        file: AGENT,
        find: "            Some(Desired::StopIfIdle) if !self.looked_for_idle => {}",
        replace: "            Some(Desired::StopIfIdle) if PLANTED => {\n                return Some(self.end((Cause::Idle, String::new()), 0));\n            }\n            Some(Desired::StopIfIdle) if !self.looked_for_idle => {}",
        found_by: "storm",
    },
    Mutant {
        name: "adoption_kills",
        file: AGENT,
        find: "        if !found.running {\n            runner.stage = Stage::Ending;",
        replace: "        if PLANTED || !found.running {\n            runner.stage = Stage::Ending;",
        found_by: "storm",
    },
    Mutant {
        name: "intent_of_an_old_scheduler_refuses_a_new_one",
        file: AGENT,
        find: "        if intent.generation < self.highest {",
        replace: "        if (if PLANTED { intent.generation.counter < self.highest.counter } else { intent.generation < self.highest }) {",
        found_by: "storm",
    },
    Mutant {
        name: "removal_is_never_finished",
        file: AGENT,
        find: "                runner.stage = Stage::Ending;\n                runner.changed();",
        replace: "                if !PLANTED {\n                    runner.stage = Stage::Ending;\n                }\n                runner.changed();",
        found_by: "storm",
    },
    Mutant {
        name: "sweep_forgets_what_it_knows",
        file: "tests/sim/src/edge.rs",
        find: "job.phase() != JobPhase::Completed\n",
        replace: "!PLANTED\n                        && job.phase() != JobPhase::Completed\n",
        found_by: "storm",
    },
    Mutant {
        name: "a_job_that_waits_is_runnable",
        file: "tests/sim/src/edge.rs",
        find: "Some(\"queued\" | \"waiting\") => JobPhase::Waiting,",
        replace: "Some(\"queued\" | \"waiting\") => if PLANTED { JobPhase::Completed } else { JobPhase::Waiting },",
        found_by: "shuffled_webhooks",
    },
];
