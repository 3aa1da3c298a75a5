//! Chooses the faults to inject, from the calls observed in two runs of the scenario: which faults
//! each call can have, in which phase, and after how many such calls.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use kemari_flags::faults::{Arguments, Fault};

use crate::calls::Kind;
use crate::lists;
use crate::pair::Programs;
use crate::results::RoleCall;
use crate::roles;
use crate::scenario::{self, Cell, Count, Counts, Phase, Role, Seen};

/// If a call is made in several phases, the fault is injected in the first phase of this list in
/// which the call was seen: the guest has most to lose in the first ones.
const PREFERRED: [Phase; 5] =
    [Phase::Work, Phase::Takeover, Phase::Again, Phase::Start, Phase::End];
/// Maximum number of such calls that pass before the fault.
const SKIPPED: u64 = 8;

/// Observes the calls of the product's threads in the scenario of a pair.
pub(crate) fn observe(programs: &Programs) -> Result<Counts> {
    let mut counts = Counts::new();
    for side in [Role::Primary, Role::Standby] {
        counts.extend(scenario::observe(programs, side)?);
    }
    let strange = counts.keys().map(|seen| &*seen.thread).filter(|of| roles::role(of).is_none());
    let strange: BTreeSet<&str> = strange.collect();
    if !strange.is_empty() {
        println!("left out, as they have no role in roles.rs: threads named {strange:?}");
    }
    counts.retain(|seen, _| roles::role(&seen.thread).is_some());
    Ok(counts)
}

/// Prints the observed calls.
pub(crate) fn list(counts: &Counts) {
    for (seen, phases) in counts {
        let phases: Vec<String> =
            phases.iter().map(|(phase, count)| format!("{} {}", phase.name(), count.all)).collect();
        println!("{seen}: {}", phases.join(", "));
    }
}

/// The faults that the command line selects.
pub(crate) fn choose(counts: &Counts, arguments: &Arguments) -> Vec<Cell> {
    let mut random = fastrand::Rng::with_seed(arguments.seed);
    let mut cells: Vec<Cell> = counts
        .iter()
        .flat_map(|(seen, phases)| Fault::ALL.map(|fault| cell(seen, phases, fault, &mut random)))
        .flatten()
        .filter(|cell| is_wanted(cell, arguments))
        .collect();
    random.shuffle(&mut cells);
    // Each call of each role comes first once, in one of its threads; the other threads follow.
    let mut times = BTreeMap::new();
    cells.sort_by_cached_key(|cell| {
        let key = (roles::role(&cell.seen.thread), cell.seen.call.clone(), cell.fault);
        let times: &mut u32 = times.entry(key).or_default();
        *times += 1;
        *times
    });
    cells.truncate(arguments.sample.unwrap_or(usize::MAX));
    cells
}

fn cell(
    seen: &Seen,
    phases: &BTreeMap<Phase, Count>,
    fault: Fault,
    random: &mut fastrand::Rng,
) -> Option<Cell> {
    let possible = |phase| phases.get(&phase).map_or(0, |count| count.possible[fault as usize]);
    let phase = PREFERRED.into_iter().find(|phase| possible(*phase) > 0)?;
    let skip = random.u64(0..=(possible(phase) / 3).min(SKIPPED));
    Some(Cell { seen: seen.clone(), phase, skip, fault })
}

/// The faults in a file, one per line, in the format that a run prints; text after a colon is
/// ignored.
pub(crate) fn read(path: &Path) -> Result<Vec<Cell>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let cell = |line: &str| {
        parse(line).with_context(|| {
            format!(
                "{}: expected `SIDE THREAD CALL FAULT (PHASE)`, for instance `primary disk \
                 pwrite64 short (work)`; found `{line}`",
                path.display()
            )
        })
    };
    lines.map(cell).collect()
}

fn parse(line: &str) -> Option<Cell> {
    let line = line.split(':').next()?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [side, thread, call, request @ .., fault, phase] = &*words else { return None };
    let side = [Role::Primary, Role::Standby].into_iter().find(|role| role.name() == *side)?;
    roles::role(thread)?;
    let number = lists::number(call)?;
    let request = match request {
        [] => None,
        [request] => Some(u16::from_str_radix(request.strip_prefix("0x")?, 16).ok()?),
        _ => return None,
    };
    let fault = Fault::ALL.into_iter().find(|known| known.name() == *fault)?;
    let is_phase = |known: &Phase| format!("({})", known.name()) == *phase;
    let phase = Phase::ALL.into_iter().find(is_phase)?;
    let seen = Seen { side, thread: (*thread).to_owned(), call: Kind { number, request } };
    Some(Cell { seen, phase, skip: 0, fault })
}

fn is_wanted(cell: &Cell, arguments: &Arguments) -> bool {
    let role = roles::role(&cell.seen.thread);
    let call = cell.seen.call.name();
    let call = call.split(' ').next().unwrap_or_default();
    arguments.only.as_deref().is_none_or(|only| role == Some(only))
        && arguments.call.as_deref().is_none_or(|only| call == only)
        && arguments.fault.is_none_or(|only| cell.fault == only)
}

impl Cell {
    /// The fault without its thread: role, call and fault.
    pub(crate) fn call(&self) -> RoleCall {
        let role = roles::role(&self.seen.thread);
        (role, self.seen.call.name(), self.fault.name().to_owned())
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.side.name(), self.thread, self.call.name())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.seen, self.fault.name(), self.phase.name())
    }
}
