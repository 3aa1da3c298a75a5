//! System calls by name, and the faults that can be injected into each. A fault that the kernel
//! never causes would prove nothing.

#![allow(non_upper_case_globals, reason = "the names of system calls in libc")]

use kemari_flags::faults::Fault;
use kemari_inject::Call;
use libc::*;

/// A kind of call in the table: its number, and the request of an `ioctl`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Kind {
    pub(crate) number: i64,
    pub(crate) request: Option<u16>,
}

impl Kind {
    pub(crate) fn of(call: &Call) -> Self {
        // Keep the type and the number of the request; the other bits hold its size.
        let request = (call.number == SYS_ioctl).then_some(call.arguments[1] as u16);
        Self { number: call.number, request }
    }

    pub(crate) fn name(&self) -> String {
        let name = crate::lists::name(self.number);
        match self.request {
            Some(request) => format!("{name} {request:#06x}"),
            None => name.to_owned(),
        }
    }
}

/// Calls that only read or set the kernel's data of this thread: they neither fail nor wait.
const AT_ONCE: &[c_long] = &[
    SYS_getpid,
    SYS_gettid,
    SYS_getppid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getpgrp,
    SYS_getpgid,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_rt_sigreturn,
    SYS_rt_sigprocmask,
    SYS_rt_sigaction,
    SYS_sigaltstack,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_set_tid_address,
    SYS_arch_prctl,
    SYS_umask,
    SYS_uname,
    SYS_sysinfo,
    SYS_time,
    SYS_gettimeofday,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_getrlimit,
    SYS_prlimit64,
    SYS_getrusage,
    SYS_restart_syscall,
    SYS_prctl,
];
/// Calls that do not fail with correct arguments; no fault outside of the program changes that.
const CANNOT_FAIL: &[c_long] = &[SYS_exit, SYS_exit_group, SYS_timerfd_settime, SYS_membarrier];

/// Whether this `futex` waits.
fn waits(call: &Call) -> bool {
    let operation = call.arguments[1] as c_int & !(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME);
    [FUTEX_WAIT, FUTEX_WAIT_BITSET].contains(&operation)
}

/// The error to inject into this call, or why the call does not fail.
fn error(call: &Call) -> Result<i32, &'static str> {
    let socket = || call.descriptor(call.arguments[0]).starts_with("socket:");
    let counter = || call.descriptor(call.arguments[0]).starts_with("anon_inode:");
    Ok(match call.number {
        SYS_futex if !waits(call) => return Err("waking cannot fail"),
        // `brk` returns the end of the data segment instead of an error; the allocator then uses
        // `mmap`.
        SYS_brk => return Err("its failure is no error"),
        SYS_futex | SYS_clock_nanosleep | SYS_nanosleep | SYS_epoll_wait | SYS_epoll_pwait
        | SYS_epoll_pwait2 | SYS_poll | SYS_ppoll | SYS_select | SYS_getrandom | SYS_flock => EINTR,
        SYS_mmap | SYS_munmap | SYS_mremap | SYS_mprotect | SYS_madvise | SYS_epoll_ctl
        | SYS_setsockopt | SYS_getsockopt | SYS_seccomp => ENOMEM,
        SYS_open | SYS_openat | SYS_socket | SYS_socketpair | SYS_accept | SYS_accept4
        | SYS_dup | SYS_dup2 | SYS_dup3 | SYS_pipe2 | SYS_eventfd2 | SYS_epoll_create1
        | SYS_timerfd_create | SYS_memfd_create => EMFILE,
        SYS_clone | SYS_clone3 | SYS_kill | SYS_tkill | SYS_tgkill => EAGAIN,
        SYS_connect => ECONNREFUSED,
        SYS_shutdown | SYS_getpeername => ENOTCONN,
        SYS_bind | SYS_listen => EADDRINUSE,
        SYS_mkdir | SYS_mkdirat | SYS_link | SYS_linkat | SYS_fallocate => ENOSPC,
        SYS_chmod | SYS_fchmod => EPERM,
        SYS_fsetxattr | SYS_fgetxattr => ENOTSUP,
        SYS_fcntl => match call.arguments[1] as c_int {
            F_GETFD | F_SETFD | F_GETFL | F_SETFL => return Err("it cannot fail"),
            F_DUPFD | F_DUPFD_CLOEXEC => EMFILE,
            _ => ENOLCK,
        },
        SYS_ioctl if call.arguments[1] >> 8 & 0xff == 0xae => ENOMEM,
        SYS_recvfrom if call.thread_name() == "signals" => EINTR,
        _ if socket() => ECONNRESET,
        SYS_read | SYS_write if counter() => EAGAIN,
        _ => EIO,
    })
}

/// The injector's answer that causes this fault in this call, or why the call cannot have the
/// fault.
pub(crate) fn fault(
    call: &Call,
    fault: Fault,
    delay: std::time::Duration,
) -> Result<kemari_inject::CallResult, &'static str> {
    use kemari_inject::CallResult;
    rule(call.number, fault)?;
    if is_of_a_signal_handler(call) {
        return Err("to a thread of its own, through a socket that has room");
    }
    Ok(match fault {
        Fault::Error => CallResult::Fail(error(call)?),
        Fault::Short if call.can_be_short() => CallResult::Half,
        Fault::Short => return Err("whole or not at all"),
        Fault::Delay => CallResult::After(delay),
        Fault::Hang => CallResult::Hang,
    })
}

/// Whether a signal handler sends the byte that wakes the thread that waits for signals.
fn is_of_a_signal_handler(call: &Call) -> bool {
    call.number == SYS_sendto && call.arguments[2] == 1
}

/// Why calls with this number cannot have the fault.
pub(crate) fn rule(number: c_long, fault: Fault) -> Result<(), &'static str> {
    match fault {
        _ if AT_ONCE.contains(&number) => Err("neither fails nor waits"),
        Fault::Hang if number == SYS_exit_group => Err("waits for nobody"),
        Fault::Error if CANNOT_FAIL.contains(&number) => Err("does not fail"),
        Fault::Short if !TRANSFERS.contains(&number) => Err("transfers nothing"),
        _ => Ok(()),
    }
}

/// Calls that transfer bytes, and may transfer fewer than requested.
const TRANSFERS: &[c_long] = &[
    SYS_read,
    SYS_write,
    SYS_pread64,
    SYS_pwrite64,
    SYS_readv,
    SYS_writev,
    SYS_preadv,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_recvfrom,
    SYS_sendto,
    SYS_sendmsg,
];
