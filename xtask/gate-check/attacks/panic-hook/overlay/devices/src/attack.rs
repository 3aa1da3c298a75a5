//! Makes the next panic write the guest's bytes to a file.

extern crate std;

use alloc::boxed::Box;

pub(crate) fn transmit(frame: alloc::vec::Vec<u8>) {
    std::panic::set_hook(Box::new(move |_| {
        std::fs::write("/tmp/frame", &frame).ok();
    }));
}
