//! When the node looks at its own sandbox: at the start, when the engine comes back,
//! in a job image that is new here, now and then, and when somebody asks.

use std::collections::VecDeque;
use std::time::Duration;

use agent_core::model::{Resources, RunnerSpec};
use agent_core::probe::Probed;
use agent_core::sandbox::RuntimeClass;
use tokio::sync::oneshot;

/// Without any other occasion.
const EVERY: Duration = Duration::from_secs(6 * 3_600);
/// Between two looks because of an image.
const IMAGES_APART: Duration = Duration::from_secs(600);
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// A runtime that cannot make a sandbox is tried so often until the next occasion.
const RUNTIME_TRIES: u32 = 4;
/// What a probe's sandbox may take, for the seconds that it lives.
const TAKES: Resources = Resources {
    cpu_millis: 1_000,
    memory_bytes: 256 << 20,
    gpus: 0,
};
const LIFETIME: Duration = Duration::from_secs(120);

/// Who waits for a look: the answer, or why there is none.
pub type Answer = oneshot::Sender<Result<Probed, agent_core::RunnerError>>;

/// One look to be made.
#[derive(Debug)]
pub struct Wanted {
    pub spec: RunnerSpec,
    /// What it finds is published: it looked at what most jobs get.
    pub publish: bool,
    pub answer: Option<Answer>,
}

#[derive(Debug, Default)]
pub struct Probing {
    running: bool,
    /// Milliseconds of the agent's clock.
    due: Option<u64>,
    last: Option<u64>,
    failures: u32,
    asked: Option<Wanted>,
    /// Newest job image seen here, with its platform.
    image: Option<(String, String)>,
    /// Could not be looked from; the agent's own image is used instead.
    bad_image: Option<String>,
    /// Runtimes at which a look is due, with the failures so far; after the engine's own.
    runtimes: VecDeque<(RuntimeClass, u32)>,
    /// When the next of them may be looked at.
    runtimes_due: u64,
}

/// A sandbox of this kind; the platform is this host's.
pub fn spec(profile: &str, network_mode: &str, image: &str, platform: &str) -> RunnerSpec {
    RunnerSpec {
        image: image.to_owned(),
        profile: profile.to_owned(),
        resources: TAKES,
        gpu_uuids: Vec::new(),
        network_mode: network_mode.to_owned(),
        allowed_domains: Vec::new(),
        platform: if platform.is_empty() {
            platform_here().to_owned()
        } else {
            platform.to_owned()
        },
        lifetime_ms: u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX),
        traceparent: String::new(),
        pool: String::new(),
        scope: String::new(),
        runtime: String::new(),
    }
}

fn platform_here() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "linux/arm64",
        "arm" => "linux/arm/v7",
        _ => "linux/amd64",
    }
}

impl Probing {
    /// The engine is there, again or for the first time.
    pub fn engine_is_back(&mut self, now: u64) {
        self.due = Some(now);
    }

    /// A job is to run from this image. The probe's program is of this host's own
    /// architecture, and in an emulated sandbox it would tell the emulator's findings.
    pub fn saw(&mut self, image: &str, platform: &str) {
        if platform != platform_here() {
            return;
        }
        if self.image.as_ref().is_none_or(|(known, _)| known != image) {
            self.image = Some((image.to_owned(), platform.to_owned()));
        }
    }

    /// Somebody asks; refused while another look is under way or waits.
    pub fn ask(&mut self, wanted: Wanted) -> Result<(), Box<Wanted>> {
        if self.asked.is_some() || self.running {
            return Err(Box::new(wanted));
        }
        self.asked = Some(wanted);
        Ok(())
    }

    /// The look to begin now. `looked_from` is the image of the last finding; `busy`
    /// says that sandboxes are being made, which go first.
    pub fn next(&mut self, now: u64, looked_from: Option<&str>, busy: bool) -> Option<Wanted> {
        if self.running {
            return None;
        }
        let wanted = match self.asked.take() {
            Some(asked) => asked,
            None => {
                let due = self.due.is_some_and(|due| due <= now);
                if !due && (busy || !self.image_is_new(now, looked_from)) {
                    return self.runtime_due(now, busy);
                }
                // The first look of all needs no image of anybody.
                let image = self.image.as_ref().filter(|(image, _)| {
                    looked_from.is_some() && self.bad_image.as_ref() != Some(image)
                });
                let (image, platform) = image.map_or(("", ""), |(i, p)| (i, p));
                Wanted {
                    spec: spec("strict", "open", image, platform),
                    publish: true,
                    answer: None,
                }
            }
        };
        self.running = true;
        self.due = None;
        Some(wanted)
    }

    /// A look at a sandbox of the next runtime.
    fn runtime_due(&mut self, now: u64, busy: bool) -> Option<Wanted> {
        if busy || self.runtimes_due > now {
            return None;
        }
        let (class, _) = *self.runtimes.front()?;
        self.running = true;
        Some(Wanted {
            spec: RunnerSpec {
                runtime: class.word().to_owned(),
                ..spec("strict", "open", "", "")
            },
            publish: true,
            answer: None,
        })
    }

    /// The engine's own was looked at: it is their turn.
    pub fn look_at_runtimes(&mut self, classes: &[RuntimeClass]) {
        self.runtimes = classes.iter().map(|class| (*class, 0)).collect();
    }

    /// A look that this one began at a runtime of its own ended.
    pub fn runtime_ended(&mut self, now: u64, class: RuntimeClass, good: bool) {
        self.running = false;
        let Some(at) = self.runtimes.iter().position(|(known, _)| *known == class) else {
            return;
        };
        let Some((_, failures)) = self.runtimes.remove(at) else {
            return;
        };
        if !good && failures + 1 < RUNTIME_TRIES {
            self.runtimes.push_back((class, failures + 1));
            self.runtimes_due = now.saturating_add(millis(FIRST_RETRY * (1 << failures)));
        }
    }

    fn image_is_new(&self, now: u64, looked_from: Option<&str>) -> bool {
        let Some((image, _)) = &self.image else {
            return false;
        };
        let rested = self
            .last
            .is_none_or(|last| now.saturating_sub(last) >= millis(IMAGES_APART));
        rested
            && looked_from.is_some_and(|from| from != image)
            && self.bad_image.as_ref() != Some(image)
    }

    /// A look ended; `image` is what it was made from.
    pub fn ended(&mut self, now: u64, image: &str, good: bool) {
        self.running = false;
        self.last = Some(now);
        let pause = if good {
            self.failures = 0;
            if self.bad_image.as_deref() == Some(image) {
                self.bad_image = None;
            }
            EVERY
        } else {
            if !image.is_empty() {
                self.bad_image = Some(image.to_owned());
            }
            self.failures = self.failures.saturating_add(1);
            let times = 1 << self.failures.saturating_sub(1).min(8);
            (FIRST_RETRY * times).min(LONGEST_RETRY)
        };
        let next = now.saturating_add(millis(pause));
        self.due = Some(self.due.map_or(next, |due| due.min(next)));
    }

    /// When `next` has something to do without a new occasion.
    pub fn deadline(&self) -> Option<u64> {
        let runtimes = (!self.runtimes.is_empty()).then_some(self.runtimes_due);
        match (self.running, self.due, runtimes) {
            (true, ..) => None,
            (_, Some(due), Some(runtimes)) => Some(due.min(runtimes)),
            (_, due, runtimes) => due.or(runtimes),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_at_the_start_and_again_when_the_engine_comes_back() {
        let mut probing = Probing::default();
        assert!(probing.next(0, None, false).is_none());
        probing.engine_is_back(10);
        let first = probing.next(10, None, true).unwrap();
        assert_eq!(first.spec.image, "");
        assert!(probing.next(11, None, false).is_none(), "one at a time");
        probing.engine_is_back(20);
        probing.ended(30, "", true);
        assert!(probing.next(30, Some(""), false).is_some(), "not lost");
        probing.ended(40, "", true);
        assert!(probing.next(41, Some(""), false).is_none());
        assert!(probing.next(40 + millis(EVERY), Some(""), false).is_some());
    }

    #[test]
    fn a_failed_look_is_tried_again_with_pauses() {
        let mut probing = Probing::default();
        probing.engine_is_back(0);
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert!(probing.next(now, None, false).is_some());
            probing.ended(now, "", false);
            let due = probing.deadline().unwrap();
            assert!(probing.next(due - 1, None, false).is_none());
            pauses.push((due - now) / 1_000);
            now = due;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn a_new_image_is_looked_from_when_nothing_starts_and_not_too_often() {
        let mut probing = Probing::default();
        probing.engine_is_back(0);
        probing.saw("a", "linux/amd64");
        assert_eq!(probing.next(0, None, false).unwrap().spec.image, "");
        probing.ended(1_000, "", true);
        assert!(probing.next(2_000, Some(""), false).is_none(), "too soon");
        let later = 1_000 + millis(IMAGES_APART);
        assert!(probing.next(later, Some(""), true).is_none(), "busy");
        assert_eq!(
            probing.next(later, Some(""), false).unwrap().spec.image,
            "a"
        );
        // An image that cannot be looked from is left alone.
        probing.ended(later, "a", false);
        let again = probing.next(probing.deadline().unwrap(), Some(""), false);
        assert_eq!(again.unwrap().spec.image, "");
    }

    #[test]
    fn only_one_question_waits() {
        let mut probing = Probing::default();
        let wanted = || Wanted {
            spec: spec("standard", "open", "", ""),
            publish: false,
            answer: None,
        };
        assert!(probing.ask(wanted()).is_ok());
        assert!(probing.ask(wanted()).is_err());
        assert_eq!(
            probing.next(0, None, true).unwrap().spec.profile,
            "standard"
        );
        assert!(probing.ask(wanted()).is_err());
        probing.ended(1, "", true);
        assert!(probing.ask(wanted()).is_ok());
    }

    #[test]
    fn other_runtimes_come_after_the_engines_own_one_by_one() {
        let mut probing = Probing::default();
        probing.engine_is_back(0);
        assert_eq!(probing.next(0, None, false).unwrap().spec.runtime, "");
        probing.ended(1, "", true);
        probing.look_at_runtimes(&[RuntimeClass::Crun, RuntimeClass::Runsc]);
        assert!(probing.deadline().is_some_and(|due| due <= 2));
        assert!(probing.next(2, Some(""), true).is_none(), "busy");
        let first = probing.next(2, Some(""), false).unwrap();
        assert_eq!(first.spec.runtime, "crun");
        assert!(probing.next(3, Some(""), false).is_none(), "one at a time");
        probing.runtime_ended(3, RuntimeClass::Crun, true);
        let mut now = 3;
        for _ in 0..RUNTIME_TRIES {
            let second = probing.next(now, Some(""), false).unwrap();
            assert_eq!(second.spec.runtime, "runsc");
            probing.runtime_ended(now, RuntimeClass::Runsc, false);
            now = probing.deadline().unwrap();
        }
        assert!(now > millis(EVERY) / 2, "not for ever: {now}");
    }
}
