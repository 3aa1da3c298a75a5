//! Parsers and state machines that receive hostile bytes, with one target for each that takes the
//! output of a peer, a guest or an operator. A target returns for every input. It checks that its
//! code does not panic, and its own invariants.
//!
//! This crate may depend on every crate of the product. It starts no process, and opens no socket
//! and no device.

mod devices;
mod operator;
mod peers;
mod rings;
mod wire;

/// A fuzz target: a function that takes any bytes.
#[derive(Debug)]
pub struct Target {
    /// The target's name on the command line.
    pub name: &'static str,
    /// The code that it covers, in one line.
    pub what: &'static str,
    /// Runs the target on one input.
    pub run: fn(&[u8]),
    /// Valid inputs from the product's own encoders, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    wire::DECODER,
    wire::BODIES,
    wire::PAGES,
    peers::STANDBY,
    peers::PRIMARY,
    devices::CHAINS,
    devices::REGISTERS,
    devices::STATES,
    rings::RINGS,
    operator::FLAGS,
    operator::KERNELS,
    operator::CHECKPOINTS,
    operator::RECORDS,
];

impl Target {
    /// The target of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }
}

/// Discards the error of an exhausted input: the run just ends.
const fn over(_: arbitrary::Result<()>) {}
