//! Consoles, the serial port, power, and random bytes behind the gate.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use common::{Driver, SLOT, VERSION_1, complete, guest_memory, wait_readable};
use devices::{Console, Entropy, PowerControl};
use io_gate::host::{CommitAuthority, Term, new_gate};
use io_gate::{LineState, Port, PowerEvent};
use io_gate_host::adapter::{I8042, Serial};
use io_gate_host::backend::console::Console as Terminal;
use io_gate_host::{Backend, GateHost, GateOptions, RegisterSlot, Unfenced, VirtioSlot};
use vm_memory::{Bytes, GuestAddress};

const DATA: u64 = 0;
const LINE_STATUS: u64 = 5;
const DATA_READY: u8 = 1;

fn gate() -> (Arc<GateHost>, CommitAuthority) {
    let (ledger, authority) = new_gate();
    (
        GateHost::new(ledger, guest_memory(), Arc::new(Unfenced), GateOptions::default()).unwrap(),
        authority,
    )
}

fn serial_on_a_file() -> (tempfile::NamedTempFile, Arc<GateHost>, CommitAuthority, RegisterSlot) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (gate, authority) = gate();
    let console = Terminal::file(file.path(), false).unwrap();
    gate.attach(SLOT, Port(0), Backend::Console(console)).unwrap();
    let slot = RegisterSlot::new(SLOT, Box::new(Serial::new()), gate.clone());
    (file, gate, authority, slot)
}

/// The content of the file after everything released has been performed.
fn shown(gate: &GateHost, file: impl AsRef<std::path::Path>) -> String {
    gate.drain();
    std::fs::read_to_string(file).unwrap()
}

fn print(slot: &mut RegisterSlot, text: &str) {
    for byte in text.bytes() {
        let _ = slot.write(DATA, &[byte]);
    }
}

/// P1: the guest's output appears when its epoch is committed.
#[test]
fn serial_output_is_held_like_any_other() {
    let (file, gate, mut authority, mut slot) = serial_on_a_file();
    print(&mut slot, "hello");
    // All bytes are held as one effect.
    assert_eq!((gate.held(), shown(&gate, &file).len()), (1, 0));
    let sealed = gate.seal();
    print(&mut slot, ", later");
    gate.release(authority.acknowledged(sealed.epoch));
    assert_eq!(shown(&gate, &file), "hello");
    gate.run_alone(authority.alone(Term(1)));
    assert_eq!(shown(&gate, &file), "hello, later");
    print(&mut slot, "!");
    assert_eq!(shown(&gate, &file), "hello, later!");
    // These effects have no chain, so they are settled when they are performed.
    assert!(gate.seal().in_flight.is_empty());
    assert_eq!((gate.counts().performed, gate.counts().merged), (3, 4 + 6));
}

/// P3: held output is printed after a takeover, and the chip's state is restored.
#[test]
fn serial_output_survives_a_crash() {
    let (_file, gate, _authority, mut slot) = serial_on_a_file();
    assert_eq!(
        slot.write(1, &[3]),
        LineState::Pulse,
        "the transmitter is empty, and now it may say so"
    );
    print(&mut slot, "abc");
    let sealed = gate.seal();
    let saved = slot.save();

    let (file, heir, mut authority, mut slot) = serial_on_a_file();
    slot.restore(&saved).unwrap();
    assert_eq!(slot.save(), saved);
    heir.adopt(sealed.epoch, sealed.next_id, sealed.in_flight);
    heir.run_alone(authority.alone(Term(2)));
    assert_eq!(shown(&heir, &file), "abc");
    let mut enabled = [0];
    let _ = slot.read(1, &mut enabled);
    assert_eq!(enabled, [3]);
}

#[test]
fn a_console_file_is_appended_to_or_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("console");
    for (append, expected) in [(false, "x"), (true, "xx"), (false, "x")] {
        let (gate, mut authority) = gate();
        let console = Terminal::file(&file, append).unwrap();
        gate.attach(SLOT, Port(0), Backend::Console(console)).unwrap();
        gate.run_alone(authority.alone(Term(1)));
        let mut slot = RegisterSlot::new(SLOT, Box::new(Serial::new()), gate.clone());
        print(&mut slot, "x");
        assert_eq!(shown(&gate, &file), expected);
    }
    let missing = Terminal::file(std::path::Path::new("/nonexistent/file"), false).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/file"), "{missing}");
}

/// A port without a backend: the effect is counted and settled.
#[test]
fn output_to_nowhere_is_settled() {
    let (gate, mut authority) = gate();
    gate.run_alone(authority.alone(Term(1)));
    let mut slot = RegisterSlot::new(SLOT, Box::new(Serial::new()), gate.clone());
    print(&mut slot, "x");
    assert!(gate.seal().in_flight.is_empty());
    let mut status = [0];
    let _ = slot.read(LINE_STATUS, &mut status);
    assert_eq!(status[0] & DATA_READY, 0);
}

#[test]
fn a_virtio_console_prints_its_chains() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (ledger, mut authority) = new_gate();
    let memory = guest_memory();
    let gate =
        GateHost::new(ledger, memory.clone(), Arc::new(Unfenced), GateOptions::default()).unwrap();
    let console = Terminal::file(file.path(), false).unwrap();
    gate.attach(SLOT, Port(0), Backend::Console(console)).unwrap();
    let mut slot = VirtioSlot::new(SLOT, Box::new(Console::new()), gate.clone());
    let mut driver = Driver::new(&memory, 0x1000);
    driver.install(&mut slot, 1);
    slot.driver_ok(VERSION_1).unwrap();
    memory.write_slice(b"one two", GuestAddress(0x8000)).unwrap();
    driver.add(&[(0x8000, 4), (0x8004, 3)], &[]);
    assert!(!slot.kick(1).any());
    let sealed = gate.seal();
    gate.release(authority.acknowledged(sealed.epoch));
    assert!(complete(&gate, &mut slot, 1).used);
    assert_eq!(driver.used(), [(0, 0)]);
    assert_eq!(std::fs::read(file.path()).unwrap(), b"one two");
}

/// P1: power events are effects, and are held like all other effects.
#[test]
fn power_events_are_held() {
    let (gate, mut authority) = gate();
    let mut power = RegisterSlot::new(7, Box::new(PowerControl::new()), gate.clone());
    let mut reset = RegisterSlot::new(8, Box::new(I8042::new()), gate.clone());
    let _ = power.write(4, &(5_u16 << 10 | 1 << 13).to_le_bytes());
    assert!(gate.take_power_events().is_empty());
    let sealed = gate.seal();
    gate.release(authority.acknowledged(sealed.epoch));
    wait_readable(gate.power_event().as_raw_fd());
    assert_eq!(gate.take_power_events(), [PowerEvent::Off]);
    gate.run_alone(authority.alone(Term(1)));
    let _ = reset.write(4, &[0xfe]);
    wait_readable(gate.power_event().as_raw_fd());
    assert_eq!(gate.take_power_events(), [PowerEvent::Reset]);
}

#[test]
fn random_bytes_come_at_once_though_effects_are_held() {
    let (ledger, _authority) = new_gate();
    let memory = guest_memory();
    let gate =
        GateHost::new(ledger, memory.clone(), Arc::new(Unfenced), GateOptions::default()).unwrap();
    let mut slot = VirtioSlot::new(SLOT, Box::new(Entropy::new()), gate.clone());
    let mut driver = Driver::new(&memory, 0x1000);
    driver.install(&mut slot, 0);
    slot.driver_ok(VERSION_1).unwrap();
    driver.add(&[], &[(0x8000, 64)]);
    assert!(slot.kick(0).used);
    assert_eq!(driver.used(), [(0, 64)]);
    let mut bytes = [0; 64];
    memory.read_slice(&mut bytes, GuestAddress(0x8000)).unwrap();
    assert_ne!(bytes, [0; 64]);
    assert!(gate.seal().in_flight.is_empty());
}

/// P7: a power event is settled only when the machine is off or reset. A checkpoint before that
/// contains the event, so that the side that continues from the checkpoint carries it out. Fails if
/// the event is settled when the device thread takes it.
#[test]
fn a_power_event_is_in_flight_until_it_has_taken_effect() {
    let (gate, mut authority) = gate();
    let mut power = RegisterSlot::new(7, Box::new(PowerControl::new()), gate.clone());
    let mut reset = RegisterSlot::new(8, Box::new(I8042::new()), gate.clone());
    let _ = reset.write(4, &[0xfe]);
    let sealed = gate.seal();
    gate.release(authority.acknowledged(sealed.epoch));
    wait_readable(gate.power_event().as_raw_fd());
    assert_eq!(gate.seal().in_flight.len(), 1, "performed, and nobody has heard of it");
    assert_eq!(gate.next_power_event(), Some(PowerEvent::Reset));
    assert_eq!(gate.seal().in_flight.len(), 1, "heard of, and not done");
    gate.forget_resets();
    assert!(gate.seal().in_flight.is_empty(), "the machine has been reset");

    let _ = power.write(4, &(5_u16 << 10 | 1 << 13).to_le_bytes());
    let sealed = gate.seal();
    gate.release(authority.acknowledged(sealed.epoch));
    wait_readable(gate.power_event().as_raw_fd());
    assert_eq!(gate.next_power_event(), Some(PowerEvent::Off));
    // The event is settled only when the process ends.
    assert_eq!(gate.seal().in_flight.len(), 1);
}

/// A guest repeats its request for a reset until it is reset. The machine is reset once, and the
/// other requests are cancelled. A power-off is not cancelled.
#[test]
fn a_reset_takes_back_those_that_wait() {
    let (gate, mut authority) = gate();
    let mut power = RegisterSlot::new(7, Box::new(PowerControl::new()), gate.clone());
    let mut reset = RegisterSlot::new(8, Box::new(I8042::new()), gate.clone());
    for _ in 0..3 {
        let _ = reset.write(4, &[0xfe]);
    }
    let sealed = gate.seal();
    let _ = reset.write(4, &[0xfe]);
    gate.release(authority.acknowledged(sealed.epoch));
    for _ in 0..4 {
        let _ = reset.write(4, &[0xfe]);
    }
    let _ = power.write(4, &(5_u16 << 10 | 1 << 13).to_le_bytes());
    wait_readable(gate.power_event().as_raw_fd());
    assert_eq!(gate.next_power_event(), Some(PowerEvent::Reset));
    gate.forget_resets();
    assert_eq!(gate.next_power_event(), None);
    gate.run_alone(authority.alone(Term(1)));
    gate.drain();
    assert_eq!(gate.take_power_events(), [PowerEvent::Off]);
    let counts = gate.counts();
    assert_eq!((counts.performed, counts.cancelled, counts.merged), (2, 1, 6));
    let _ = gate.seal();
}
