//! What a test does on a machine that lacks what it needs: it prints a message, and fails where every test must
//! run.
//!
//! It may depend on no other crate: the tests of every crate use it.

/// Set by `.ci/run`, to any value: a test that cannot run there fails.
pub const MUST_RUN: &str = "KEMARI_TESTS_MUST_RUN";

/// Prints on the standard error that a test is left out, and why.
///
/// # Panics
/// [`MUST_RUN`] is set.
pub fn not_tested(why: &str) {
    assert!(std::env::var_os(MUST_RUN).is_none(), "NOT TESTED, and {MUST_RUN} is set: {why}");
    eprintln!("NOT TESTED: {why}");
}
