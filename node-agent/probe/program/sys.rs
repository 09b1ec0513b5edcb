//! System calls that the standard library has no words for. Declared by hand,
//! since this program is built without other crates.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::io::Error;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn _exit(code: c_int) -> !;
    fn close(fd: c_int) -> c_int;
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn mmap(
        at: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, length: usize) -> c_int;
    fn fallocate(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int;
    fn getrlimit(resource: c_int, limit: *mut [u64; 2]) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
}

/// Numbers of system calls.
#[cfg(target_arch = "x86_64")]
pub(crate) mod number {
    pub(crate) const MOUNT: i64 = 165;
    pub(crate) const UMOUNT2: i64 = 166;
    pub(crate) const PIVOT_ROOT: i64 = 155;
    pub(crate) const CHROOT: i64 = 161;
    pub(crate) const UNSHARE: i64 = 272;
    pub(crate) const CLONE: i64 = 56;
    pub(crate) const SETNS: i64 = 308;
    pub(crate) const BPF: i64 = 321;
    pub(crate) const KEYCTL: i64 = 250;
    pub(crate) const ADD_KEY: i64 = 248;
    pub(crate) const USERFAULTFD: i64 = 323;
    pub(crate) const PERF_EVENT_OPEN: i64 = 298;
    pub(crate) const KEXEC_LOAD: i64 = 246;
    pub(crate) const INIT_MODULE: i64 = 175;
    pub(crate) const DELETE_MODULE: i64 = 176;
    pub(crate) const OPEN_BY_HANDLE_AT: i64 = 304;
    pub(crate) const SWAPON: i64 = 167;
    pub(crate) const REBOOT: i64 = 169;
    pub(crate) const ACCT: i64 = 163;
    pub(crate) const CLOCK_SETTIME: i64 = 227;
    pub(crate) const MKNODAT: i64 = 259;
    pub(crate) const SETUID: i64 = 105;
    pub(crate) const SETGID: i64 = 106;
    pub(crate) const SETHOSTNAME: i64 = 170;
}
#[cfg(target_arch = "aarch64")]
pub(crate) mod number {
    pub(crate) const MOUNT: i64 = 40;
    pub(crate) const UMOUNT2: i64 = 39;
    pub(crate) const PIVOT_ROOT: i64 = 41;
    pub(crate) const CHROOT: i64 = 51;
    pub(crate) const UNSHARE: i64 = 97;
    pub(crate) const CLONE: i64 = 220;
    pub(crate) const SETNS: i64 = 268;
    pub(crate) const BPF: i64 = 280;
    pub(crate) const KEYCTL: i64 = 219;
    pub(crate) const ADD_KEY: i64 = 217;
    pub(crate) const USERFAULTFD: i64 = 282;
    pub(crate) const PERF_EVENT_OPEN: i64 = 241;
    pub(crate) const KEXEC_LOAD: i64 = 104;
    pub(crate) const INIT_MODULE: i64 = 105;
    pub(crate) const DELETE_MODULE: i64 = 106;
    pub(crate) const OPEN_BY_HANDLE_AT: i64 = 265;
    pub(crate) const SWAPON: i64 = 224;
    pub(crate) const REBOOT: i64 = 142;
    pub(crate) const ACCT: i64 = 89;
    pub(crate) const CLOCK_SETTIME: i64 = 112;
    pub(crate) const MKNODAT: i64 = 33;
    pub(crate) const SETUID: i64 = 146;
    pub(crate) const SETGID: i64 = 144;
    pub(crate) const SETHOSTNAME: i64 = 161;
}
#[cfg(target_arch = "arm")]
pub(crate) mod number {
    pub(crate) const MOUNT: i64 = 21;
    pub(crate) const UMOUNT2: i64 = 52;
    pub(crate) const PIVOT_ROOT: i64 = 218;
    pub(crate) const CHROOT: i64 = 61;
    pub(crate) const UNSHARE: i64 = 337;
    pub(crate) const CLONE: i64 = 120;
    pub(crate) const SETNS: i64 = 375;
    pub(crate) const BPF: i64 = 386;
    pub(crate) const KEYCTL: i64 = 311;
    pub(crate) const ADD_KEY: i64 = 309;
    pub(crate) const USERFAULTFD: i64 = 388;
    pub(crate) const PERF_EVENT_OPEN: i64 = 364;
    pub(crate) const KEXEC_LOAD: i64 = 347;
    pub(crate) const INIT_MODULE: i64 = 128;
    pub(crate) const DELETE_MODULE: i64 = 129;
    pub(crate) const OPEN_BY_HANDLE_AT: i64 = 371;
    pub(crate) const SWAPON: i64 = 87;
    pub(crate) const REBOOT: i64 = 88;
    pub(crate) const ACCT: i64 = 51;
    pub(crate) const CLOCK_SETTIME: i64 = 262;
    pub(crate) const MKNODAT: i64 = 324;
    pub(crate) const SETUID: i64 = 213;
    pub(crate) const SETGID: i64 = 214;
    pub(crate) const SETHOSTNAME: i64 = 74;
}
/// The same everywhere.
pub(crate) const IO_URING_SETUP: i64 = 425;
pub(crate) const MOVE_MOUNT: i64 = 429;
pub(crate) const FSOPEN: i64 = 430;
pub(crate) const CLONE3: i64 = 435;

pub(crate) const CLONE_NEWNS: i64 = 0x0002_0000;
pub(crate) const CLONE_NEWUSER: i64 = 0x1000_0000;
pub(crate) const AT_FDCWD: i64 = -100;
pub(crate) const S_IFBLK: i64 = 0o060_000;
pub(crate) const S_IFCHR: i64 = 0o020_000;
pub(crate) const EPERM: i32 = 1;
pub(crate) const EACCES: i32 = 13;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const EROFS: i32 = 30;
pub(crate) const ENOSYS: i32 = 38;
const SIGCHLD: c_int = 17;

/// The error number of the last call.
fn errno() -> i32 {
    Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Makes a system call with arguments that do no harm if it is let through.
/// The answer is the error number, or none after a success.
pub(crate) fn attempt(number: i64, arguments: [i64; 5]) -> Option<i32> {
    let [a, b, c, d, e] = arguments.map(|argument| argument as c_long);
    // SAFETY: every pointer among the arguments is null, so nothing of ours is read or written.
    let result = unsafe { syscall(number as c_long, a, b, c, d, e, 0 as c_long) };
    (result < 0).then(errno)
}

/// The same with a path as the argument at `at`.
pub(crate) fn attempt_path(
    number: i64,
    path: &str,
    at: usize,
    mut arguments: [i64; 5],
) -> Option<i32> {
    let Ok(path) = CString::new(path) else {
        return Some(EPERM);
    };
    let pointer: *const c_char = path.as_ptr();
    arguments[at] = pointer as usize as i64;
    let [a, b, c, d, e] = arguments.map(|argument| argument as c_long);
    // SAFETY: the one pointer is a C string that outlives the call.
    let result = unsafe { syscall(number as c_long, a, b, c, d, e, 0 as c_long) };
    (result < 0).then(errno)
}

/// Runs a function in a child and tells its answer, 0 to 254. None when the child
/// was killed or could not be made. The program has one thread when this is used.
pub(crate) fn in_child(run: impl FnOnce() -> u8) -> Option<u8> {
    // SAFETY: only one thread runs, so the child may use everything it inherits.
    let pid = unsafe { fork() };
    match pid {
        0 => {
            let code = run();
            // SAFETY: ends the child without running the parent's clean-up.
            unsafe { _exit(c_int::from(code)) }
        }
        pid if pid > 0 => waited(pid),
        _ => None,
    }
}

fn waited(pid: c_int) -> Option<u8> {
    let mut status = 0;
    // SAFETY: the status is ours.
    let done = unsafe { waitpid(pid, &mut status, 0) };
    (done == pid && status & 0x7f == 0).then_some(((status >> 8) & 0xff) as u8)
}

/// Tries to become part of a new user namespace by `clone` and by `clone3`.
/// The answers are error numbers, none for a success.
pub(crate) fn clone_user_namespace() -> [Option<i32>; 2] {
    // SAFETY: without a stack of its own the child goes on like after fork, and ends at once.
    let by_clone = unsafe {
        syscall(
            number::CLONE as c_long,
            (CLONE_NEWUSER as c_long) | c_long::from(SIGCHLD),
            0 as c_long,
            0 as c_long,
            0 as c_long,
            0 as c_long,
        )
    };
    let first = ended(by_clone);
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let arguments: [u64; 8] = [CLONE_NEWUSER as u64, 0, 0, 0, SIGCHLD as u64, 0, 0, 0];
    // SAFETY: the structure has the size that is told and outlives the call; see above.
    let by_clone3 = unsafe {
        syscall(
            CLONE3 as c_long,
            arguments.as_ptr(),
            size_of_val(&arguments),
        )
    };
    [first, ended(by_clone3)]
}

fn ended(pid: c_long) -> Option<i32> {
    match pid {
        // SAFETY: the child does nothing else.
        0 => unsafe { _exit(0) },
        pid if pid > 0 => {
            waited(pid as c_int);
            None
        }
        _ => Some(errno()),
    }
}

/// Opens a socket and closes it. The answer is the error number.
pub(crate) fn socket_error(family: i32, kind: i32, protocol: i32) -> Option<i32> {
    // SAFETY: plain numbers; the descriptor is closed and used by nobody.
    unsafe {
        let fd = socket(family, kind, protocol);
        if fd < 0 {
            return Some(errno());
        }
        close(fd);
    }
    None
}

/// Whether a socket can be made the way 32-bit x86 programs do it, whose arguments
/// no filter sees.
#[cfg(target_arch = "x86_64")]
pub(crate) fn old_socket_opens(family: i32, kind: i32) -> bool {
    const SOCKETCALL: i64 = 102;
    const MAKE: u64 = 1;
    const CLOSE: i64 = 6;
    const READ_WRITE: c_int = 3;
    /// Private, of no file, below 2 GiB.
    const LOW: c_int = 0x02 | 0x20 | 0x40;
    /// A call of the 32-bit kind; a kernel without them ends the process.
    fn old(number: i64, first: u64, second: u64) -> i32 {
        let answer: i64;
        // SAFETY: the kernel reads what the arguments lead to; rbx is put back.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {first}", "int 0x80", "xchg rbx, {first}",
                first = inout(reg) first => _,
                inlateout("rax") number => answer,
                in("rcx") second, in("rdx") 0_u64,
                lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
            );
        }
        answer as i32
    }
    in_child(|| {
        // SAFETY: a fresh mapping that goes with the child; its start takes three numbers.
        let opened = unsafe {
            let at = mmap(std::ptr::null_mut(), 4096, READ_WRITE, LOW, -1, 0);
            if at as isize == -1 {
                return 0;
            }
            *at.cast::<[i32; 3]>() = [family, kind, 0];
            old(SOCKETCALL, MAKE, at as u64)
        };
        if opened >= 0 {
            old(CLOSE, opened as u64, 0);
        }
        u8::from(opened >= 0)
    }) == Some(1)
}

/// Elsewhere there is no such call.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn old_socket_opens(_family: i32, _kind: i32) -> bool {
    false
}

/// Tries to map a file as a program. The answer is the error number.
pub(crate) fn map_executable(file: &std::fs::File) -> Option<i32> {
    use std::os::fd::AsRawFd;
    const READ_EXECUTE: c_int = 5;
    const PRIVATE: c_int = 2;
    // SAFETY: a fresh mapping that nothing refers to, undone at once.
    unsafe {
        let at = mmap(
            std::ptr::null_mut(),
            4096,
            READ_EXECUTE,
            PRIVATE,
            file.as_raw_fd(),
            0,
        );
        if at as isize == -1 {
            return Some(errno());
        }
        munmap(at, 4096);
    }
    None
}

/// Asks for so much room in a file. The answer is the error number.
pub(crate) fn reserve(file: &std::fs::File, bytes: u64) -> Option<i32> {
    use std::os::fd::AsRawFd;
    // SAFETY: plain numbers.
    let result = unsafe { fallocate(file.as_raw_fd(), 0, 0, bytes as i64) };
    (result != 0).then(errno)
}

/// Soft and hard limit of a resource; `u64::MAX` is none.
pub(crate) fn limit(resource: i32) -> Option<[u64; 2]> {
    let mut pair = [0; 2];
    // SAFETY: two 64-bit numbers are what a 64-bit system writes; a 32-bit one writes less.
    let result = unsafe { getrlimit(resource, &mut pair) };
    if result != 0 {
        return None;
    }
    if cfg!(target_pointer_width = "32") {
        let whole = |half: u64| if half == 0xffff_ffff { u64::MAX } else { half };
        return Some([whole(pair[0] & 0xffff_ffff), whole(pair[0] >> 32)]);
    }
    Some(pair)
}

/// The kernel's word on `no_new_privs` of this process.
pub(crate) fn no_new_privileges() -> bool {
    const GET_NO_NEW_PRIVS: c_int = 39;
    let zero: c_long = 0;
    // SAFETY: plain numbers.
    unsafe { prctl(GET_NO_NEW_PRIVS, zero, zero, zero, zero) == 1 }
}

/// Whether threads of a child were refused before there were `most` of them.
pub(crate) fn crowd_refused(most: u64) -> Option<bool> {
    const REFUSED: u8 = 1;
    let code = in_child(|| {
        for _ in 0..most {
            let thread = std::thread::Builder::new().stack_size(16 << 10);
            if thread.spawn(std::thread::park).is_err() {
                return REFUSED;
            }
        }
        0
    })?;
    Some(code == REFUSED)
}

/// A child that ends at once and leaves behind a child of its own, which ends a
/// moment later: an orphan for the first process. The answer is the orphan's id.
pub(crate) fn orphan() -> Option<u32> {
    let (mut reader, mut writer) = std::io::pipe().ok()?;
    let made = in_child(|| {
        // SAFETY: only one thread runs.
        match unsafe { fork() } {
            0 => {
                std::thread::sleep(std::time::Duration::from_millis(50));
                0
            }
            pid if pid > 0 => {
                use std::io::Write;
                u8::from(writer.write_all(&(pid as u32).to_le_bytes()).is_err())
            }
            _ => 1,
        }
    });
    drop(writer);
    let mut id = [0; 4];
    use std::io::Read;
    (made == Some(0) && reader.read_exact(&mut id).is_ok()).then(|| u32::from_le_bytes(id))
}
