//! A device names the guest memory that a chain has lent it, and no other.

use io_gate::Payload;

pub fn anywhere(addr_and_len: &[u8]) -> Payload<'static> {
    postcard::from_bytes(addr_and_len).unwrap()
}

fn main() {}
