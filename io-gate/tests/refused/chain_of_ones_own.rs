//! Chains are lent by the far side, which has checked that they lie in guest memory.

use io_gate::Chain;

pub fn everything<'c>() -> Chain<'c> {
    Chain::new(vec![(0, u32::MAX)])
}

fn main() {}
