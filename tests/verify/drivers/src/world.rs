//! One world: a pair, its link, its clients, and its faults.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use ft_core::primary::Phase;
use kemari_flags::drivers::Story;
use kemari_machine::Ended;
use kemari_replication::link::LinkAddr;
use kemari_replication::primary::Engine;

use crate::cable::Cable;
use crate::faults::{Call, Happens, Trap};
use crate::guest::Orders;
use crate::scheduler::{self, Host};
use crate::sides::{Places, Shared, Side, run_primary, run_standby};
use crate::tally::{self, Kind};
use crate::{broken, faults, hosts, judge, trace};

mod ends;
mod quiet;
mod resets;
mod rest;

/// The longest wait for an event that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// One of the two hosts of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Primary,
    Standby,
}

/// A fault that a world injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillPrimary,
    KillStandby,
    StopPrimary,
    StopStandby,
    /// Stops a host, or one of its threads, after one of its next calls of this kind.
    StopBehind(Role, Call),
    CutLink,
    SilentLink,
    SlowLink,
    SlowStorage(Role),
    ReaderStops,
    EndPrimary,
    /// A stranger repeats the primary's first frame to the standby.
    Stranger,
    /// The operator repeats the `protect` command.
    ProtectAgain,
}

const FAULTS: [Fault; 18] = [
    Fault::StopBehind(Role::Primary, Call::Output),
    Fault::StopBehind(Role::Primary, Call::Send),
    Fault::StopBehind(Role::Primary, Call::File),
    Fault::StopBehind(Role::Primary, Call::Kvm),
    Fault::StopBehind(Role::Standby, Call::File),
    Fault::KillPrimary,
    Fault::KillStandby,
    Fault::StopPrimary,
    Fault::StopStandby,
    Fault::CutLink,
    Fault::SilentLink,
    Fault::SlowLink,
    Fault::SlowStorage(Role::Primary),
    Fault::SlowStorage(Role::Standby),
    Fault::ReaderStops,
    Fault::EndPrimary,
    Fault::Stranger,
    Fault::ProtectAgain,
];

/// The stories. Consecutive seeds take consecutive stories.
const STORIES: [Story; 18] = [
    Story::Any,
    Story::Any,
    Story::Any,
    Story::TwoArbiters,
    Story::PowersOff,
    Story::OldSession,
    Story::Replaced,
    Story::SlowFence,
    Story::Ends,
    Story::Unread,
    Story::Twice,
    Story::Calm,
    Story::OtherStandby,
    Story::Hangs,
    Story::Leaves,
    Story::Resets,
    Story::SecondSignal,
    Story::FirstCheckpoint,
];

struct World {
    burst: u64,
    random: fastrand::Rng,
    places: Places,
    /// The host that runs the protected guest, and the host of its standby.
    primary: Host,
    standby: Host,
    /// The link between them.
    cable: Arc<Cable>,
    sides: BTreeMap<Host, Shared>,
    reads: Arc<AtomicBool>,
    /// Whether the primary was ordered to end.
    ends: bool,
    /// The faults injected so far.
    faults: Vec<Fault>,
    /// The killed hosts of the current pair.
    killed: Vec<Host>,
    /// Number of starts and takeovers of the guest before the current pair was formed.
    runs: usize,
}

/// Runs the world of a seed; returns if every promise was kept.
pub(crate) fn run(seed: u64, story: Option<Story>, dir: &Path) {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let in_turn = STORIES[(seed % STORIES.len() as u64) as usize];
    let story = story.unwrap_or(in_turn);
    trace(&format!("{story:?}"));
    let places = Places {
        dir: dir.to_owned(),
        two_arbiters: story == Story::TwoArbiters,
        orders: orders(story, &mut random),
        own_kernel: random.bool(),
        late: match story {
            Story::Any => random.u32(..6) == 0,
            Story::Twice => random.bool(),
            Story::OtherStandby => true,
            _ => false,
        },
    };
    places.write_kernel();
    judge::set_per_boot(places.orders.per_boot());
    let reads = Arc::new(AtomicBool::new(true));
    for host in [Host::A, Host::B, Host::C] {
        make_console(&places.console(host), reads.clone());
        // Each host's clock runs fast or slow by up to two per mille.
        hosts::set_skew(host, random.i64(-2000..=2000));
    }
    faults::set_short(if random.bool() { 0 } else { random.u32(2..20) });
    let cable = Cable::lay(&places.near(Host::B), places.far(Host::B));
    let mut world = World {
        burst: places.orders.burst,
        random,
        places,
        primary: Host::A,
        standby: Host::B,
        cable,
        sides: BTreeMap::new(),
        reads,
        ends: false,
        faults: Vec::new(),
        killed: Vec::new(),
        runs: 1,
    };
    world.begin_standby(Host::B);
    world.begin_primary();
    match story {
        Story::Any => world.live(),
        Story::TwoArbiters => world.live_with_two_arbiters(),
        Story::PowersOff => world.live_to_the_end(),
        Story::OldSession => world.outlive_a_session(),
        Story::Replaced => world.be_replaced(),
        Story::SlowFence => world.ask_slowly(),
        Story::Ends => world.end_in_order(),
        Story::Unread => world.go_unread(),
        Story::Twice => world.live_twice(),
        Story::Calm => world.live_in_peace(),
        Story::OtherStandby => world.choose_another(),
        Story::Hangs => world.hang(),
        Story::Leaves => world.lose_its_standby(),
        Story::Resets => world.be_reset(),
        Story::SecondSignal => world.be_told_twice(),
        Story::FirstCheckpoint => world.die_at_the_first_checkpoint(),
    }
    trace(&format!("{} bytes have left", judge::total()));
}

/// What the guest does in a story.
fn orders(story: Story, random: &mut fastrand::Rng) -> Orders {
    let burst = match story {
        Story::Replaced => 64,
        Story::Unread => 512,
        // A large output soon fills an unread console.
        Story::Ends if random.bool() => 64,
        _ => 1,
    };
    let off_at = if story == Story::PowersOff { random.u64(1..1000) } else { 0 };
    let resets = match story {
        Story::Resets => true,
        Story::Any => random.u32(..3) == 0,
        _ => false,
    };
    let reset_at = if resets { random.u64(20..600) } else { 0 };
    let insists = if resets { [0, 1, random.u64(1..40)][random.usize(..3)] } else { 0 };
    Orders { off_at, burst, reset_at, insists }
}

fn start(host: Host, name: &str, run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.to_owned());
    scheduler::on_host(host, || thread.spawn(run)).expect("a thread");
}

/// Creates a console with a reader, which reads while `reads` is true.
fn make_console(path: &Path, reads: Arc<AtomicBool>) {
    let name = std::ffi::CString::new(path.to_string_lossy().into_owned()).expect("no zero");
    // SAFETY: the name ends in a zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "a FIFO in the world's directory");
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the FIFO");
    // The smallest capacity of a pipe: a page.
    // SAFETY: no memory is involved.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(1..) = file.read(&mut buffer) {
            while !reads.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    });
}

impl World {
    fn begin_primary(&mut self) {
        let (places, side) = (self.places.clone(), Shared::default());
        self.sides.insert(Host::A, side.clone());
        rest::look_at(Host::A, side.clone());
        start(Host::A, "main-a", move || run_primary(&places, &side));
    }

    fn begin_standby(&mut self, host: Host) {
        let (places, side) = (self.places.clone(), Shared::default());
        self.sides.insert(host, side.clone());
        rest::look_at(host, side.clone());
        start(host, "main-standby", move || run_standby(&places, host, &side));
    }

    /// Gives the operator's `protect` command, if the primary runs.
    fn protect(&mut self) {
        let near = LinkAddr::Unix(self.places.near(self.standby));
        self.with_engine(self.primary, |engine| {
            if let Err(why) = engine.protect(near) {
                trace(&format!("the operator gets the answer: {why}"));
            }
        });
    }

    fn live(&mut self) {
        if self.places.late {
            self.pass(50..400);
            self.protect();
        }
        self.live_as_a_pair();
    }

    /// The guest is taken over, protected on a third host, and taken over again (P4, P7).
    fn live_twice(&mut self) {
        if self.places.late {
            self.pass(50..400);
            self.protect();
        }
        self.wait_protected();
        self.pass(1..300);
        match self.random.bool() {
            true => self.kill(Host::A),
            false => self.stop_for(Host::A, 1_000_000_000..4_000_000_000),
        }
        self.wait_for("P7: a takeover", |_| judge::runs() > 1);
        self.pass(1..200);
        (self.primary, self.standby) = (Host::B, Host::C);
        self.cable = Cable::lay(&self.places.near(Host::C), self.places.far(Host::C));
        (self.killed, self.runs) = (Vec::new(), 2);
        self.begin_standby(Host::C);
        self.wait_for("an engine", |world| world.with_engine(Host::B, |_| ()).is_some());
        self.protect();
        self.live_as_a_pair();
    }

    fn live_as_a_pair(&mut self) {
        let mut protected = true;
        if self.random.u32(..4) > 0 {
            self.wait_protected();
        } else {
            self.pass(1..300);
            protected = false;
        }
        for _ in 0..self.random.usize(1..=3) {
            self.pass(1..200);
            protected = match self.phase() {
                Some(phase) => phase == Phase::Protected,
                None => protected,
            };
            self.cause_any();
        }
        self.pass(1..500);
        self.heal();
        self.conclude(protected);
    }

    /// A late action of a thread of an ended session has no effect (P4).
    fn outlive_a_session(&mut self) {
        // The most important case comes last: the sender has started the log of changed pages and
        // is about to read the log; it holds no lock there.
        let mut cuts = true;
        let (thread, behind, left, blocks) = match self.random.usize(..8) {
            0 => ("link", Call::Any, self.random.u32(1..200), self.some_blocks()),
            1 => ("sender", Call::Send, self.random.u32(1..20), self.some_blocks()),
            2 => {
                // Hold the reading thread: the primary hears nothing and gives the session up, and
                // the standby learns of that.
                self.wait_protected();
                cuts = false;
                ("link", Call::Any, self.random.u32(1..50), self.some_blocks())
            }
            3 => ("sender", Call::Kvm, self.random.u32(1..3), self.random.u32(1..100)),
            _ => ("sender", Call::LogStarted, 1, 0),
        };
        let happens = Happens::Hold(self.random.u64(500_000_000..3_000_000_000));
        let thread = Some(thread);
        faults::set_trap(Some(Trap { host: Host::A, behind, thread, left, blocks, happens }));
        self.pass_until(300, |_| faults::is_held());
        let was_held = faults::is_held();
        let former = self.cable.joined();
        if cuts {
            self.cut_link();
        }
        self.pass_until(2000, |world| {
            world.cable.joined() > former && world.phase() == Some(Phase::Protected)
        });
        self.pass(1..50);
        let sessions = self.cable.joined();
        let goes_on = sessions > former && self.phase() == Some(Phase::Protected);
        if cuts && was_held && goes_on {
            return self.die_after_a_late_look(sessions);
        }
        faults::release();
        if cuts {
            self.wait_protected();
            self.pass(1..30);
        } else {
            // A primary that looks for a new standby needs a moment.
            self.pass(20..50);
            self.wait_protected();
        }
        if goes_on && self.cable.joined() != sessions {
            broken("P7: a thread of a session that had ended has ended the next one");
        }
        let protected = self.phase() == Some(Phase::Protected);
        self.kill(Host::A);
        self.conclude(protected);
    }

    /// Pages that a thread of an ended session has taken from the log are missing from the next
    /// checkpoints until the guest writes them again. The primary dies before that. Over a slow
    /// link a checkpoint contains many pages.
    fn die_after_a_late_look(&mut self, sessions: u64) {
        self.cable.set_micros(self.random.u64(2_000..20_000));
        self.pass(30..80);
        self.cable.kill_at_acknowledgement(self.random.u64(2..9));
        faults::release();
        self.pass_until(400, |_| !hosts::is_there(Host::A));
        if self.cable.joined() != sessions {
            broken("P7: a thread of a session that had ended has ended the next one");
        }
        self.kill(Host::A);
        self.conclude(true);
    }

    /// Number of branches between a thread's call and the fault: usually few, because locks are
    /// taken and released right after a call.
    fn some_blocks(&mut self) -> u32 {
        let most = [1, 10, 100, 10_000][self.random.usize(..4)];
        self.random.u32(..most)
    }

    /// One write of a primary may have begun when it is replaced; no later write leaves (P2).
    fn be_replaced(&mut self) {
        self.wait_protected();
        self.set_reads(false);
        self.pass(100..500);
        let behind = [Call::Output, Call::Output, Call::File][self.random.usize(..3)];
        let happens = Happens::Stop(self.random.u64(500_000_000..3_000_000_000));
        let (left, blocks) = (self.random.u32(1..6), self.some_blocks());
        faults::set_trap(Some(Trap { host: Host::A, behind, thread: None, left, blocks, happens }));
        self.set_reads(true);
        self.pass(1..2000);
        self.heal();
        self.conclude(true);
    }

    fn ask_slowly(&mut self) {
        self.wait_protected();
        faults::set_storage(Host::A, self.random.u64(1_000_000..80_000_000));
        self.pass(1..500);
        self.cut_link();
        self.pass(1..1000);
        self.heal();
        self.conclude(true);
    }

    /// An unread console blocks no guest, no checkpoint and no takeover (P7).
    fn go_unread(&mut self) {
        self.wait_protected();
        self.set_reads(false);
        self.pass(1..300);
        self.goes_on_without_readers();
        if self.phase() != Some(Phase::Protected) {
            broken("P7: a console without a reader ends the protection");
        }
        self.kill(Host::A);
        self.wait_for("P7: a takeover", |_| judge::runs() > 1);
        self.goes_on_without_readers();
    }

    /// A pair that was configured with two arbiters is never protected, under any fault.
    fn live_with_two_arbiters(&mut self) {
        for _ in 0..self.random.usize(1..=3) {
            self.pass(1..300);
            if self.phase() == Some(Phase::Protected) {
                broken("P2: protected, although each side has a different arbiter");
            }
            self.cause_any();
        }
        self.heal();
        self.pass(1000..2000);
        if judge::runs() > 1 {
            broken("P2: a standby with another arbiter has taken over");
        }
    }

    fn wait_protected(&self) {
        self.wait_for("P7: protection", |world| {
            // The guest may have powered itself off before.
            world.phase() == Some(Phase::Protected) || world.has_ended(world.primary)
        });
    }

    fn has_ended(&self, host: Host) -> bool {
        self.side(host).ended.is_some()
    }

    fn cause_any(&mut self) {
        let fault = FAULTS[self.random.usize(..FAULTS.len())];
        trace(&format!("{fault:?}"));
        self.faults.push(fault);
        self.cause(fault);
    }

    fn goes_on_without_readers(&mut self) {
        let before = judge::steps();
        self.wait_for("P7: a guest whose console has no reader", |_| judge::steps() > before + 50);
    }

    fn cause(&mut self, fault: Fault) {
        match fault {
            Fault::KillPrimary => self.kill(self.primary),
            Fault::KillStandby => self.kill(self.standby),
            Fault::StopPrimary => self.stop_for(self.primary, 0..1_500_000_000),
            Fault::StopStandby => self.stop_for(self.standby, 0..1_500_000_000),
            Fault::StopBehind(role, behind) => {
                let host = self.host(role);
                let (left, blocks) = (self.random.u32(1..60), self.some_blocks());
                let nanos = self.random.u64(..1_500_000_000);
                let happens = match self.random.bool() {
                    true => Happens::Stop(nanos),
                    false => Happens::Hold(nanos),
                };
                faults::set_trap(Some(Trap { host, behind, thread: None, left, blocks, happens }));
            }
            Fault::CutLink => self.cut_link(),
            Fault::SilentLink => {
                tally::saw(Kind::LinkSilent);
                self.cable.set_silent(true);
            }
            Fault::SlowLink => {
                tally::saw(Kind::LinkSlow);
                self.cable.set_micros(self.random.u64(..30_000));
            }
            Fault::SlowStorage(role) => {
                faults::set_storage(self.host(role), self.random.u64(..60_000_000));
            }
            Fault::ReaderStops => self.set_reads(false),
            Fault::Stranger => self.cable.greet(self.places.far(self.standby)),
            Fault::ProtectAgain => self.protect(),
            Fault::EndPrimary => self.ends |= self.signal(),
        }
    }

    /// Sends the primary a signal to end, if it is running.
    fn signal(&self) -> bool {
        let ends = |engine: &Arc<Engine>| match self.primary {
            // The product's handler runs, as at a signal from the kernel.
            // SAFETY: a system call; the handler is the product's.
            Host::A => assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0, "a signal"),
            _ => engine.machine().end(Ended::Signal(libc::SIGTERM)),
        };
        let sent = self.with_engine(self.primary, ends).is_some();
        if sent {
            tally::saw(Kind::ToldToEnd);
        }
        sent
    }

    fn cut_link(&self) {
        tally::saw(Kind::LinkCut);
        self.cable.cut();
    }

    /// Kills a host, unless it is the last side.
    fn kill(&mut self, host: Host) {
        let other = if host == self.primary { self.standby } else { self.primary };
        if self.killed.is_empty() && !self.has_ended(other) {
            self.killed.push(host);
            hosts::kill(host);
        }
    }

    fn stop_for(&mut self, host: Host, nanos: std::ops::Range<u64>) {
        if !self.killed.contains(&host) {
            hosts::stop(host, self.random.u64(nanos));
        }
    }

    fn heal(&mut self) {
        trace("no fault is left");
        faults::set_trap(None);
        faults::release();
        self.cable.set_silent(false);
        self.cable.set_micros(0);
        self.set_reads(true);
        for host in [Host::A, Host::B, Host::C] {
            faults::set_storage(host, 0);
        }
    }

    /// Checks that one side continues the guest and lets its output out, or that no side does if
    /// the machine was ended.
    fn conclude(&mut self, protected: bool) {
        if self.ends {
            let harmless = |fault: &Fault| {
                matches!(fault, Fault::EndPrimary | Fault::ReaderStops | Fault::SlowStorage(_))
            };
            self.pass(3000..3001);
            if self.faults.iter().all(harmless) && judge::runs() > self.runs {
                broken("P7: the guest of a machine that was ordered to end continues");
            }
            return;
        }
        // A guest that was never protected dies with its host.
        if self.killed == [self.primary] && !protected && judge::runs() == self.runs {
            return self.holds_nothing(self.standby);
        }
        let before = judge::total();
        // The killed standby had won the next term: a pair does not survive that.
        let is_lost = |world: &Self| {
            let ended = world.side(world.primary).ended.clone();
            world.killed == [world.standby]
                && ended.is_some_and(|ended| ended.starts_with("Fenced"))
        };
        self.wait_for("P7: output", |world| {
            judge::total() > before + 10 * self.burst || is_lost(world)
        });
        if !is_lost(self) {
            self.come_to_rest();
        }
    }

    /// The primary's phase, or `None` if it cannot answer.
    fn phase(&self) -> Option<Phase> {
        self.with_engine(self.primary, |engine| engine.phase())
    }

    fn with_engine<R>(&self, host: Host, ask: impl FnOnce(&Arc<Engine>) -> R) -> Option<R> {
        if scheduler::with(|world| world.is_stopped(host)) {
            return None;
        }
        let engine = self.side(host).engine.clone()?;
        let answer = ask(&engine);
        // Only a thread of its own host may drop the engine.
        std::mem::forget(engine);
        Some(answer)
    }

    fn side(&self, host: Host) -> MutexGuard<'_, Side> {
        self.sides[&host].lock().expect("not poisoned")
    }

    fn host(&self, role: Role) -> Host {
        if role == Role::Primary { self.primary } else { self.standby }
    }

    fn pass(&mut self, millis: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_micros(
            self.random.u64(millis.start * 1000..millis.end * 1000),
        ));
    }

    /// Waits `millis`, or until `done` holds.
    fn pass_until(&self, millis: u64, done: impl Fn(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !done(self) && begun.elapsed() < Duration::from_millis(millis) {
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn wait_for(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !done(self) {
            if begun.elapsed() > PATIENCE {
                let ended = |side: &Shared| side.try_lock().ok().map(|side| side.ended.clone());
                let ends: Vec<_> = self.sides.values().map(ended).collect();
                scheduler::with(|world| world.picture()).iter().for_each(|line| trace(line));
                broken(&format!("{what}: waited in vain ({ends:?})"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
