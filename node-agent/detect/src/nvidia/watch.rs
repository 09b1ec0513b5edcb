//! Watches the GPUs in a thread of its own: errors as the driver tells them,
//! and who computes on what, looked at now and then.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{EventSet, Nvml};

use crate::nvidia::{Library, Nvidia, open, probe_with};

/// Programs come and go without an event: looked at this often.
const LOOK: Duration = Duration::from_secs(5);
/// A driver that was installed meanwhile is found after this long.
const REOPEN: Duration = Duration::from_secs(60);
/// One wait for an event; the thread ends within it.
const WAIT_MS: u32 = 1_000;

/// Errors of a program, not of its GPU.
const HARMLESS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// What the thread tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Everything as it is now; told when it differs from what was told before.
    Seen(Nvidia),
    /// The driver reported a critical error of this GPU.
    Fault { uuid: String, xid: u64 },
}

/// Whether an error says that the GPU itself is not to be trusted any more.
pub fn is_fatal(xid: u64) -> bool {
    !HARMLESS.contains(&xid)
}

/// Starts the thread. It ends when `tell` says false.
pub fn start(
    root: PathBuf,
    tell: impl FnMut(Told) -> bool + Send + 'static,
) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("gpu-watch".into())
        .spawn(move || Watcher { root, tell }.run())
        .map(|_| ())
}

struct Watcher<T> {
    root: PathBuf,
    tell: T,
}

/// Why a library is watched no longer.
enum End {
    /// Nobody listens.
    Unheard,
    /// The driver changed or went.
    Reopen,
}

impl<T: FnMut(Told) -> bool> Watcher<T> {
    fn run(mut self) {
        let mut last = None;
        loop {
            let library = open(&self.root);
            let seen = probe_with(&self.root, &library);
            if last.as_ref() != Some(&seen) {
                if !(self.tell)(Told::Seen(seen.clone())) {
                    return;
                }
                last = Some(seen);
            }
            match library {
                Ok(library) => match self.follow(&library, &mut last) {
                    End::Unheard => return,
                    End::Reopen => continue,
                },
                Err(_) => std::thread::sleep(REOPEN),
            }
        }
    }

    /// Waits for events until the library is of no more use.
    fn follow(&mut self, library: &Arc<Library>, last: &mut Option<Nvidia>) -> End {
        loop {
            let watched = last.clone().unwrap_or_default();
            let set = register(&library.0, &watched);
            let mut looked = Instant::now();
            // A set is for these GPUs; it is made anew when there are others.
            loop {
                match next(set.as_ref()) {
                    Some((uuid, xid)) => {
                        let heard = (self.tell)(Told::Fault { uuid, xid });
                        if !heard {
                            return End::Unheard;
                        }
                    }
                    None if looked.elapsed() < LOOK => continue,
                    None => {}
                }
                looked = Instant::now();
                let Some(seen) = look(library, &self.root) else {
                    return End::Reopen;
                };
                if last.as_ref() == Some(&seen) {
                    continue;
                }
                let others = uuids(&seen) != uuids(&watched);
                *last = Some(seen.clone());
                if !(self.tell)(Told::Seen(seen)) {
                    return End::Unheard;
                }
                if others {
                    break;
                }
            }
        }
    }
}

/// Nothing when the driver does not answer any more.
fn look(library: &Arc<Library>, root: &Path) -> Option<Nvidia> {
    let seen = probe_with(root, &Ok(library.clone()));
    (seen.source == "nvml").then_some(seen)
}

fn uuids(seen: &Nvidia) -> BTreeSet<&str> {
    seen.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect()
}

/// A set that hears the errors of every GPU which tells them.
fn register<'nvml>(nvml: &'nvml Nvml, seen: &Nvidia) -> Option<EventSet<'nvml>> {
    let mut set = nvml.create_event_set().ok()?;
    for gpu in seen.gpus.iter().filter(|gpu| gpu.parent_uuid.is_empty()) {
        let Ok(device) = nvml.device_by_uuid(gpu.uuid.as_str()) else {
            continue;
        };
        let tells = device
            .supported_event_types()
            .is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR));
        if !tells {
            continue;
        }
        set = match device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
            Ok(set) => set,
            // The set went with the refusal; without one, only looking remains.
            Err(_) => return None,
        };
    }
    Some(set)
}

/// The next error, or nothing after a while.
fn next(set: Option<&EventSet<'_>>) -> Option<(String, u64)> {
    let pause = Duration::from_millis(u64::from(WAIT_MS));
    let Some(set) = set else {
        std::thread::sleep(pause);
        return None;
    };
    let begin = Instant::now();
    match set.wait(WAIT_MS) {
        Ok(event) => {
            let xid = match event.event_data? {
                XidError::Value(xid) => xid,
                XidError::Unknown => 999,
            };
            Some((event.device.uuid().ok()?, xid))
        }
        Err(NvmlError::Timeout) => None,
        Err(_) => {
            // An error that comes at once must not become a busy loop.
            std::thread::sleep(pause.saturating_sub(begin.elapsed()));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_fatal;

    #[test]
    fn a_programs_own_errors_do_not_condemn_its_gpu() {
        for xid in [13, 31, 43, 45, 68, 109] {
            assert!(!is_fatal(xid), "{xid}");
        }
        for xid in [48, 62, 63, 74, 79, 92, 94, 95, 119] {
            assert!(is_fatal(xid), "{xid}");
        }
    }
}
