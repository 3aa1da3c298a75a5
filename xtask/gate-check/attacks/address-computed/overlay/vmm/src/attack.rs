//! Calls `write` by its distance from a function that any code may name.

/// The distance from `strlen` to `write` in one build of the C library.
const OFFSET: isize = 0x6_8000;

type Write = unsafe extern "C" fn(i32, *const u8, usize) -> isize;

pub(crate) fn say(bytes: &[u8]) {
    let beside = (libc::strlen as *const ()).wrapping_byte_offset(OFFSET);
    // SAFETY: none: this is an attack.
    let write = unsafe { std::mem::transmute::<*const (), Write>(beside) };
    // SAFETY: none: this is an attack.
    unsafe { write(1, bytes.as_ptr(), bytes.len()) };
}
