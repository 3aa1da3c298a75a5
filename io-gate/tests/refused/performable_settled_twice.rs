//! An effect happens once: settling takes it by value.

use io_gate::host::{Ledger, Performable};

pub fn finish(ledger: &mut Ledger, done: Performable) {
    ledger.settle(done);
    ledger.settle(done);
}

fn main() {}
