//! Faults inside a host: slow storage, short reads and writes, refused registers, and traps. A trap
//! stops or kills a host, or holds a thread, after a chosen call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::scheduler::{self, Host, Nanos, On, Owned, ThreadId};
use crate::tally::{self, Kind};

struct Faults {
    /// The longest duration of a call on a file, for each host.
    storage: BTreeMap<Host, Nanos>,
    /// One in this many reads and writes of a socket is short; 0: none.
    short_in: u32,
    trap: Option<Trap>,
    /// The trap to set once the guest has asked for a power-off or a reset.
    at_request: Option<Trap>,
    /// A trap that has sprung and takes effect some branches later.
    armed: Option<Armed>,
    /// A host whose KVM refuses the next write of a vCPU's registers.
    refuses: Option<Host>,
}

#[derive(Clone, Copy)]
struct Armed {
    thread: ThreadId,
    blocks: u32,
    happens: Happens,
}

/// The kind of call after which a trap springs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Guest output was written.
    Output,
    /// Data was sent to the other side.
    Send,
    /// A file was opened, synced or linked.
    File,
    /// KVM was called.
    Kvm,
    /// A thread was started.
    Start,
    /// A session's sender has started the log of changed pages; the product reports this step.
    LogStarted,
    /// Any call, an allocation included.
    Any,
}

/// What a sprung trap does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happens {
    /// Stops the whole host for this long.
    Stop(Nanos),
    /// Keeps the calling thread from running for this long, or until [`release`].
    Hold(Nanos),
    /// Kills the host's process.
    Kill,
}

/// A fault that takes effect after one of the next calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trap {
    pub(crate) host: Host,
    pub(crate) behind: Call,
    /// Springs only in threads with this name; `None`: in any thread.
    pub(crate) thread: Option<&'static str>,
    /// Springs at the `left`th such call from now.
    pub(crate) left: u32,
    /// Number of branches that the thread still runs before the trap takes effect: between two
    /// locks there is no call.
    pub(crate) blocks: u32,
    pub(crate) happens: Happens,
}

static FAULTS: Owned<Faults> = Owned::new(Faults {
    storage: BTreeMap::new(),
    short_in: 0,
    trap: None,
    at_request: None,
    armed: None,
    refuses: None,
});
/// Whether [`passed_block`] has work to do; read at every branch.
static ARMED: AtomicBool = AtomicBool::new(false);
/// Number of held threads, which wait on this word.
static HELD: AtomicU32 = AtomicU32::new(0);
/// The moment at which a held thread last resumed.
static LET_GO: AtomicU64 = AtomicU64::new(0);

/// Sets a trap, which springs once.
pub(crate) fn set_trap(trap: Option<Trap>) {
    FAULTS.with(|faults| (faults.trap, faults.armed) = (trap, None));
    ARMED.store(false, Ordering::Relaxed);
}

/// Sets a trap when the guest asks for a power-off or a reset. It springs once.
pub(crate) fn set_trap_at_request(trap: Trap) {
    FAULTS.with(|faults| faults.at_request = Some(trap));
}

/// Records that the guest has asked for a power-off or a reset.
pub(crate) fn guest_has_requested() {
    if let Some(trap) = FAULTS.with(|faults| faults.at_request.take()) {
        set_trap(Some(trap));
    }
}

/// Makes KVM on `host` refuse the next write of a vCPU's registers, once.
pub(crate) fn set_refuses(host: Host) {
    FAULTS.with(|faults| faults.refuses = Some(host));
}

/// Whether KVM still has to refuse a write of registers.
pub(crate) fn is_to_refuse() -> bool {
    FAULTS.with(|faults| faults.refuses.is_some())
}

/// Whether KVM refuses this write of registers; takes the refusal.
pub(crate) fn refuses_now() -> bool {
    let host = scheduler::host();
    let refuses = FAULTS.with(|faults| faults.refuses.take_if(|of| *of == host).is_some());
    if refuses {
        crate::trace(&format!("KVM on {host:?} refuses registers"));
        tally::saw(Kind::StateRefused);
    }
    refuses
}

/// Whether a thread is held now.
pub(crate) fn is_held() -> bool {
    HELD.load(Ordering::Relaxed) > 0
}

/// Whether a thread was held at or after `moment`.
pub(crate) fn was_held_since(moment: Nanos) -> bool {
    is_held() || LET_GO.load(Ordering::Relaxed) > moment
}

/// Lets all held threads resume.
pub(crate) fn release() {
    scheduler::with(|world| world.wake(HELD.as_ptr() as usize, usize::MAX));
}

fn hold(nanos: Nanos) {
    tally::saw(Kind::ThreadHeld);
    HELD.fetch_add(1, Ordering::Relaxed);
    let deadline = scheduler::with(|world| world.now + nanos);
    scheduler::wait(On::Futex(HELD.as_ptr() as usize), Some(deadline));
    HELD.fetch_sub(1, Ordering::Relaxed);
    LET_GO.store(scheduler::with(|world| world.now), Ordering::Relaxed);
}

pub(crate) fn is_armed() -> bool {
    ARMED.load(Ordering::Relaxed)
}

/// Counts a branch of the calling thread; an armed trap may take effect.
pub(crate) fn passed_block() {
    let own = scheduler::own_id();
    let happens = FAULTS.with(|faults| {
        let armed = faults.armed.as_mut().filter(|armed| armed.thread == own)?;
        armed.blocks -= 1;
        if armed.blocks == 0 { faults.armed.take() } else { None }
    });
    if let Some(armed) = happens {
        ARMED.store(false, Ordering::Relaxed);
        spring(armed.happens);
    }
}

/// Records a call of the product; a trap may spring.
pub(crate) fn called(call: Call) {
    if FAULTS.with(|faults| faults.trap.is_none_or(|trap| trap.behind != call)) {
        return;
    }
    let (host, name) = scheduler::with(|world| {
        let thread = &world.threads[scheduler::own_id()];
        (thread.host, thread.name.clone())
    });
    let sprung = FAULTS.with(|faults| {
        let is_meant =
            |trap: &&mut Trap| trap.host == host && trap.thread.is_none_or(|of| of == name);
        let trap = faults.trap.as_mut().filter(is_meant)?;
        trap.left -= 1;
        if trap.left == 0 { faults.trap.take() } else { None }
    });
    let Some(trap) = sprung else { return };
    crate::trace(&format!("{host:?} {name}, behind a call of kind {call:?}: {:?}", trap.happens));
    if trap.blocks == 0 {
        return spring(trap.happens);
    }
    let armed = Armed { thread: scheduler::own_id(), blocks: trap.blocks, happens: trap.happens };
    FAULTS.with(|faults| faults.armed = Some(armed));
    ARMED.store(true, Ordering::Relaxed);
}

/// Springs a trap in the calling thread.
fn spring(happens: Happens) {
    let host = scheduler::host();
    match happens {
        Happens::Stop(nanos) => crate::hosts::stop(host, nanos),
        Happens::Hold(nanos) => return hold(nanos),
        Happens::Kill => crate::hosts::kill(host),
    }
    scheduler::sleep(0);
}

/// Makes each call on a file of `host` take up to `nanos`.
pub(crate) fn set_storage(host: Host, nanos: Nanos) {
    FAULTS.with(|faults| faults.storage.insert(host, nanos));
}

/// Makes one in this many reads and writes of sockets short.
pub(crate) fn set_short(one_in: u32) {
    FAULTS.with(|faults| faults.short_in = one_in);
}

/// Waits as long as the host's storage takes for this call.
pub(crate) fn pass_storage_time() {
    let host = scheduler::host();
    let longest = FAULTS.with(|faults| faults.storage.get(&host).copied().unwrap_or(0));
    if longest > 0 {
        let nanos = scheduler::with(|world| {
            let share = world.random.u64(..=longest);
            // Half of the calls are fast: they take a hundredth of the time.
            if world.random.bool() { share / 100 } else { share }
        });
        if nanos >= SLOW_ANSWER && is_lane() {
            tally::saw(Kind::SlowFence);
        }
        scheduler::sleep(nanos);
    }
}

/// Whether this thread is a lane, which asks the fence before each system call that lets an effect
/// out.
fn is_lane() -> bool {
    let is_one =
        |thread: &scheduler::Thread| thread.name == "power" || thread.name.starts_with("console");
    scheduler::with(|world| is_one(&world.threads[scheduler::own_id()]))
}

/// An answer of the arbiter's files that takes this long is counted as slow.
const SLOW_ANSWER: Nanos = 10_000_000;

/// The number of bytes, of `len`, that the call transfers.
pub(crate) fn short(len: usize) -> usize {
    let one_in = FAULTS.with(|faults| faults.short_in);
    if one_in == 0 || len < 2 {
        return len;
    }
    scheduler::with(|world| match world.random.u32(..one_in) {
        0 => {
            tally::saw(Kind::ShortCall);
            world.random.usize(1..len)
        }
        _ => len,
    })
}
