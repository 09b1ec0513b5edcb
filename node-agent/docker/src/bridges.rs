//! Bridges that an engine left in the kernel.
//!
//! One that is killed while it makes a network forgets the bridge, takes it for
//! somebody else's when the name comes again, and then leaves it there for good.

use std::fs;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// linux/sockios.h; libc has it for Android only.
const SIOCBRDELBR: libc::c_ulong = 0x89a1;

/// Names of this network namespace's interfaces that begin so.
pub(crate) fn named(prefix: &str) -> Vec<String> {
    // Of this process's namespace, unlike what is below /sys.
    let table = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let names = table.lines().filter_map(|line| line.split_once(':'));
    names
        .map(|(name, _)| name.trim().to_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Takes a bridge down and away; one that is not there is fine.
#[allow(unsafe_code)]
pub(crate) fn delete(name: &str) -> Result<()> {
    // SAFETY: no pointers; the descriptor is owned at once and checked before.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let down = request(name)?;
    // Both take the name at the request's beginning; flags of zero are "down".
    for call in [libc::SIOCSIFFLAGS as libc::c_ulong, SIOCBRDELBR] {
        // SAFETY: the request lives through the call and is of the size that it reads.
        if unsafe { libc::ioctl(socket.as_raw_fd(), call as _, &raw const down) } < 0 {
            let error = Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ENODEV | libc::ENXIO) => Ok(()),
                _ => Err(error),
            };
        }
    }
    Ok(())
}

#[allow(unsafe_code)]
fn request(name: &str) -> Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}
