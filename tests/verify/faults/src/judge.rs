//! Judges the result of a fault from outside: by the guest's client, the frames on the network, and
//! how processes end.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kemari_flags::faults::Fault;
use kemari_testbed::pair::observer::Observer;

use crate::outcome::{Line, NOT_REACHED, Outcome};
use crate::pair::{ENOUGH, PATIENCE, Pair, Programs, Side, TURN};
use crate::reasons::Reasons;
use crate::scenario::{self, Cell, END, Made, Phase, Sides};

/// Duration of a slow call: longer than the heartbeat timeout.
const DELAY: Duration = Duration::from_millis(1500);
/// The longest time until a side continues the guest, or says why none does. A stall is noticed
/// after 5 s; the standby then waits up to 20 s (twenty times the heartbeat timeout); the rest is
/// for a busy machine.
const BOUND: Duration = Duration::from_secs(60);
/// The longest time until an available standby protects.
const SOON: Duration = Duration::from_secs(15);
/// A standby that cannot take over is reported within this time: its check may take 10 s
/// (docs/threads.md).
const NOTICED: Duration = Duration::from_secs(14);
/// Exit code of a process that was ordered to end.
const TERMINATED: i32 = 128 + libc::SIGTERM;

/// The only promise here that holds within a bound: a hang of a standby is noticed by then.
const NO_SUCCESSOR: &str = "said `protected`, but its standby did not continue";

/// The side on which the guest answers.
#[derive(Clone, Copy)]
enum Place {
    /// The former side.
    Here,
    /// The standby.
    There,
    /// No side.
    Nowhere,
}

/// How long the judge waits.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// Until the fault is injected.
    reached: Duration,
    /// Number of runs to try if the fault is not reached.
    pub(crate) tries: usize,
    /// After a delay or a hang was injected, until it must have been noticed.
    noticed: Duration,
}

impl Patience {
    /// For a fault that may stay unreached.
    pub(crate) const SHORT: Self = Self { reached: SOON, tries: 2, noticed: DELAY };
    /// For a fault that must be reached.
    pub(crate) const LONG: Self = Self { reached: PATIENCE, tries: 3, noticed: DELAY };
}

struct Run<'a> {
    cell: &'a Cell,
    pair: Pair,
    made: Arc<Made>,
    /// A replaced side, which must not come back.
    former: Option<Side>,
    patience: Patience,
    what: Vec<String>,
    violations: Vec<String>,
    said: Vec<String>,
    /// On a busy machine, the protection was lost before the fault was injected: the run proves
    /// nothing.
    is_void: bool,
}

/// Injects the fault and judges the result. If a promise that holds only within a bound seems
/// broken, the run is repeated with a wait for that bound, and both results are reported.
///
/// # Errors
/// The pair did not reach the fault's phase.
pub(crate) fn run(
    programs: &Programs,
    cell: &Cell,
    seed: u64,
    patience: Patience,
    reasons: &Reasons,
) -> Result<Outcome> {
    let first = try_run(programs, cell, seed, patience, reasons)?;
    let is_early = |what: &String| what.starts_with(NO_SUCCESSOR) && cell.fault == Fault::Hang;
    if first.violations.is_empty() || !first.violations.iter().all(is_early) {
        return Ok(first);
    }
    let then = try_run(programs, cell, seed, Patience { noticed: NOTICED, ..patience }, reasons)?;
    Ok(Outcome { at_first: first.violations, ..then })
}

fn try_run(
    programs: &Programs,
    cell: &Cell,
    seed: u64,
    patience: Patience,
    reasons: &Reasons,
) -> Result<Outcome> {
    let mut run = Run {
        cell,
        pair: Pair::new(programs, seed)?,
        made: Arc::default(),
        former: None,
        patience,
        what: Vec::new(),
        violations: Vec::new(),
        said: Vec::new(),
        is_void: false,
    };
    let sides = run.begin()?;
    match cell.phase {
        Phase::End => run.judge_end(sides),
        _ => run.look_on(sides),
    }
    run.judge_frames();
    ensure!(!run.is_void, "the guest was no longer protected when the fault was injected");
    let Run { what, violations, said, pair, .. } = run;
    let outcome = Outcome { what: what.join(", "), violations, at_first: Vec::new(), said };
    if reasons.is_broken(&Line::new(cell, outcome.clone())) {
        pair.keep();
    }
    Ok(outcome)
}

/// Whether the state tells the operator that nothing needs to be done.
fn says_all_is_well(state: &str) -> bool {
    ["protected", "alone"].contains(&state)
}

impl Run<'_> {
    fn word(&mut self, what: impl Into<String>) {
        self.what.push(what.into());
    }

    fn violation(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    /// Plays the scenario up to the fault.
    fn begin(&mut self) -> Result<Sides> {
        let asked = self.cell.asked(Arc::clone(&self.made), DELAY);
        if self.cell.phase == Phase::Start {
            self.made.arm();
            return scenario::begin(&mut self.pair, self.cell.seen.side, asked, SOON);
        }
        let mut sides = scenario::begin(&mut self.pair, self.cell.seen.side, asked, PATIENCE)?;
        self.cell.lead(&mut self.pair, &mut sides).context("before the fault")?;
        self.made.arm();
        Ok(sides)
    }

    fn look_on(&mut self, mut sides: Sides) {
        self.play(&mut sides);
        self.settle(&mut sides);
        if !self.made.has_fired() {
            self.word(NOT_REACHED);
        }
        let Some((active, standby)) = self.find_guest(sides) else { return };
        if let Some(survivor) = self.judge_protection(active, standby) {
            self.finish(survivor);
        }
    }

    /// Plays the fault's phase. The phase may fail, because the fault is injected in it.
    fn play(&mut self, sides: &mut Sides) {
        let played = match (self.cell.phase, sides.standby.take()) {
            (Phase::Takeover, Some(standby)) => {
                std::mem::replace(&mut sides.active, standby).kill();
                Ok(())
            }
            (Phase::Again, standby) => {
                drop(standby);
                scenario::protect_again(&mut self.pair, sides, SOON)
            }
            (_, standby) => {
                sides.standby = standby;
                Ok(())
            }
        };
        if let Err(error) = played {
            self.said.push(format!("{error:#}").chars().take(200).collect());
        }
    }

    /// Waits until the fault was injected, and until it must have been noticed.
    fn settle(&mut self, sides: &mut Sides) {
        let deadline = Instant::now() + self.patience.reached;
        while !self.made.has_fired() && Instant::now() < deadline && sides.active.is_running() {
            std::thread::sleep(TURN);
        }
        if matches!(self.cell.fault, Fault::Delay | Fault::Hang) {
            std::thread::sleep(self.patience.noticed);
        }
    }

    /// The side that has the guest, and the other side; `None` if no side has the guest.
    fn find_guest(&mut self, sides: Sides) -> Option<(Side, Option<Side>)> {
        let Sides { mut active, mut standby } = sides;
        let place = self.locate(&mut active, &mut standby);
        self.note_end(&mut active, "ended");
        if let Some(standby) = &mut standby {
            self.note_end(standby, "the standby ended");
        }
        standby = standby.and_then(|mut side| side.is_running().then_some(side));
        match place {
            Place::Here => self.word("went on"),
            Place::There => {
                self.word("taken over");
                self.former = Some(std::mem::replace(&mut active, standby.take()?));
            }
            Place::Nowhere if active.is_running() => self.judge_standing(&active),
            Place::Nowhere => {
                // The guest was protected, and no other fault was injected: the standby had to take
                // over.
                if self.cell.phase == Phase::Work && active.was_unprotected() {
                    self.is_void = true;
                } else if self.cell.phase == Phase::Work {
                    let standby = if standby.is_some() {
                        "does not continue the guest"
                    } else {
                        "ended, too"
                    };
                    self.violation(format!("the primary ended, and its standby {standby} (P7)"));
                }
                // End both sides: the name must then be free for the next machine.
                drop((active, standby));
                self.judge_name();
                return None;
            }
        }
        Some((active, standby))
    }

    /// The side on which the guest answers. `Nowhere` if no side is left that could run the guest,
    /// or after [`BOUND`].
    fn locate(&mut self, active: &mut Side, standby: &mut Option<Side>) -> Place {
        let begun = Instant::now();
        let enough = self.pair.observer.answered() + ENOUGH;
        loop {
            let answers = self.pair.observer.wait_answered(enough, TURN * 25);
            let last = self.pair.senders().last().copied();
            let runs = standby.as_mut().is_some_and(Side::is_running);
            match last {
                Some(last) if answers && last == active.index && active.is_running() => {
                    return Place::Here;
                }
                Some(last)
                    if answers && runs && Some(last) == standby.as_ref().map(|s| s.index) =>
                {
                    return Place::There;
                }
                _ if !active.is_running() && !runs => return Place::Nowhere,
                _ if begun.elapsed() > BOUND => return Place::Nowhere,
                // A machine that never came up gets no more time, unless it reports that all is
                // well.
                _ if self.cell.phase == Phase::Start
                    && begun.elapsed() > SOON
                    && !says_all_is_well(&active.state()) =>
                {
                    return Place::Nowhere;
                }
                _ => {}
            }
        }
    }

    fn judge_standing(&mut self, active: &Side) {
        let state = active.state();
        self.word(format!("waits, `{state}`"));
        if says_all_is_well(&state) {
            self.violation(format!(
                "the guest gives no answer, and the status says `{state}` (P7)"
            ));
        }
    }

    /// Checks that a machine that reports `protected` is: its standby takes over when it dies.
    /// Returns the side that then has the guest.
    fn judge_protection(&mut self, mut active: Side, standby: Option<Side>) -> Option<Side> {
        let protected = self.wait_protection(&mut active, standby);
        if !active.is_running() {
            self.note_end(&mut active, "ended");
            return None;
        }
        let Some(mut standby) = protected else { return Some(active) };
        active.kill();
        if self.pair.goes_on(BOUND) {
            return Some(standby);
        }
        self.note_end(&mut standby, "its standby ended");
        let state = standby.state();
        self.violation(format!("{NO_SUCCESSOR}: `{state}` (P9)"));
        None
    }

    /// The standby that protects the machine: the given one, or a new one.
    fn wait_protection(&mut self, active: &mut Side, standby: Option<Side>) -> Option<Side> {
        match standby {
            Some(standby) if active.wait_state(&["protected"], SOON / 2).is_ok() => {
                return Some(standby);
            }
            given_up => drop(given_up),
        }
        match self.another_standby(active) {
            Ok(standby) => Some(standby),
            Err(error) => {
                let state = active.state();
                self.word(format!("not protected again, `{state}`"));
                self.said.push(format!("{error:#}").chars().take(200).collect());
                None
            }
        }
    }

    fn another_standby(&mut self, active: &mut Side) -> Result<Side> {
        let standby = self.pair.standby(None)?;
        standby.wait_listening(PATIENCE)?;
        active.protect(&standby)?;
        active.wait_state(&["protected"], SOON)?;
        self.word("protected again");
        Ok(standby)
    }

    /// Checks that the guest has everything that was acknowledged, and that the machine ends when
    /// its guest does.
    fn finish(&mut self, mut survivor: Side) {
        if self.what.iter().any(|what| what.starts_with("waits")) {
            return;
        }
        match self.pair.observer.finish(BOUND) {
            Ok(findings) => {
                self.violations.extend(findings.iter().map(ToString::to_string));
            }
            Err(error) => {
                let state = survivor.state();
                if ["stalled", "doubting", "waiting-for-operator"].contains(&&*state) {
                    return self.word(format!("then waits, `{state}`"));
                }
                self.violation(format!("{error:#}"));
            }
        }
        self.pair.observer.power_off();
        match survivor.process.wait_exit(END).map(ExitStatus::into_raw) {
            Some(0) => {}
            Some(_) => self.note_end(&mut survivor, "its end"),
            None => self.violation("the process does not end with its guest"),
        }
        match self.pair.observer.check_disk() {
            Ok(check) => self.violations.extend(check.findings.iter().map(ToString::to_string)),
            Err(error) => self.violation(format!("{error:#}")),
        }
    }

    /// Orders the intercepted side to end, and judges that end.
    fn judge_end(&mut self, sides: Sides) {
        let Sides { mut active, standby } = sides;
        active.terminate();
        let Some(end) = active.process.wait_exit(END) else {
            self.violation("does not end after SIGTERM");
            return;
        };
        if !self.made.has_fired() {
            self.word(NOT_REACHED);
        }
        match end.code() {
            Some(TERMINATED) => self.word("ended in order"),
            _ => self.note_end(&mut active, "ended"),
        }
        let Some(mut standby) = standby else { return self.judge_name() };
        if self.goes_on_unless_told(&mut standby) {
            return self.word("taken over");
        }
        standby.kill();
        self.judge_name();
    }

    /// Whether the standby takes over: it does if it has not learned of the end. Otherwise it ends,
    /// or waits for another primary.
    fn goes_on_unless_told(&self, standby: &mut Side) -> bool {
        let deadline = Instant::now() + BOUND;
        let enough = self.pair.observer.answered() + ENOUGH;
        while Instant::now() < deadline && standby.is_running() && standby.state() != "waiting" {
            if self.pair.observer.wait_answered(enough, TURN * 25) {
                return true;
            }
        }
        false
    }

    /// Records how a process ended by itself. An end without a reason is a violation.
    fn note_end(&mut self, side: &mut Side, how: &str) {
        let Some(end) = side.process.exited() else { return };
        let what = match (end.code(), end.signal()) {
            (Some(code), _) => format!("{how} {code}"),
            (_, signal) => format!("{how} by signal {}", signal.unwrap_or_default()),
        };
        let bad = !matches!(end.code(), Some(0..=3 | 5 | TERMINATED));
        self.said.push(side.last_words());
        if bad {
            self.violation(what.clone());
        }
        self.word(what);
    }

    /// Checks that a machine that has ended by itself has released its name.
    fn judge_name(&mut self) {
        if self.what.iter().any(|what| what.contains("by signal")) {
            return;
        }
        let Ok(mut again) = self.pair.run(None, None) else { return };
        if again.wait_state(&["alone"], PATIENCE).is_err() {
            self.said.push(again.last_words());
            self.violation("the machine cannot be started again: its name is kept");
        }
    }

    /// P2: after the frames of another side, no further frame comes from the replaced side.
    fn judge_frames(&mut self) {
        let senders = self.pair.senders();
        let mut sorted = senders.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != senders.len() {
            self.violation(format!("two sides let frames out in turn: {senders:?} (P2)"));
        }
    }
}
