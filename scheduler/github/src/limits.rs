//! GitHub's limits of one credential, as its replies tell them. Pure: time is an argument.

use std::collections::BTreeMap;

use http::HeaderMap;
use scheduler_core::model::UtcMillis;

use crate::budget::{Bucket, Window, registrations, registrations_a_minute};

/// After a secondary limit calls go one by one for this long.
const SERIAL_MS: u64 = 10 * 60_000;
/// No rest is longer, whatever a header says.
const LONGEST_REST_MS: u64 = 70 * 60_000;
const FIRST_SECONDARY_REST_MS: u64 = 60_000;
const LONGEST_SECONDARY_REST_MS: u64 = 15 * 60_000;

/// The `x-ratelimit-*` headers of one reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) resource: String,
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    pub(crate) reset_at: UtcMillis,
}

impl Rate {
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        Some(Self {
            resource: text("x-ratelimit-resource").unwrap_or("core").to_owned(),
            limit: number("x-ratelimit-limit")?,
            remaining: number("x-ratelimit-remaining")?,
            reset_at: number("x-ratelimit-reset")?.saturating_mul(1000),
        })
    }
}

/// What a call is, as far as limits care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
    /// Which bucket a registration uses differs between sources: its replies say.
    Register,
}

/// Rest a refusal asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(crate) until: UtcMillis,
    pub(crate) reason: String,
    /// Only this bucket is empty; `None`: the whole credential rests.
    pub(crate) resource: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Limits {
    rates: BTreeMap<String, Rate>,
    rest: Option<Rest>,
    empty: BTreeMap<String, UtcMillis>,
    strikes: u32,
    last_secondary: Option<UtcMillis>,
    register_resource: String,
    bucket: Bucket,
    window: Window,
    /// Registrations GitHub made, ever.
    made: u64,
}

impl Limits {
    pub(crate) fn new(now: UtcMillis) -> Self {
        Self {
            rates: BTreeMap::new(),
            rest: None,
            empty: BTreeMap::new(),
            strikes: 0,
            last_secondary: None,
            register_resource: "core".to_owned(),
            bucket: registrations(now),
            window: registrations_a_minute(),
            made: 0,
        }
    }

    /// Accounts any reply.
    pub(crate) fn observe(&mut self, now: UtcMillis, purpose: Use, headers: &HeaderMap) {
        let Some(rate) = Rate::of(headers) else {
            return;
        };
        if purpose == Use::Register {
            self.register_resource.clone_from(&rate.resource);
        }
        if rate.remaining == 0 && rate.reset_at > now {
            let until = rate.reset_at.min(now + LONGEST_REST_MS);
            self.empty.insert(rate.resource.clone(), until);
        } else {
            self.empty.remove(&rate.resource);
        }
        self.rates.insert(rate.resource.clone(), rate);
    }

    /// Judges a 403 or 429: a rest when it is a limit, `None` when it is a permission problem.
    pub(crate) fn refused(
        &mut self,
        now: UtcMillis,
        status: u16,
        headers: &HeaderMap,
        body: &str,
    ) -> Option<Rest> {
        let retry_after = headers
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse::<u64>().ok());
        let rate = Rate::of(headers);
        let exhausted = rate.as_ref().filter(|rate| rate.remaining == 0);
        let secondary_words = contains_ignoring_case(body, "secondary rate");
        let rest = if let Some(seconds) = retry_after {
            if exhausted.is_none() || secondary_words {
                self.strike(now);
            }
            Rest {
                until: now.saturating_add(seconds.max(1).saturating_mul(1000)),
                reason: format!("retry-after {seconds} s"),
                resource: None,
            }
        } else if let Some(rate) = exhausted.filter(|_| !secondary_words) {
            Rest {
                until: rate.reset_at.max(now + 1000),
                reason: format!(
                    "primary limit of {} {} per hour used up",
                    rate.limit, rate.resource
                ),
                resource: Some(rate.resource.clone()),
            }
        } else if status == 429 || secondary_words {
            self.strike(now);
            let doubled = FIRST_SECONDARY_REST_MS << self.strikes.saturating_sub(1).min(8);
            Rest {
                until: now + doubled.min(LONGEST_SECONDARY_REST_MS),
                reason: "secondary limit".to_owned(),
                resource: None,
            }
        } else {
            return None;
        };
        let rest = Rest {
            until: rest.until.min(now + LONGEST_REST_MS),
            ..rest
        };
        match &rest.resource {
            Some(resource) => {
                self.empty.insert(resource.clone(), rest.until);
            }
            None => {
                let later = self.rest.as_ref().is_none_or(|old| old.until < rest.until);
                if later {
                    self.rest = Some(rest.clone());
                }
            }
        }
        Some(rest)
    }

    fn strike(&mut self, now: UtcMillis) {
        let fresh = self
            .last_secondary
            .is_none_or(|last| now.saturating_sub(last) > SERIAL_MS);
        self.strikes = if fresh {
            1
        } else {
            self.strikes.saturating_add(1)
        };
        self.last_secondary = Some(now);
    }

    /// The rest in force for this kind of call.
    pub(crate) fn resting(&self, now: UtcMillis, purpose: Use) -> Option<Rest> {
        if let Some(rest) = self.rest.as_ref().filter(|rest| rest.until > now) {
            return Some(rest.clone());
        }
        let resource = match purpose {
            Use::Register => self.register_resource.as_str(),
            Use::Read | Use::Write => "core",
        };
        let until = *self.empty.get(resource)?;
        (until > now).then(|| Rest {
            until,
            reason: format!("hourly limit '{resource}' used up"),
            resource: Some(resource.to_owned()),
        })
    }

    /// Calls go one at a time for a while after a secondary limit.
    pub(crate) fn serial(&self, now: UtcMillis) -> bool {
        self.last_secondary
            .is_some_and(|last| now.saturating_sub(last) < SERIAL_MS)
    }

    /// Takes one registration from the bounds of our own.
    pub(crate) fn take_registration(&mut self, now: UtcMillis) -> Result<(), Rest> {
        if let Some(until) = self.next_registration(now) {
            return Err(Rest {
                until,
                reason: "own bound of 120 registrations a minute".to_owned(),
                resource: None,
            });
        }
        // Both have room.
        let _ = (self.bucket.take(now), self.window.take(now));
        Ok(())
    }

    /// When the bound of our own allows one more; `None`: now.
    fn next_registration(&mut self, now: UtcMillis) -> Option<UtcMillis> {
        let bucket = self.bucket.clone().take(now).err();
        bucket.max(self.window.next(now))
    }

    /// GitHub made one.
    pub(crate) fn registered(&mut self) {
        self.made += 1;
    }

    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// How many registrations may be made now, and until when none may.
    pub(crate) fn registrations(&mut self, now: UtcMillis) -> (u32, Option<UtcMillis>) {
        if let Some(rest) = self.resting(now, Use::Register) {
            return (0, Some(rest.until));
        }
        let left = self
            .rates
            .get(&self.register_resource)
            .filter(|rate| rate.reset_at > now)
            .map_or(u64::MAX, |rate| rate.remaining);
        let own = self.bucket.available(now).min(self.window.available(now));
        let free = own.min(left);
        if free > 0 {
            return (u32::try_from(free).unwrap_or(u32::MAX), None);
        }
        (0, self.next_registration(now))
    }

    pub(crate) fn rates(&self) -> impl Iterator<Item = &Rate> {
        self.rates.values()
    }

    /// Left in the hour for reads, with the time of its reset.
    pub(crate) fn reads_left(&self, now: UtcMillis) -> Option<&Rate> {
        self.rates.get("core").filter(|rate| rate.reset_at > now)
    }
}

fn contains_ignoring_case(text: &str, needle: &str) -> bool {
    text.as_bytes()
        .windows(needle.len())
        .any(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    const NOW: UtcMillis = 1_700_000_000_000;

    fn headers(pairs: &[(&'static str, String)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    fn rate(resource: &str, remaining: u64, reset_in_s: u64) -> HeaderMap {
        headers(&[
            ("x-ratelimit-limit", "5000".into()),
            ("x-ratelimit-remaining", remaining.to_string()),
            ("x-ratelimit-reset", (NOW / 1000 + reset_in_s).to_string()),
            ("x-ratelimit-resource", resource.into()),
        ])
    }

    #[test]
    fn retry_after_is_obeyed_first() {
        let mut limits = Limits::new(NOW);
        let rest = limits
            .refused(
                NOW,
                403,
                &headers(&[("retry-after", "7".into())]),
                "You have exceeded a SECONDARY rate limit",
            )
            .unwrap();
        assert_eq!(rest.until, NOW + 7_000);
        assert!(limits.serial(NOW));
        assert!(limits.resting(NOW + 6_999, Use::Read).is_some());
        assert!(limits.resting(NOW + 7_000, Use::Read).is_none());
        assert!(!limits.serial(NOW + SERIAL_MS));
    }

    #[test]
    fn an_empty_bucket_rests_alone_until_its_reset() {
        let mut limits = Limits::new(NOW);
        let rest = limits
            .refused(NOW, 403, &rate("core", 0, 90), "API rate limit exceeded")
            .unwrap();
        assert_eq!(
            (rest.until, rest.resource.as_deref()),
            (NOW + 90_000, Some("core"))
        );
        assert!(!limits.serial(NOW));
        limits.observe(
            NOW,
            Use::Register,
            &rate("actions_runner_registration", 9_000, 60),
        );
        assert!(limits.resting(NOW, Use::Read).is_some());
        assert!(
            limits.resting(NOW, Use::Register).is_none(),
            "another bucket serves registrations"
        );
    }

    #[test]
    fn secondary_limits_without_a_time_double_and_are_bounded() {
        let mut limits = Limits::new(NOW);
        let mut last = 0;
        for strike in 0..12 {
            let rest = limits.refused(NOW, 429, &HeaderMap::new(), "").unwrap();
            let length = rest.until - NOW;
            assert!(
                length >= 60_000 && length >= last && length <= LONGEST_SECONDARY_REST_MS,
                "{strike}"
            );
            last = length;
        }
        assert_eq!(last, LONGEST_SECONDARY_REST_MS);
        let later = NOW + SERIAL_MS + 1;
        assert_eq!(
            limits
                .refused(later, 429, &HeaderMap::new(), "")
                .unwrap()
                .until,
            later + 60_000
        );
    }

    #[test]
    fn any_other_403_is_a_permission_problem() {
        let mut limits = Limits::new(NOW);
        assert_eq!(
            limits.refused(
                NOW,
                403,
                &rate("core", 4_000, 90),
                "Resource not accessible by integration"
            ),
            None
        );
        assert!(limits.resting(NOW, Use::Write).is_none());
    }

    #[test]
    fn the_last_call_of_the_hour_stops_the_next_one_before_it_is_sent() {
        let mut limits = Limits::new(NOW);
        limits.observe(NOW, Use::Read, &rate("core", 0, 30));
        assert_eq!(limits.resting(NOW, Use::Read).unwrap().until, NOW + 30_000);
        assert_eq!(limits.registrations(NOW), (0, Some(NOW + 30_000)));
        limits.observe(NOW + 31_000, Use::Read, &rate("core", 4_999, 3_600));
        assert_eq!(limits.registrations(NOW + 31_000), (100, None));
    }

    #[test]
    fn registrations_are_the_smaller_of_bucket_and_hour() {
        let mut limits = Limits::new(NOW);
        limits.observe(
            NOW,
            Use::Register,
            &rate("actions_runner_registration", 3, 30),
        );
        assert_eq!(limits.registrations(NOW), (3, None));
        for _ in 0..100 {
            limits.take_registration(NOW).unwrap();
        }
        assert_eq!(limits.take_registration(NOW).unwrap_err().until, NOW + 500);
        assert_eq!(limits.registrations(NOW), (0, Some(NOW + 500)));
    }

    proptest! {
        /// No combination of headers rests for ever, or ends a rest early.
        #[test]
        fn rests_are_bounded_and_kept(
            retry in proptest::option::of(0_u64..u64::MAX / 2),
            remaining in 0_u64..3,
            reset in 0_u64..u64::MAX / 2000,
            status in proptest::sample::select(vec![403_u16, 429]),
            secondary in any::<bool>(),
        ) {
            let mut pairs = vec![
                ("x-ratelimit-limit", "5000".to_owned()),
                ("x-ratelimit-remaining", remaining.to_string()),
                ("x-ratelimit-reset", reset.to_string()),
            ];
            if let Some(retry) = retry {
                pairs.push(("retry-after", retry.to_string()));
            }
            let mut limits = Limits::new(NOW);
            let body = if secondary { "a secondary rate limit" } else { "no" };
            if let Some(rest) = limits.refused(NOW, status, &headers(&pairs), body) {
                prop_assert!(rest.until > NOW && rest.until <= NOW + LONGEST_REST_MS);
                prop_assert!(limits.resting(NOW, Use::Read).is_some());
                prop_assert!(limits.resting(rest.until, Use::Read).is_none());
            } else {
                prop_assert!(status == 403 && !secondary && retry.is_none() && remaining > 0);
            }
        }
    }
}
