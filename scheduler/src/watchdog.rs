//! Tells systemd's watchdog that the driver answers: one that hangs is started anew.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::time::sleep;

use crate::inbox::{Inbox, Request};

/// Time between two pings: a third of what systemd waits, when it watches this process.
///
/// `usec` and `pid` are `WATCHDOG_USEC` and `WATCHDOG_PID` as systemd sets them.
pub fn interval(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let limit: u64 = usec?.parse().ok().filter(|usec| *usec > 0)?;
    let ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    ours.then(|| Duration::from_micros(limit / 3))
}

/// Asks the driver again and again and calls `ping` for each answer, until the driver ended.
///
/// A driver that waits for room on a full disk does not hang: `waits` counts its tries.
pub async fn run(inbox: Inbox, every: Duration, waits: Counter, ping: impl Fn()) {
    let mut tried = waits.get();
    loop {
        let mut asked = std::pin::pin!(inbox.submit(Request::default()));
        loop {
            tokio::select! {
                answer = &mut asked => {
                    if answer.is_err() {
                        return;
                    }
                    break;
                }
                () = sleep(every) => {
                    let now = waits.get();
                    if now == tried {
                        tracing::warn!("the driver has not answered; systemd is not told that all is well");
                    } else {
                        tried = now;
                        ping();
                    }
                }
            }
        }
        ping();
        sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;
    use crate::inbox::inbox;

    const EVERY: Duration = Duration::from_secs(10);

    #[test]
    fn only_the_process_that_is_watched_pings() {
        assert_eq!(interval(Some("30000000"), None, 7), Some(EVERY));
        assert_eq!(interval(Some("30000000"), Some("7"), 7), Some(EVERY));
        assert_eq!(interval(Some("30000000"), Some("8"), 7), None);
        for unset in [None, Some("0"), Some("soon")] {
            assert_eq!(interval(unset, None, 7), None, "{unset:?}");
        }
    }

    fn watched() -> (crate::inbox::Outlet, Counter, Arc<AtomicU32>) {
        let (inbox, outlet) = inbox();
        let (waits, pings) = (Counter::default(), Arc::new(AtomicU32::new(0)));
        let count = Arc::clone(&pings);
        tokio::spawn(run(inbox, EVERY, waits.clone(), move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        (outlet, waits, pings)
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_answers_is_told_and_one_that_hangs_is_not() {
        let (mut outlet, _, pings) = watched();
        for n in 1..=3 {
            let envelope = outlet.recv().await.expect("a question");
            envelope
                .done
                .expect("somebody waits")
                .send(0)
                .expect("heard");
            // The next question comes after the ping for this answer.
            sleep(EVERY / 2).await;
            assert_eq!(pings.load(Ordering::SeqCst), n);
        }
        let _unanswered = outlet.recv().await.expect("a question");
        sleep(EVERY * 20).await;
        assert_eq!(
            pings.load(Ordering::SeqCst),
            3,
            "a hung driver was covered up"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_waits_for_room_on_the_disk_does_not_hang() {
        let (mut outlet, waits, pings) = watched();
        let _unanswered = outlet.recv().await.expect("a question");
        for _ in 0..5 {
            waits.inc();
            sleep(EVERY).await;
        }
        assert!(pings.load(Ordering::SeqCst) >= 4);
        let told = pings.load(Ordering::SeqCst);
        sleep(EVERY * 5).await;
        assert!(
            pings.load(Ordering::SeqCst) <= told + 1,
            "it no longer tries"
        );
    }
}
