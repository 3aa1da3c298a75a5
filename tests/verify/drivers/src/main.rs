//! Runs a pair's real engine, standby and gate, with their threads, in simulated worlds. A seed
//! decides which thread runs, how time passes, and which fault is injected.
//!
//! ```text
//!   world (this crate)          faults, clients, the link, the judge
//!   engine, standby, gate, ...  the product, unchanged, on real threads, files, sockets and KVM
//!   calls                       replaced functions of the C library: scheduling points at calls
//!   blocks                      scheduling points between two branches of the product
//!   scheduler                   one thread at a time, and a clock of its own
//! ```
//!
//! This crate may depend on every crate of the product. Of `tests` it depends on the flags alone:
//! each world is judged by its own judge.

#[cfg(feature = "world")]
mod blocks;
#[cfg(any(feature = "world", test))]
#[cfg_attr(
    not(feature = "world"),
    allow(dead_code, reason = "without worlds only its tests are built")
)]
mod boots;
#[cfg(feature = "world")]
mod cable;
#[cfg(feature = "world")]
mod calls;
#[cfg(feature = "world")]
mod faults;
#[cfg(any(feature = "world", test))]
#[cfg_attr(not(feature = "world"), allow(dead_code, reason = "as above"))]
mod frames;
#[cfg(any(feature = "world", test))]
#[cfg_attr(not(feature = "world"), allow(dead_code, reason = "as above"))]
mod guest;
#[cfg(feature = "world")]
mod hosts;
#[cfg(feature = "world")]
mod judge;
#[cfg(feature = "world")]
mod kvm;
#[cfg(feature = "world")]
mod raw;
#[cfg(feature = "world")]
mod run;
#[cfg(feature = "world")]
mod scheduler;
#[cfg(feature = "world")]
mod sides;
#[cfg(any(feature = "world", test))]
#[cfg_attr(not(feature = "world"), allow(dead_code, reason = "as above"))]
mod tally;
#[cfg(feature = "world")]
mod watch;
#[cfg(feature = "world")]
mod world;

#[cfg(feature = "world")]
pub(crate) use run::{broken, trace};

#[cfg(feature = "world")]
#[global_allocator]
static ALLOCATOR: calls::Allocator = calls::Allocator;

#[cfg(feature = "world")]
fn main() -> std::process::ExitCode {
    run::main()
}

#[cfg(not(feature = "world"))]
fn main() -> std::process::ExitCode {
    eprintln!("built without the feature `world`: run `cargo xtask sim --drivers`");
    std::process::ExitCode::FAILURE
}
