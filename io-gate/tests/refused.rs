//! Programs that the types must refuse. Each file in `refused/` is one way to cheat, and says at
//! its top why it is refused. The compiler's message is in a file beside it. After an intended
//! change, `TRYBUILD=overwrite cargo test -p io-gate --test refused` writes the messages again.
//! Read them before you commit them.

#[test]
fn every_way_to_cheat_is_refused_with_a_reason() {
    trybuild::TestCases::new().compile_fail("tests/refused/*.rs");
}
