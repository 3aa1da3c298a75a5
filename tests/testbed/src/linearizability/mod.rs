//! An independent judge of histories (P1, P3): stateright's linearizability tester, applied to the
//! operations of clients that share a few objects.
//!
//! The judge knows only the specification of an operation. It searches for one order of all
//! operations in which each takes effect once, between its begin and its answer, and explains every
//! answer. An unanswered operation may or may not have taken effect. Each object is judged alone,
//! which suffices because linearizability is local. The search takes exponential time, so a history
//! is judged in windows, which end when no operation on the object is outstanding.

mod object;
mod window;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::findings::{Finding, Kind};
pub use object::{Action, Answer, Step, get};
use window::Window;

/// Judges the operations on all shared objects of one kind.
#[derive(Debug)]
pub struct Judge {
    begun: Instant,
    /// The prefix of an object's name; its number follows.
    what: &'static str,
    objects: BTreeMap<u32, Window>,
    /// Number of cells of an object. All begin as 0.
    cells: usize,
    judged: u64,
    findings: Vec<Finding>,
}

impl Judge {
    /// Creates a judge of objects with `cells` cells each.
    pub fn new(what: &'static str, cells: usize) -> Self {
        let objects = BTreeMap::new();
        Self { begun: Instant::now(), what, objects, cells, judged: 0, findings: Vec::new() }
    }

    /// Whether another operation on `object` may begin. If not, ask again after the next answer:
    /// the window must end first.
    pub fn takes(&self, object: u32) -> bool {
        self.objects.get(&object).is_none_or(Window::takes)
    }

    /// Records that a client begins an operation. Call this before the request is sent. The client
    /// must have no other operation outstanding.
    pub fn begins(&mut self, object: u32, client: u32, steps: Vec<Step>) {
        let (at, cells) = (self.begun.elapsed(), self.cells);
        self.begins_at(at, object, client, steps, cells);
    }

    fn begins_at(
        &mut self,
        at: Duration,
        object: u32,
        client: u32,
        steps: Vec<Step>,
        cells: usize,
    ) {
        let window = self.objects.entry(object).or_insert_with(|| Window::new(cells));
        window.begins(at, client, steps);
    }

    /// Records the answer to the client's operation on `object`.
    pub fn ends(&mut self, object: u32, client: u32, answer: Answer) {
        self.ends_at(self.begun.elapsed(), object, client, answer);
    }

    fn ends_at(&mut self, at: Duration, object: u32, client: u32, answer: Answer) {
        let Some(window) = self.objects.get_mut(&object) else { return };
        window.ends(at, client, answer);
        if window.is_quiet() {
            self.judge(object);
        }
    }

    /// Judges the rest of the history: outstanding operations count as never answered.
    pub fn finish(&mut self) {
        let objects: Vec<u32> = self.objects.keys().copied().collect();
        for object in objects {
            self.judge(object);
        }
    }

    /// Sets all objects to 0. Outstanding operations count as never answered by the former objects.
    pub fn begin_anew(&mut self) {
        self.finish();
        self.objects.clear();
    }

    fn judge(&mut self, object: u32) {
        let Some(window) = self.objects.get_mut(&object) else { return };
        self.judged += window.answered();
        if let Err(what) = window.close() {
            let what = format!("{} {object}: {what}", self.what);
            self.findings.push(Finding::new(Kind::NotLinearizable, what));
        }
    }

    /// The number of answered operations that were judged.
    pub fn judged(&self) -> u64 {
        self.judged
    }

    /// The contradictions since the last call.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }
}

#[cfg(test)]
mod tests;
