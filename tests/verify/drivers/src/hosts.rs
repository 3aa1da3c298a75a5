//! The threads, descriptors and clock of each host.

use std::collections::BTreeMap;

use crate::raw;
use crate::scheduler::{self, Host, Nanos, Owned, Scheduler, ThreadId};
use crate::tally::{self, Kind};

/// Value of the clocks when the world begins: subtractions stay above zero.
const BEGIN: Nanos = 1_000_000_000_000;

struct Hosts {
    fds: BTreeMap<i32, Host>,
    threads: BTreeMap<libc::pthread_t, ThreadId>,
    /// The difference of each host's clock rate to the world's, in millionths; positive is faster.
    skew: BTreeMap<Host, i64>,
}

static HOSTS: Owned<Hosts> =
    Owned::new(Hosts { fds: BTreeMap::new(), threads: BTreeMap::new(), skew: BTreeMap::new() });

/// The clock of the calling thread's host.
pub(crate) fn clock() -> Nanos {
    let (host, now) = (scheduler::host(), scheduler::with(|world| world.now));
    let skew = HOSTS.with(|hosts| hosts.skew.get(&host).copied().unwrap_or(0));
    BEGIN + scaled(now, skew)
}

/// The calling host's wall clock.
pub(crate) fn wall_clock() -> Nanos {
    1_800_000_000_000_000_000 + clock()
}

/// The moment of the world at which the calling host's clock shows `clock`, or slightly later.
pub(crate) fn moment_of(clock: Nanos) -> Nanos {
    let host = scheduler::host();
    let skew = HOSTS.with(|hosts| hosts.skew.get(&host).copied().unwrap_or(0));
    let passed = i128::from(clock.saturating_sub(BEGIN));
    let moment = passed * 1_000_000 / (1_000_000 + i128::from(skew)) + 1;
    Nanos::try_from(moment).expect("a moment of the world")
}

fn scaled(now: Nanos, skew: i64) -> Nanos {
    let scaled = i128::from(now) * (1_000_000 + i128::from(skew)) / 1_000_000;
    Nanos::try_from(scaled).expect("a moment of the world")
}

/// Makes a host's clock run faster than the world's by this many millionths.
pub(crate) fn set_skew(host: Host, millionths: i64) {
    HOSTS.with(|hosts| hosts.skew.insert(host, millionths));
}

/// The host of the calling thread, for code inside the scheduler.
pub(crate) fn current(world: &Scheduler) -> Host {
    world.threads[scheduler::own_id()].host
}

pub(crate) fn started(id: ThreadId, thread: libc::pthread_t) {
    HOSTS.with(|hosts| hosts.threads.insert(thread, id));
}

pub(crate) fn thread(thread: libc::pthread_t) -> Option<ThreadId> {
    HOSTS.with(|hosts| hosts.threads.get(&thread).copied())
}

pub(crate) fn opened(fd: i32) {
    let host = scheduler::host();
    HOSTS.with(|hosts| hosts.fds.insert(fd, host));
}

/// Forgets a closed descriptor: the kernel may reuse its number.
pub(crate) fn closed(fd: i32) {
    HOSTS.with(|hosts| hosts.fds.remove(&fd));
    crate::watch::closed(fd);
    crate::kvm::closed(fd);
    scheduler::with(|world| world.timers.remove(&fd));
}

/// Stops all threads of `host` for `nanos`.
pub(crate) fn stop(host: Host, nanos: Nanos) {
    tally::saw(Kind::HostStopped);
    scheduler::with(|world| world.stop_host(host, world.now + nanos));
}

/// Kills the process on `host`.
pub(crate) fn kill(host: Host) {
    tally::saw(Kind::HostKilled);
    end(host);
}

/// Whether a process exists on `host`, running or stopped.
pub(crate) fn is_there(host: Host) -> bool {
    scheduler::with(|world| !world.was_stopped_since(host, Nanos::MAX - 1))
}

/// Ends the process on `host`: none of its threads runs again, and its descriptors are closed, as
/// the kernel does.
pub(crate) fn end(host: Host) {
    scheduler::with(|world| world.stop_host(host, Nanos::MAX));
    let all = HOSTS.with(|hosts| hosts.fds.clone());
    for fd in all.into_iter().filter(|(_, of)| *of == host).map(|(fd, _)| fd) {
        closed(fd);
        // SAFETY: the threads that used the descriptor never run again.
        unsafe { raw::syscall(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
    }
}
