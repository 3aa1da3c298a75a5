//! Becomes a program to which what it is given is an argument.

pub(crate) fn become_another(text: &std::ffi::CStr) {
    let arguments = [text.as_ptr(), std::ptr::null()];
    // SAFETY: both are strings that end, and so does their list.
    unsafe { libc::execvp(text.as_ptr(), arguments.as_ptr()) };
}
