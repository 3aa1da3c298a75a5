//! What a test does on a machine that lacks what it needs: it says so, and fails where everything has to be tested.

/// Set, to anything, by `.ci/run`: a test that cannot run there has failed.
pub const MUST_RUN: &str = "KEMARI_TESTS_MUST_RUN";

/// Says on the standard error that a test is left out, and why.
///
/// # Panics
/// Where [`MUST_RUN`] is set.
pub fn not_tested(why: &str) {
    assert!(std::env::var_os(MUST_RUN).is_none(), "NOT TESTED, and {MUST_RUN} is set: {why}");
    eprintln!("NOT TESTED: {why}");
}
