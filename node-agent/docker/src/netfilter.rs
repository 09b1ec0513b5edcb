//! Whether any nftables rule of this network namespace changed, by the kernel's own word.
//!
//! Asking costs one system call; listing a table costs a process. So between two
//! listings a hand-over only asks whether something changed.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;
/// Messages read at once; more than these are a change all the same.
const MOST: usize = 1_024;

/// A subscription to changes.
pub(crate) struct Changes(OwnedFd);

impl Changes {
    /// None where the kernel does not tell.
    #[allow(unsafe_code)]
    pub(crate) fn watch() -> Option<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers; the descriptor is owned at once and checked before.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER);
            if fd < 0 {
                return None;
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: all zeroes is a valid address; the length is that of the type.
        let bound = unsafe {
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
            address.nl_groups = 1 << (GROUP - 1);
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        (bound == 0).then_some(Self(socket))
    }

    /// True when nothing changed since this was asked last. Lost messages are a change.
    #[allow(unsafe_code)]
    pub(crate) fn none(&self) -> bool {
        let mut buffer = [0u8; 8_192];
        for read in 0..MOST {
            // SAFETY: the buffer is as long as is said.
            let got = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            if got < 0 {
                let error = std::io::Error::last_os_error();
                return read == 0 && error.kind() == std::io::ErrorKind::WouldBlock;
            }
        }
        false
    }
}
