//! Writes to descriptor 1 without any library.

pub(crate) fn shout(bytes: &[u8]) {
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") 1_usize => _, in("rdi") 1, in("rsi") bytes.as_ptr(),
            in("rdx") bytes.len(), out("rcx") _, out("r11") _);
    }
}
