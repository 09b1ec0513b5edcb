//! How many registrations a credential may make, and what failures cost.

use crate::{
    entropy::Entropy,
    fact::{Fact, StopReason},
    fleet::Fleet,
    input::RegistrationFailure,
    model::{CredentialName, Now, RunnerName, Scope},
};

/// Reserved ahead for a credential of which GitHub has said nothing yet.
const UNKNOWN_BUDGET: u32 = 100;

impl Fleet {
    /// A primary or secondary limit is in force.
    pub(crate) fn is_limited(&self, credential: &CredentialName) -> bool {
        let now = self.soft.last.map_or(0, |now| now.utc);
        self.budgets
            .get(credential)
            .and_then(|budget| budget.limited_until)
            .is_some_and(|until| until > now)
    }

    /// Runners that may still be reserved now.
    pub(crate) fn available(&self, credential: &CredentialName, reserved: u32) -> u32 {
        if self.is_limited(credential) {
            return 0;
        }
        self.budgets
            .get(credential)
            .and_then(|budget| budget.registrations)
            .unwrap_or(UNKNOWN_BUDGET)
            .saturating_sub(reserved)
    }

    pub(crate) fn registration_ready(
        &mut self,
        now: Now,
        name: &RunnerName,
        github_id: u64,
        facts: &mut Vec<Fact>,
    ) {
        if let Some(runner) = self.runners.get(name) {
            let scope = Scope::clone(&runner.placed.scope);
            let credential = runner.placed.credential.clone();
            let given_up = runner.stopping.is_some() || runner.soft.lost;
            if runner.registered.map(|known| known.github_id) == Some(github_id) {
                return;
            }
            self.owed.calm(&credential);
            self.emit(
                Fact::RunnerRegistered {
                    runner: name.clone(),
                    github_id,
                    at: now.utc,
                },
                facts,
            );
            self.owe_registrations(&credential);
            if given_up {
                self.emit(
                    Fact::OrphanSeen {
                        runner: name.clone(),
                        scope: scope.clone(),
                        credential,
                        github_id,
                        at: now.utc,
                    },
                    facts,
                );
            }
            if self.rests.contains_key(&scope) {
                self.emit(Fact::ScopeCleared { scope }, facts);
            }
            return;
        }
        // The answer came after the end: the registration stands without a runner.
        if let Some(placed) = self.soft.graves.get(name) {
            self.emit(
                Fact::OrphanSeen {
                    runner: name.clone(),
                    scope: Scope::clone(&placed.scope),
                    credential: placed.credential.clone(),
                    github_id,
                    at: now.utc,
                },
                facts,
            );
        }
    }

    pub(crate) fn registration_failed(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        name: &RunnerName,
        failure: &RegistrationFailure,
        detail: &str,
        facts: &mut Vec<Fact>,
    ) {
        let Some(runner) = self.runners.get(name) else {
            return;
        };
        if !runner.awaits_registration() {
            return;
        }
        let scope = Scope::clone(&runner.placed.scope);
        let credential = runner.placed.credential.clone();
        self.emit(
            Fact::RunnerStopping {
                runner: name.clone(),
                why: StopReason::NotRegistered(detail.to_owned()),
                at: now.utc,
            },
            facts,
        );
        match failure {
            RegistrationFailure::RateLimited { until } => {
                self.owed.go_serial(&credential);
                let budget = self.budgets.get(&credential).cloned().unwrap_or_default();
                self.emit(
                    Fact::BudgetChanged {
                        credential,
                        scopes: budget.scopes,
                        registrations: 0,
                        limited_until: Some(*until),
                        problem: budget.problem,
                    },
                    facts,
                );
            }
            RegistrationFailure::Ambiguous => {
                // It may exist: delete it by name; its successor has another one.
                self.emit(
                    Fact::OrphanSeen {
                        runner: name.clone(),
                        scope: scope.clone(),
                        credential,
                        github_id: 0,
                        at: now.utc,
                    },
                    facts,
                );
                self.rest_scope(now, entropy, scope, detail, 2_000, facts);
            }
            RegistrationFailure::Forbidden => {
                let budget = self.budgets.get(&credential).cloned().unwrap_or_default();
                self.emit(
                    Fact::BudgetChanged {
                        credential,
                        scopes: budget.scopes,
                        registrations: budget.registrations.unwrap_or(UNKNOWN_BUDGET),
                        limited_until: budget.limited_until,
                        problem: Some(detail.to_owned()),
                    },
                    facts,
                );
                self.rest_scope(now, entropy, scope, detail, 60_000, facts);
            }
            RegistrationFailure::NotFound => {
                self.rest_scope(now, entropy, scope, detail, 60_000, facts);
            }
            RegistrationFailure::Transient => {
                self.rest_scope(now, entropy, scope, detail, 2_000, facts);
            }
        }
    }

    fn rest_scope(
        &mut self,
        now: Now,
        entropy: &mut Entropy,
        scope: Scope,
        detail: &str,
        base_ms: u64,
        facts: &mut Vec<Fact>,
    ) {
        let known = self.rests.get(&scope);
        // Calls in flight fail together: one burst is one failure.
        if known.is_some_and(|rest| rest.resting && rest.until > now.utc) {
            return;
        }
        let failures = known.map_or(0, |rest| rest.failures) + 1;
        let until = now.utc + backoff(base_ms, failures, entropy);
        self.emit(
            Fact::ScopeRests {
                scope,
                until,
                detail: detail.to_owned(),
                failures,
            },
            facts,
        );
    }
}

/// Doubles from `base_ms` up to 30 minutes, less up to a quarter at random.
pub(crate) fn backoff(base_ms: u64, failures: u32, entropy: &mut Entropy) -> u64 {
    const LONGEST_MS: u64 = 30 * 60_000;
    let full = base_ms
        .saturating_mul(1 << failures.saturating_sub(1).min(20))
        .min(LONGEST_MS);
    full - entropy.below(full / 4 + 1)
}
