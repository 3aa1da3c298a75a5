//! A KVM virtual machine monitor whose guests survive the death of their host.

pub mod cli;
pub mod control;
mod hello;
pub mod link;
mod marks;
pub mod primary;
pub mod probe;
mod repeats;
pub mod session;
pub mod signals;
pub mod standby;
pub mod stats;
pub mod takeover;

const _: () = assert!(
    !ft_core::bugs::COMPILED_IN,
    "the feature `deliberate-bugs` of ft-core is for the simulation: build kemari without it"
);
