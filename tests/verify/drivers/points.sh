#!/bin/sh
# The compiler, for cargo (RUSTC_WORKSPACE_WRAPPER): the product's own crates call `__sanitizer_cov_trace_pc` wherever a branch of
# theirs may go two ways. The simulation of the drivers defines that function (src/blocks.rs): threads change places there.
case "$*" in
*"--crate-name io_gate "* | *"--crate-name io_gate_host "* | *"--crate-name kemari_devices "* | *"--crate-name ft_core "* | *"--crate-name kemari_arbiter "* | *"--crate-name kemari_audit "* | *"--crate-name kemari_confine "* | *"--crate-name kemari_hypervisor "* | *"--crate-name io_gate_memory "* | *"--crate-name kemari_support "* | *"--crate-name kemari_vmm "*)
    exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 -Cllvm-args=-sanitizer-coverage-trace-pc
    ;;
*) exec "$@" ;;
esac
