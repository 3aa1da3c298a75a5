//! Handles a system call that the thread's role does not allow: logs one line and ends the process.
//!
//! The thread itself writes the line, from a signal handler. Its filter allows exactly this write:
//! this buffer, to this descriptor.

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::{WHO, names};
use crate::terminal;

/// The exit code after a forbidden system call: 128 + SIGSYS, as a shell shows it.
pub const EXIT_CODE: u8 = 128 + libc::SIGSYS as u8;

/// Upper bound of the line's length in bytes.
pub(super) const LINE_MAX: usize = 512;
/// `si_code` of a signal from seccomp (siginfo.h).
const SYS_SECCOMP: libc::c_int = 1;

struct Line(UnsafeCell<[u8; LINE_MAX]>);

// SAFETY: written by one thread only: the one that has claimed it.
unsafe impl Sync for Line {}

static LINE: Line = Line(UnsafeCell::new([0; LINE_MAX]));
static CLAIMED: AtomicBool = AtomicBool::new(false);
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

/// The descriptor for the line: only the handler uses it, so that a filter can allow it alone.
pub(super) fn descriptor() -> RawFd {
    DESCRIPTOR.load(Ordering::Relaxed)
}

/// The address of the line's buffer.
pub(super) fn line_address() -> u64 {
    LINE.0.get() as u64
}

/// Installs the handler for all threads.
pub(super) fn install() -> io::Result<()> {
    DESCRIPTOR.store(open()?, Ordering::Relaxed);
    // SAFETY: all-zero bytes are a valid `sigaction`: no handler, an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_violation as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is a valid `sigaction`, and its handler does only what a handler may.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Opens standard error again so that a write to it never blocks (P7): the process must end even if
/// no reader takes its log. Duplicates standard error if it cannot be opened, for instance a
/// socket.
fn open() -> io::Result<RawFd> {
    const FLAGS: libc::c_int =
        libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the path is a string with its end.
    let opened = unsafe { libc::open(c"/proc/self/fd/2".as_ptr(), FLAGS) };
    if opened >= 0 {
        return Ok(opened);
    }
    // SAFETY: a system call without pointers.
    match unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, 3) } {
        copy if copy >= 0 => Ok(copy),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs on the thread that made the call, which the kernel has not executed. It does only what a
/// signal handler may: it writes to its own memory, restores the terminal, and calls `write` and
/// `_exit`.
extern "C" fn on_violation(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    if CLAIMED.swap(true, Ordering::AcqRel) {
        // Another thread has claimed the line and ends the process.
        loop {
            std::hint::spin_loop();
        }
    }
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    // SAFETY: as above; for this signal the number of the call is the `int` after the pointer at
    // offset 16 (siginfo.h, `_sigsys`).
    let call = unsafe { info.cast::<libc::c_int>().add(6).read() };
    // SAFETY: the swap above gives the buffer to one thread.
    let mut text = Text { line: unsafe { &mut *LINE.0.get() }, len: 0 };
    // SAFETY: the kernel passes a valid `ucontext_t` to a handler with SA_SIGINFO.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let arguments =
        [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(|at| registers[at as usize] as u64);
    text.describe(code, call, arguments);
    let (start, len) = (text.line.as_ptr(), text.len);
    // Restore the terminal first, so that the line is readable.
    terminal::restore();
    // SAFETY: the pointer and the length describe the buffer.
    unsafe { libc::write(descriptor(), start.cast(), len) };
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(EXIT_CODE.into()) }
}

/// Text in a buffer, without allocation.
struct Text<'l> {
    line: &'l mut [u8; LINE_MAX],
    len: usize,
}

impl Text<'_> {
    fn describe(&mut self, code: libc::c_int, call: libc::c_int, arguments: [u64; 3]) {
        let who = WHO.get();
        self.push(b"kemari: seccomp: ");
        if code != SYS_SECCOMP {
            self.push(b"SIGSYS was sent to this process from outside: ending\n");
            return;
        }
        self.push(b"thread `");
        let name_len = who.name.iter().position(|byte| *byte == 0).unwrap_or(who.name.len());
        self.push(if name_len == 0 { b"main" } else { &who.name[..name_len] });
        self.push(b"` (role ");
        self.push(who.role.name().as_bytes());
        self.push(b") tried the system call ");
        self.push(names::name(call.into()).unwrap_or("unknown").as_bytes());
        self.push(b" (");
        self.push_number(call);
        self.push(b"; arguments");
        for argument in arguments {
            self.push(b" 0x");
            self.push_hex(argument);
        }
        self.push(b"), which the role of this thread may not make, or not with these arguments. The call was not \
        made, and this process ends. ");
        self.push(b"A device may reach the outside only by the gate's tokens. ");
        self.push(b"If no device made the call, report it, and run with --seccomp log.\n");
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = LINE_MAX - self.len;
        let bytes = &bytes[..bytes.len().min(room)];
        self.line[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn push_hex(&mut self, number: u64) {
        let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            self.push(&[b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]]);
        }
    }

    fn push_number(&mut self, number: libc::c_int) {
        let mut digits = [0; 11];
        let mut at = digits.len();
        let mut rest = number.unsigned_abs();
        while at > 0 {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            self.push(b"-");
        }
        self.push(&digits[at..]);
    }
}
