//! What the tests of both machines use.

use alloc::boxed::Box;
use alloc::vec::Vec;

use io_gate::host::{Epoch, Term};

use crate::handshake::{ArbiterView, Hello, MachineLayout, MemoryRegion, SessionOptions};
use crate::wire::{Frame, HEADER_LEN, Header, Message, Outgoing, PROTOCOL};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SESSION: u64 = 77;
/// The standby's number for it.
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

/// A message as it arrives at the other end.
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
