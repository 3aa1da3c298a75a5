//! Writes wherever it likes, with no `unsafe` to be seen.

pub(crate) fn ring_a_bell(mapped: usize) {
    serde::poke!(mapped, 1);
}
