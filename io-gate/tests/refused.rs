//! What the types refuse, and in which words: each file in `refused/` is one way to cheat, with the
//! reason why it is one on top, and beside it what the compiler says. After a change on purpose,
//! `TRYBUILD=overwrite cargo test -p io-gate --test refused` writes the messages anew; read them.

#[test]
fn every_way_to_cheat_is_refused_with_a_reason() {
    trybuild::TestCases::new().compile_fail("tests/refused/*.rs");
}
