//! Telling systemd how far we are and that the driver answers (`Type=notify`, `WatchdogSec=`).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::driver::Input;

/// Sends a state such as `READY=1`. Without systemd, or on a failure, nothing happens.
pub fn notify(state: &str) {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&path, state) {
        debug!(%error, "systemd was not told");
    }
}

fn send(path: &str, state: &str) -> std::io::Result<()> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

/// Time between two pings: a third of what systemd waits, when it watches this process.
///
/// `usec` and `pid` are `WATCHDOG_USEC` and `WATCHDOG_PID` as systemd sets them.
pub fn interval(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let limit: u64 = usec?.parse().ok().filter(|usec| *usec > 0)?;
    let ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    ours.then(|| Duration::from_micros(limit / 3))
}

/// Asks the driver again and again and calls `ping` for each answer, until the driver ended.
/// An engine that hangs is no reason to be silent: the driver never waits for it.
pub async fn watch(driver: mpsc::Sender<Input>, every: Duration, ping: impl Fn()) {
    loop {
        let (answer, mut answered) = oneshot::channel();
        if driver.send(Input::Asked(answer)).await.is_err() {
            return;
        }
        loop {
            match timeout(every, &mut answered).await {
                Ok(Ok(())) => break,
                Ok(Err(_)) => return,
                Err(_) => {
                    warn!("the driver has not answered; systemd is not told that all is well")
                }
            }
        }
        ping();
        sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    #[test]
    fn the_state_arrives_at_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(&path.display().to_string(), "READY=1").unwrap();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }

    #[test]
    fn only_the_process_that_is_watched_pings() {
        assert_eq!(interval(Some("30000000"), Some("7"), 7), Some(EVERY));
        assert_eq!(interval(Some("30000000"), None, 7), Some(EVERY));
        assert_eq!(interval(Some("30000000"), Some("8"), 7), None);
        assert_eq!(interval(Some("0"), None, 7), None);
        assert_eq!(interval(None, None, 7), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_answers_is_told_and_one_that_hangs_is_not() {
        let (inputs, mut inbox) = mpsc::channel(4);
        let pings = Arc::new(AtomicU32::new(0));
        let count = pings.clone();
        let watching = tokio::spawn(watch(inputs, EVERY, move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        for n in 1..=3 {
            let Some(Input::Asked(answer)) = inbox.recv().await else {
                panic!("no question");
            };
            answer.send(()).unwrap();
            sleep(EVERY / 2).await;
            assert_eq!(pings.load(Ordering::SeqCst), n);
        }
        let unanswered = inbox.recv().await.unwrap();
        sleep(EVERY * 20).await;
        assert_eq!(
            pings.load(Ordering::SeqCst),
            3,
            "a hung driver was covered up"
        );
        drop((unanswered, inbox));
        watching.await.unwrap();
    }
}
