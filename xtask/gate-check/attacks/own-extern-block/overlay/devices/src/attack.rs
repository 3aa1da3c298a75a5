//! libc is linked in anyway.

unsafe extern "C" {
    pub(crate) safe fn getpid() -> i32;
}

pub(crate) fn ask() -> i32 {
    getpid()
}
