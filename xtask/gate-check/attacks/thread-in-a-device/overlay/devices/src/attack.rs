//! Starts a thread, which can write later, without the gate.

extern crate std;

pub(crate) fn write_behind(bytes: alloc::vec::Vec<u8>) {
    std::thread::spawn(move || bytes.len());
}
