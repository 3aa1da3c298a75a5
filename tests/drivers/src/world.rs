//! One world: a pair, its link, its clients, and what goes wrong.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ft_core::primary::Phase;
use kemari_flags::drivers::Story;
use kemari_vmm::machine::Ended;

use crate::cable::Cable;
use crate::faults::{Call, Happens, Trap};
use crate::scheduler::{self, Host};
use crate::sides::{Places, Shared, run_primary, run_standby};
use crate::{broken, faults, hosts, judge, trace};

/// How long the world waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillPrimary,
    KillStandby,
    StopPrimary,
    StopStandby,
    /// A host, or one of its threads, is stopped behind one of its next calls, wherever that is.
    StopBehind(Host, Call),
    CutLink,
    SilentLink,
    SlowLink,
    SlowStorage(Host),
    ReaderStops,
    EndPrimary,
}

const FAULTS: [Fault; 16] = [
    Fault::StopBehind(Host::A, Call::Output),
    Fault::StopBehind(Host::A, Call::Send),
    Fault::StopBehind(Host::A, Call::File),
    Fault::StopBehind(Host::A, Call::Kvm),
    Fault::StopBehind(Host::B, Call::File),
    Fault::KillPrimary,
    Fault::KillStandby,
    Fault::StopPrimary,
    Fault::StopStandby,
    Fault::CutLink,
    Fault::SilentLink,
    Fault::SlowLink,
    Fault::SlowStorage(Host::A),
    Fault::SlowStorage(Host::B),
    Fault::ReaderStops,
    Fault::EndPrimary,
];

const STORIES: [Story; 10] = [
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
];

struct World {
    burst: u64,
    random: fastrand::Rng,
    cable: Arc<Cable>,
    a: Shared,
    b: Shared,
    reads: Arc<AtomicBool>,
    /// The primary was told to end.
    ends: bool,
    /// What has gone wrong so far.
    faults: Vec<Fault>,
    killed: Vec<Host>,
}

/// Runs the world of a seed; comes back when it has kept every promise.
pub(crate) fn run(seed: u64, story: Option<Story>, dir: &Path) {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let drawn = STORIES[random.usize(..STORIES.len())];
    let story = story.unwrap_or(drawn);
    trace(&format!("{story:?}"));
    let places = Places {
        dir: dir.to_owned(),
        two_arbiters: story == Story::TwoArbiters,
        off_at: if story == Story::PowersOff { random.u64(1..1000) } else { 0 },
        burst: if matches!(story, Story::Replaced | Story::Unread) { 64 } else { 1 },
    };
    let reads = Arc::new(AtomicBool::new(true));
    for host in [Host::A, Host::B] {
        make_console(&places.console(host), reads.clone());
        // Clocks are a few per mille off.
        hosts::set_skew(host, random.i64(-2000..=2000));
    }
    faults::set_short(if random.bool() { 0 } else { random.u32(2..20) });
    let cable = Cable::lay(&places.near(), places.far());
    let (a, b) = (Shared::default(), Shared::default());
    let (own, side) = (places.clone(), b.clone());
    start(Host::B, "main-b", move || run_standby(&own, &side));
    let (own, side) = (places.clone(), a.clone());
    start(Host::A, "main-a", move || run_primary(&own, &side));
    let burst = places.burst;
    let mut world = World {
        burst,
        random,
        cable,
        a,
        b,
        reads,
        ends: false,
        faults: Vec::new(),
        killed: Vec::new(),
    };
    match story {
        Story::Any => world.live(),
        Story::TwoArbiters => world.live_with_two_arbiters(),
        Story::PowersOff => world.live_to_the_end(),
        Story::OldSession => world.outlive_a_session(),
        Story::Replaced => world.be_replaced(),
        Story::SlowFence => world.ask_slowly(),
        Story::Ends => world.end_in_order(),
        Story::Unread => world.go_unread(),
    }
    trace(&format!("{} bytes have left", judge::total()));
}

fn start(host: Host, name: &str, run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.to_owned());
    scheduler::on_host(host, || thread.spawn(run)).expect("a thread");
}

/// A console that somebody reads, unless he is told not to.
fn make_console(path: &Path, reads: Arc<AtomicBool>) {
    let name = std::ffi::CString::new(path.to_string_lossy().into_owned()).expect("no zero");
    // SAFETY: the name ends in a zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "a FIFO in the world's directory");
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the FIFO");
    // As little as a pipe can hold: a page.
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
    fn live(&mut self) {
        let mut protected = true;
        if self.random.u32(..4) > 0 {
            self.wait_protected();
        } else {
            self.pass(1..300);
            protected = false;
        }
        for _ in 0..self.random.usize(1..=3) {
            self.pass(1..200);
            protected = match self.phase_of_a() {
                Some(phase) => phase == Phase::Protected,
                None => protected,
            };
            self.cause_any();
        }
        self.pass(1..500);
        self.heal();
        self.conclude(protected);
    }

    /// What a thread of an ended session still does is seen by nobody (P4).
    fn outlive_a_session(&mut self) {
        let (first, second) =
            (self.random.u64(50_000_000..400_000_000), self.random.u64(10_000_000..600_000_000));
        let (thread, behind, left, happens) = match self.random.usize(..4) {
            0 => ("link", Call::Send, self.random.u32(1..5), Happens::Hold(first)),
            1 => ("sender", Call::Send, self.random.u32(1..5), Happens::Hold(first)),
            2 => ("sender", Call::Any, self.random.u32(1..120), Happens::Hold(first)),
            _ => ("sender", Call::Kvm, self.random.u32(1..5), Happens::HoldTwice(first, second)),
        };
        faults::set_trap(Some(Trap { host: Host::A, behind, thread: Some(thread), left, happens }));
        self.pass(1..300);
        self.cable.cut();
        self.pass(1..400);
        self.wait_protected();
        self.pass(1..300);
        let protected = self.phase_of_a() == Some(Phase::Protected);
        self.kill(Host::A);
        self.conclude(protected);
    }

    /// Its last write may have left when it was replaced; none leaves afterwards (P2).
    fn be_replaced(&mut self) {
        self.wait_protected();
        self.reads.store(false, Ordering::SeqCst);
        self.pass(100..500);
        let behind = [Call::Output, Call::Output, Call::File][self.random.usize(..3)];
        let happens = Happens::Stop(self.random.u64(500_000_000..3_000_000_000));
        let left = self.random.u32(1..6);
        faults::set_trap(Some(Trap { host: Host::A, behind, thread: None, left, happens }));
        self.reads.store(true, Ordering::SeqCst);
        self.pass(1..2000);
        self.heal();
        self.conclude(true);
    }

    fn ask_slowly(&mut self) {
        self.wait_protected();
        faults::set_storage(Host::A, self.random.u64(1_000_000..80_000_000));
        self.pass(1..500);
        self.cable.cut();
        self.pass(1..1000);
        self.heal();
        self.conclude(true);
    }

    /// Nobody brings back the guest of a machine that was told to end (P7).
    fn end_in_order(&mut self) {
        self.wait_protected();
        self.pass(1..300);
        if self.random.bool() {
            self.reads.store(false, Ordering::SeqCst);
            self.pass(1..2000);
        }
        if self.random.bool() {
            faults::set_storage(Host::A, self.random.u64(..20_000_000));
        }
        self.cable.set_micros(self.random.u64(..5000));
        self.cause(Fault::EndPrimary);
        self.pass(9_000..9_001);
        if judge::lives() > 1 {
            broken("P7: the guest of a machine that was told to end goes on");
        }
        if !self.has_ended(Host::A) {
            broken("P7: a machine that was told to end has not ended");
        }
    }

    /// A console that nobody reads stops no guest, no checkpoint and no takeover (P7).
    fn go_unread(&mut self) {
        self.wait_protected();
        self.reads.store(false, Ordering::SeqCst);
        self.pass(1..2000);
        self.goes_on_without_readers();
        if self.phase_of_a() != Some(Phase::Protected) {
            broken("P7: a console that nobody reads ends the protection");
        }
        self.kill(Host::A);
        self.wait_for("P7: a takeover", |_| judge::lives() > 1);
        self.goes_on_without_readers();
    }

    /// Whoever has set such a pair up is told so: it is never protected, whatever comes.
    fn live_with_two_arbiters(&mut self) {
        for _ in 0..self.random.usize(1..=3) {
            self.pass(1..300);
            if self.phase_of_a() == Some(Phase::Protected) {
                broken("P2: protected, and each side asks an arbiter of its own");
            }
            self.cause_any();
        }
        self.heal();
        self.pass(1000..2000);
        if judge::lives() > 1 {
            broken("P2: a standby that asks another arbiter has taken over");
        }
    }

    /// The guest powers itself off, whenever its host dies meanwhile (P7).
    fn live_to_the_end(&mut self) {
        self.wait_protected();
        let mut protected = true;
        if self.random.bool() {
            self.pass(1..400);
            protected = self.phase_of_a() == Some(Phase::Protected);
            self.cause_any();
        } else {
            self.wait_for("the guest's wish", |_| judge::has_wanted_off());
            // A checkpoint that was begun before the event is taken, and is sent; then the host dies.
            if self.random.bool() {
                let (behind, thread) = (Call::Any, Some("devices"));
                let left = self.random.u32(1..200);
                let happens = Happens::Hold(self.random.u64(..20_000_000));
                faults::set_trap(Some(Trap { host: Host::A, behind, thread, left, happens }));
                self.pass(1..20);
            }
            let behind = [Call::Send, Call::Kvm, Call::Output][self.random.usize(..3)];
            let (left, thread) = (self.random.u32(1..15), None);
            let happens = Happens::Kill;
            faults::set_trap(Some(Trap { host: Host::A, behind, thread, left, happens }));
            self.pass(50..51);
        }
        self.pass(1..300);
        self.heal();
        let is_lost = self.killed == [Host::A] && !protected && judge::lives() < 2;
        if self.ends || is_lost {
            return;
        }
        self.wait_for("P7: the end of a guest that powers itself off", |world| {
            [&world.a, &world.b].iter().any(|side| {
                let ended = side.lock().expect("not poisoned").ended.clone();
                ended.is_some_and(|ended| ended == "PoweredOff" || ended.contains("powered off"))
            })
        });
    }

    fn wait_protected(&self) {
        self.wait_for("P7: protection", |world| {
            // A guest may have powered itself off by then.
            world.phase_of_a() == Some(Phase::Protected) || world.has_ended(Host::A)
        });
    }

    fn has_ended(&self, host: Host) -> bool {
        let side = if host == Host::A { &self.a } else { &self.b };
        side.lock().expect("not poisoned").ended.is_some()
    }

    fn cause_any(&mut self) {
        let fault = FAULTS[self.random.usize(..FAULTS.len())];
        trace(&format!("{fault:?}"));
        self.faults.push(fault);
        self.cause(fault);
    }

    fn goes_on_without_readers(&mut self) {
        let before = judge::steps();
        self.wait_for("P7: a guest whose console nobody reads", |_| judge::steps() > before + 200);
    }

    fn cause(&mut self, fault: Fault) {
        match fault {
            Fault::KillPrimary => self.kill(Host::A),
            Fault::KillStandby => self.kill(Host::B),
            Fault::StopPrimary => self.stop(Host::A),
            Fault::StopStandby => self.stop(Host::B),
            Fault::StopBehind(host, behind) => {
                let left = self.random.u32(1..60);
                let nanos = self.random.u64(..1_500_000_000);
                let happens = match self.random.bool() {
                    true => Happens::Stop(nanos),
                    false => Happens::Hold(nanos),
                };
                faults::set_trap(Some(Trap { host, behind, thread: None, left, happens }));
            }
            Fault::CutLink => self.cable.cut(),
            Fault::SilentLink => self.cable.set_silent(true),
            Fault::SlowLink => self.cable.set_micros(self.random.u64(..30_000)),
            Fault::SlowStorage(host) => {
                faults::set_storage(host, self.random.u64(..60_000_000));
            }
            Fault::ReaderStops => self.reads.store(false, Ordering::SeqCst),
            Fault::EndPrimary => {
                let engine = self.a.lock().expect("not poisoned").engine.clone();
                if let Some(engine) = engine {
                    self.ends = true;
                    engine.machine().end(Ended::Signal(libc::SIGTERM));
                    std::mem::forget(engine);
                }
            }
        }
    }

    /// One side at least stays.
    fn kill(&mut self, host: Host) {
        let other = if host == Host::A { Host::B } else { Host::A };
        if self.killed.is_empty() && !self.has_ended(other) {
            self.killed.push(host);
            hosts::kill(host);
        }
    }

    fn stop(&mut self, host: Host) {
        if !self.killed.contains(&host) {
            let nanos = self.random.u64(..1_500_000_000);
            scheduler::with(|world| world.stop_host(host, world.now + nanos));
        }
    }

    fn heal(&mut self) {
        trace("all is well again");
        faults::set_trap(None);
        self.cable.set_silent(false);
        self.cable.set_micros(0);
        self.reads.store(true, Ordering::SeqCst);
        for host in [Host::A, Host::B] {
            faults::set_storage(host, 0);
        }
    }

    /// Somebody goes on with the guest, and lets out what it says; nobody, where it was ended.
    fn conclude(&mut self, protected: bool) {
        if self.ends {
            let harmless = |fault: &Fault| {
                matches!(fault, Fault::EndPrimary | Fault::ReaderStops | Fault::SlowStorage(_))
            };
            self.pass(3000..3001);
            if self.faults.iter().all(harmless) && judge::lives() > 1 {
                broken("P7: the guest of a machine that was told to end goes on");
            }
            return;
        }
        // A guest that was never protected dies with its host.
        if self.killed == [Host::A] && !protected && judge::lives() < 2 {
            return;
        }
        let before = judge::total();
        // The side that had won the right to the guest was killed: that is more than a pair survives.
        let is_lost = |world: &Self| {
            let ended = world.a.lock().expect("not poisoned").ended.clone();
            world.killed == [Host::B] && ended.is_some_and(|ended| ended.starts_with("Fenced"))
        };
        self.wait_for("P7: output", |world| {
            judge::total() > before + 10 * self.burst || is_lost(world)
        });
    }

    fn phase_of_a(&self) -> Option<Phase> {
        if self.killed.contains(&Host::A) || scheduler::with(|world| world.is_stopped(Host::A)) {
            return None;
        }
        let engine = self.a.lock().expect("not poisoned").engine.clone()?;
        let phase = engine.phase();
        std::mem::forget(engine);
        Some(phase)
    }

    fn pass(&mut self, millis: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_micros(
            self.random.u64(millis.start * 1000..millis.end * 1000),
        ));
    }

    fn wait_for(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !done(self) {
            if begun.elapsed() > PATIENCE {
                let ends = [&self.a, &self.b]
                    .map(|side| side.try_lock().ok().map(|side| side.ended.clone()));
                scheduler::with(|world| world.picture()).iter().for_each(|line| trace(line));
                broken(&format!("{what}: waited in vain ({ends:?})"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
