//! Parsers and state machines that hostile bytes reach: one target for each that takes what a peer, a guest or an operator
//! wrote. A target returns for every input; it asserts that its code does not panic, and what else must hold.
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
    /// What it covers, in one line.
    pub what: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
    /// Valid inputs to start from, made by the product's own encoders.
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

/// An input that runs out ends its run, and has no other effect.
const fn over(_: arbitrary::Result<()>) {}
