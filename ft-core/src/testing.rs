//! Helpers for the tests of both machines.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use io_gate::host::{Epoch, Term};

use crate::handshake::{ArbiterView, Hello, MachineLayout, MemoryRegion, SessionOptions};
use crate::wire::{Frame, HEADER_LEN, Header, Message, Outgoing, PROTOCOL};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SESSION: u64 = 77;
/// The standby's number for this session.
pub(crate) const STANDBY_SESSION: u64 = 88;

pub(crate) fn hello() -> Box<Hello> {
    Box::new(Hello {
        protocol: PROTOCOL,
        release: "test".into(),
        name: "vm".into(),
        term: Term(1),
        session: SESSION,
        standby_session: STANDBY_SESSION,
        holder: "primary".into(),
        arbiter: ArbiterView { kind: "file".into(), ..ArbiterView::default() },
        layout: MachineLayout {
            memory: Vec::from([MemoryRegion { start: 0, len: 64 << 10 }]),
            cpus: 1,
            page_size: 4096,
            devices: Vec::new(),
        },
        disks: Vec::new(),
        boot: None,
        images: Vec::new(),
        facts: Vec::new(),
        options: SessionOptions { verify: true },
    })
}

/// A message as it is received at the other end.
pub(crate) fn frame(epoch: u64, term: u64, message: Message) -> Frame {
    let mut bytes = Vec::new();
    let outgoing = Outgoing { epoch: Epoch(epoch), term: Term(term), message };
    outgoing.encode(&mut bytes).expect("a test's message is within the limits");
    decode(&bytes)
}

pub(crate) fn decode(bytes: &[u8]) -> Frame {
    let (head, body) = bytes.split_first_chunk::<HEADER_LEN>().expect("a header");
    let header = Header::parse(head).expect("a good header");
    Frame::verify(header, body.to_vec()).expect("a good body")
}

/// The table of states and events: for each state a line per outcome, with the events that lead to
/// it.
pub(crate) struct Table(pub(crate) String);

impl Table {
    /// `outcomes`: each event and its outcome.
    pub(crate) fn state(&mut self, name: &str, facts: &str, outcomes: Vec<(String, String)>) {
        let mut rows: Vec<(String, Vec<String>)> = Vec::new();
        for (event, outcome) in outcomes {
            match rows.iter_mut().find(|(known, _)| *known == outcome) {
                Some((_, events)) => events.push(event),
                None => rows.push((outcome, Vec::from([event]))),
            }
        }
        let facts = if facts.is_empty() { String::new() } else { format!(": {facts}") };
        self.0 += &format!("\n== {name}{facts}\n");
        for (outcome, events) in rows {
            self.0 += &format!("{}\n    => {outcome}\n", events.join("; "));
        }
    }

    /// # Panics
    /// When the table differs from the expected text. The message has the whole table, to be read
    /// before it is accepted.
    pub(crate) fn is(&self, expected: &str) {
        let (found, expected) = (self.0.trim(), expected.trim());
        let line = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
        assert!(found == expected, "{found}\n\nthe first line that differs: {line:#?}");
    }
}

/// Lists facts with their names.
pub(crate) fn listed<'a>(facts: impl IntoIterator<Item = &'a (&'a str, String)>) -> String {
    let said: Vec<String> =
        facts.into_iter().map(|(name, value)| format!("{name} {value}")).collect();
    said.join(", ")
}

/// Lists the facts that have changed.
pub(crate) fn changes(before: &[(&str, String)], after: &[(&str, String)]) -> String {
    let both = before.iter().zip(after);
    listed(both.filter(|(before, after)| before != after).map(|(_, after)| after))
}

/// An outcome: the actions, and the changes.
pub(crate) fn made_of_it(said: &str, changed: &str) -> String {
    match (said, changed) {
        ("", "") => "nothing".into(),
        (said, "") => said.into(),
        ("", changed) => format!("-> {changed}"),
        (said, changed) => format!("{said} -> {changed}"),
    }
}
