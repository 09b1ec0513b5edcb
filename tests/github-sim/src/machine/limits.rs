//! Rate limits: hourly buckets, points a minute, registrations in five minutes.

use std::collections::BTreeMap;

use super::model::Scope;
use super::world::{HOUR, MINUTE, World};

#[derive(Debug, Clone, Copy)]
struct Bucket {
    used: u64,
    reset_ms: u64,
}

/// Who has used how much.
#[derive(Debug, Default)]
pub(crate) struct Buckets {
    primary: BTreeMap<(String, String), Bucket>,
    /// (identity, route) → (start of the minute, points)
    points: BTreeMap<(String, String), (u64, u64)>,
}

/// What the `x-ratelimit-*` headers say.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) limit: u64,
    pub(crate) used: u64,
    pub(crate) reset_s: u64,
    pub(crate) resource: String,
    pub(crate) exceeded: bool,
}

impl World {
    fn limit_of(&self, identity: &str, resource: &str) -> Option<u64> {
        let l = &self.cfg.limits;
        match resource {
            "actions_runner_registration" => l.registration_per_hour,
            _ if identity == "anonymous" => l.anonymous_per_hour,
            _ => {
                let base = l.primary_per_hour?;
                Some(base + self.installation_bonus(identity))
            }
        }
    }

    /// 50 more for each repository above 20, up to 12,500; only where the limit is GitHub's own.
    fn installation_bonus(&self, identity: &str) -> u64 {
        if self.cfg.limits.primary_per_hour != Some(5_000) {
            return 0;
        }
        let Some(id) = identity
            .strip_prefix("installation:")
            .and_then(|t| t.parse().ok())
        else {
            return 0;
        };
        let Some(i) = self.installations.get(&id) else {
            return 0;
        };
        let repos = self.covered_repositories(i).len() as u64;
        (repos.saturating_sub(20) * 50).min(7_500)
    }

    /// Where an identity stands; `cost` is added first (0 looks only). `None`: no limit.
    pub(crate) fn standing(
        &mut self,
        identity: &str,
        resource: &str,
        cost: u64,
    ) -> Option<Standing> {
        let limit = self.limit_of(identity, resource)?;
        let now = self.now;
        let bucket = self
            .buckets
            .primary
            .entry((identity.to_owned(), resource.to_owned()))
            .or_insert(Bucket {
                used: 0,
                reset_ms: now + HOUR,
            });
        if bucket.reset_ms <= now {
            *bucket = Bucket {
                used: 0,
                reset_ms: now + HOUR,
            };
        }
        let exceeded = bucket.used + cost > limit;
        if !exceeded {
            bucket.used += cost;
        }
        Some(Standing {
            limit,
            used: bucket.used,
            reset_s: bucket.reset_ms.div_ceil(1000),
            resource: resource.to_owned(),
            exceeded,
        })
    }

    /// Gives back what a 304 does not cost.
    pub(crate) fn refund(&mut self, identity: &str, resource: &str) {
        if let Some(b) = self
            .buckets
            .primary
            .get_mut(&(identity.to_owned(), resource.to_owned()))
        {
            b.used = b.used.saturating_sub(1);
        }
    }

    /// `Some(seconds to wait)` when an endpoint has had its points of this minute.
    pub(crate) fn over_points(&mut self, identity: &str, route: &str, points: u64) -> Option<u64> {
        let limit = self.cfg.limits.points_per_minute?;
        let now = self.now;
        let entry = self
            .buckets
            .points
            .entry((identity.to_owned(), route.to_owned()))
            .or_insert((now, 0));
        if entry.0 + MINUTE <= now {
            *entry = (now, 0);
        }
        if entry.1 + points > limit {
            return Some((entry.0 + MINUTE - now).div_ceil(1000).max(1));
        }
        entry.1 += points;
        None
    }

    /// Whether one more registration is allowed here now; counts it.
    pub(crate) fn registration_allowed(&mut self, scope: Scope) -> bool {
        let now = self.now;
        let times = self.registration_times.entry(scope).or_default();
        while times.front().is_some_and(|t| t + 5 * MINUTE <= now) {
            times.pop_front();
        }
        if self
            .cfg
            .limits
            .registrations_per_5min
            .is_some_and(|n| times.len() as u64 >= n)
        {
            return false;
        }
        times.push_back(now);
        true
    }
}
