//! A KVM virtual machine monitor whose guests survive the death of their host.

pub mod cli;
pub mod control;
pub mod probe;
pub mod signals;

const _: () = assert!(
    !ft_core::bugs::COMPILED_IN,
    "the feature `deliberate-bugs` of ft-core is for the simulation: build kemari without it"
);
