//! The few system calls the standard library has no name for: signals to and from processes.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The signals this program acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
}

fn set() -> libc::sigset_t {
    // SAFETY: a zeroed sigset_t is valid for sigemptyset, which fills it; the calls only write to it
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGTERM);
        set
    }
}

/// Blocks the signals in this thread and all it will start, so that only `wait_for_signal` sees them. Call it first.
pub(crate) fn block_signals() {
    let set = set();
    // SAFETY: `set` is initialised and outlives the call
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Waits for one of the blocked signals.
pub(crate) fn wait_for_signal() -> Signal {
    let set = set();
    let mut got: libc::c_int = 0;
    loop {
        // SAFETY: both pointers are valid for the call
        let failed = unsafe { libc::sigwait(&set, &mut got) };
        match (failed, got) {
            (0, libc::SIGTERM) => return Signal::Terminate,
            (0, libc::SIGINT) => return Signal::Interrupt,
            _ => {}
        }
    }
}

/// A child starts with no signal blocked or ignored, in a process group of its own. A shell that
/// finds a signal ignored cannot trap it, and whoever was started in the background ignores SIGINT.
pub(crate) fn fresh_signals(command: &mut Command) {
    command.process_group(0);
    let set = set();
    // SAFETY: between fork and exec only signal and pthread_sigmask are called, which are async-signal-safe, on a copied set
    unsafe {
        command.pre_exec(move || {
            let fresh = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM]
                .into_iter()
                .all(|signal| libc::signal(signal, libc::SIG_DFL) != libc::SIG_ERR);
            if fresh && libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}

/// As a program that a script started in the background.
#[cfg(test)]
pub(crate) fn ignore_interrupts() {
    // SAFETY: changes only what this process does with SIGINT
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
    }
}

/// Sends a signal to a process group.
pub(crate) fn kill_group(leader: u32, signal: libc::c_int) {
    // SAFETY: kill touches no memory; a group that is gone is an error that needs no answer
    unsafe {
        libc::kill(-(leader as libc::pid_t), signal);
    }
}

/// Kills one process.
pub(crate) fn kill_process(pid: i32) {
    // SAFETY: kill touches no memory; a process that is gone is an error that needs no answer
    unsafe {
        libc::kill(pid, libc::SIGKILL);
    }
}
