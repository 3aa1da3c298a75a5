//! What a device is: the contract between its author and the far side of the gate.

use crate::chain::{Chain, ChainError};
use crate::effect::Port;
use crate::gate::Gate;
use crate::identity::Identity;
use crate::state::{SavedState, StateError};
use crate::verdict::Verdict;

/// How a staged effect or an input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Performed; for an input, this many bytes are in the chain.
    Success(u32),
    /// The backend failed.
    Failed,
    /// The backend cannot do this at all.
    Unsupported,
}

/// How much of inbound data a device took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intake {
    /// Bytes written into the chain.
    pub used: u32,
    /// Bytes of the data that were consumed; the rest is offered again.
    pub consumed: usize,
}

/// A device could make nothing of a request. The chain goes back empty, and the error is logged: fixed text and numbers, so that
/// nothing of the guest's is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The chain is not of the shape that the device's specification asks for.
    Chain(ChainError),
    /// Something is not as it must be: what was expected and what was found.
    Malformed(&'static str),
    /// Something has another value than it may have.
    Value {
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: u64,
    },
    /// There is too little or too much of something.
    Amount {
        /// Of what: `bytes of text`.
        of: &'static str,
        /// As little as may be.
        least: u64,
        /// As much as may be.
        most: u64,
        /// What was found.
        found: u64,
    },
}

impl From<ChainError> for DeviceError {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

impl core::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Chain(error) => error.fmt(f),
            Self::Malformed(what) => f.write_str(what),
            Self::Value { expected, found } => write!(f, "expected {expected}, found {found:#x}"),
            Self::Amount { of, least, most, found } => {
                write!(f, "expected {least} to {most} {of}, found {found}")
            }
        }
    }
}

impl core::error::Error for DeviceError {}

/// A virtio device. Every method is called with the machine's other requests to this device held
/// off; none may block.
///
/// A device has to say what it is, which queues it has, and what it does with a chain. The bodies of the other methods are those of
/// a device without features, configuration space, input and state. A device that keeps state has `reset`, `save` and `restore`;
/// the contract suite finds one that forgets some of it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a virtio device",
    label = "`io_gate::Device` is not implemented for it",
    note = "a virtio device implements `io_gate::Device`; one that is driven by registers, `io_gate::RegisterDevice`"
)]
pub trait Device: Send {
    /// What it is.
    fn identity(&self) -> Identity;

    /// The feature bits it offers, without those of the ring and of the transport.
    fn features(&self) -> u64 {
        0
    }

    /// Features that need others: each with those of which a driver that accepts it has to accept one (virtio 1.2, 2.2.1). The
    /// far side refuses a set that lacks them.
    fn feature_needs(&self) -> &[(u64, u64)] {
        &[]
    }

    /// The largest size of each of its virtqueues.
    fn queues(&self) -> &[u16];

    /// Reads its configuration space (virtio 1.2, 2.5); bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, into: &mut [u8]) {
        let _ = offset;
        into.fill(0);
    }

    /// The driver writes to the configuration space.
    fn write_config(&mut self, offset: u64, from: &[u8], gate: &mut Gate<'_>) {
        let _ = (offset, from, gate);
    }

    /// The driver has accepted `features` and is ready. A device whose answers depend on them keeps and saves them.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// Back to the state before the driver was there. Its requests in flight are dropped.
    fn reset(&mut self) {}

    /// The driver has made a chain available on `queue`.
    ///
    /// # Errors
    /// When nothing can be made of the chain.
    fn process<'e>(
        &mut self,
        queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError>;

    /// What a chain of `queue` waited for is over: writes what the driver expects (a status, say)
    /// and gives the number of bytes written to the chain in all. The chain is offered from its
    /// beginning, perhaps in another process than the one that staged.
    fn complete(&mut self, queue: u16, chain: &mut Chain<'_>, outcome: Outcome) -> u32 {
        let _ = (queue, chain);
        match outcome {
            Outcome::Success(written) => written,
            Outcome::Failed | Outcome::Unsupported => 0,
        }
    }

    /// The queue that takes data arriving at `port`, the first if there are several; none if the port is
    /// for output only.
    fn intake_queue(&self, port: Port) -> Option<u16> {
        let _ = port;
        None
    }

    /// Whether `queue` is one of those that take data arriving at `port`, for a device that has several.
    fn takes_input(&self, port: Port, queue: u16) -> bool {
        self.intake_queue(port) == Some(queue)
    }

    /// Which of them this data goes to.
    fn steer(&self, port: Port, data: &[u8]) -> Option<u16> {
        let _ = data;
        self.intake_queue(port)
    }

    /// Whether data arriving at `port` may be spread over several chains, as the driver has agreed to:
    /// [`intake`](Self::intake) is then lent as many as the data needs, as one [`Chain`] that says how
    /// many it [is made of](Chain::merged), and takes all of the data. They go back together.
    fn merges_input(&self, port: Port) -> bool {
        let _ = port;
        false
    }

    /// Data has arrived at `port`, and the driver has room for it in `chain`.
    ///
    /// # Errors
    /// When the chain does not fit the data: it goes back empty, and the data is dropped.
    fn intake(
        &mut self,
        port: Port,
        data: &[u8],
        chain: &mut Chain<'_>,
    ) -> Result<Intake, DeviceError> {
        let _ = (port, chain);
        Ok(Intake { used: 0, consumed: data.len() })
    }

    /// The device's own state: everything that a guest could tell the difference by.
    fn save(&self) -> SavedState {
        SavedState::new(&self.identity())
    }

    /// Takes on a saved state, on an instance built as the saved one was.
    ///
    /// # Errors
    /// Another kind or version, a missing or a left-over field, a value out of range.
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.open(&self.identity())?.close()
    }
}

/// What a device's interrupt line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineState {
    /// Nothing: no interrupt was asked for since the last question, or there is no line.
    Quiet,
    /// One edge: an interrupt was asked for since the last question.
    Pulse,
    /// A level-triggered line: asserted or not, for as long as the device says so.
    Level(bool),
}

/// A device that is driven by registers: a serial port, a power button, a network card with rings of
/// its own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a device that is driven by registers",
    label = "`io_gate::RegisterDevice` is not implemented for it",
    note = "a device that is driven by registers implements `io_gate::RegisterDevice`; a virtio device, `io_gate::Device`"
)]
pub trait RegisterDevice: Send {
    /// What it is.
    fn identity(&self) -> Identity;

    /// The guest reads a register.
    fn read(&mut self, offset: u64, into: &mut [u8], gate: &mut Gate<'_>);

    /// The guest writes a register.
    fn write(&mut self, offset: u64, from: &[u8], gate: &mut Gate<'_>);

    /// Data has arrived at `port`; gives the number of bytes consumed. The rest is offered again
    /// after the next register access. A device for output only consumes all.
    fn intake(&mut self, port: Port, data: &[u8], gate: &mut Gate<'_>) -> usize {
        let _ = (port, gate);
        data.len()
    }

    /// Goes on with what an access has left to do, and says whether more is left. Called after every
    /// access and every intake, and again for as long as there is more: a device with rings does its
    /// work here, a bounded piece at a time, and stops when [`Gate::is_full`]. A device whose
    /// accesses are done when they return has nothing to do here.
    fn proceed(&mut self, gate: &mut Gate<'_>) -> bool {
        let _ = gate;
        false
    }

    /// What its interrupt line does now. Asked after every call that can change it; a [`LineState::Pulse`]
    /// is told once.
    fn line(&mut self) -> LineState {
        LineState::Quiet
    }

    /// Back to the state after power-on.
    fn reset(&mut self) {}

    /// As [`Device::save`].
    fn save(&self) -> SavedState {
        SavedState::new(&self.identity())
    }

    /// As [`Device::restore`].
    ///
    /// # Errors
    /// As [`Device::restore`].
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.open(&self.identity())?.close()
    }
}
