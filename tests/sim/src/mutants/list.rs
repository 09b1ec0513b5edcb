//! The planted bugs.

use super::{
    FoundBy::{Check, Test},
    Mutant,
    Suite::{AgentCore, SchedulerCore, SchedulerGitHub},
};

const DRIVER: &str = "scheduler/src/driver.rs";
const RECONCILE: &str = "scheduler/core/src/reconcile.rs";
const DECIDE: &str = "scheduler/core/src/decide.rs";
const STATE: &str = "scheduler/core/src/state.rs";
const SWEEP: &str = "scheduler/github/src/sweep.rs";
const AGENT: &str = "node-agent/core/src/reconcile.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "effect_before_commit",
        file: DRIVER,
        find: "        if !(facts.is_empty() && records.is_empty() && nothing) {",
        replace: "        if PLANTED {\n            self.deliver(&inputs);\n            self.dispatch();\n        }\n        if !(facts.is_empty() && records.is_empty() && nothing) {",
        found_by: Check("calm"),
    },
    Mutant {
        name: "commit_left_out",
        file: DRIVER,
        find: "            let facts = self.commit(commit, stop).await?;",
        replace: "            let facts = if PLANTED {\n                commit.facts\n            } else {\n                self.commit(commit, stop).await?\n            };",
        found_by: Check("calm"),
    },
    Mutant {
        name: "answers_never_settle",
        file: DRIVER,
        find: "            self.effects.forget(key);",
        replace: "            if !PLANTED {\n                self.effects.forget(key);\n            }",
        found_by: Check("storm"),
    },
    Mutant {
        name: "nothing_is_sent_again_after_a_reconnect",
        file: DRIVER,
        find: "            self.sent.remove(&node);\n            self.send_intent(&node);",
        replace: "            if PLANTED {\n                continue;\n            }\n            self.sent.remove(&node);\n            self.send_intent(&node);",
        found_by: Check("partitions"),
    },
    Mutant {
        name: "double_lease",
        file: STATE,
        find: "!self.leases.contains_key(&gpu.uuid) && !whole_is_held",
        replace: "(PLANTED || !self.leases.contains_key(&gpu.uuid)) && !whole_is_held",
        found_by: Check("calm"),
    },
    Mutant {
        name: "used_cpu_not_counted",
        file: STATE,
        find: ".saturating_sub(self.used.cpu_millis)",
        replace: ".saturating_sub(if PLANTED { 0 } else { self.used.cpu_millis })",
        found_by: Check("calm"),
    },
    Mutant {
        name: "used_memory_not_counted",
        file: STATE,
        find: ".saturating_sub(self.used.memory_bytes)",
        replace: ".saturating_sub(if PLANTED { 0 } else { self.used.memory_bytes })",
        found_by: Test(
            SchedulerCore,
            "nodes::memory_bounds_a_node_before_its_processors_do",
        ),
    },
    Mutant {
        name: "a_missing_runner_is_replaced_at_once",
        file: RECONCILE,
        find: "        if now.mono - since >= grace {\n            self.retire(now, name, None, RetireReason::Vanished, facts);",
        replace: "        if PLANTED || now.mono - since >= grace {\n            self.retire(now, name, None, RetireReason::Vanished, facts);",
        found_by: Test(
            SchedulerCore,
            "nodes::one_report_without_a_runner_is_not_its_end",
        ),
    },
    Mutant {
        name: "an_ended_runner_is_replaced_before_its_job_is_named",
        file: "scheduler/core/src/spent.rs",
        find: "        if self.soft.spent.len() >= KEPT {",
        replace: "        if PLANTED || self.soft.spent.len() >= KEPT {",
        found_by: Check("shuffled_webhooks"),
    },
    Mutant {
        name: "node_maximum_ignored",
        file: STATE,
        find: "(self.capability.max_runners > 0).then(",
        replace: "(!PLANTED && self.capability.max_runners > 0).then(",
        found_by: Check("calm"),
    },
    Mutant {
        name: "labels_ignored",
        file: "scheduler/core/src/labels.rs",
        find: ".all(|(at, word)| word & !other",
        replace: ".all(|(at, word)| PLANTED || word & !other",
        found_by: Check("calm"),
    },
    Mutant {
        name: "generation_not_counted",
        file: "scheduler/core/src/fleet.rs",
        find: ".filter(|node| node.generation.epoch == self.epoch)\n            .map_or(0, |node| node.generation.counter);",
        replace: ".filter(|node| !PLANTED && node.generation.epoch == self.epoch)\n            .map_or(0, |node| node.generation.counter);",
        found_by: Check("calm"),
    },
    Mutant {
        name: "a_late_echo_takes_a_job_back",
        file: DECIDE,
        find: "if seen.phase > known.phase\n",
        replace: "if (if PLANTED { seen.phase != known.phase } else { seen.phase > known.phase })\n",
        found_by: Test(
            SchedulerCore,
            "jobs::completed_before_in_progress_stays_completed",
        ),
    },
    Mutant {
        name: "supply_counted_twice",
        file: "scheduler/core/src/demand.rs",
        find: "        self.groups[group as usize].supply += 1;",
        replace: "        self.groups[group as usize].supply += if PLANTED { 2 } else { 1 };",
        found_by: Check("calm"),
    },
    Mutant {
        name: "ups_minus_downs",
        file: "scheduler/core/src/demand.rs",
        find: "        self.groups[group as usize].supply -= 1;",
        replace: "        self.groups[group as usize].supply -= if PLANTED { 0 } else { 1 };",
        found_by: Check("calm"),
    },
    Mutant {
        name: "orphan_sweep_ignores_the_fleet",
        file: RECONCILE,
        find: ".filter(|runner| runner.name.as_str().starts_with(&prefix))",
        replace: ".filter(|runner| PLANTED || runner.name.as_str().starts_with(&prefix))",
        found_by: Check("calm"),
    },
    Mutant {
        name: "an_end_is_not_heard",
        file: RECONCILE,
        find: "        if matches!(seen.phase, ObservedPhase::Exited | ObservedPhase::Failed) {",
        replace: "        if !PLANTED && matches!(seen.phase, ObservedPhase::Exited | ObservedPhase::Failed) {",
        found_by: Check("calm"),
    },
    Mutant {
        name: "idle_runner_never_stops",
        file: "scheduler/core/src/timers.rs",
        find: "            if since + timeout > now.mono {",
        replace: "            if PLANTED || since + timeout > now.mono {",
        found_by: Test(
            SchedulerCore,
            "lifecycle::an_idle_runner_is_removed_only_after_the_four_way_check",
        ),
    },
    Mutant {
        name: "idle_kills_busy",
        file: AGENT,
        find: "            Some(Desired::StopIfIdle) if !self.looked_for_idle => {}",
        replace: "            Some(Desired::StopIfIdle) if PLANTED => {\n                return Some(self.end((Cause::Idle, String::new()), 0));\n            }\n            Some(Desired::StopIfIdle) if !self.looked_for_idle => {}",
        found_by: Check("idle_races"),
    },
    Mutant {
        name: "adoption_kills",
        file: AGENT,
        find: "        if !found.running {\n            runner.stage = Stage::Ending;",
        replace: "        if PLANTED || !found.running {\n            runner.stage = Stage::Ending;",
        found_by: Check("storm"),
    },
    Mutant {
        name: "intent_of_an_old_scheduler_refuses_a_new_one",
        file: AGENT,
        find: "        if intent.generation < self.highest {",
        replace: "        if (if PLANTED { intent.generation.counter < self.highest.counter } else { intent.generation < self.highest }) {",
        found_by: Check("storm"),
    },
    Mutant {
        name: "a_vanished_sandbox_is_not_missed",
        file: AGENT,
        find: "                runner.stage = Stage::Ending;\n                runner.changed();",
        replace: "                if !PLANTED {\n                    runner.stage = Stage::Ending;\n                }\n                runner.changed();",
        found_by: Test(
            AgentCore,
            "reconcile::tests::a_live_runner_is_reported_before_the_engine_can_be_asked_and_missed_after",
        ),
    },
    Mutant {
        name: "a_worker_at_the_last_look_is_overseen",
        file: AGENT,
        find: "    fn after_look(&mut self, worker: bool) {\n",
        replace: "    fn after_look(&mut self, worker: bool) {\n        let worker = worker && !PLANTED;\n",
        found_by: Test(
            AgentCore,
            "reconcile::tests::a_worker_seen_at_the_last_look_saves_the_job",
        ),
    },
    Mutant {
        name: "absence_kills",
        file: AGENT,
        find: "                runner.desired = None;\n                runner.foreign = true;",
        replace: "                runner.desired = PLANTED.then(|| Desired::Kill { reason: String::new(), grace_ms: 1 });\n                runner.foreign = true;",
        found_by: Test(AgentCore, "reconcile::tests::absence_stops_nothing"),
    },
    Mutant {
        name: "generation_ignored",
        file: AGENT,
        find: "            return (Accept::Stale, Vec::new());",
        replace: "            if !PLANTED {\n                return (Accept::Stale, Vec::new());\n            }",
        found_by: Test(
            AgentCore,
            "reconcile::tests::an_older_generation_is_refused_whole",
        ),
    },
    Mutant {
        name: "lost_runner_reused",
        file: RECONCILE,
        find: "        runner.soft.lost = true;",
        replace: "        runner.soft.lost = !PLANTED;",
        found_by: Check("restarts"),
    },
    Mutant {
        name: "sweep_skips_in_progress",
        file: SWEEP,
        find: "        for status in statuses {",
        replace: "        for status in statuses.iter().filter(|status| !(PLANTED && **status == \"in_progress\")) {",
        found_by: Test(
            SchedulerGitHub,
            "sweep::a_queued_job_hidden_in_a_running_run_is_seen",
        ),
    },
    Mutant {
        name: "sweep_forgets_what_it_knows",
        file: SWEEP,
        find: "        for run in unlisted {\n",
        replace: "        for run in unlisted {\n            if PLANTED {\n                continue;\n            }\n",
        found_by: Test(
            SchedulerGitHub,
            "sweep::jobs_remembered_from_before_the_start_are_asked_about",
        ),
    },
    Mutant {
        name: "a_job_that_waits_is_runnable",
        file: "scheduler/github/src/translate.rs",
        find: "        \"queued\" => rest_phase(status),",
        replace: "        \"queued\" if PLANTED => JobPhase::Queued,\n        \"queued\" => rest_phase(status),",
        found_by: Test(
            SchedulerGitHub,
            "receive::a_queued_job_of_a_repository_not_listed_yet_is_routed_by_one_look_up",
        ),
    },
];

/// Quick ones for the ordinary test run: one copy, one build, one program.
pub const SHARD: [&str; 5] = [
    "effect_before_commit",
    "ups_minus_downs",
    "double_lease",
    "lost_runner_reused",
    "generation_not_counted",
];
