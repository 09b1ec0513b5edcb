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

#[cfg(test)]
mod tests {
    #[test]
    fn root_is_no_user_to_become() {
        assert!(super::drop_to(0).is_err());
    }
}
