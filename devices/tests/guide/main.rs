//! Tests that the final device of docs/write-a-device.md keeps the contract. The guide takes its
//! code from here.

#[allow(unreachable_pub, reason = "in the crate of devices it is exported")]
mod pager;

use io_gate_contract::VirtioContract;
use pager::Pager;

// ANCHOR: test
fn contract() -> VirtioContract {
    VirtioContract::new(|| Box::new(Pager::new()))
        .request(0, b"a line\n", 1)
        .configure(8, &[1])
        .request(0, b"nobody is to see this\n", 1)
        .request(0, b"nor this, and no answer is wanted\n", 0)
        .configure(8, &[0])
        .request(0, b"a line that is seen again\n", 1)
        .request(0, b"", 1)
}
// ANCHOR_END: test

#[test]
fn it_keeps_the_contract() {
    contract().check();
}

#[test]
fn it_bears_any_guest() {
    contract().fuzz();
}
