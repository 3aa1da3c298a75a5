//! The guest's interface to its CPU in ring 3: port I/O, the time stamp counter, and the services
//! of `boot.s`.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

unsafe extern "C" {
    /// Number of interrupts, counted by `boot.s`.
    #[link_name = "wake_count"]
    static WAKE_COUNT: AtomicU64;
    #[link_name = "net_interrupts"]
    static NET_INTERRUPTS: AtomicU64;
    #[link_name = "disk_interrupts"]
    static DISK_INTERRUPTS: AtomicU64;
}

/// The network's interrupt vector, as in `boot.s`.
pub const NET_VECTOR: u8 = 0x42;
/// The disk's interrupt vector, as in `boot.s`.
pub const DISK_VECTOR: u8 = 0x43;

/// Writes a byte to an I/O port.
pub fn out_byte(port: u16, value: u8) {
    // SAFETY: the guest has no memory that a port could change behind the compiler's back.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads a 16-bit word from an I/O port.
pub fn in_word(port: u16) -> u16 {
    let value: u16;
    // SAFETY: as for `out_byte`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) };
    value
}

/// Writes bytes to an I/O port, one after the other, with one instruction.
pub fn out_bytes(port: u16, bytes: &[u8]) {
    // SAFETY: reads the slice only.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack, readonly)
        );
    }
}

/// Writes a 16-bit word to an I/O port.
pub fn out_word(port: u16, value: u16) {
    // SAFETY: as for `out_byte`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

/// The time stamp counter, read after all earlier instructions.
pub fn time_stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter, and orders loads.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Number of interrupts that all CPUs have taken.
pub fn wake_count() -> u64 {
    // SAFETY: `boot.s` defines it, 8 bytes, aligned, and changes it by locked increments only.
    unsafe { WAKE_COUNT.load(Ordering::SeqCst) }
}

/// Number of network interrupts (vector [`NET_VECTOR`]).
pub fn net_interrupts() -> u64 {
    // SAFETY: as for `wake_count`.
    unsafe { NET_INTERRUPTS.load(Ordering::SeqCst) }
}

/// Number of disk interrupts (vector [`DISK_VECTOR`]).
pub fn disk_interrupts() -> u64 {
    // SAFETY: as for `wake_count`.
    unsafe { DISK_INTERRUPTS.load(Ordering::SeqCst) }
}

/// Halts until an interrupt. Returns at once if `wake_count` differs from `seen`.
pub fn halt_unless_woken(seen: u64) {
    // SAFETY: service 0 of `boot.s`; changes only flags (the interrupt stubs keep all registers).
    unsafe { asm!("int3", in("eax") 0, in("r8") seen) };
}

/// Halts forever.
pub fn halt_forever() -> ! {
    loop {
        halt_unless_woken(wake_count());
    }
}

/// CPUID in ring 0, because a host need not filter CPUID in ring 3. Returns eax, ebx, ecx, edx.
pub fn cpuid(leaf: u32) -> [u32; 4] {
    let (a, b, c, d);
    // SAFETY: service 1 of `boot.s`; its outputs and its scratch register are all named.
    unsafe {
        asm!("int3", inout("eax") 1 => a, inout("r8d") leaf => b, inout("ecx") 0 => c, out("edx") d, out("r9") _);
    }
    [a, b, c, d]
}

/// Writes a model-specific register.
///
/// # Safety
/// The register must exist, and the caller must own any memory that the CPU writes because of it.
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: service 2 of `boot.s`; the caller guarantees the register.
    unsafe { asm!("int3", inout("eax") 2 => _, in("ecx") register, in("r8") value, out("rdx") _) };
}
