//! System calls made without the C library, whose functions this crate replaces ([`crate::calls`]).

use std::arch::asm;

/// Makes a system call and returns the kernel's result: a negative number is an error number.
///
/// # Safety
/// As for the system call itself.
pub(crate) unsafe fn syscall(number: i64, a: [usize; 6]) -> i64 {
    let result: i64;
    // SAFETY: the kernel's calling convention (syscall(2)): `rcx` and `r11` are lost, memory may be
    // written.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a[0],
            in("rsi") a[1],
            in("rdx") a[2],
            in("r10") a[3],
            in("r8") a[4],
            in("r9") a[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Sleeps while `*word` is `expected`; may wake spuriously.
pub(crate) fn futex_wait(word: &std::sync::atomic::AtomicU32, expected: u32) {
    let args = [word.as_ptr() as usize, libc::FUTEX_WAIT as usize, expected as usize, 0, 0, 0];
    // SAFETY: the word lives as long as the borrow.
    unsafe { syscall(libc::SYS_futex, args) };
}

/// Wakes a thread that sleeps on `word`.
pub(crate) fn futex_wake(word: &std::sync::atomic::AtomicU32) {
    let args = [word.as_ptr() as usize, libc::FUTEX_WAKE as usize, 1, 0, 0, 0];
    // SAFETY: the word lives as long as the borrow.
    unsafe { syscall(libc::SYS_futex, args) };
}

/// Whether a descriptor is ready for any of `events`, or has an error.
pub(crate) fn is_ready(fd: i32, events: i16) -> bool {
    let mut ask = [libc::pollfd { fd, events, revents: 0 }];
    poll_now(&mut ask) > 0
}

/// `poll(2)` without waiting.
pub(crate) fn poll_now(fds: &mut [libc::pollfd]) -> i64 {
    // SAFETY: the pointer and the length are the slice's.
    unsafe { syscall(libc::SYS_poll, [fds.as_mut_ptr() as usize, fds.len(), 0, 0, 0, 0]) }
}

/// Prints a line for people, at any moment of a world.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    // SAFETY: the pointer and the length are the string's.
    unsafe { syscall(libc::SYS_write, [2, line.as_ptr() as usize, line.len(), 0, 0, 0]) };
}
