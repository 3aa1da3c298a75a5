//! An authority is made with its gate, by `new_gate`, and in no other way.

use io_gate::host::CommitAuthority;

pub fn usurp() -> CommitAuthority {
    CommitAuthority::new(Default::default())
}

fn main() {}
