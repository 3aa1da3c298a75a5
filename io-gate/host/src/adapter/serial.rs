//! vm-superio's serial port (a 16550A) behind a writer that stages.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use io_gate::{ConsoleTx, Gate, Identity, Port, RegisterDevice, SavedState, StateError};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial as Uart, Trigger};

/// Where its bytes go.
const OUTPUT: Port = Port(0);
const IDENTITY: Identity = Identity { kind: "serial", virtio_id: 0, state_version: 1 };

/// A serial port. It writes to memory only; the adapter takes what it wrote and stages it.
pub struct Serial {
    uart: Uart<Line, NoEvents, Vec<u8>>,
    line: Line,
}

/// The interrupt line: remembers that it was asked for.
#[derive(Clone, Default)]
struct Line(Arc<AtomicBool>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Serial {
    /// A serial port as it is after power-on.
    #[must_use]
    pub fn new() -> Self {
        let line = Line::default();
        Self { uart: Uart::new(line.clone(), Vec::new()), line }
    }
}

impl Default for Serial {
    fn default() -> Self {
        Self::new()
    }
}

impl RegisterDevice for Serial {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn read(&mut self, offset: u64, into: &mut [u8], _gate: &mut Gate<'_>) {
        // The registers are one byte wide.
        into.fill(0);
        if let (Some(first), Ok(offset)) = (into.first_mut(), u8::try_from(offset)) {
            *first = self.uart.read(offset);
        }
    }

    fn write(&mut self, offset: u64, from: &[u8], gate: &mut Gate<'_>) {
        let (Some(first), Ok(offset)) = (from.first(), u8::try_from(offset)) else { return };
        if let Err(error) = self.uart.write(offset, *first) {
            log::warn!("serial port: {}", describe(&error));
        }
        let written = std::mem::take(self.uart.writer_mut());
        if !written.is_empty() {
            gate.token::<ConsoleTx>().emit(OUTPUT, written);
        }
    }

    fn intake(&mut self, _port: Port, data: &[u8]) -> usize {
        // In loopback mode the outside is not connected: what arrives is lost.
        let taken = match self.uart.enqueue_raw_bytes(data) {
            Ok(0) => data.len(),
            Ok(taken) => taken,
            Err(_) => 0,
        };
        taken.min(data.len())
    }

    fn take_interrupt(&mut self) -> bool {
        self.line.0.swap(false, Ordering::Relaxed)
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn save(&self) -> SavedState {
        let state = self.uart.state();
        SavedState::new(&IDENTITY)
            .number("baud_divisor_low", state.baud_divisor_low.into())
            .number("baud_divisor_high", state.baud_divisor_high.into())
            .number("interrupt_enable", state.interrupt_enable.into())
            .number("interrupt_identification", state.interrupt_identification.into())
            .number("line_control", state.line_control.into())
            .number("line_status", state.line_status.into())
            .number("modem_control", state.modem_control.into())
            .number("modem_status", state.modem_status.into())
            .number("scratch", state.scratch.into())
            .bytes("in_buffer", &state.in_buffer)
            .number("interrupt", self.line.0.load(Ordering::Relaxed).into())
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        let mut fields = state.open(&IDENTITY)?;
        let registers = SerialState {
            baud_divisor_low: fields.small("baud_divisor_low")?,
            baud_divisor_high: fields.small("baud_divisor_high")?,
            interrupt_enable: fields.small("interrupt_enable")?,
            interrupt_identification: fields.small("interrupt_identification")?,
            line_control: fields.small("line_control")?,
            line_status: fields.small("line_status")?,
            modem_control: fields.small("modem_control")?,
            modem_status: fields.small("modem_status")?,
            scratch: fields.small("scratch")?,
            in_buffer: fields.bytes("in_buffer")?,
        };
        let interrupt = fields.number("interrupt")? != 0;
        let line = Line::default();
        let uart =
            Uart::from_state(&registers, line.clone(), NoEvents, Vec::new()).map_err(|error| {
                fields.invalid("in_buffer", "what fits the chip", &describe(&error))
            })?;
        fields.close()?;
        // vm-superio asks for an interrupt again when it is restored; what was saved counts, or the
        // two sides would differ.
        line.0.store(interrupt, Ordering::Relaxed);
        *self = Self { uart, line };
        Ok(())
    }
}

fn describe(error: &vm_superio::serial::Error<Infallible>) -> String {
    use vm_superio::serial::Error;
    match error {
        Error::Trigger(never) => match *never {},
        Error::IOError(error) => io::Error::to_string(error),
        Error::FullFifo => "its receive buffer is full".to_owned(),
    }
}
