//! Unchanged devices of other authors behind the gate: their output is held, and their state
//! survives a takeover.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::Write;
use std::sync::Arc;

use io_gate::host::{CommitAuthority, Term, new_gate};
use io_gate::{
    Identity, LineState, Port, PowerEvent, RegisterDevice, SavedState, StateError, saved_state,
};
use io_gate_host::adapter::{
    Adapter, I8042, Keep, Line, MmioDevice, PioDevice, Rtc, Serial, StagingWriter, Wires,
};
use io_gate_host::backend::console::Console;
use io_gate_host::{Backend, GateHost, GateOptions, RegisterSlot, Unfenced};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{MutDeviceMmio, MutDevicePio};
use vm_superio::Trigger;

mod common;

use common::guest_memory;

/// A device of another author: a printer for any writer and interrupt line. Register 0 takes
/// letters, and a line feed interrupts. Register 1 counts the letters.
mod stranger {
    use super::*;

    pub(crate) struct Printer<W, T> {
        pub(crate) paper: W,
        pub(crate) done: T,
        pub(crate) letters: u8,
    }

    impl<W: Write, T: Trigger> Printer<W, T> {
        fn print(&mut self, data: &[u8]) {
            self.paper.write_all(data).unwrap();
            self.letters += u8::try_from(data.len()).unwrap();
            if data.ends_with(b"\n") {
                let _ = self.done.trigger();
            }
        }
    }

    impl<W: Write, T: Trigger> MutDevicePio for Printer<W, T> {
        fn pio_read(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
            if offset == 1 {
                data[0] = self.letters;
            }
        }

        fn pio_write(&mut self, _base: PioAddress, _offset: PioAddressOffset, data: &[u8]) {
            self.print(data);
        }
    }

    impl<W: Write, T: Trigger> MutDeviceMmio for Printer<W, T> {
        fn mmio_read(&mut self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
            if offset == 1 {
                data[0] = self.letters;
            }
        }

        fn mmio_write(&mut self, _base: MmioAddress, _offset: MmioAddressOffset, data: &[u8]) {
            self.print(data);
        }
    }
}

saved_state! {
    struct PrinterState {
        letters: u8,
    }
}

struct KeepPrinter;

impl Keep for KeepPrinter {
    type Device = stranger::Printer<StagingWriter, Line>;

    const IDENTITY: Identity = Identity { kind: "printer", virtio_id: 0, state_version: 1 };

    type State = PrinterState;

    fn power_on(wires: &Wires) -> Self::Device {
        let (paper, done) = (wires.output.clone(), wires.interrupt.clone());
        stranger::Printer { paper, done, letters: 0 }
    }

    fn save(device: &Self::Device) -> PrinterState {
        PrinterState { letters: device.letters }
    }

    fn restore(state: PrinterState, wires: &Wires) -> Result<Self::Device, StateError> {
        Ok(stranger::Printer { letters: state.letters, ..Self::power_on(wires) })
    }
}

const SLOT: u16 = 3;

struct Bench {
    paper: tempfile::NamedTempFile,
    gate: Arc<GateHost>,
    authority: CommitAuthority,
    slot: RegisterSlot,
}

impl Bench {
    fn new(device: impl RegisterDevice + 'static) -> Self {
        let (ledger, authority) = new_gate();
        let gate =
            GateHost::new(ledger, guest_memory(), Arc::new(Unfenced), GateOptions::default())
                .unwrap();
        let paper = tempfile::NamedTempFile::new().unwrap();
        let console = Console::file(paper.path(), false).unwrap();
        gate.attach(SLOT, Port(0), Backend::Console(console)).unwrap();
        let slot = RegisterSlot::new(SLOT, Box::new(device), gate.clone());
        Self { paper, gate, authority, slot }
    }

    /// The content of the paper after everything released has been performed.
    fn printed(&self) -> String {
        self.gate.drain();
        std::fs::read_to_string(self.paper.path()).unwrap()
    }

    fn letters(&mut self) -> u8 {
        let mut count = [0xff];
        let _ = self.slot.read(1, &mut count);
        count[0]
    }
}

/// P1, P3: output is held until it is committed. After a takeover the new owner prints it, and has
/// the counter.
fn a_stranger_survives(new: fn() -> Bench) {
    let mut bench = new();
    assert_eq!(bench.slot.write(0, b"a"), LineState::Quiet);
    let sealed = bench.gate.seal();
    bench.gate.release(bench.authority.acknowledged(sealed.epoch));
    assert_eq!(bench.printed(), "a");
    assert_eq!(bench.slot.write(0, b"b\n"), LineState::Pulse, "the end of a line interrupts");
    let sealed = bench.gate.seal();
    let saved = bench.slot.save();
    assert_eq!((bench.printed().as_str(), bench.letters()), ("a", 3));

    let mut heir = new();
    heir.slot.restore(&saved).unwrap();
    assert_eq!(heir.slot.save(), saved);
    heir.gate.adopt(sealed.epoch, sealed.next_id, sealed.in_flight);
    heir.gate.run_alone(heir.authority.alone(Term(2)));
    assert_eq!((heir.printed().as_str(), heir.letters()), ("b\n", 3));
    heir.slot.reset();
    assert_eq!(heir.letters(), 0);
}

#[test]
fn a_rust_vmm_device_behind_ports_survives() {
    a_stranger_survives(|| Bench::new(Adapter::<PioDevice<KeepPrinter>>::new()));
}

#[test]
fn a_rust_vmm_device_behind_a_window_survives() {
    a_stranger_survives(|| Bench::new(Adapter::<MmioDevice<KeepPrinter>>::new()));
}

/// P1: a reset by the keyboard controller waits for its epoch. After a takeover the new owner
/// performs it.
#[test]
fn a_reset_waits_for_its_epoch() {
    let mut bench = Bench::new(I8042::new());
    let _ = bench.slot.write(4, &[0xfe]);
    assert!(bench.gate.take_power_events().is_empty());
    let sealed = bench.gate.seal();
    let mut heir = Bench::new(I8042::new());
    heir.slot.restore(&bench.slot.save()).unwrap();
    heir.gate.adopt(sealed.epoch, sealed.next_id, sealed.in_flight);
    heir.gate.run_alone(heir.authority.alone(Term(2)));
    heir.gate.drain();
    assert_eq!(heir.gate.take_power_events(), [PowerEvent::Reset]);
    bench.gate.release(bench.authority.acknowledged(sealed.epoch));
    bench.gate.drain();
    assert_eq!(bench.gate.take_power_events(), [PowerEvent::Reset]);
}

/// An adapted device saves its identity, and refuses the state of another device or version.
#[test]
fn a_state_of_another_kind_or_version_is_refused() {
    let mut devices: [Box<dyn RegisterDevice>; 4] = [
        Box::new(Serial::new()),
        Box::new(I8042::new()),
        Box::new(Rtc::new()),
        Box::new(Adapter::<PioDevice<KeepPrinter>>::new()),
    ];
    for at in 0..devices.len() {
        let others = devices[(at + 1) % 4].save();
        let device = &mut devices[at];
        let kind = device.identity().kind;
        assert!(matches!(device.restore(&others), Err(StateError::Kind { .. })), "{kind}");
        let newer = Identity { state_version: 2, ..device.identity() };
        let error = device.restore(&SavedState::of(&newer, &())).unwrap_err();
        assert!(matches!(error, StateError::Version { .. }), "{kind}");
        let none = SavedState::of(&device.identity(), &());
        assert!(matches!(device.restore(&none), Err(StateError::Missing { .. })), "{kind}");
        let saved = device.save();
        device.restore(&saved).unwrap();
        assert_eq!(device.save(), saved, "{kind}");
    }
}

/// The registers of a 16550 are one byte wide. Each byte of a wider access goes to the next
/// register, as on a PC's bus, and none is lost.
#[test]
fn wide_accesses_of_the_serial_port_reach_each_register() {
    let (mut ledger, mut authority) = new_gate();
    let none = ledger.run_alone(authority.alone(Term(1)));
    assert!(none.is_empty());
    let mut serial = Serial::new();
    // A letter, and the received-data interrupt enabled.
    ledger.detached_session(0, |gate| serial.write(0, b"A\x01", gate));
    let mut two = [0; 2];
    ledger.detached_session(0, |gate| serial.read(0, &mut two, gate));
    assert_eq!(two[1], 1, "the interrupt enable register");
    // The scratch register is the last.
    ledger.detached_session(0, |gate| serial.write(7, &[0x5a, 1, 2, 3], gate));
    let mut four = [0xff; 4];
    ledger.detached_session(0, |gate| serial.read(7, &mut four, gate));
    assert_eq!(four, [0x5a, 0, 0, 0]);
    ledger.detached_session(0, |gate| serial.write(u64::MAX, &[1, 2], gate));
    assert_eq!(ledger.take_ready().len(), 1, "one letter");
}
