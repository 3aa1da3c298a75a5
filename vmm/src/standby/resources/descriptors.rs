//! Descriptors for a takeover, and for a machine that runs: reserved at start, so that nothing that comes between can have used
//! them up.
//!
//! A takeover opens disks and their records, networks, the arbiter's files and the engine's counters. Strangers and
//! operators may come in numbers, and a limit may be low; neither may cost a takeover that the standby has promised (P7).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::MachineConfig;
use crate::control::most_clients;

/// What a takeover opens, whatever the machine: the arbiter's files, the engine's counters, timers and threads, a link, the
/// images that a reset boots; and what operators may hold at the same time.
const FIXED: usize = 96;
/// For each backend: its file or socket, its record and lock, its timer.
const EACH: usize = 8;
/// What a trial opens besides a descriptor for each vCPU.
const TRIAL: usize = 16;
/// What a standby opens after this was looked at first: signals, the control socket, the audit log, a link, the memory that it
/// receives a kernel in, and the trial of a machine of many vCPUs.
const LATER: usize = 80;
/// What a machine that runs opens for moments, whatever it is: to ask the arbiter for a term and for its place.
const RUNNING: usize = 4;
/// What the start of a machine opens from its claim to its first instruction, and keeps: the engine's, the control socket's.
const START: usize = 4;
/// The same for each backend: its file, its record and lock, its counters.
const START_EACH: usize = 2;
/// Where the limit may be unlimited, no more than this is asked for: some programs walk all of them.
const ENOUGH: u64 = 1 << 20;

/// Too few descriptors.
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

/// Descriptors that are held for nothing, until they are needed. By default none.
#[derive(Debug, Default)]
pub struct Reserve {
    wanted: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    descriptors: Vec<OwnedFd>,
    /// The takeover has begun: none are held any more.
    released: bool,
}

impl Reserve {
    /// As many as a takeover of such a machine needs.
    #[must_use]
    pub fn of(machine: &MachineConfig) -> Self {
        Self { wanted: FIXED + EACH * backends(machine), held: Mutex::default() }
    }

    /// As many as a machine that runs opens at one moment, at most: its arbiter's files, of which each lane may read one, and
    /// the clients of its control socket, if it has one. Without them effects would be held for ever (P7).
    #[must_use]
    pub fn of_running(machine: &MachineConfig, has_control: bool) -> Self {
        let clients = if has_control { most_clients() } else { 0 };
        Self { wanted: RUNNING + backends(machine) + clients, held: Mutex::default() }
    }

    /// As many, and those that its start takes before.
    #[must_use]
    pub fn of_start(machine: &MachineConfig, has_control: bool) -> Self {
        let start = START + START_EACH * backends(machine);
        let running = Self::of_running(machine, has_control).wanted;
        Self { wanted: start + running, held: Mutex::default() }
    }

    /// As many as it takes to try a checkpoint on a machine of so many vCPUs.
    #[must_use]
    pub fn of_trial(cpus: u32) -> Self {
        Self { wanted: TRIAL + cpus as usize, held: Mutex::default() }
    }

    /// Takes what is missing of them.
    ///
    /// # Errors
    /// When there are too few; what there is stays held.
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

    /// As [`hold`](Self::hold), at the start: besides, there is room for what comes before a takeover.
    ///
    /// # Errors
    /// As `hold`, with a limit that is enough for all of it.
    pub fn hold_first(&self) -> Result<(), DescriptorError> {
        let later = Self { wanted: LATER, held: Mutex::default() };
        let both = self.hold().map_err(|error| (error, LATER));
        // Those of `later` are given back at once.
        both.and_then(|()| later.hold().map_err(|error| (error, 0)))
            .map_err(|(error, more)| DescriptorError { limit: error.limit + more, ..error })
    }

    /// Lets go of them: a takeover begins, or the arbiter is about to be asked.
    pub fn release(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.released = true;
        held.descriptors.clear();
    }

    /// There is no takeover after all: [`hold`](Self::hold) takes them again.
    pub fn renew(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).released = false;
    }

    /// Whether they are held: then others may use what is left.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.held.lock().unwrap_or_else(PoisonError::into_inner).released
    }
}

/// Whether protection and operators will find as many as they take, of the side that runs the guest. Takes none.
///
/// # Errors
/// When they will not.
pub fn check_room() -> Result<(), DescriptorError> {
    let (limit, wanted) = (limit(), LATER);
    let found = match std::fs::read_dir("/proc/self/fd") {
        // One of them is the directory's.
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

/// Every slot counts, also one with nothing behind it.
fn backends(machine: &MachineConfig) -> usize {
    machine.slots().count()
}

fn another(like: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    match like {
        Some(descriptor) => Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, 0)?),
        None => Ok(std::fs::File::open("/dev/null")?.into()),
    }
}

/// Raises this process's limit as far as it may. What is left is what the administrator wants.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(ENOUGH).min(ENOUGH);
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}

/// The limit as it is now.
fn limit() -> usize {
    let current = getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH);
    usize::try_from(current).unwrap_or(usize::MAX)
}
