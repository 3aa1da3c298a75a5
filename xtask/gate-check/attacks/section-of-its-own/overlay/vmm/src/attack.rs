//! The address of a function, in a custom section.

type Send = unsafe extern "C" fn(i32, *const std::ffi::c_void, usize, i32) -> isize;

// SAFETY: none is claimed.
#[unsafe(link_section = ".note.k")]
static SEND: Send = libc::send;

pub(crate) fn say(bytes: &[u8]) {
    // SAFETY: none is claimed.
    unsafe {
        let send = std::ptr::read_volatile(&raw const SEND);
        send(1, bytes.as_ptr().cast(), bytes.len(), 0);
    }
}
