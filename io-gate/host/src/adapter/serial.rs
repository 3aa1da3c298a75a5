//! vm-superio's serial port (a 16550A).

use std::convert::Infallible;

use io_gate::{Bytes, Identity, StateError, note, saved_state};
use vm_superio::serial::{Error, NoEvents, SerialState};

use super::{Adapter, Foreign, Line, StagingWriter, Wires};

/// The size of the chip's receive buffer in bytes.
const FIFO: usize = 64;

/// A serial port. The bytes that the guest sends are console output on port 0.
pub type Serial = Adapter<Uart>;

saved_state! {
    /// The chip's registers, and the bytes that have arrived.
    pub struct UartState {
        baud_divisor_low: u8,
        baud_divisor_high: u8,
        interrupt_enable: u8,
        interrupt_identification: u8,
        line_control: u8,
        line_status: u8,
        modem_control: u8,
        modem_status: u8,
        scratch: u8,
        in_buffer: Bytes<FIFO>,
    }
}

/// The chip.
pub struct Uart(vm_superio::Serial<Line, NoEvents, StagingWriter>);

impl Foreign for Uart {
    const IDENTITY: Identity = Identity { kind: "serial", virtio_id: 0, state_version: 1 };

    type State = UartState;

    // ANCHOR: wires
    fn power_on(wires: &Wires) -> Self {
        Self(vm_superio::Serial::new(wires.interrupt.clone(), wires.output.clone()))
    }
    // ANCHOR_END: wires

    fn read(&mut self, offset: u64, into: &mut [u8]) {
        for (byte, offset) in into.iter_mut().zip(registers(offset)) {
            *byte = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        for (byte, offset) in from.iter().zip(registers(offset)) {
            if let Err(error) = self.0.write(offset, *byte) {
                note::warn(describe(&error), &[]);
            }
        }
    }

    fn intake(&mut self, data: &[u8]) -> usize {
        // In loopback mode the line is disconnected, so arriving bytes are lost.
        match self.0.enqueue_raw_bytes(data) {
            Ok(0) => data.len(),
            Ok(taken) => taken,
            Err(_) => 0,
        }
    }

    fn save(&self) -> UartState {
        let state = self.0.state();
        UartState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: Bytes(state.in_buffer),
        }
    }

    fn restore(state: UartState, wires: &Wires) -> Result<Self, StateError> {
        let registers = SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer.0,
        };
        let (interrupt, output) = (wires.interrupt.clone(), wires.output.clone());
        vm_superio::Serial::from_state(&registers, interrupt, NoEvents, output).map(Self).map_err(
            |_| StateError::invalid(&Self::IDENTITY, "in_buffer", "what fits the chip", "more"),
        )
    }
}

/// The registers from `offset` on. They are one byte wide: a PC's bus splits a wider access into
/// one per register.
fn registers(offset: u64) -> impl Iterator<Item = u8> {
    (offset..offset.saturating_add(8)).map(|offset| u8::try_from(offset).unwrap_or(u8::MAX))
}

fn describe(error: &Error<Infallible>) -> &'static str {
    match error {
        Error::Trigger(never) => match *never {},
        Error::IOError(_) => "serial port: a byte cannot be staged",
        Error::FullFifo => "serial port: its receive buffer is full",
    }
}
