//! Reports a test that cannot run, because the machine lacks something. The report is a message, or
//! a failure where all tests must run.
//!
//! This crate depends on no other: the tests of all crates use it.

/// The name of an environment variable. If it is set, as by `.ci/run`, a test that cannot run
/// fails.
pub const MUST_RUN: &str = "KEMARI_TESTS_MUST_RUN";

/// Prints on standard error that a test does not run, and the reason.
///
/// # Panics
/// [`MUST_RUN`] is set.
pub fn not_tested(why: &str) {
    assert!(std::env::var_os(MUST_RUN).is_none(), "NOT TESTED, and {MUST_RUN} is set: {why}");
    eprintln!("NOT TESTED: {why}");
}
