//! `Held` says that an effect is staged: only staging says it.

use io_gate::{Held, Verdict};

pub fn pretend<'e>() -> Verdict<'e> {
    Verdict::Held(Held(Default::default()))
}

fn main() {}
