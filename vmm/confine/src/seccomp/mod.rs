//! Seccomp: an allow-list of system calls for each role of a thread (P5).
//!
//! The types keep a device from naming an operation that reaches the outside. This layer keeps the
//! threads that run devices from executing one, even if an attacker runs code in them. `main` gives
//! up rights for the whole process before it starts another thread ([`start`]). Each thread then
//! gives up what its role does not need, once it has opened all that it needs ([`enter`]). Threads
//! inherit filters, and filters add up: so the [`Launcher`], never a device thread, starts a thread
//! that needs more than a device thread.
//!
//! A call that is not allowed ends the process with [`EXIT_CODE`], after one line that names the
//! call, the thread and its role. The kernel does not execute the call. For a pair this is a crash
//! of this host: the standby takes over.

mod alarm;
mod allocator;
mod filter;
mod launcher;
mod names;
pub mod threads;

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use crate::terminal::{self, Terminal};

pub use alarm::EXIT_CODE;
pub use launcher::Launcher;

/// Signals that ask the process to end. P7: their handler writes to a pipe, and only `main` runs
/// it: see [`enter`].
pub const ENDING: [i32; 5] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGXCPU];

/// What to do about a system call that a thread's role does not allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// End the process.
    #[default]
    On,
    /// Allow it and let the kernel log it (`dmesg`, `journalctl -k`).
    Log,
    /// Install no filters.
    Off,
}

/// The role of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sets up and takes down the machine; the role of any thread that starts threads or opens
    /// files.
    Main,
    /// The device loop: device code, checkpoints, the engine's timers.
    Device,
    /// Runs the guest, and device code for register accesses.
    Vcpu,
    /// Performs effects on one backend.
    Lane,
    /// Sends to the standby.
    LinkSender,
    /// Receives from the other side.
    LinkReader,
    /// Accepts connections to the control socket and answers them.
    Control,
    /// Waits for signals.
    Signals,
    /// Switches the terminal to raw mode when this process comes to the foreground.
    Terminal,
    /// Waits for a point in time.
    Timer,
    /// Writes the log lines of all threads.
    Log,
    /// Writes the audit log.
    Audit,
}

impl Role {
    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Device => "device",
            Self::Vcpu => "vcpu",
            Self::Lane => "lane",
            Self::LinkSender => "link-sender",
            Self::LinkReader => "link-reader",
            Self::Control => "control",
            Self::Signals => "signals",
            Self::Terminal => "terminal",
            Self::Timer => "timer",
            Self::Log => "log",
            Self::Audit => "audit",
        }
    }
}

/// Why a thread cannot give up rights.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The filter cannot be built: the lists have a mistake.
    #[error("cannot build the seccomp filter for role {role}: {source}")]
    Build {
        /// The role.
        role: &'static str,
        /// The mistake.
        source: seccompiler::BackendError,
    },
    /// The kernel refuses the filter.
    #[error(
        "the kernel refuses the seccomp filter for role {role}: {source}; it requires CONFIG_SECCOMP_FILTER, and an \
         outer sandbox, if there is one, must allow seccomp(2); --seccomp off runs without filters"
    )]
    Install {
        /// The role.
        role: &'static str,
        /// The kernel's error.
        source: seccompiler::Error,
    },
    /// The handler of violations cannot be installed.
    #[error("cannot install the handler of seccomp violations: {0}")]
    Handler(std::io::Error),
    /// The allocator's one-time reads failed.
    #[error("cannot prepare for the seccomp filters: {0}")]
    Allocator(std::io::Error),
}

static MODE: OnceLock<Mode> = OnceLock::new();

/// The identity of a thread, for the handler of violations: needs no allocation and no destructor.
#[derive(Clone, Copy)]
struct Who {
    role: Role,
    name: [u8; 16],
}

thread_local! {
    static WHO: Cell<Who> = const { Cell::new(Who { role: Role::Main, name: [0; 16] }) };
}

/// Gives up what no part of the product needs, for this thread and all that it starts. `main` calls
/// it before it starts another thread; without it, [`enter`] only records the role. Every thread
/// may restore `terminal`.
///
/// # Errors
/// See [`SeccompError`].
pub fn start(mode: Mode, terminal: Terminal) -> Result<(), SeccompError> {
    terminal::hand_in(terminal);
    if mode == Mode::On {
        alarm::install().map_err(SeccompError::Handler)?;
    }
    // Only the first call installs the filter: a process has one mode.
    if MODE.set(mode).is_ok() && mode != Mode::Off {
        allocator::settle().map_err(SeccompError::Allocator)?;
        install(Role::Main, &[])?;
    }
    match mode {
        Mode::On => log::debug!("seccomp: each thread may make only the system calls of its role"),
        Mode::Log => log::warn!(
            "seccomp: the kernel logs violations and allows them (--seccomp log); read them with `dmesg`"
        ),
        Mode::Off => log::warn!("seccomp: off; no thread is confined"),
    }
    Ok(())
}

/// Puts this thread into `role`: from now on it can do only what that role needs. `events` are the
/// counters by which it wakes other threads of this process. A `device` or `vcpu` thread may write
/// to no other descriptor.
///
/// # Panics
/// When the kernel refuses the filter: no thread may run with rights that it should have given up.
pub fn enter(role: Role, events: &[RawFd]) {
    let mut name = [0; 16];
    let thread = std::thread::current();
    // Copy at most 15 bytes, to keep a final zero.
    for (to, from) in name[..15].iter_mut().zip(thread.name().unwrap_or("?").bytes()) {
        *to = from;
    }
    WHO.set(Who { role, name });
    if role != Role::Main {
        block_ending_signals();
    }
    if MODE.get().is_some_and(|mode| *mode != Mode::Off)
        && let Err(error) = install(role, events)
    {
        panic!("{error}");
    }
}

/// Whether this thread has all rights of `main`: it may open files, restore the terminal and start
/// threads.
#[must_use]
pub fn has_mains_rights() -> bool {
    WHO.get().role == Role::Main || MODE.get() != Some(&Mode::On)
}

/// Whether this thread runs device code.
#[must_use]
pub fn runs_device_code() -> bool {
    matches!(WHO.get().role, Role::Device | Role::Vcpu)
}

/// Blocks the ending signals in this thread. Their handler writes to a pipe, which only `main` may
/// do, and the kernel may choose any thread to run it.
fn block_ending_signals() {
    for signal in ENDING {
        // An error means that the signal is blocked already.
        let _ = vmm_sys_util::signal::block_signal(signal);
    }
}

fn install(role: Role, events: &[RawFd]) -> Result<(), SeccompError> {
    let log = MODE.get() == Some(&Mode::Log);
    let Some(program) = filter::program(role, events, log)
        .map_err(|source| SeccompError::Build { role: role.name(), source })?
    else {
        return Ok(());
    };
    seccompiler::apply_filter(&program)
        .map_err(|source| SeccompError::Install { role: role.name(), source })
}
