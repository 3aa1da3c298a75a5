//! The device traits: the contract between a device's author and the far side of the gate.

use crate::chain::{Chain, ChainError};
use crate::config::{ConfigSpace, ConfigWrite};
use crate::effect::Port;
use crate::gate::Gate;
use crate::identity::Identity;
use crate::state::{SavedState, StateError};
use crate::verdict::Verdict;

/// How a staged effect or an input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Performed. For an input, the value is the number of bytes in the chain.
    Success(u32),
    /// The backend failed.
    Failed,
    /// The backend cannot do this at all.
    Unsupported,
}

/// How much inbound data a device took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intake {
    /// Bytes written into the chain.
    pub used: u32,
    /// Bytes of the data that were consumed; the rest is offered again.
    pub consumed: usize,
}

/// Why a device could not use a request. The chain goes back empty, and the error is logged. The
/// error has only fixed text and numbers, so that it contains no guest data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The chain does not have the shape that the device's specification requires.
    Chain(ChainError),
    /// Something is malformed: the text says what was expected and what was found.
    Malformed(&'static str),
    /// A value is not allowed.
    Value {
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: u64,
    },
    /// An amount is out of range.
    Amount {
        /// The unit of the amount: `bytes of text`.
        of: &'static str,
        /// The smallest allowed amount.
        least: u64,
        /// The largest allowed amount.
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

/// A virtio device. Calls to one device never overlap, and no method may block.
///
/// A device must state its identity and its queues, and process chains. The default bodies of the
/// other methods are those of a device without features, configuration space, input and state. A
/// device that keeps state implements `reset`, `save` and `restore`; the contract suite detects
/// forgotten state.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a virtio device",
    label = "`io_gate::Device` is not implemented for it",
    note = "a virtio device implements `io_gate::Device`; one that is driven by registers, `io_gate::RegisterDevice`"
)]
pub trait Device: Send {
    /// The device's identity.
    fn identity(&self) -> Identity;

    /// The feature bits it offers, without those of the ring and of the transport.
    fn features(&self) -> u64 {
        0
    }

    /// Features that require others (virtio 1.2, 2.2.1). Each entry is a feature and a set: a
    /// driver that accepts the feature must accept at least one feature of the set. The far side
    /// refuses features that violate this.
    fn feature_needs(&self) -> &[(u64, u64)] {
        &[]
    }

    /// The maximum size of each of its virtqueues.
    fn queues(&self) -> &[u16];

    /// Its configuration space (virtio 1.2, 2.5): see [`config_space!`](crate::config_space).
    fn config(&self) -> ConfigSpace {
        ConfigSpace::default()
    }

    /// The driver writes to a [`Writable`](crate::Writable) field of the configuration space.
    fn write_config(&mut self, write: ConfigWrite<'_>, gate: &mut Gate<'_>) {
        let _ = (write, gate);
    }

    /// The driver has accepted `features` and is ready. A device whose answers depend on the
    /// features keeps and saves them.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// Returns to the state before the driver attached. The far side drops the device's requests in
    /// flight.
    fn reset(&mut self) {}

    /// The driver has made a chain available on `queue`.
    ///
    /// # Errors
    /// When the chain is not valid for the device.
    fn process<'e>(
        &mut self,
        queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError>;

    /// The request that a chain of `queue` waited for has been performed, or has failed. The device
    /// writes what the driver expects (for instance a status) and returns the total number of bytes
    /// written to the chain. The chain is offered from its beginning. After a takeover, this call
    /// is in another process than the one that staged the effect.
    fn complete(&mut self, queue: u16, chain: &mut Chain<'_>, outcome: Outcome) -> u32 {
        let _ = (queue, chain);
        match outcome {
            Outcome::Success(written) => written,
            Outcome::Failed | Outcome::Unsupported => 0,
        }
    }

    /// The queue that takes data arriving at `port`, or the first one if there are several. `None`
    /// if the port is for output only.
    fn intake_queue(&self, port: Port) -> Option<u16> {
        let _ = port;
        None
    }

    /// Whether `queue` takes data arriving at `port`, for a device with several such queues.
    fn takes_input(&self, port: Port, queue: u16) -> bool {
        self.intake_queue(port) == Some(queue)
    }

    /// The queue that gets this data.
    fn steer(&self, port: Port, data: &[u8]) -> Option<u16> {
        let _ = data;
        self.intake_queue(port)
    }

    /// Whether data arriving at `port` may be spread over several chains: the driver has accepted
    /// that feature. [`intake`](Self::intake) then gets as many chains as the data needs, as one
    /// [`Chain`] whose [`merged`](Chain::merged) is their number. It takes all of the data, and the
    /// chains go back together.
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

    /// The device's own state: everything that affects what the guest sees. See
    /// [`saved_state!`](crate::saved_state).
    fn save(&self) -> SavedState {
        SavedState::of(&self.identity(), &())
    }

    /// Restores a saved state, on an instance built as the saved one was.
    ///
    /// # Errors
    /// When the kind or version differs, a field is missing or left over, or a value is out of
    /// range.
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.open(&self.identity())
    }
}

/// The state of a device's interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineState {
    /// No interrupt was requested since the last call, or there is no line.
    Quiet,
    /// One edge: an interrupt was requested since the last call.
    Pulse,
    /// A level-triggered line: asserted or not, until the device reports another level.
    Level(bool),
}

/// A device that is driven by registers: a serial port, a power button, a network card with its own
/// rings.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a device that is driven by registers",
    label = "`io_gate::RegisterDevice` is not implemented for it",
    note = "a device that is driven by registers implements `io_gate::RegisterDevice`; a virtio device, `io_gate::Device`"
)]
pub trait RegisterDevice: Send {
    /// The device's identity.
    fn identity(&self) -> Identity;

    /// The guest reads a register.
    fn read(&mut self, offset: u64, into: &mut [u8], gate: &mut Gate<'_>);

    /// The guest writes a register.
    fn write(&mut self, offset: u64, from: &[u8], gate: &mut Gate<'_>);

    /// Data has arrived at `port`. Returns the number of bytes consumed. The rest is offered again
    /// after the next register access. A device for output only consumes all.
    fn intake(&mut self, port: Port, data: &[u8], gate: &mut Gate<'_>) -> usize {
        let _ = (port, gate);
        data.len()
    }

    /// Continues the work that an access has left undone, and returns whether more is left. The far
    /// side calls it after each access and each intake, and again while more is left. A device with
    /// rings does its work here, in bounded steps, and stops when [`Gate::is_full`]. A device that
    /// completes each access at once needs no body.
    fn proceed(&mut self, gate: &mut Gate<'_>) -> bool {
        let _ = gate;
        false
    }

    /// The state of its interrupt line. Called after each call that can change it. A
    /// [`LineState::Pulse`] is reported once.
    fn line(&mut self) -> LineState {
        LineState::Quiet
    }

    /// Returns to the state after power-on.
    fn reset(&mut self) {}

    /// As [`Device::save`].
    fn save(&self) -> SavedState {
        SavedState::of(&self.identity(), &())
    }

    /// As [`Device::restore`].
    ///
    /// # Errors
    /// As [`Device::restore`].
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        state.open(&self.identity())
    }
}
