//! One machine, one authority: two would be two answers to "may this leave?".

use io_gate::host::{CommitAuthority, new_gate};

pub fn two() -> (CommitAuthority, CommitAuthority) {
    let (_ledger, authority) = new_gate();
    (authority.clone(), authority)
}

fn main() {}
