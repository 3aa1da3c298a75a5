//! The history of one object since the last moment without outstanding operations.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

use super::object::{Answer, Operation, Reference, Step};

/// Maximum number of operations in a window: the search tries all their orders.
const OPERATIONS: usize = 8;
/// Maximum number of outstanding operations in a window.
const UNDER_WAY: usize = 4;
/// The client that requests the end state.
const NOBODY: u32 = u32::MAX;

#[derive(Debug)]
struct Entry {
    client: u32,
    begun: Duration,
    steps: Vec<Step>,
    answer: Option<(Duration, Answer)>,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Begin(usize),
    End(usize),
}

/// The operations on one object that are judged together.
#[derive(Debug)]
pub(super) struct Window {
    /// The possible values of the cells at the begin. Empty after a contradiction: later operations
    /// cannot be judged.
    starts: BTreeSet<Vec<i64>>,
    entries: Vec<Entry>,
    events: Vec<Event>,
}

impl Window {
    pub(super) fn new(cells: usize) -> Self {
        let starts = BTreeSet::from([vec![0; cells]]);
        Self { starts, entries: Vec::new(), events: Vec::new() }
    }

    fn under_way(&self) -> usize {
        self.entries.len() - self.answered() as usize
    }

    pub(super) fn takes(&self) -> bool {
        self.entries.len() < OPERATIONS && self.under_way() < UNDER_WAY
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.under_way() == 0
    }

    pub(super) fn answered(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.answer.is_some()).count() as u64
    }

    pub(super) fn begins(&mut self, begun: Duration, client: u32, steps: Vec<Step>) {
        self.events.push(Event::Begin(self.entries.len()));
        self.entries.push(Entry { client, begun, steps, answer: None });
    }

    pub(super) fn ends(&mut self, at: Duration, client: u32, answer: Answer) {
        let of = |entry: &Entry| entry.client == client && entry.answer.is_none();
        let Some(place) = self.entries.iter().position(of) else { return };
        self.events.push(Event::End(place));
        self.entries[place].answer = Some((at, answer));
    }

    /// Judges the window and begins the next. Outstanding operations count as never answered.
    pub(super) fn close(&mut self) -> Result<(), String> {
        if self.starts.is_empty() {
            self.entries.clear();
            self.events.clear();
            return Ok(());
        }
        let starts = std::mem::take(&mut self.starts);
        self.starts = starts.iter().flat_map(|start| self.ends_from(start)).collect();
        let contradiction = self.starts.is_empty().then(|| self.describe(&starts));
        self.entries.clear();
        self.events.clear();
        contradiction.map_or(Ok(()), Err)
    }

    /// The possible values of the cells at the end; empty if no order explains the answers.
    fn ends_from(&self, start: &[i64]) -> BTreeSet<Vec<i64>> {
        let ends = Rc::new(RefCell::new(BTreeSet::new()));
        let reference = Reference { cells: start.to_owned(), ends: Rc::clone(&ends) };
        let mut tester = LinearizabilityTester::new(reference);
        let mut note = || -> Result<(), String> {
            for event in &self.events {
                match *event {
                    Event::Begin(place) => {
                        let Entry { client, steps, .. } = &self.entries[place];
                        tester.on_invoke(*client, Operation::Do(steps.clone()))?;
                    }
                    Event::End(place) => {
                        let Entry { client, answer, .. } = &self.entries[place];
                        let Some((_, answer)) = answer else { continue };
                        tester.on_return(*client, answer.clone())?;
                    }
                }
            }
            tester.on_invoke(NOBODY, Operation::End)?;
            tester.on_return(NOBODY, Answer::Done(Vec::new())).map(drop)
        };
        note().expect("a client has one operation under way at a time");
        // The search finds no order, because `End` is never right; the result is the states that it
        // recorded.
        tester.serialized_history();
        ends.take()
    }

    fn describe(&self, starts: &BTreeSet<Vec<i64>>) -> String {
        let starts: Vec<String> = starts.iter().map(|cells| format!("{cells:?}")).collect();
        let mut text = format!(
            "it was {}; expected one order of what follows, each once and between its begin and its answer, that explains \
             the answers; found none:",
            starts.join(" or ")
        );
        for Entry { client, begun, steps, answer } in &self.entries {
            let steps: Vec<String> = steps.iter().map(Step::to_string).collect();
            let (steps, begun) = (steps.join(", "), begun.as_secs_f64());
            let end = match answer {
                Some((at, answer)) => format!("{:.6} s: {answer}", at.as_secs_f64()),
                None => "no answer".to_owned(),
            };
            // Writing to a string cannot fail.
            let _ = write!(text, " client {client}: {steps}, {begun:.6} s to {end};");
        }
        text.pop();
        text
    }
}
