//! A client of Redis. It remembers its writes to its own keys and so knows those answers in
//! advance. The judge of histories judges the answers for shared keys.

use std::collections::BTreeMap;

use super::resp::{Reply, command};
use super::shared::{self, Asked};
use crate::findings::{Finding, Kind};
use crate::linearizability::Judge;

/// Number of keys of a client: few, so that frequent overwriting makes each rollback visible.
const KEYS: u32 = 40;

/// The phases of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Reads and writes until the phase ends.
    Load,
    /// Reads each written key once.
    ReadBack,
    /// Orders the server to end.
    Shutdown,
}

#[derive(Debug)]
enum Expected {
    Set {
        key: String,
        value: String,
    },
    Counter(i64),
    Value {
        key: String,
        value: Option<String>,
    },
    /// An operation on a shared object.
    Shared(Asked),
    Gone,
}

#[derive(Debug)]
pub(super) struct Writer {
    number: u32,
    random: fastrand::Rng,
    counter: i64,
    table: BTreeMap<String, String>,
    writes: u64,
    expected: Option<Expected>,
    to_read: Option<Vec<String>>,
    /// Shared objects that are still to be read back.
    objects: Vec<u32>,
    told_to_end: bool,
}

impl Writer {
    pub(super) fn new(number: u32, seed: u64) -> Self {
        Self {
            number,
            random: fastrand::Rng::with_seed(seed.wrapping_add(u64::from(number))),
            counter: 0,
            table: BTreeMap::new(),
            writes: 0,
            expected: None,
            to_read: None,
            objects: shared::objects().collect(),
            told_to_end: false,
        }
    }

    /// Whether an answer is outstanding.
    pub(super) fn waits(&self) -> bool {
        self.expected.is_some()
    }

    /// The next command; `None` if this client has finished the phase.
    pub(super) fn next(&mut self, phase: Phase, judge: &mut Judge) -> Option<Vec<u8>> {
        match phase {
            Phase::Load => Some(self.next_shared(judge).unwrap_or_else(|| self.next_load())),
            Phase::ReadBack => self.next_read_back(judge),
            Phase::Shutdown if self.number == 0 && !self.told_to_end => {
                self.told_to_end = true;
                self.expected = Some(Expected::Gone);
                Some(command(&["SHUTDOWN"]))
            }
            Phase::Shutdown => None,
        }
    }

    /// An operation on a shared object, in a third of the calls, and only if the judge takes one
    /// now.
    fn next_shared(&mut self, judge: &mut Judge) -> Option<Vec<u8>> {
        if self.random.u32(..3) != 0 {
            return None;
        }
        self.writes += 1;
        let fresh = i64::from(self.number) << 40 | self.writes.cast_signed();
        let asked = shared::next(&mut self.random, fresh, judge)?;
        Some(self.begin(asked, judge))
    }

    fn begin(&mut self, asked: Asked, judge: &mut Judge) -> Vec<u8> {
        judge.begins(asked.object, self.number, asked.steps.clone());
        let bytes = asked.commands();
        self.expected = Some(Expected::Shared(asked));
        bytes
    }

    fn next_load(&mut self) -> Vec<u8> {
        let key = format!("writer:{}:{}", self.number, self.random.u32(..KEYS));
        match self.random.u32(..8) {
            0..4 => {
                self.writes += 1;
                let filler: String =
                    std::iter::repeat_with(|| self.random.alphanumeric()).take(64).collect();
                let value = format!("{}-{filler}", self.writes);
                let bytes = command(&["SET", &key, &value]);
                self.expected = Some(Expected::Set { key, value });
                bytes
            }
            4..7 => {
                self.expected = Some(Expected::Counter(self.counter + 1));
                command(&["INCR", &self.counter_key()])
            }
            _ => self.read(key),
        }
    }

    fn next_read_back(&mut self, judge: &mut Judge) -> Option<Vec<u8>> {
        if self.to_read.is_none() {
            let mut keys: Vec<String> = self.table.keys().cloned().collect();
            keys.push(self.counter_key());
            self.to_read = Some(keys);
        }
        if let Some(key) = self.to_read.as_mut()?.pop() {
            return Some(self.read(key));
        }
        let object = *self.objects.last()?;
        let asked = shared::read(object, judge)?;
        self.objects.pop();
        Some(self.begin(asked, judge))
    }

    fn read(&mut self, key: String) -> Vec<u8> {
        let bytes = command(&["GET", &key]);
        let value = if key == self.counter_key() {
            (self.counter != 0).then(|| self.counter.to_string())
        } else {
            self.table.get(&key).cloned()
        };
        self.expected = Some(Expected::Value { key, value });
        bytes
    }

    fn counter_key(&self) -> String {
        format!("writer:{}:counter", self.number)
    }

    /// Processes an answer. Returns a finding if the answer is wrong.
    pub(super) fn answered(&mut self, reply: &Reply, judge: &mut Judge) -> Option<Finding> {
        let who = self.number;
        match (self.expected.take(), reply) {
            (Some(Expected::Shared(mut asked)), reply) => match asked.answered(reply) {
                Ok(None) => {
                    self.expected = Some(Expected::Shared(asked));
                    None
                }
                Ok(Some(answer)) => {
                    judge.ends(asked.object, who, answer);
                    None
                }
                Err(expected) => {
                    let what = format!("client {who}: {asked:?}: {expected}, found {reply:?}");
                    Some(Finding::new(Kind::Behaviour, what))
                }
            },
            (Some(Expected::Set { key, value }), Reply::Simple(ok)) if ok == "OK" => {
                self.table.insert(key, value);
                None
            }
            (Some(Expected::Counter(expected)), Reply::Integer(found)) => {
                self.counter = *found;
                let kind = match found.cmp(&expected) {
                    std::cmp::Ordering::Less => Kind::RolledBack,
                    std::cmp::Ordering::Equal => return None,
                    std::cmp::Ordering::Greater => Kind::Duplicated,
                };
                Some(Finding::new(
                    kind,
                    format!("client {who}: counter: expected {expected}, found {found}"),
                ))
            }
            (Some(Expected::Value { key, value }), Reply::Bulk(found)) if *found != value => {
                let what =
                    format!("client {who}: {key}: acknowledged as {value:?}, found {found:?}");
                Some(Finding::new(Kind::Lost, what))
            }
            (Some(Expected::Value { .. }), Reply::Bulk(_)) => None,
            (expected, found) => {
                let what =
                    format!("client {who}: expected an answer to {expected:?}, found {found:?}");
                Some(Finding::new(Kind::Behaviour, what))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    type Table = BTreeMap<String, String>;

    fn serve(words: &[String], table: &mut Table) -> Reply {
        match (words[0].as_str(), words.get(2)) {
            ("SET", Some(value)) => {
                table.insert(words[1].clone(), value.clone());
                Reply::Simple("OK".to_owned())
            }
            ("INCR" | "INCRBY", count) => {
                let value = table.entry(words[1].clone()).or_insert("0".to_owned());
                let count = count.map_or(1, |count| count.parse::<i64>().unwrap());
                *value = (value.parse::<i64>().unwrap() + count).to_string();
                Reply::Integer(value.parse().unwrap())
            }
            _ => Reply::Bulk(table.get(&words[1]).cloned()),
        }
    }

    fn commands(bytes: &[u8]) -> Vec<Vec<String>> {
        let mut text: Vec<&str> = std::str::from_utf8(bytes).unwrap().split("\r\n").collect();
        let mut commands = Vec::new();
        while let Some(count) = text[0].strip_prefix('*') {
            let count = 2 * count.parse::<usize>().unwrap();
            commands
                .push(text[1..=count].iter().skip(1).step_by(2).map(|&w| w.to_owned()).collect());
            text.drain(..=count);
        }
        commands
    }

    fn serve_all(bytes: &[u8], table: &mut Table) -> Vec<Reply> {
        let commands = commands(bytes);
        if commands.len() == 1 {
            return vec![serve(&commands[0], table)];
        }
        let inner = &commands[1..commands.len() - 1];
        let done = inner.iter().map(|words| serve(words, table)).collect();
        let queued = inner.iter().map(|_| Reply::Simple("QUEUED".to_owned()));
        let mut replies = vec![Reply::Simple("OK".to_owned())];
        replies.extend(queued);
        replies.push(Reply::Array(done));
        replies
    }

    /// The findings of a correct server whose table `spoil` changes.
    fn findings(spoil: impl Fn(u32, &mut Table)) -> Vec<Finding> {
        let (mut writer, mut judge) = (Writer::new(0, 1), Judge::new("object", shared::CELLS));
        let mut table = Table::new();
        let mut findings = Vec::new();
        let mut step = |writer: &mut Writer, table: &mut Table, phase| {
            let Some(bytes) = writer.next(phase, &mut judge) else { return false };
            for reply in serve_all(&bytes, table) {
                findings.extend(writer.answered(&reply, &mut judge));
            }
            assert!(!writer.waits());
            true
        };
        for number in 0..500 {
            assert!(step(&mut writer, &mut table, Phase::Load));
            spoil(number, &mut table);
        }
        while step(&mut writer, &mut table, Phase::ReadBack) {}
        judge.finish();
        assert!(judge.judged() > 100, "{}", judge.judged());
        findings.extend(judge.take_findings());
        findings
    }

    #[test]
    fn a_right_server_has_no_finding() {
        assert_eq!(findings(|_, _| {}), []);
    }

    #[test]
    fn a_lost_write_shows() {
        let found = findings(|step, table| {
            if step == 499 {
                table.remove("writer:0:3");
            }
        });
        assert!(matches!(found[..], [Finding { kind: Kind::Lost, .. }]), "{found:?}");
    }

    #[test]
    fn a_counter_that_goes_back_or_ahead_shows() {
        let set = |value: &'static str| {
            findings(move |step, table| {
                if step == 400 {
                    table.insert("writer:0:counter".to_owned(), value.to_owned());
                }
            })
        };
        assert!(set("3").iter().any(|finding| finding.kind == Kind::RolledBack));
        assert!(set("100000").iter().any(|finding| finding.kind == Kind::Duplicated));
    }

    /// The second defect shows only when shared objects are read back at the end.
    #[test]
    fn what_goes_wrong_with_shared_keys_shows() {
        for (at, value) in [(250, "7"), (499, "7")] {
            let found = findings(|step, table| {
                if step == at {
                    table.insert("shared:3:1".to_owned(), value.to_owned());
                }
            });
            assert!(
                matches!(found[..], [Finding { kind: Kind::NotLinearizable, .. }]),
                "{found:?}"
            );
        }
    }

    #[test]
    fn the_end_is_asked_for_once() {
        let mut judge = Judge::new("object", shared::CELLS);
        let mut writer = Writer::new(0, 1);
        assert!(writer.next(Phase::Shutdown, &mut judge).is_some());
        assert!(writer.next(Phase::Shutdown, &mut judge).is_none());
        assert!(Writer::new(1, 1).next(Phase::Shutdown, &mut judge).is_none());
    }
}
