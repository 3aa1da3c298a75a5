//! The scenario of a pair with one fault: the pair becomes protected, works, fails over, gets a new
//! standby, and ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari_flags::faults::Fault;
use kemari_inject::{Call, CallResult};

use crate::calls::{self, Kind};
use crate::pair::{Asked, PATIENCE, Pair, Programs, Side};
use crate::roles;

/// How long the guest works in [`Phase::Work`].
const WORK: Duration = Duration::from_millis(400);
/// The longest duration of an orderly end: 20 s (docs/operating.md), and more on a busy machine.
pub(crate) const END: Duration = Duration::from_secs(60);

/// The side whose system calls are intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    /// The side on which the guest starts.
    Primary,
    /// The standby that takes over.
    Standby,
}

impl Role {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// A phase of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    /// The guest starts and becomes protected.
    Start,
    /// The guest works under protection.
    Work,
    /// The standby takes over.
    Takeover,
    /// The guest loses or has used up its standby, and gets another one.
    Again,
    /// The machine is ordered to end.
    End,
}

impl Phase {
    pub(crate) const ALL: [Self; 5] =
        [Self::Start, Self::Work, Self::Takeover, Self::Again, Self::End];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Work => "work",
            Self::Takeover => "takeover",
            Self::Again => "again",
            Self::End => "end",
        }
    }
}

/// A call of a thread, on a side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) side: Role,
    pub(crate) thread: String,
    pub(crate) call: Kind,
}

/// How often a call was made, and how many of these calls could have had each of [`Fault::ALL`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub(crate) all: u64,
    /// Counted up to [`COUNTED`] only, because the check takes time.
    pub(crate) possible: [u64; 4],
}

/// Counts of each call in each phase.
pub(crate) type Counts = BTreeMap<Seen, BTreeMap<Phase, Count>>;

/// Beyond this number of calls, the choice of the call that gets the fault makes no difference.
pub(crate) const COUNTED: u64 = 24;

impl Count {
    fn add(&mut self, call: &Call) {
        self.all += 1;
        for (possible, fault) in self.possible.iter_mut().zip(Fault::ALL) {
            if *possible < COUNTED && calls::fault(call, fault, Duration::ZERO).is_ok() {
                *possible += 1;
            }
        }
    }
}

/// The current phase of a scenario, for the thread that answers intercepted calls.
#[derive(Debug, Default)]
struct Clock(AtomicU8);

impl Clock {
    fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::SeqCst);
    }

    fn get(&self) -> Phase {
        Phase::ALL[self.0.load(Ordering::SeqCst) as usize]
    }
}

/// The running sides.
pub(crate) struct Sides {
    pub(crate) active: Side,
    pub(crate) standby: Option<Side>,
}

/// Runs a whole scenario and records the calls of `side`.
pub(crate) fn observe(programs: &Programs, side: Role) -> Result<Counts> {
    let (counts, clock) = (Arc::new(Mutex::new(Counts::new())), Arc::new(Clock::default()));
    let (own, time) = (Arc::clone(&counts), Arc::clone(&clock));
    let mut names = BTreeMap::new();
    let mut loader = Loader::default();
    let rule = move |call: &Call| {
        if loader.makes(call) {
            return CallResult::Proceed;
        }
        let thread = names.entry(call.thread).or_insert_with(|| call.thread_name());
        let seen = Seen { side, thread: roles::kind(thread).to_owned(), call: Kind::of(call) };
        let mut counts = own.lock().unwrap_or_else(PoisonError::into_inner);
        counts.entry(seen).or_default().entry(time.get()).or_default().add(call);
        // `prctl` changes a thread's name, and `exit` ends it; the thread id may then be reused.
        if [libc::SYS_prctl, libc::SYS_exit].contains(&call.number) {
            names.remove(&call.thread);
        }
        CallResult::Proceed
    };
    let calls = crate::lists::numbers();
    let mut pair = Pair::new(programs, 1)?;
    let asked = Asked { calls, rule: Box::new(rule) };
    let mut sides = start(&mut pair, side, asked)?;
    for phase in [Phase::Work, Phase::Takeover, Phase::Again, Phase::End] {
        clock.set(phase);
        play(&mut pair, &mut sides, side, phase).with_context(|| format!("{phase:?}"))?;
    }
    sides.active.release();
    Ok(Arc::try_unwrap(counts).map_or_else(|shared| copy(&shared), |own| copy(&own)))
}

/// Recognizes the first calls of a process: those of the dynamic loader. It is not part of the
/// product, so a fault in its calls proves nothing.
#[derive(Default)]
struct Loader {
    has_ended: bool,
}

impl Loader {
    /// The first call after the loader: std polls the standard descriptors before anything else.
    const END: i64 = libc::SYS_poll;

    fn makes(&mut self, call: &Call) -> bool {
        let is_over = self.has_ended;
        self.has_ended |= call.number == Self::END;
        !is_over
    }
}

fn copy(counts: &Mutex<Counts>) -> Counts {
    counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Starts both sides, and waits until the guest is protected.
fn start(pair: &mut Pair, side: Role, asked: Asked) -> Result<Sides> {
    let mut sides = begin(pair, side, asked, PATIENCE)?;
    sides.active.wait_state(&["protected"], PATIENCE)?;
    ensure!(
        pair.goes_on(PATIENCE),
        "expected an answer of the guest within {PATIENCE:?}, found none"
    );
    Ok(sides)
}

/// Starts both sides. If the standby does not come up in time, the primary starts without one.
pub(crate) fn begin(
    pair: &mut Pair,
    side: Role,
    asked: Asked,
    patience: Duration,
) -> Result<Sides> {
    let (primary, standby) = match side {
        Role::Primary => (Some(asked), None),
        Role::Standby => (None, Some(asked)),
    };
    let standby = pair.standby(standby)?;
    let _ = standby.wait_listening(patience);
    let active = pair.run(Some(&standby), primary)?;
    Ok(Sides { active, standby: Some(standby) })
}

/// Plays one phase. After the takeover, the intercepted side is the active one.
fn play(pair: &mut Pair, sides: &mut Sides, side: Role, phase: Phase) -> Result<()> {
    match phase {
        Phase::Start => {}
        Phase::Work => std::thread::sleep(WORK),
        Phase::Takeover if side == Role::Primary => {}
        Phase::Takeover => take_over(pair, sides)?,
        Phase::Again => protect_again(pair, sides, PATIENCE)?,
        Phase::End => {
            sides.active.terminate();
            sides.active.process.wait_exit(END).context("it does not end")?;
        }
    }
    Ok(())
}

/// Kills the primary and waits until the guest runs on the standby.
pub(crate) fn take_over(pair: &mut Pair, sides: &mut Sides) -> Result<()> {
    let standby = sides.standby.take().context("there is no standby")?;
    std::mem::replace(&mut sides.active, standby).kill();
    ensure!(
        pair.goes_on(PATIENCE),
        "expected a takeover and an answer of the guest within {PATIENCE:?}, found none"
    );
    Ok(())
}

/// Drops the standby, if there is one, and protects the guest by a new one.
pub(crate) fn protect_again(pair: &mut Pair, sides: &mut Sides, patience: Duration) -> Result<()> {
    drop(sides.standby.take());
    let standby = pair.standby(None)?;
    standby.wait_listening(PATIENCE)?;
    sides.active.wait_state(&["alone", "protected"], patience)?;
    sides.active.protect(&standby)?;
    sides.standby = Some(standby);
    sides.active.wait_state(&["protected"], patience).map(drop)
}

/// A fault, and the call, phase and count at which it is injected.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) seen: Seen,
    pub(crate) phase: Phase,
    /// Number of such calls that pass before the fault.
    pub(crate) skip: u64,
    pub(crate) fault: Fault,
}

/// Whether a fault is armed, and whether it was injected.
#[derive(Debug, Default)]
pub(crate) struct Made {
    armed: AtomicBool,
    fired: AtomicBool,
}

impl Made {
    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }
}

impl Cell {
    /// The rule that injects the fault once, when it is armed.
    pub(crate) fn asked(&self, made: Arc<Made>, delay: Duration) -> Asked {
        let Self { seen, fault, skip, .. } = self.clone();
        let calls = vec![seen.call.number, Loader::END];
        let mut skip = skip;
        let mut loader = Loader::default();
        let rule = move |call: &Call| {
            if loader.makes(call) {
                return CallResult::Proceed;
            }
            let is_it = made.armed.load(Ordering::SeqCst)
                && !made.has_fired()
                && Kind::of(call) == seen.call
                && roles::kind(&call.thread_name()) == seen.thread;
            let Some(answer) = is_it.then(|| calls::fault(call, fault, delay).ok()).flatten()
            else {
                return CallResult::Proceed;
            };
            if skip > 0 {
                skip -= 1;
                return CallResult::Proceed;
            }
            made.fired.store(true, Ordering::SeqCst);
            answer
        };
        Asked { calls, rule: Box::new(rule) }
    }

    /// Plays the scenario up to the phase in which the fault is injected.
    pub(crate) fn lead(&self, pair: &mut Pair, sides: &mut Sides) -> Result<()> {
        sides.active.wait_state(&["protected"], PATIENCE)?;
        ensure!(
            pair.goes_on(PATIENCE),
            "expected an answer of the guest within {PATIENCE:?}, found none"
        );
        let before = Phase::ALL.into_iter().filter(|phase| *phase < self.phase);
        // Play only the phases that the fault's phase needs; other runs test the others.
        let needed = |phase: &Phase| match self.phase {
            Phase::Again | Phase::End => *phase == Phase::Takeover,
            _ => false,
        };
        before.filter(needed).try_for_each(|phase| play(pair, sides, self.seen.side, phase))
    }
}
