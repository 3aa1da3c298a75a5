//! A KVM virtual machine monitor whose guests survive the death of their host.

pub mod arbiter;
mod aside;
pub mod audit;
pub mod boot;
pub mod cli;
pub mod config;
pub mod control;
pub mod engine;
mod given_file;
pub mod link;
pub mod logging;
pub mod machine;
pub mod probe;
mod random;
mod repeats;
pub mod seccomp;
pub mod standby;
pub mod stats;
mod threads;
pub mod ungated;
pub mod values;

const _: () = assert!(
    !ft_core::bugs::COMPILED_IN,
    "the feature `deliberate-bugs` of ft-core is for the simulation: build kemari without it"
);
