#!/bin/sh
# The compiler, for cargo (RUSTC_WORKSPACE_WRAPPER): the product's own crates call `__sanitizer_cov_trace_pc` wherever a branch of
# theirs may go two ways. The simulation of the drivers defines that function (src/blocks.rs): threads change places there.
# Of the workspace's crates that are built for it, those of the simulation itself are left out. `___` is cargo, asking about the target.
case "$*" in
*"--crate-name kemari_drivers "* | *"--crate-name kemari_flags "* | *"--crate-name build_script_build "* | *"--crate-name ___ "*) exec "$@" ;;
*"--crate-name "*) exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 -Cllvm-args=-sanitizer-coverage-trace-pc ;;
*) exec "$@" ;;
esac
