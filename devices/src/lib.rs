//! Virtual devices. Each is plain data and the rules of its specification. A guest's requests
//! arrive as descriptor chains or register accesses. A device stages each effect at the gate, which
//! is its only way out (P5).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod beeper;
mod block;
mod console;
mod e1000;
mod entropy;
mod net;
mod power;
#[cfg(test)]
mod test_support;

pub use beeper::Beeper;
pub use block::{Block, BlockConfig};
pub use console::Console;
pub use e1000::E1000;
pub use entropy::Entropy;
pub use net::{Net, NetConfig};
pub use power::{Button, PowerControl};

/// Fills `into` from a register block, beginning at `offset`. Bytes beyond the block read as zero.
fn read_bytes(block: &[u8], offset: u64, into: &mut [u8]) {
    into.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| block.get(offset..)) else {
        return;
    };
    let len = rest.len().min(into.len());
    into[..len].copy_from_slice(&rest[..len]);
}
