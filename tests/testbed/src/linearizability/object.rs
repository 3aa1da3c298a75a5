//! The sequential specification of an object: the answer that each operation must get.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use stateright::semantics::SequentialSpec;

/// A step of an operation, on one cell of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The cell.
    pub cell: usize,
    /// The action on the cell.
    pub action: Action,
}

/// The action of a step, and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Answers the value.
    Get,
    /// Sets the value and answers it.
    Set(i64),
    /// Adds to the value and answers the sum.
    Add(i64),
    /// Sets the value if it equals `expected`. Answers the former value.
    CompareAndSet {
        /// The value that it must have.
        expected: i64,
        /// The new value.
        value: i64,
    },
}

/// An operation that reads the first cell.
pub fn get() -> Vec<Step> {
    vec![Step { cell: 0, action: Action::Get }]
}

/// The answer to an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All steps took effect; the answer of each.
    Done(Vec<i64>),
    /// No step took effect, and none will.
    Refused,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            Action::Get => write!(f, "get"),
            Action::Set(value) => write!(f, "set {value}"),
            Action::Add(count) => write!(f, "add {count}"),
            Action::CompareAndSet { expected, value } => write!(f, "set {value} if {expected}"),
        }?;
        if self.cell == 0 { Ok(()) } else { write!(f, " in cell {}", self.cell) }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
                write!(f, "answered {}", numbers.join(", "))
            }
            Self::Refused => write!(f, "refused"),
        }
    }
}

/// An operation for the tester.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    Do(Vec<Step>),
    /// An operation of no client, after all answers. See [`Reference::ends`].
    End,
}

/// The object, as specified.
#[derive(Debug, Clone)]
pub(super) struct Reference {
    pub(super) cells: Vec<i64>,
    /// The possible values of the cells at the end. The tester stops at the first order that
    /// explains all answers. `End` is therefore never right, so the tester tries all orders; it
    /// records the state in each.
    pub(super) ends: Rc<RefCell<BTreeSet<Vec<i64>>>>,
}

impl Reference {
    fn act(&mut self, step: Step) -> i64 {
        let cell = &mut self.cells[step.cell];
        match step.action {
            Action::Get => *cell,
            Action::Set(value) => {
                *cell = value;
                value
            }
            Action::Add(count) => {
                *cell = cell.wrapping_add(count);
                *cell
            }
            Action::CompareAndSet { expected, value } => {
                let before = *cell;
                if before == expected {
                    *cell = value;
                }
                before
            }
        }
    }
}

impl SequentialSpec for Reference {
    type Op = Operation;
    type Ret = Answer;

    fn invoke(&mut self, operation: &Operation) -> Answer {
        match operation {
            Operation::Do(steps) => {
                Answer::Done(steps.iter().map(|step| self.act(*step)).collect())
            }
            Operation::End => {
                self.ends.borrow_mut().insert(self.cells.clone());
                Answer::Refused
            }
        }
    }

    fn is_valid_step(&mut self, operation: &Operation, answer: &Answer) -> bool {
        match (operation, answer) {
            (Operation::Do(_), Answer::Refused) => true,
            (operation, answer) => self.invoke(operation) == *answer,
        }
    }
}
