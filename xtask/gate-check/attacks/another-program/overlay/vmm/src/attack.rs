//! Replaces this process by another program, with the guest's bytes as its name and argument.

pub(crate) fn become_another(text: &std::ffi::CStr) {
    let arguments = [text.as_ptr(), std::ptr::null()];
    // SAFETY: both strings end with a zero byte, and their list with a null pointer.
    unsafe { libc::execvp(text.as_ptr(), arguments.as_ptr()) };
}
