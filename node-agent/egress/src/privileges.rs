//! Gives up what root started the program with: it parses what hostile jobs say.
#![allow(unsafe_code)]

use std::io::Error;

/// Higher than any kernel has.
const CAPABILITIES: libc::c_ulong = 64;

/// Becomes a user without groups and capabilities, for good. Called while the process
/// has one thread.
pub fn drop_to(user: u32) -> Result<(), String> {
    if user == 0 {
        return Err("the proxy's user may not be root".into());
    }
    let done = |what: &str, code: libc::c_int| match code {
        0 => Ok(()),
        _ => Err(format!("{what} {user}: {}", Error::last_os_error())),
    };
    // SAFETY: plain numbers and a list of no groups; one thread runs.
    unsafe {
        for capability in 0..CAPABILITIES {
            // Refused for numbers that the kernel does not have; what cannot be dropped
            // cannot be gained either, see below.
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        done(
            "leaving all groups for user",
            libc::setgroups(0, std::ptr::null()),
        )?;
        done(
            "taking the group of user",
            libc::setresgid(user, user, user),
        )?;
        done("becoming user", libc::setresuid(user, user, user))?;
        let forever = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        done("staying user", forever)?;
        if libc::setresuid(0, 0, 0) == 0 {
            return Err(format!("user {user} could become root again"));
        }
    }
    Ok(())
}

/// Gives up what another user than root may have been started with: an agent that is not root
/// hands its own capabilities on to what it starts. Called while the process has one thread.
pub fn renounce() -> Result<(), String> {
    /// The version that has two words for each set.
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    // Effective, permitted and inheritable, low and high.
    let none = [0_u32; 6];
    // SAFETY: both point at whole arrays of the sizes that this version has; one thread runs.
    let done = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        );
        libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr())
    };
    match done {
        0 => Ok(()),
        _ => Err(format!(
            "giving up capabilities: {}",
            Error::last_os_error()
        )),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn root_is_no_user_to_become() {
        assert!(super::drop_to(0).is_err());
    }

    #[test]
    fn what_is_renounced_is_gone() {
        // Capabilities are a thread's own.
        let after = std::thread::spawn(|| {
            super::renounce().unwrap();
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        let after = after.join().unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let none = format!("{set}:\t0000000000000000");
            assert!(after.contains(&none), "{after}");
        }
    }
}
