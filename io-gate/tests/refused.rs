//! Programs that the types must refuse. Each file in `refused/` is one way to cheat, with the
//! reason at its top, and beside it the compiler's message. After an intended change,
//! `TRYBUILD=overwrite cargo test -p io-gate --test refused` writes the messages again; read them.

#[test]
fn every_way_to_cheat_is_refused_with_a_reason() {
    trybuild::TestCases::new().compile_fail("tests/refused/*.rs");
}
