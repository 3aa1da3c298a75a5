//! What hostile bytes reach: one target for each parser and state machine that is given what a peer, a guest or an operator
//! wrote. A target returns, whatever it is given; that it must not panic, and what must hold besides, is asserted in it.
//!
//! It may depend on every crate of the product. It starts no process, and opens no socket and no device.

mod devices;
mod operator;
mod peers;
mod rings;
mod wire;

/// A function that takes any bytes.
#[derive(Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it covers, in a line.
    pub what: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
    /// Good inputs to begin from, by the product's own encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
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

/// An input that runs out ends its run, and nothing else.
const fn over(_: arbitrary::Result<()>) {}
