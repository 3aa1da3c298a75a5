//! A KVM virtual machine monitor whose guests survive the death of their host.

pub mod boot;
pub mod cli;
pub mod config;
pub mod control;
pub mod engine;
pub mod link;
pub mod machine;
pub mod probe;
mod repeats;
pub mod standby;
pub mod stats;
pub mod ungated;

const _: () = assert!(
    !ft_core::bugs::COMPILED_IN,
    "the feature `deliberate-bugs` of ft-core is for the simulation: build kemari without it"
);
