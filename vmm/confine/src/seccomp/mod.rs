//! What each thread may ask of the kernel: an allow-list of system calls per role (P5).
//!
//! The types keep a device from naming an operation that reaches the outside; this layer keeps the
//! threads that run devices from carrying one out, whatever code they were made to run. `main`
//! gives up rights for the whole process before it starts another thread ([`start`]); each thread
//! then gives up what its role does not need, once what it needs is open ([`enter`]). Filters are
//! inherited and add up, so whoever needs more than a device thread is started by the
//! [`Launcher`], never by a device thread.
//!
//! A call that is not allowed ends the process with [`EXIT_CODE`], after one line that names the
//! call, the thread and its role. For a pair that is a crash of this host: the standby takes over,
//! and nothing of it has left.

mod alarm;
mod allocator;
mod filter;
mod launcher;
mod names;

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use crate::terminal::{self, Terminal};

pub use alarm::EXIT_CODE;
pub use launcher::Launcher;

/// What asks for the end. P7: no thread but `main`'s has its handler run, which writes to a pipe: see [`enter`].
pub const ENDING: [i32; 5] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGXCPU];

/// What to do about system calls that a thread's role does not allow.
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

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sets the machine up and takes it down; whatever starts threads or opens things.
    Main,
    /// The device loop: device code, checkpoints, the timers of the engine.
    Device,
    /// Runs the guest, and device code for register accesses.
    Vcpu,
    /// Performs effects on one backend.
    Lane,
    /// Writes to the standby.
    LinkSender,
    /// Reads from the other side.
    LinkReader,
    /// Accepts connections and answers them.
    Control,
    /// Waits for signals.
    Signals,
    /// Makes the terminal raw when this process comes to have it.
    Terminal,
    /// Waits for time to pass.
    Timer,
    /// Writes the log lines of all threads.
    Log,
    /// Writes the audit log.
    Audit,
}

impl Role {
    /// As messages name it.
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

/// Why a thread could not give up rights.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The filter could not be made: a mistake in the lists.
    #[error("the seccomp filter for role {role} cannot be made: {source}")]
    Build {
        /// Whose.
        role: &'static str,
        /// What is wrong.
        source: seccompiler::BackendError,
    },
    /// The kernel refuses it.
    #[error(
        "the kernel refuses the seccomp filter for role {role}: {source}; it needs CONFIG_SECCOMP_FILTER, and no outer sandbox that forbids seccomp(2); --seccomp off runs without"
    )]
    Install {
        /// Whose.
        role: &'static str,
        /// What the kernel says.
        source: seccompiler::Error,
    },
    /// The handler of violations could not be installed.
    #[error("cannot install the handler of seccomp violations: {0}")]
    Handler(std::io::Error),
    /// What the allocator asks once could not be asked yet.
    #[error("cannot prepare for the seccomp filters: {0}")]
    Allocator(std::io::Error),
}

static MODE: OnceLock<Mode> = OnceLock::new();

/// Who a thread is, for the handler of violations: no allocation, no destructor.
#[derive(Clone, Copy)]
struct Who {
    role: Role,
    name: [u8; 16],
}

thread_local! {
    static WHO: Cell<Who> = const { Cell::new(Who { role: Role::Main, name: [0; 16] }) };
}

/// Gives up what no part of the product needs, for this thread and all that it starts. Called by
/// `main` before there is another thread; without it [`enter`] only notes the role. `terminal` is what every thread may restore.
///
/// # Errors
/// See [`SeccompError`].
pub fn start(mode: Mode, terminal: Terminal) -> Result<(), SeccompError> {
    terminal::hand_in(terminal);
    if mode == Mode::On {
        alarm::install().map_err(SeccompError::Handler)?;
    }
    // The first call counts: a process has one mode.
    if MODE.set(mode).is_ok() && mode != Mode::Off {
        allocator::settle().map_err(SeccompError::Allocator)?;
        install(Role::Main, &[])?;
    }
    match mode {
        Mode::On => log::debug!("seccomp: each thread is held to the system calls of its role"),
        Mode::Log => log::warn!(
            "seccomp: the kernel logs violations and allows them (--seccomp log); read them with `dmesg`"
        ),
        Mode::Off => log::warn!("seccomp: off; no thread is confined"),
    }
    Ok(())
}

/// This thread is in `role` from now on, and can do no more than that needs. `events`: the
/// counters by which it wakes other threads of this process, the only descriptors that a `device`
/// or `vcpu` thread may write to.
///
/// # Panics
/// When the kernel refuses: nothing may run with rights that it was to give up.
pub fn enter(role: Role, events: &[RawFd]) {
    let mut name = [0; 16];
    let thread = std::thread::current();
    // One byte less, so that there is a final zero.
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

/// Whether this thread has given up no more than `main`: it may open files, restore the terminal, start threads.
#[must_use]
pub fn has_mains_rights() -> bool {
    WHO.get().role == Role::Main || MODE.get() != Some(&Mode::On)
}

/// Whether this thread is one of those that run the code of devices.
#[must_use]
pub fn runs_device_code() -> bool {
    matches!(WHO.get().role, Role::Device | Role::Vcpu)
}

/// The handler of signals that ask for the end writes to a pipe, which is for `main` to do and not
/// for any thread that the kernel happens to choose.
fn block_ending_signals() {
    for signal in ENDING {
        // Blocked already: all the better.
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
