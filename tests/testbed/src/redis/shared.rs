//! The objects that all clients of Redis share, for the judge of histories. Each has two keys,
//! which are changed one by one and in transactions.

use super::resp::{Reply, command};
use crate::linearizability::{Action, Answer, Judge, Step};

/// Number of objects.
const OBJECTS: u32 = 6;
/// Number of keys of an object.
pub(super) const CELLS: usize = 2;

/// An operation on an object that has begun.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) object: u32,
    pub(super) steps: Vec<Step>,
    /// Number of replies that come before the result: to MULTI, and to each command that it queues.
    early: usize,
}

/// All objects.
pub(super) fn objects() -> impl Iterator<Item = u32> {
    0..OBJECTS
}

/// The next operation of the workload; `None` if the judge takes none on this object now. `fresh`
/// is a value that no client has set.
pub(super) fn next(random: &mut fastrand::Rng, fresh: i64, judge: &Judge) -> Option<Asked> {
    let object = random.u32(..OBJECTS);
    let cell = random.usize(..CELLS);
    let count = random.i64(1..100);
    let steps = match random.u32(..6) {
        0 => vec![Step { cell, action: Action::Set(fresh) }],
        1 => vec![Step { cell, action: Action::Add(1) }],
        2 => vec![
            Step { cell: 0, action: Action::Add(count) },
            Step { cell: 1, action: Action::Add(-count) },
        ],
        3 => vec![Step { cell, action: Action::Get }],
        _ => return read(object, judge),
    };
    ask(object, steps, judge)
}

/// A read of a complete object; `None` if the judge takes no operation on it now.
pub(super) fn read(object: u32, judge: &Judge) -> Option<Asked> {
    ask(object, (0..CELLS).map(|cell| Step { cell, action: Action::Get }).collect(), judge)
}

fn ask(object: u32, steps: Vec<Step>, judge: &Judge) -> Option<Asked> {
    let early = if steps.len() > 1 { 1 + steps.len() } else { 0 };
    judge.takes(object).then_some(Asked { object, steps, early })
}

impl Asked {
    /// The operation as one command, or as a transaction.
    pub(super) fn commands(&self) -> Vec<u8> {
        let steps = self.steps.iter().map(|step| self.command(*step));
        if self.early == 0 {
            return steps.flatten().collect();
        }
        let (begin, end) = (command(&["MULTI"]), command(&["EXEC"]));
        std::iter::once(begin).chain(steps).chain([end]).flatten().collect()
    }

    fn command(&self, step: Step) -> Vec<u8> {
        let key = format!("shared:{}:{}", self.object, step.cell);
        match step.action {
            Action::Get => command(&["GET", &key]),
            Action::Set(value) => command(&["SET", &key, &value.to_string()]),
            Action::Add(1) => command(&["INCR", &key]),
            Action::Add(count) => command(&["INCRBY", &key, &count.to_string()]),
            Action::CompareAndSet { .. } => unreachable!("Redis has no command for it"),
        }
    }

    /// Processes a reply. Returns `None` while more replies follow, and an error if the reply does
    /// not fit the request.
    pub(super) fn answered(&mut self, reply: &Reply) -> Result<Option<Answer>, String> {
        if self.early > 0 {
            self.early -= 1;
            return match reply {
                Reply::Simple(word) if word == "OK" || word == "QUEUED" => Ok(None),
                _ => Err("expected OK or QUEUED".to_owned()),
            };
        }
        let numbers: Option<Vec<i64>> = match reply {
            Reply::Array(replies) if replies.len() == self.steps.len() => {
                self.steps.iter().zip(replies).map(|(step, reply)| number(*step, reply)).collect()
            }
            reply => self.steps.first().and_then(|step| Some(vec![number(*step, reply)?])),
        };
        numbers
            .filter(|numbers| numbers.len() == self.steps.len())
            .map(|numbers| Some(Answer::Done(numbers)))
            .ok_or_else(|| "expected a number for each step".to_owned())
    }
}

/// The number in the reply to a step. A key without a value counts as 0.
fn number(step: Step, reply: &Reply) -> Option<i64> {
    match (step.action, reply) {
        (Action::Get, Reply::Bulk(None)) => Some(0),
        (Action::Get, Reply::Bulk(Some(text))) => text.parse().ok(),
        (Action::Set(value), Reply::Simple(ok)) if ok == "OK" => Some(value),
        (Action::Add(_), Reply::Integer(sum)) => Some(*sum),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_sent_as_one_and_answered_at_its_end() {
        let judge = Judge::new("object", CELLS);
        let mut asked = read(4, &judge).unwrap();
        let text = String::from_utf8(asked.commands()).unwrap();
        let words: Vec<&str> =
            text.split("\r\n").filter(|word| !word.starts_with(['*', '$'])).collect();
        assert_eq!(words, ["MULTI", "GET", "shared:4:0", "GET", "shared:4:1", "EXEC", ""]);
        for word in ["OK", "QUEUED", "QUEUED"] {
            assert_eq!(asked.answered(&Reply::Simple(word.into())), Ok(None));
        }
        let end = Reply::Array(vec![Reply::Bulk(None), Reply::Bulk(Some("-3".into()))]);
        assert_eq!(asked.answered(&end), Ok(Some(Answer::Done(vec![0, -3]))));
    }

    #[test]
    fn what_is_no_answer_is_told() {
        let judge = Judge::new("object", CELLS);
        let mut asked = ask(0, vec![Step { cell: 0, action: Action::Add(1) }], &judge).unwrap();
        assert_eq!(asked.answered(&Reply::Integer(7)), Ok(Some(Answer::Done(vec![7]))));
        for reply in [Reply::Simple("QUEUED".into()), Reply::Error("ERR".into()), Reply::Bulk(None)]
        {
            assert!(asked.answered(&reply).is_err(), "{reply:?}");
        }
        let mut asked = read(0, &judge).unwrap();
        assert!(asked.answered(&Reply::Error("ERR".into())).is_err());
    }
}
