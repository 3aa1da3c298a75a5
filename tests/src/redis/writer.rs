//! One client of Redis: it knows what it wrote, so it knows every answer beforehand.

use std::collections::BTreeMap;

use super::resp::{Reply, command};
use crate::findings::{Finding, Kind};

/// Keys of one client. Overwriting them again and again makes any rollback visible.
const KEYS: u32 = 40;

/// What a client may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Load.
    Load,
    /// Everything that was written is read once.
    ReadBack,
    /// The server is told to end.
    Shutdown,
}

#[derive(Debug)]
enum Expected {
    Set { key: String, value: String },
    Counter(i64),
    Value { key: String, value: Option<String> },
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
            told_to_end: false,
        }
    }

    /// Whether an answer is outstanding.
    pub(super) fn waits(&self) -> bool {
        self.expected.is_some()
    }

    /// The next command, or `None` when there is nothing (more) to ask in this phase.
    pub(super) fn next(&mut self, phase: Phase) -> Option<Vec<u8>> {
        match phase {
            Phase::Load => Some(self.next_load()),
            Phase::ReadBack => self.next_read_back(),
            Phase::Shutdown if self.number == 0 && !self.told_to_end => {
                self.told_to_end = true;
                self.expected = Some(Expected::Gone);
                Some(command(&["SHUTDOWN"]))
            }
            Phase::Shutdown => None,
        }
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

    fn next_read_back(&mut self) -> Option<Vec<u8>> {
        if self.to_read.is_none() {
            let mut keys: Vec<String> = self.table.keys().cloned().collect();
            keys.push(self.counter_key());
            self.to_read = Some(keys);
        }
        let key = self.to_read.as_mut()?.pop()?;
        Some(self.read(key))
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

    /// Takes in the answer; what is wrong with it.
    pub(super) fn answered(&mut self, reply: &Reply) -> Option<Finding> {
        let who = self.number;
        match (self.expected.take(), reply) {
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

    /// A server that keeps its promises, but for what `spoil` does to it.
    fn findings(spoil: impl Fn(u32, &mut BTreeMap<String, String>)) -> Vec<Finding> {
        let mut writer = Writer::new(0, 1);
        let mut table: BTreeMap<String, String> = BTreeMap::new();
        let mut findings = Vec::new();
        let mut serve =
            |writer: &mut Writer, bytes: Vec<u8>, table: &mut BTreeMap<String, String>| {
                let text = String::from_utf8(bytes).unwrap();
                let words: Vec<&str> = text.split("\r\n").skip(2).step_by(2).collect();
                let reply = match words[0] {
                    "SET" => {
                        table.insert(words[1].to_owned(), words[2].to_owned());
                        Reply::Simple("OK".to_owned())
                    }
                    "INCR" => {
                        let value = table.entry(words[1].to_owned()).or_insert("0".to_owned());
                        *value = (value.parse::<i64>().unwrap() + 1).to_string();
                        Reply::Integer(value.parse().unwrap())
                    }
                    _ => Reply::Bulk(table.get(words[1]).cloned()),
                };
                findings.extend(writer.answered(&reply));
            };
        for step in 0..500 {
            let bytes = writer.next(Phase::Load).unwrap();
            serve(&mut writer, bytes, &mut table);
            spoil(step, &mut table);
        }
        while let Some(bytes) = writer.next(Phase::ReadBack) {
            serve(&mut writer, bytes, &mut table);
        }
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

    #[test]
    fn the_end_is_asked_for_once() {
        let mut writer = Writer::new(0, 1);
        assert!(writer.next(Phase::Shutdown).is_some());
        assert!(writer.next(Phase::Shutdown).is_none());
        assert!(Writer::new(1, 1).next(Phase::Shutdown).is_none());
    }
}
