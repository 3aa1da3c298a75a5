//! Writes the guest's bytes to memory that another process shares.

unsafe extern "C" {
    fn shmat(id: i32, address: *const u8, flags: i32) -> *mut u8;
}

pub(crate) fn share(byte: u8) {
    // SAFETY: none is claimed.
    unsafe { shmat(1, std::ptr::null(), 0).write(byte) }
}
