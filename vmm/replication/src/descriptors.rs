//! Reserves descriptors at start, for a takeover or a running machine, so that nothing else can use
//! them up.
//!
//! A takeover opens disks and their records, networks, the arbiter's files and the engine's
//! counters. There may be many connections and operators, and the limit may be low. Neither may
//! prevent a takeover that the standby has promised (P7).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use kemari_machine::config::MachineConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that a takeover opens for any machine: the arbiter's files, the engine's counters,
/// timers and threads, a link, the boot files of a reset; and those that operators may hold at the
/// same time.
const FIXED: usize = 96;
/// Descriptors for each backend: its file or socket, its record and lock, its timer.
const EACH: usize = 8;
/// Descriptors of a trial, in addition to one for each vCPU.
const TRIAL: usize = 16;
/// Descriptors that a standby opens after the first check: signals, the control socket, the audit
/// log, a link, the memory for a received kernel, and the trial of a machine with many vCPUs.
const LATER: usize = 80;
/// Descriptors that any running machine opens for a short time: to ask the arbiter for a term and
/// for its own place.
const RUNNING: usize = 4;
/// Descriptors that a machine opens and keeps between its claim and its first instruction: those of
/// the engine and the control socket.
const START: usize = 4;
/// As [`START`], for each backend: its file, its record and lock, its counters.
const START_EACH: usize = 2;
/// Upper bound of the requested limit where the hard limit is unlimited: some programs walk all
/// descriptors.
const ENOUGH: u64 = 1 << 20;

/// There are too few free descriptors.
#[derive(Debug, thiserror::Error)]
#[error(
    "expected {wanted} free descriptors, found {found} ({error}): raise the limit (`ulimit -Hn`, or LimitNOFILE= of the service) to {limit} at least"
)]
pub struct DescriptorError {
    wanted: usize,
    found: usize,
    limit: usize,
    error: io::Error,
}

/// Placeholder descriptors, held until they are needed. The default reserve is empty.
#[derive(Debug, Default)]
pub struct Reserve {
    wanted: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    descriptors: Vec<OwnedFd>,
    /// The reserve is released: a takeover has begun, or the arbiter is about to be asked.
    released: bool,
}

impl Reserve {
    /// The reserve for a takeover of this machine.
    #[must_use]
    pub fn of(machine: &MachineConfig) -> Self {
        Self { wanted: FIXED + EACH * backends(machine), held: Mutex::default() }
    }

    /// The reserve for the most that a running machine opens at one moment: its arbiter's files,
    /// one for each lane, and the `clients` of its control socket. Without these descriptors
    /// effects would be held for ever (P7).
    #[must_use]
    pub fn of_running(machine: &MachineConfig, clients: usize) -> Self {
        Self { wanted: RUNNING + backends(machine) + clients, held: Mutex::default() }
    }

    /// As [`of_running`](Self::of_running), with the descriptors that the start of the machine
    /// opens.
    #[must_use]
    pub fn of_start(machine: &MachineConfig, clients: usize) -> Self {
        let start = START + START_EACH * backends(machine);
        let running = Self::of_running(machine, clients).wanted;
        Self { wanted: start + running, held: Mutex::default() }
    }

    /// The reserve for trying a checkpoint on a machine with `cpus` vCPUs.
    #[must_use]
    pub fn of_trial(cpus: u32) -> Self {
        Self { wanted: TRIAL + cpus as usize, held: Mutex::default() }
    }

    /// Opens the descriptors that are not held yet. Does nothing after [`release`](Self::release).
    ///
    /// # Errors
    /// When there are too few. Those that could be opened stay held.
    pub fn hold(&self) -> Result<(), DescriptorError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while !held.released && held.descriptors.len() < self.wanted {
            match another(held.descriptors.last()) {
                Ok(descriptor) => held.descriptors.push(descriptor),
                Err(error) => {
                    let (wanted, found) = (self.wanted, held.descriptors.len());
                    let limit = limit() + wanted - found;
                    return Err(DescriptorError { wanted, found, limit, error });
                }
            }
        }
        Ok(())
    }

    /// As [`hold`](Self::hold), at the start. Also checks that there is room for the descriptors
    /// that are opened before a takeover.
    ///
    /// # Errors
    /// As [`hold`](Self::hold). The error names a limit that suffices for both.
    pub fn hold_first(&self) -> Result<(), DescriptorError> {
        let later = Self { wanted: LATER, held: Mutex::default() };
        let both = self.hold().map_err(|error| (error, LATER));
        // Dropping `later` closes its descriptors at once.
        both.and_then(|()| later.hold().map_err(|error| (error, 0)))
            .map_err(|(error, more)| DescriptorError { limit: error.limit + more, ..error })
    }

    /// Closes the descriptors: a takeover begins, or the arbiter is about to be asked.
    pub fn release(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.released = true;
        held.descriptors.clear();
    }

    /// Undoes [`release`](Self::release): no takeover follows, and [`hold`](Self::hold) opens the
    /// descriptors again.
    pub fn renew(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).released = false;
    }

    /// Whether the reserve is not released: connections may then open other descriptors.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.held.lock().unwrap_or_else(PoisonError::into_inner).released
    }
}

/// Checks that the side that runs the guest has enough descriptors left for its protection and its
/// operators. Keeps none open.
///
/// # Errors
/// When there will be too few.
pub fn check_room() -> Result<(), DescriptorError> {
    let (limit, wanted) = (limit(), LATER);
    let found = match std::fs::read_dir("/proc/self/fd") {
        // One of the open descriptors belongs to the directory itself.
        Ok(open) => (limit + 1).saturating_sub(open.count()),
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => 0,
        Err(_) => return Ok(()),
    };
    if found >= wanted {
        return Ok(());
    }
    let error = io::Error::from_raw_os_error(libc::EMFILE);
    Err(DescriptorError { wanted, found, limit: limit + wanted - found, error })
}

/// Number of backends. Every slot counts, even one without a backend.
fn backends(machine: &MachineConfig) -> usize {
    machine.slots().count()
}

fn another(like: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    match like {
        Some(descriptor) => Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, 0)?),
        None => Ok(std::fs::File::open("/dev/null")?.into()),
    }
}

/// Raises this process's limit to the hard limit, which is the administrator's choice.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(ENOUGH).min(ENOUGH);
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

/// The current limit.
fn limit() -> usize {
    let current = getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH);
    usize::try_from(current).unwrap_or(usize::MAX)
}
