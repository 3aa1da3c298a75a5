//! The lists: the system calls that each role may make, with which arguments, and why.
//!
//! `seccompiler` orders a filter by the number of the call, and the hottest calls have small
//! numbers (`read` 0, `write` 1, `ioctl` 16). The kernel answers calls that are allowed with any
//! arguments from a bitmap.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use libc::*;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::{Role, alarm};
use crate::terminal::{self, Terminal};

/// Memory, locks, time, and the end of a thread: the calls of any Rust thread.
const ANY: &[c_long] = &[
    // Locks, condition variables, channels.
    SYS_futex,
    // The allocator; `ANONYMOUS` allows it memory without a file.
    SYS_brk,
    SYS_madvise,
    SYS_mremap,
    SYS_munmap,
    // Time, if the vDSO cannot give it.
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_restart_syscall,
    SYS_sched_yield,
    // Seeds of hash maps; random bytes for the guest, which are an input.
    SYS_getrandom,
    // This process and thread, for signals to own threads, and for panics.
    SYS_getpid,
    SYS_gettid,
    // The return from a signal handler, and the signal mask while one is sent.
    SYS_rt_sigreturn,
    SYS_rt_sigprocmask,
    // The end of a thread or of the process.
    SYS_sigaltstack,
    SYS_exit,
    SYS_exit_group,
];

/// The calls that wait for input and read it. `recvfrom` is `recv`. None of them writes.
const INPUT: &[c_long] = &[
    SYS_read,
    SYS_recvfrom,
    SYS_poll,
    SYS_ppoll,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    // Stops watching an input while the driver has no room for it.
    SYS_epoll_ctl,
];

/// KVM's part of a machine's state: checkpoints read it, resets write it. The numbers are the low
/// bytes of the requests (KVM API); several requests share one number.
const KVM_STATE: &[u64] = &[
    0x03, // KVM_CHECK_EXTENSION
    0x62, 0x63, // KVM_GET_IRQCHIP, KVM_SET_IRQCHIP
    0x7b, 0x7c, // KVM_SET_CLOCK, KVM_GET_CLOCK
    0x81, 0x82, // KVM_GET_REGS, KVM_SET_REGS
    0x83, 0x84, // KVM_GET_SREGS, KVM_SET_SREGS
    0x88, 0x89, // KVM_GET_MSRS, KVM_SET_MSRS
    0x8e, 0x8f, // KVM_GET_LAPIC, KVM_SET_LAPIC
    0x98, 0x99, // KVM_GET_MP_STATE, KVM_SET_MP_STATE
    0x9f, 0xa0, // KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, KVM_GET_PIT2, KVM_SET_PIT2
    0xa1, 0xa2, // KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, KVM_SET_TSC_KHZ
    0xa3, // KVM_GET_TSC_KHZ
    0xa4, 0xa5, // KVM_GET_XSAVE, KVM_SET_XSAVE
    0xa6, 0xa7, // KVM_GET_XCRS, KVM_SET_XCRS
    0xad, // KVM_KVMCLOCK_CTRL
    0xcc, 0xcd, // KVM_GET_SREGS2, KVM_SET_SREGS2
    0xcf, // KVM_GET_XSAVE2
];
/// The state of a vCPU, which the vCPU's own thread reads for checkpoints.
const VCPU_STATE: &[u64] = &[
    0x81, // KVM_GET_REGS
    0x83, // KVM_GET_SREGS
    0x88, // KVM_GET_MSRS
    0x8e, // KVM_GET_LAPIC
    0x98, // KVM_GET_MP_STATE
    0x9f, // KVM_GET_VCPU_EVENTS
    0xa1, // KVM_GET_DEBUGREGS
    0xa3, // KVM_GET_TSC_KHZ
    0xa4, // KVM_GET_XSAVE
    0xa6, // KVM_GET_XCRS
    0xcf, // KVM_GET_XSAVE2
];
/// KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG.
const KVM_DIRTY: &[u64] = &[0x42, 0xc0];
/// KVM_SET_USER_MEMORY_REGION: turns the dirty log on and off.
const KVM_MEMORY: &[u64] = &[0x46];
const KVM_IRQ_LINE: u64 = 0x61;
const KVM_RUN: u64 = 0x80;
/// Requests to a tap.
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
/// Looks up an interface by its name (netdevice(7)).
const SIOCGIFINDEX: u64 = 0x8933;
/// The second byte of a KVM request; the first is its number.
const KVMIO: u64 = 0xae;

/// Calls that only `main` makes: it opens everything, starts all threads, asks the arbiter and
/// resolves names. Not in the list: running programs, access to other processes, io_uring, bpf,
/// mounts, keys, modules.
const MAIN: &[c_long] = &[
    // Holds the primary's boot files on a standby.
    SYS_memfd_create,
    SYS_access,
    SYS_arch_prctl,
    SYS_bind,
    SYS_chmod,
    SYS_clock_getres,
    SYS_clone,
    SYS_clone3,
    SYS_close_range,
    SYS_dup,
    SYS_dup2,
    SYS_dup3,
    SYS_epoll_create1,
    SYS_eventfd2,
    SYS_faccessat,
    SYS_faccessat2,
    // Drops cached pages of a disk that another host has written to.
    SYS_fadvise64,
    SYS_fchmod,
    // Reads and writes the mark of files that kemari has created.
    SYS_fgetxattr,
    SYS_flock,
    SYS_fsetxattr,
    SYS_fstatfs,
    SYS_ftruncate,
    SYS_getcwd,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getpeername,
    SYS_getppid,
    SYS_getrlimit,
    SYS_getrusage,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_gettimeofday,
    SYS_getuid,
    SYS_ioctl,
    SYS_kill,
    SYS_link,
    SYS_linkat,
    SYS_listen,
    SYS_lstat,
    SYS_membarrier,
    SYS_mkdir,
    SYS_mkdirat,
    SYS_mmap,
    SYS_mprotect,
    SYS_open,
    SYS_openat,
    SYS_pipe2,
    SYS_prctl,
    SYS_preadv,
    SYS_prlimit64,
    SYS_readlink,
    SYS_readlinkat,
    SYS_readv,
    SYS_recvmmsg,
    SYS_recvmsg,
    SYS_rename,
    SYS_renameat,
    SYS_renameat2,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_sched_getaffinity,
    SYS_seccomp,
    SYS_select,
    SYS_sendmmsg,
    SYS_set_robust_list,
    SYS_set_tid_address,
    SYS_socketpair,
    SYS_statfs,
    SYS_sysinfo,
    SYS_tgkill,
    SYS_time,
    SYS_timerfd_create,
    SYS_tkill,
    SYS_umask,
    SYS_uname,
    SYS_unlink,
    SYS_unlinkat,
];

/// The calls that perform effects, on open files, taps and sockets.
const PERFORM: &[c_long] = &[
    SYS_write,
    SYS_writev,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_sendto,
    SYS_sendmsg,
    SYS_pread64,
    SYS_fallocate,
    SYS_fdatasync,
    SYS_fsync,
];

/// The calls of the fence, which looks for a later term's file before each effect and reads it.
/// While this process claims a term, the fence also lists the directory.
const FENCE: &[c_long] =
    &[SYS_stat, SYS_statx, SYS_newfstatat, SYS_fstat, SYS_lseek, SYS_getdents64];

/// The calls that reconnect to a peer.
const RECONNECT: &[c_long] =
    &[SYS_socket, SYS_connect, SYS_setsockopt, SYS_timerfd_settime, SYS_shutdown];

/// The filter of a role; `None` if the role keeps all rights of `main`.
pub(super) fn program(
    role: Role,
    events: &[RawFd],
    log: bool,
) -> Result<Option<BpfProgram>, BackendError> {
    let rules = match role {
        Role::Main if MAIN_IS_INSTALLED.swap(true, std::sync::atomic::Ordering::Relaxed) => {
            return Ok(None);
        }
        role => rules(role, events)?,
    };
    let otherwise = if log { SeccompAction::Log } else { SeccompAction::Trap };
    let filter = SeccompFilter::new(rules.0, otherwise, SeccompAction::Allow, TargetArch::x86_64)?;
    filter.try_into().map(Some)
}

/// Whether the filter of `main` is installed; it applies to every thread.
static MAIN_IS_INSTALLED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn rules(role: Role, events: &[RawFd]) -> Result<Rules, BackendError> {
    let mut rules = Rules::default();
    rules.allow(ANY);
    rules.memory()?;
    rules.own_death()?;
    match role {
        Role::Main => {
            for calls in [INPUT, PERFORM, FENCE, RECONNECT, MAIN] {
                rules.allow(calls);
            }
            rules.allow(&[SYS_accept4, SYS_accept, SYS_fcntl, SYS_close]);
        }
        Role::Device => {
            rules.device_code(events)?;
            rules.kvm(&[KVM_IRQ_LINE])?;
            rules.kvm(KVM_STATE)?;
            rules.kvm(KVM_DIRTY)?;
            // Signals make the vCPUs leave the guest for a checkpoint.
            rules.signal(SYS_tgkill, 2, libc::SIGRTMIN())?;
            rules.signal(SYS_tkill, 1, libc::SIGRTMIN())?;
            // A reset loads the kernel again, from open files.
            rules.allow(&[SYS_lseek, SYS_pread64, SYS_statx, SYS_fstat]);
        }
        Role::Vcpu => {
            rules.kvm(&[KVM_RUN, KVM_IRQ_LINE])?;
            rules.kvm(VCPU_STATE)?;
            rules.device_code(events)?;
        }
        Role::Lane => {
            rules.allow(PERFORM);
            rules.allow(FENCE);
            rules.allow(RECONNECT);
            rules.allow(INPUT);
            rules.open_to_read()?;
            rules.close()?;
            // Locks the record beside a disk while it is raised to a new term.
            rules.allow_if(SYS_fcntl, &[(1, Width::Dword, Op::Eq, F_OFD_SETLK as u64)])?;
            // Sets the tap's offloads, and rejoins a tap that was deleted once its name exists
            // again.
            for request in [TUNSETOFFLOAD, TUNSETIFF, TUNSETVNETHDRSZ, SIOCGIFINDEX] {
                rules.allow_if(SYS_ioctl, &[(1, Width::Dword, Op::Eq, request)])?;
            }
        }
        Role::LinkSender => {
            // Sends the open boot files to a standby that lacks them.
            rules.allow(&[SYS_pread64]);
            rules.allow(&[SYS_write, SYS_writev, SYS_sendto, SYS_sendmsg]);
            rules.allow(&[SYS_setsockopt, SYS_shutdown, SYS_poll, SYS_ppoll]);
            rules.close()?;
            rules.kvm(KVM_MEMORY)?;
            rules.kvm(KVM_DIRTY)?;
        }
        Role::LinkReader => {
            rules.allow(&[SYS_read, SYS_recvfrom, SYS_poll, SYS_ppoll, SYS_setsockopt]);
            rules.allow(&[SYS_shutdown]);
            rules.close()?;
            // TLS also writes when it reads: alerts, new keys.
            rules.allow(&[SYS_write, SYS_writev, SYS_sendto]);
        }
        Role::Control => {
            rules.allow(&[SYS_accept4, SYS_accept, SYS_setsockopt, SYS_shutdown]);
            rules.allow(&[SYS_read, SYS_recvfrom, SYS_sendto, SYS_write, SYS_poll, SYS_ppoll]);
            rules.close()?;
        }
        Role::Signals => {
            rules.allow(&[SYS_read, SYS_recvfrom, SYS_recvmsg, SYS_poll, SYS_ppoll]);
        }
        Role::Terminal => {
            if let Some(terminal) = terminal::get() {
                for request in terminal.requests {
                    rules.terminal(terminal, *request)?;
                }
            }
        }
        Role::Timer => {
            rules.wake(events)?;
        }
        Role::Log => {
            rules.stderr()?;
        }
        Role::Audit => {
            // Writes the open files and empties the oldest one.
            rules.allow(&[SYS_pwrite64, SYS_ftruncate]);
            // Closes the files at the end of the log.
            rules.close()?;
        }
    }
    Ok(rules)
}

/// A condition on one argument: its index, width, operator and value.
type Condition = (u8, Width, Op, u64);

#[derive(Default)]
struct Rules(BTreeMap<i64, Vec<SeccompRule>>);

impl Rules {
    /// Allows the calls with any arguments.
    fn allow(&mut self, calls: &[c_long]) {
        // An empty list of rules means: no condition.
        calls.iter().for_each(|call| drop(self.0.insert(*call, Vec::new())));
    }

    fn allow_if(&mut self, call: c_long, conditions: &[Condition]) -> Result<(), BackendError> {
        let conditions: Result<Vec<_>, _> = conditions
            .iter()
            .map(|(arg, width, op, value)| {
                SeccompCondition::new(*arg, width.clone(), op.clone(), *value)
            })
            .collect();
        let rule = SeccompRule::new(conditions?)?;
        match self.0.get_mut(&call) {
            Some(rules) if rules.is_empty() => {}
            Some(rules) => rules.push(rule),
            None => drop(self.0.insert(call, vec![rule])),
        }
        Ok(())
    }

    /// Allows memory for the allocator. It is never mapped from a file, since a write to it would
    /// reach the file, and it is never executable.
    fn memory(&mut self) -> Result<(), BackendError> {
        let no_code = (2, Width::Dword, Op::MaskedEq(PROT_EXEC as u64), 0);
        let anonymous = (3, Width::Dword, Op::MaskedEq(MAP_ANONYMOUS as u64), MAP_ANONYMOUS as u64);
        self.allow_if(SYS_mmap, &[no_code.clone(), anonymous])?;
        self.allow_if(SYS_mprotect, &[no_code])
    }

    /// Allows `abort`, and the line that reports a violation: only from its own buffer.
    fn own_death(&mut self) -> Result<(), BackendError> {
        self.restore_terminal()?;
        self.signal(SYS_tgkill, 2, SIGABRT)?;
        self.signal(SYS_tkill, 1, SIGABRT)?;
        if alarm::descriptor() < 0 {
            return Ok(());
        }
        self.allow_if(
            SYS_write,
            &[
                (0, Width::Dword, Op::Eq, alarm::descriptor() as u64),
                (1, Width::Qword, Op::Eq, alarm::line_address()),
                (2, Width::Qword, Op::Le, alarm::LINE_MAX as u64),
            ],
        )
    }

    /// Allows a signal to a thread of this process. For `tkill`, the filter cannot check the
    /// process.
    fn signal(&mut self, call: c_long, arg: u8, signal: c_int) -> Result<(), BackendError> {
        let mut conditions = vec![(arg, Width::Dword, Op::Eq, signal as u64)];
        if call != SYS_tkill {
            conditions.push((0, Width::Dword, Op::Eq, std::process::id().into()));
        }
        self.allow_if(call, &conditions)
    }

    /// Allows what device code and its queues need: to read input and to wake other threads.
    fn device_code(&mut self, events: &[RawFd]) -> Result<(), BackendError> {
        self.allow(INPUT);
        // The timers that end an epoch, and those that retry an input that has ended.
        self.allow(&[SYS_timerfd_settime]);
        self.wake(events)?;
        // Ctrl-A x on the console ends this process by a signal.
        self.signal(SYS_kill, 1, SIGTERM)
    }

    /// Allows a write of 8 bytes to these event descriptors only, which adds to a counter that
    /// another thread waits for.
    fn wake(&mut self, events: &[RawFd]) -> Result<(), BackendError> {
        for event in events {
            self.allow_if(
                SYS_write,
                &[
                    (0, Width::Dword, Op::Eq, *event as u64),
                    (2, Width::Qword, Op::Eq, size_of::<u64>() as u64),
                ],
            )?;
        }
        Ok(())
    }

    /// Allows `close`. Debug builds of std first check that the descriptor is open.
    fn close(&mut self) -> Result<(), BackendError> {
        self.allow(&[SYS_close]);
        self.allow_if(SYS_fcntl, &[(1, Width::Dword, Op::Eq, F_GETFD as u64)])
    }

    fn stderr(&mut self) -> Result<(), BackendError> {
        self.allow_if(SYS_write, &[(0, Width::Dword, Op::Eq, STDERR_FILENO as u64)])
    }

    fn terminal(&mut self, terminal: &Terminal, request: u64) -> Result<(), BackendError> {
        let terminal = (0, Width::Dword, Op::Eq, terminal.descriptor as u64);
        self.allow_if(SYS_ioctl, &[terminal, (1, Width::Dword, Op::Eq, request)])
    }

    /// Allows each thread that ends the process to restore the terminal: from the address of the
    /// former mode, to standard input, if no other job has it.
    fn restore_terminal(&mut self) -> Result<(), BackendError> {
        self.allow(&[SYS_getpgrp, SYS_getpgid]);
        let Some(terminal) = terminal::get() else { return Ok(()) };
        self.terminal(terminal, TIOCGPGRP)?;
        self.allow_if(
            SYS_ioctl,
            &[
                (0, Width::Dword, Op::Eq, terminal.descriptor as u64),
                (1, Width::Dword, Op::Eq, TCSETS),
                (2, Width::Qword, Op::Eq, terminal.restores_from),
            ],
        )
    }

    fn kvm(&mut self, numbers: &[u64]) -> Result<(), BackendError> {
        for number in numbers {
            let request = (1, Width::Dword, Op::MaskedEq(0xffff), KVMIO << 8 | number);
            self.allow_if(SYS_ioctl, &[request])?;
        }
        Ok(())
    }

    /// Allows opening existing files for reading only.
    fn open_to_read(&mut self) -> Result<(), BackendError> {
        let flags = (O_ACCMODE | O_CREAT | O_TRUNC) as u64;
        self.allow_if(SYS_openat, &[(2, Width::Dword, Op::MaskedEq(flags), O_RDONLY as u64)])?;
        self.allow_if(SYS_open, &[(1, Width::Dword, Op::MaskedEq(flags), O_RDONLY as u64)])?;
        // musl sets O_CLOEXEC by a second call.
        self.allow_if(SYS_fcntl, &[(1, Width::Dword, Op::Eq, F_SETFD as u64)])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const ALL: [Role; 12] = [
        Role::Main,
        Role::Device,
        Role::Vcpu,
        Role::Lane,
        Role::LinkSender,
        Role::LinkReader,
        Role::Control,
        Role::Signals,
        Role::Terminal,
        Role::Timer,
        Role::Log,
        Role::Audit,
    ];

    /// The rules of a role in a process with a terminal.
    fn rules(role: Role, events: &[RawFd]) -> Result<Rules, BackendError> {
        terminal::hand_in(Terminal {
            descriptor: STDIN_FILENO,
            requests: &[TCGETS, TCSETS, TIOCGPGRP],
            restores_from: 0x1000,
            restore: || {},
        });
        super::rules(role, events)
    }

    /// Filters add up: no thread gets back what `main` gives up.
    #[test]
    fn main_has_all_that_any_role_has() {
        let main = rules(Role::Main, &[]).unwrap();
        for role in ALL {
            for call in rules(role, &[7]).unwrap().0.keys() {
                assert!(
                    main.0.contains_key(call),
                    "{}: {:?}",
                    role.name(),
                    super::super::names::name(*call)
                );
            }
        }
    }

    /// P5: the roles that run device code neither open, connect nor duplicate a descriptor, and
    /// write only to wake threads.
    #[test]
    fn device_code_has_no_call_that_reaches_out() {
        const NEVER: &[c_long] = &[
            SYS_open,
            SYS_openat,
            SYS_openat2,
            SYS_creat,
            SYS_socket,
            SYS_socketpair,
            SYS_connect,
            SYS_accept,
            SYS_accept4,
            SYS_bind,
            SYS_dup,
            SYS_dup2,
            SYS_dup3,
            SYS_fcntl,
            SYS_pidfd_open,
            SYS_pidfd_getfd,
            SYS_io_uring_setup,
            SYS_io_uring_enter,
            SYS_io_uring_register,
            SYS_sendmsg,
            SYS_sendmmsg,
            SYS_sendto,
            SYS_writev,
            SYS_pwrite64,
            SYS_pwritev,
            SYS_pwritev2,
            SYS_sendfile,
            SYS_splice,
            SYS_tee,
            SYS_vmsplice,
            SYS_copy_file_range,
            SYS_memfd_create,
            SYS_execve,
            SYS_execveat,
            SYS_clone,
            SYS_clone3,
            SYS_fork,
            SYS_vfork,
            SYS_ptrace,
            SYS_process_vm_writev,
            SYS_bpf,
            SYS_recvmsg,
            SYS_close,
            SYS_eventfd2,
            SYS_ftruncate,
            SYS_fallocate,
        ];
        for role in [Role::Device, Role::Vcpu] {
            let rules = rules(role, &[7, 9]).unwrap();
            for call in NEVER {
                assert!(!rules.0.contains_key(call), "{}: {call}", role.name());
            }
            for conditional in [SYS_write, SYS_ioctl, SYS_mmap, SYS_mprotect, SYS_kill, SYS_tgkill]
            {
                assert!(!rules.0[&conditional].is_empty(), "{}: {conditional}", role.name());
            }
        }
    }

    /// `cargo xtask faults` builds its table from a copy: each call that is added here needs its
    /// faults there.
    #[test]
    fn the_table_of_faults_has_these_lists() {
        let copy = include_str!("../../../../tests/verify/faults/lists.txt");
        let copy: Vec<_> = copy.lines().filter(|line| !line.starts_with('#')).collect();
        let mut lists = Vec::new();
        for role in ALL {
            for call in rules(role, &[7]).unwrap().0.keys() {
                let call_name = super::super::names::name(*call).unwrap();
                lists.push(format!("{} {call_name} {call}", role.name()));
            }
        }
        assert!(copy == lists, "tests/verify/faults/lists.txt is to be:\n{}", lists.join("\n"));
    }

    #[test]
    fn every_filter_can_be_made() {
        for role in ALL {
            let rules = rules(role, &[3, 4, 5]).unwrap();
            let filter = SeccompFilter::new(
                rules.0,
                SeccompAction::Trap,
                SeccompAction::Allow,
                TargetArch::x86_64,
            );
            let program: BpfProgram = filter.unwrap().try_into().unwrap();
            assert!(program.len() < 4096, "{}", role.name());
        }
    }
}
