//! The scheduler. One thread of a world runs at a time, a seed decides which, and time passes only
//! when the scheduler advances it.
//!
//! A thread can lose its turn at every replaced call of the C library ([`crate::calls`]), and
//! sometimes at an allocation or between two branches of the product ([`crate::blocks`]). Only the
//! thread that has the turn touches [`Scheduler`]: the turn is the lock.

use std::cell::{Cell, UnsafeCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::raw;

/// A thread's number in its world, in the order of starts.
pub(crate) type ThreadId = usize;

/// Nanoseconds since the world began.
pub(crate) type Nanos = u64;

/// The host on which a thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    /// Clients, the network, the judge.
    Outside,
    /// The first host of the guest.
    A,
    /// The host of the first standby.
    B,
    /// The host of the second standby, in worlds that have one.
    C,
}

/// What a thread waits for.
#[derive(Clone, Debug)]
pub(crate) enum On {
    /// A wake-up of this word.
    Futex(usize),
    /// Any of these descriptors.
    Fds(Vec<(i32, i16)>),
    /// The end of this thread.
    End(ThreadId),
    /// A signal to a vCPU, or the deadline.
    Kick,
    /// The deadline only.
    Time,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// The awaited event happened.
    Event,
    /// The deadline passed first.
    Time,
}

#[derive(Debug)]
enum State {
    Ready,
    Blocked { on: On, deadline: Option<Nanos> },
    Done,
}

pub(crate) struct Thread {
    pub(crate) name: String,
    pub(crate) host: Host,
    state: State,
    turn: Box<AtomicU32>,
    woken: Woken,
    /// Whether a signal is pending.
    pub(crate) kicked: bool,
    /// In worlds with priorities, the runnable thread with the highest one runs.
    priority: u64,
}

/// A timer descriptor: an eventfd that is written at the deadline.
pub(crate) struct Timer {
    pub(crate) deadline: Option<Nanos>,
    pub(crate) interval: Nanos,
}

/// How a world chooses the next thread.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// The turn is given up at one in this many points.
    switch_in: u32,
    /// Whether changing priorities choose the next thread; otherwise chance alone does.
    priorities: bool,
    /// Approximate number of branches between two calls after which the turn is given up; 0: never.
    blocks: u64,
    /// The longest duration of a call.
    step: Nanos,
}

/// The threads, the clock and the random numbers of a world (see the module).
pub(crate) struct Scheduler {
    pub(crate) threads: Vec<Thread>,
    pub(crate) random: fastrand::Rng,
    pub(crate) now: Nanos,
    pub(crate) timers: BTreeMap<i32, Timer>,
    /// The moment until which the threads of a host do not run: the host is stopped, or dead.
    stopped: BTreeMap<Host, Nanos>,
    manner: Manner,
    /// The thread that has the turn.
    current: ThreadId,
    /// A digest of all turns so far, equal in all runs of a seed.
    pub(crate) digest: u64,
    /// The moment by which the world must have ended.
    pub(crate) limit: Nanos,
}

struct Place(UnsafeCell<Option<Scheduler>>);

// SAFETY: only the thread that has the turn accesses the contents (see the module).
unsafe impl Sync for Place {}

/// Number of turns so far.
static TURNS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn turns() -> u64 {
    TURNS.load(Ordering::Relaxed)
}

static PLACE: Place = Place(UnsafeCell::new(None));

thread_local! {
    static ME: Cell<Option<ThreadId>> = const { Cell::new(None) };
    /// Whether this thread is inside the scheduler: its own calls and allocations are not
    /// scheduled.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread has reached the product's code. Before that, the number of the standard
    /// library's allocations depends on addresses, which the seed does not decide.
    static BEGUN: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread's number in the world; `None` for a thread outside of the world or inside the
/// scheduler.
pub(crate) fn me() -> Option<ThreadId> {
    if INSIDE.get() { None } else { ME.get() }
}

/// Does `work` with the scheduler. The caller has the turn.
pub(crate) fn with<R>(work: impl FnOnce(&mut Scheduler) -> R) -> R {
    let before = INSIDE.replace(true);
    // SAFETY: the caller has the turn, and `work` cannot come back here: it is given the only
    // reference.
    let place = unsafe { &mut *PLACE.0.get() };
    let done = work(place.as_mut().expect("a world was begun"));
    INSIDE.set(before);
    done
}

/// Does `work` without giving up the turn: printing about a world must not change it.
pub(crate) fn aside<R>(work: impl FnOnce() -> R) -> R {
    let before = INSIDE.replace(true);
    let done = work();
    INSIDE.set(before);
    done
}

/// Makes the calling thread the first of a world.
pub(crate) fn begin(seed: u64, limit: Nanos) {
    let mut random = fastrand::Rng::with_seed(seed);
    let manner = Manner {
        switch_in: [3, 10, 40, 200][random.usize(..4)],
        priorities: random.bool(),
        blocks: [0, 500, 5_000, 50_000][random.usize(..4)],
        step: [200, 1_000, 5_000][random.usize(..3)],
    };
    let mut world = Scheduler {
        threads: Vec::new(),
        random,
        now: 0,
        timers: BTreeMap::new(),
        stopped: BTreeMap::new(),
        manner,
        current: 0,
        digest: 0,
        limit,
    };
    world.add("world".to_owned(), Host::Outside);
    world.set_blocks();
    // SAFETY: there is one thread.
    unsafe { *PLACE.0.get() = Some(world) };
    ME.set(Some(0));
    BEGUN.set(true);
}

/// Begins a thread that [`Scheduler::add`] has announced: blocks until its first turn.
pub(crate) fn enter(id: ThreadId, turn: &AtomicU32) {
    wait_turn(turn);
    ME.set(Some(id));
}

fn wait_turn(turn: &AtomicU32) {
    while turn.swap(0, Ordering::Acquire) == 0 {
        raw::futex_wait(turn, 0);
    }
}

/// A point at which another thread may run first.
pub(crate) fn point() {
    let Some(id) = me() else { return };
    let switch = with(|world| {
        world.now += world.random.u64(1..=world.manner.step);
        world.random.u32(..world.manner.switch_in) == 0
    });
    if switch {
        hand_over(id, State::Ready);
    }
    crate::faults::called(crate::faults::Call::Any);
}

/// Records that the calling thread runs the product's code.
pub(crate) fn is_begun() {
    BEGUN.set(true);
}

/// As [`point`], for frequent places: gives up the turn rarely.
pub(crate) fn small_point() {
    let Some(id) = me().filter(|_| BEGUN.get()) else { return };
    let switch = with(|world| world.random.u32(..world.manner.switch_in * 16) == 0);
    if switch {
        hand_over(id, State::Ready);
    }
    crate::faults::called(crate::faults::Call::Any);
}

/// Gives up the turn between two calls.
pub(crate) fn block_point() {
    with(|world| world.set_blocks());
    hand_over(own_id(), State::Ready);
}

/// Waits for `on`, or until `deadline`.
pub(crate) fn wait(on: On, deadline: Option<Nanos>) -> Woken {
    let id = ME.get().expect("a thread of the world");
    hand_over(id, State::Blocked { on, deadline });
    with(|world| world.threads[id].woken)
}

/// Blocks the calling thread for `nanos`.
pub(crate) fn sleep(nanos: Nanos) {
    let deadline = with(|world| world.now + nanos);
    wait(On::Time, Some(deadline));
}

/// Ends the calling thread for the scheduler: it gives up the turn for good.
pub(crate) fn leave(id: ThreadId) {
    let next = with(|world| {
        world.threads[id].state = State::Done;
        world.next_turn()
    });
    ME.set(None);
    give(next);
}

fn hand_over(id: ThreadId, state: State) {
    let (next, turn) = with(|world| {
        world.threads[id].state = state;
        let next = world.next_turn();
        (next, std::ptr::from_ref::<AtomicU32>(&world.threads[id].turn))
    });
    if next == id {
        return;
    }
    give(next);
    // SAFETY: the word is boxed, and threads are never removed from the list.
    wait_turn(unsafe { &*turn });
}

fn give(next: ThreadId) {
    // SAFETY: the turn is still ours until the word is set; it is boxed, and never freed.
    let turn = unsafe {
        let world = (*PLACE.0.get()).as_ref().expect("a world was begun");
        &*std::ptr::from_ref::<AtomicU32>(&world.threads[next].turn)
    };
    turn.store(1, Ordering::Release);
    raw::futex_wake(turn);
}

impl Scheduler {
    /// Announces a thread; returns its number and the word through which it gets turns.
    pub(crate) fn add(&mut self, name: String, host: Host) -> (ThreadId, *const AtomicU32) {
        let turn = Box::new(AtomicU32::new(0));
        let word: *const AtomicU32 = &raw const *turn;
        let priority = self.random.u64(..);
        self.threads.push(Thread {
            name,
            host,
            state: State::Ready,
            turn,
            woken: Woken::Event,
            kicked: false,
            priority,
        });
        (self.threads.len() - 1, word)
    }

    fn set_blocks(&mut self) {
        let left = match self.manner.blocks {
            0 => u64::MAX,
            mean => self.random.u64(1..=2 * mean),
        };
        crate::blocks::set_left(left);
    }

    /// Wakes at most `count` of the threads that wait on this word; returns the number of woken
    /// threads.
    pub(crate) fn wake(&mut self, word: usize, count: usize) -> usize {
        let waits = |thread: &Thread| matches!(&thread.state, State::Blocked { on: On::Futex(at), .. } if *at == word);
        let mut waiting: Vec<ThreadId> =
            (0..self.threads.len()).filter(|id| waits(&self.threads[*id])).collect();
        self.random.shuffle(&mut waiting);
        waiting.truncate(count);
        for id in &waiting {
            self.ready(*id, Woken::Event);
        }
        waiting.len()
    }

    /// Sends a signal to a thread.
    pub(crate) fn kick(&mut self, id: ThreadId) {
        self.threads[id].kicked = true;
        if matches!(&self.threads[id].state, State::Blocked { on: On::Kick, .. }) {
            self.ready(id, Woken::Event);
        }
    }

    pub(crate) fn has_ended(&self, id: ThreadId) -> bool {
        matches!(self.threads[id].state, State::Done)
    }

    /// Stops all threads of `host` until this moment.
    pub(crate) fn stop_host(&mut self, host: Host, until: Nanos) {
        self.stopped.insert(host, until);
    }

    pub(crate) fn is_stopped(&self, host: Host) -> bool {
        self.stopped.get(&host).is_some_and(|until| self.now < *until)
    }

    /// Whether a host was stopped at or after `moment`.
    pub(crate) fn was_stopped_since(&self, host: Host, moment: Nanos) -> bool {
        self.stopped.get(&host).is_some_and(|until| *until > moment)
    }

    /// The names of the running threads of a host.
    pub(crate) fn threads_on(&self, host: Host) -> Vec<String> {
        let lives = |thread: &&Thread| thread.host == host && !matches!(thread.state, State::Done);
        self.threads.iter().filter(lives).map(|thread| thread.name.clone()).collect()
    }

    /// The state of every thread, one line each, for people.
    pub(crate) fn picture(&self) -> Vec<String> {
        let line = |(id, thread): (usize, &Thread)| match &thread.state {
            State::Done => None,
            state => Some(format!("{id} {:?} {}: {state:?}", thread.host, thread.name)),
        };
        self.threads.iter().enumerate().filter_map(line).collect()
    }

    fn ready(&mut self, id: ThreadId, woken: Woken) {
        self.threads[id].state = State::Ready;
        self.threads[id].woken = woken;
    }

    /// Chooses the next thread. If no thread can run, time passes until one can.
    fn next_turn(&mut self) -> ThreadId {
        TURNS.fetch_add(1, Ordering::Relaxed);
        loop {
            if self.now >= self.limit {
                self.give_up("the world has not come to its end");
            }
            self.fire_timers();
            let mut can_run = self.can_run();
            self.wake_the_overdue(&mut can_run);
            let able: Vec<ThreadId> = (0..can_run.len()).filter(|id| can_run[*id]).collect();
            if let Some(next) = self.choose(&able) {
                if let State::Blocked { .. } = self.threads[next].state {
                    self.ready(next, Woken::Event);
                }
                self.current = next;
                self.digest = (self.digest ^ next as u64 ^ self.now).wrapping_mul(0x0100_0000_01b3);
                return next;
            }
            match self.next_moment() {
                Some(moment) => self.now = moment,
                None => self.give_up("P7: no thread can continue"),
            }
        }
    }

    fn choose(&mut self, able: &[ThreadId]) -> Option<ThreadId> {
        if able.is_empty() {
            return None;
        }
        if !self.manner.priorities {
            return Some(able[self.random.usize(..able.len())]);
        }
        let next = able.iter().copied().max_by_key(|id| self.threads[*id].priority)?;
        // Change priorities sometimes: a thread that polls for another thread's work would
        // otherwise run forever.
        if self.random.u32(..8) == 0 {
            self.threads[next].priority = self.random.u64(..);
        }
        Some(next)
    }

    /// For each thread, whether it can run now.
    fn can_run(&self) -> Vec<bool> {
        // Poll all descriptors with one call, because this runs at each turn.
        let (mut fds, mut whose) = (Vec::new(), Vec::new());
        let mut can = Vec::with_capacity(self.threads.len());
        for (id, thread) in self.threads.iter().enumerate() {
            let may = !self.is_stopped(thread.host);
            can.push(
                may && match &thread.state {
                    State::Ready => true,
                    State::Done => false,
                    State::Blocked { on, .. } => match on {
                        On::Fds(of) => {
                            let ask = |(fd, events): &(i32, i16)| libc::pollfd {
                                fd: *fd,
                                events: *events,
                                revents: 0,
                            };
                            fds.extend(of.iter().filter(|_| may).map(ask));
                            whose.resize(fds.len(), id);
                            false
                        }
                        On::End(other) => self.has_ended(*other),
                        On::Kick => thread.kicked,
                        On::Futex(_) | On::Time => false,
                    },
                },
            );
        }
        if raw::poll_now(&mut fds) > 0 {
            for (fd, id) in fds.iter().zip(whose) {
                can[id] |= fd.revents != 0;
            }
        }
        can
    }

    fn wake_the_overdue(&mut self, can_run: &mut [bool]) {
        for (id, can) in can_run.iter_mut().enumerate() {
            if let State::Blocked { deadline: Some(deadline), .. } = self.threads[id].state
                && deadline <= self.now
                && !self.is_stopped(self.threads[id].host)
                && !*can
            {
                self.ready(id, Woken::Time);
                *can = true;
            }
        }
    }

    fn fire_timers(&mut self) {
        for (fd, timer) in &mut self.timers {
            if timer.deadline.is_some_and(|deadline| deadline <= self.now) {
                let one = 1_u64;
                // SAFETY: eight bytes of ours, to a counter.
                unsafe {
                    raw::syscall(
                        libc::SYS_write,
                        [*fd as usize, (&raw const one) as usize, 8, 0, 0, 0],
                    );
                }
                timer.deadline = (timer.interval > 0).then(|| self.now + timer.interval);
            }
        }
    }

    /// The next moment at which a deadline, a timer or the end of a stop lets a thread run.
    fn next_moment(&self) -> Option<Nanos> {
        let thread = |thread: &Thread| {
            let until = self.stopped.get(&thread.host).copied().unwrap_or(0);
            match &thread.state {
                State::Blocked { deadline, .. } => deadline.map(|at| at.max(until)),
                State::Ready => Some(until),
                State::Done => None,
            }
        };
        let threads = self.threads.iter().filter_map(thread).filter(|at| *at < Nanos::MAX);
        let timers = self.timers.values().filter_map(|timer| timer.deadline);
        let ends = self.stopped.values().copied().filter(|until| *until < Nanos::MAX);
        threads.chain(timers).chain(ends).filter(|at| *at > self.now).min()
    }

    fn give_up(&self, why: &str) -> ! {
        for line in self.picture() {
            raw::say(&line);
        }
        crate::broken(&format!("{why} ({} ms, {} turns)", self.now / 1_000_000, turns()));
    }
}

/// The state of every thread of a world that hangs, for a caller that does not have the turn.
pub(crate) fn hung() -> Vec<String> {
    // SAFETY: not strictly: no thread has made progress for a long time.
    let Some(world) = (unsafe { (*PLACE.0.get()).as_ref() }) else { return Vec::new() };
    let mut lines = world.picture();
    lines.push(format!("{} turns, the last one is {}'s", turns(), world.current));
    lines
}

/// A value that only the thread that has the turn accesses.
pub(crate) struct Owned<T>(UnsafeCell<T>);

// SAFETY: only the thread that has the turn accesses the contents.
unsafe impl<T> Sync for Owned<T> {}

impl<T> Owned<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Does `work` with the value. The caller has the turn, and does not give it up during `work`.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let before = INSIDE.replace(true);
        // SAFETY: the caller has the turn, which is not given up inside.
        let done = work(unsafe { &mut *self.0.get() });
        INSIDE.set(before);
        done
    }
}

/// The host on which the calling thread runs.
pub(crate) fn host() -> Host {
    let id = ME.get().expect("a thread of the world");
    with(|world| world.threads[id].host)
}

/// Does `work` on `host`: threads that it starts run there, and descriptors that it opens are
/// closed when that host dies.
pub(crate) fn on_host<R>(host: Host, work: impl FnOnce() -> R) -> R {
    let id = ME.get().expect("a thread of the world");
    let before = with(|world| std::mem::replace(&mut world.threads[id].host, host));
    let done = work();
    with(|world| world.threads[id].host = before);
    done
}

/// The calling thread's number, also inside the scheduler.
pub(crate) fn own_id() -> ThreadId {
    ME.get().expect("a thread of the world")
}
