//! The table: for each role and each system call on its list, the result of each fault that was made in
//! it.

use std::collections::BTreeMap;
use std::fmt;

use kemari_flags::faults::Fault;

use crate::calls;
use crate::judge::NOT_REACHED;
use crate::life::Counts;
use crate::lists;
use crate::reasons::Reasons;
use crate::results::Line;
use crate::roles;

/// The text before the table.
const HEAD: &str = "# Faults by thread and system call

*Generated: `cargo xtask faults --once --results FILE --table docs/fault-table.md` writes this page again, in about an hour. Stopped, it
goes on from FILE. Without `--once` each thread that makes a call is hit, in three times as long.*

Each row is a system call on the seccomp list of a role (`vmm/confine/src/seccomp/filter.rs`). For each fault a real pair ran on real KVM, and
the fault was made once, in that call of one thread, by the kernel's own means (`tests/inject`). [Real faults](torture.md#a-fault-in-each-system-call)
says how, when, and what is judged. One of the threads of the role that make the call, on either side, was hit, and more of them where there was
time for it; `ioctl` by each of its requests. A cell says what came of it, and how often where it was more than once.

| | means |
| --- | --- |
| went on | the guest stayed where it was |
| taken over | the standby went on with the guest |
| protected again | the session had ended; another standby was given, and protects the guest |
| not protected again, `STATE` | ... and could not be joined; the status says STATE |
| stands, `STATE` | the guest waits for a minute (at its start for 15 s), and the status says STATE |
| no status | the control socket does not answer: what answers it, or starts it, is what hangs |
| ended N, the standby ended N | a process ended with exit code N and a reason on standard error |
| ended by signal 6 | the kernel gave no memory, or refused a thread's filter: argued in `tests/verify/faults/reasons.toml` |
| ended in order | it was told to end, and did |
| argued: ... | it looks like a broken promise, and is right so: `tests/verify/faults/reasons.toml` |
| at first: ... | a promise with a bound seemed broken; when the bound was waited for it was not |
| **bold** | a promise was broken |
| not reached | the call was not made this time in the part of the life in which the fault was to be made |
| not made | not yet |
| \u{2013} | the fault makes no sense: the kernel never makes it of this call. Most calls transfer nothing, so they cannot come short; waking, `brk`, the end of a thread and setting a timer give no error; counters, timers, taps and KVM transfer whole or not at all |

Wherever the guest was said to be protected, its host was killed afterwards, and the standby had to go on; what had been answered had
to be there. Calls in which no fault was made stand below the table of their role, with the reason.
";

struct Row {
    role: &'static str,
    call: &'static str,
    threads: Vec<String>,
    cells: [BTreeMap<String, u32>; 4],
    /// The faults that the kernel could make, as far as was observed.
    possible: [bool; 4],
    /// Whether any fault of this row was made.
    is_made: bool,
    /// Why none was made.
    reason: Option<String>,
}

/// All rows.
pub(crate) struct Table {
    rows: Vec<Row>,
    /// The number of faults, and how many were made.
    made: String,
}

impl Table {
    pub(crate) fn new(counts: &Counts, lines: &[Line], reasons: &Reasons, made: String) -> Self {
        let rows = lists::all().map(|listed| row(listed, counts, lines, reasons));
        Self { rows: rows.collect(), made }
    }

    /// Rows without any result.
    pub(crate) fn empty_rows(&self) -> impl Iterator<Item = String> {
        let empty = self.rows.iter().filter(|row| !row.is_made && row.reason.is_none());
        empty.map(|row| format!("{} {}", row.role, row.call))
    }
}

fn row(
    (role, call, number): (&'static str, &'static str, i64),
    counts: &Counts,
    lines: &[Line],
    reasons: &Reasons,
) -> Row {
    let of_role = |thread: &str| roles::role(thread) == Some(role);
    let is_it = |line: &&Line| line.call.split(' ').next() == Some(call) && of_role(&line.thread);
    let lines: Vec<&Line> = lines.iter().filter(is_it).collect();
    let mut threads: Vec<String> = Vec::new();
    let mut possible = [false; 4];
    for (seen, phases) in counts {
        if of_role(&seen.thread) && seen.call.number == number {
            threads.push(seen.thread.clone());
            let can = |at: usize| phases.values().any(|count| count.possible[at] > 0);
            possible.iter_mut().enumerate().for_each(|(at, possible)| *possible |= can(at));
        }
    }
    threads.extend(lines.iter().map(|line| line.thread.clone()));
    threads.sort();
    threads.dedup();
    let mut cells = [const { BTreeMap::new() }; 4];
    for line in &lines {
        let fault = Fault::ALL.iter().position(|fault| fault.name() == line.fault);
        let Some(at) = fault else { continue };
        *cells[at].entry(describe(line, reasons)).or_default() += 1;
    }
    let is_made = lines.iter().any(|line| line.outcome.is_made());
    let is_ruled_out = Fault::ALL.iter().all(|fault| calls::rule(number, *fault).is_err());
    let rule = is_ruled_out.then(|| calls::rule(number, Fault::Hang).err()).flatten();
    let reason = rule.or_else(|| reasons.never(role, call)).map(str::to_owned);
    Row { role, call, threads, cells, possible, is_made, reason }
}

fn describe(line: &Line, reasons: &Reasons) -> String {
    let outcome = &line.outcome;
    if reasons.is_broken(line) {
        return format!("**{}**", outcome.violations.join("; "));
    }
    // A guest that stands still is not protected again, and its state stays the same.
    let mut what = match outcome.what.split_once(", not protected again, ") {
        Some((stands, state)) if stands.strip_prefix("stands, ") == Some(state) => {
            stands.to_owned()
        }
        _ => outcome.what.clone(),
    };
    if what.is_empty() && !outcome.violations.is_empty() {
        what = format!("argued: {}", outcome.violations.join("; "));
    }
    if !outcome.at_first.is_empty() {
        what = format!("at first: {}; then: {what}", outcome.at_first.join("; "));
    }
    what.replace("``", "no status")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}\n{}", self.made)?;
        for role in self.rows.chunk_by(|row, next| row.role == next.role) {
            writeln!(
                f,
                "\n## {}\n\n| call | threads | error | short | delay | hang |",
                role[0].role
            )?;
            writeln!(f, "| --- | --- | --- | --- | --- | --- |")?;
            role.iter().filter(|row| row.is_made).try_for_each(|row| writeln!(f, "{row}"))?;
            writeln!(f, "\nNo fault was made in:\n")?;
            let mut empty: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for row in role.iter().filter(|row| !row.is_made) {
                let reason = row.reason.as_deref().unwrap_or("**no reason is given**");
                empty.entry(reason).or_default().push(format!("`{}`", row.call));
            }
            for (reason, calls) in empty {
                writeln!(f, "- {}: {reason}.", calls.join(", "))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| `{}` | {} |", self.call, self.threads.join(", "))?;
        for (cell, possible) in self.cells.iter().zip(self.possible) {
            let mut cell: Vec<_> = cell.iter().collect();
            // A fault that was not reached this time matters only if there is no other result.
            if cell.len() > 1 {
                cell.retain(|(what, _)| !what.starts_with(NOT_REACHED));
            }
            let text = |(what, count): &(&String, &u32)| match count {
                1 => (*what).clone(),
                _ => format!("{what} ({count})"),
            };
            let texts: Vec<String> = cell.iter().map(text).collect();
            let text = match (texts.is_empty(), possible) {
                (true, true) => "not made".to_owned(),
                (true, false) => "\u{2013}".to_owned(),
                _ => texts.join("; "),
            };
            write!(f, " {} |", text.replace('|', "/"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::judge::Outcome;

    const PAGE: &str = include_str!("../../../../docs/fault-table.md");

    /// Writing the table takes an hour; this test notices calls that were added to a list since.
    #[test]
    fn the_page_in_docs_has_each_call_of_each_list_and_nothing_without_words() {
        assert!(PAGE.starts_with(HEAD), "its head is another: write the page again");
        let tables = PAGE.split("\n## ").skip(1).map(|text| text.split_once('\n').unwrap());
        let roles: BTreeMap<&str, &str> = tables.collect();
        for (role, call, _) in lists::all() {
            let is_there = roles[role].contains(&format!("`{call}`"));
            assert!(is_there, "{role} {call} is on no row, nor among those below with a reason");
        }
        assert!(!PAGE.contains("no reason is given"));
        let empty: Vec<&str> = PAGE.lines().filter(|line| line.contains("|  |")).collect();
        assert!(empty.is_empty(), "{empty:?}");
    }

    #[test]
    fn what_is_right_although_it_looks_wrong_is_told() {
        let outcome = Outcome {
            what: String::new(),
            violations: vec!["told to end, it does not".to_owned()],
            at_first: Vec::new(),
            said: Vec::new(),
        };
        let [side, call, fault, phase] = ["primary", "futex", "hang", "end"].map(str::to_owned);
        let line = Line { side, thread: "signals".to_owned(), call, fault, phase, outcome };
        let told = describe(&line, &crate::reasons::read().unwrap());
        assert_eq!(told, "argued: told to end, it does not");
    }
}
