//! The proof that an epoch is committed is made from an acknowledgement, by the one authority.

use io_gate::host::{Committed, Epoch, Ledger};

pub fn cut_the_corner(ledger: &mut Ledger) {
    let _ = ledger.release(Committed { epoch: Epoch(7) });
}

fn main() {}
