//! The seccomp filter: a few BPF instructions, which the child installs between fork and exec; and
//! the handover of its listener.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_long, c_uint, sock_filter, sock_fprog};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::Listener;

/// Descriptor number of the socket that hands over the listener. No other descriptor has this
/// number, so the filter allows a send on it.
const HANDOVER: i32 = 700;
/// After the listener has received a call, only a fatal signal interrupts it. Another signal would
/// end a call that is to hang. From linux/seccomp.h (5.19); libc lacks it.
const WAIT_KILLABLE: c_uint = 1 << 5;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
/// AUDIT_ARCH_X86_64 from linux/audit.h.
const X86_64: u32 = 0xc000_003e;

/// A program that is about to start with the filter.
#[derive(Debug)]
pub struct Pending {
    socket: UnixStream,
}

/// Intercepts the system calls with these numbers from the program's first instruction on. Start
/// the command once and then drop it.
///
/// # Errors
/// No file descriptor is free.
pub fn intercept(command: &mut Command, calls: &[c_long]) -> io::Result<Pending> {
    let (socket, far) = UnixStream::pair()?;
    let far = rustix::io::fcntl_dupfd_cloexec(&far, HANDOVER)?;
    let program = program(calls, far.as_raw_fd());
    // SAFETY: between fork and exec the closure only makes system calls, on memory that was
    // prepared before.
    unsafe { command.pre_exec(move || install(&program, far.as_fd())) };
    Ok(Pending { socket })
}

impl Pending {
    /// The listener of the program, which must have been started.
    ///
    /// # Errors
    /// The program was not started, or the kernel refused the filter.
    pub fn listener(self) -> io::Result<Listener> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut parts = [io::IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let listener = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        listener.map(Listener::new).ok_or_else(|| io::Error::other("no filter was installed"))
    }
}

/// The BPF program: it sends `calls` to the listener and allows all others.
fn program(calls: &[c_long], handover: i32) -> Vec<sock_filter> {
    // A jump's distance is one byte.
    assert!(calls.len() < 200, "too many system calls for one filter");
    let load = |from| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, from);
    let equal = |to, yes, no| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, to);
    let answer = |what| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, what);
    let mut program = vec![
        load(ARCHITECTURE),
        equal(X86_64, 1, 0),
        answer(libc::SECCOMP_RET_ALLOW),
        load(NUMBER),
    ];
    for (at, call) in calls.iter().enumerate() {
        // Jump over the remaining comparisons and the instruction that allows the call.
        let to_ask = (calls.len() - at) as u8;
        program.push(equal(*call as u32, to_ask, 0));
    }
    program.extend([
        answer(libc::SECCOMP_RET_ALLOW),
        equal(libc::SYS_sendmsg as u32, 0, 2),
        load(FIRST_ARGUMENT),
        equal(handover as u32, 1, 0),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        answer(libc::SECCOMP_RET_ALLOW),
    ]);
    program
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// Installs the filter. Runs in the child, which has one thread.
fn install(program: &[sock_filter], handover: BorrowedFd<'_>) -> io::Result<()> {
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as c_uint | WAIT_KILLABLE;
    // SAFETY: system calls on values that live longer; the kernel copies the program.
    let listener = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter)
    };
    let listener = i32::try_from(listener).ok().filter(|listener| *listener >= 0);
    // SAFETY: a new descriptor that nothing else owns; exec closes it too.
    let listener = unsafe { OwnedFd::from_raw_fd(listener.ok_or_else(io::Error::last_os_error)?) };
    let descriptors = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let byte = [io::IoSlice::new(b"l")];
    rustix::net::sendmsg(handover, &byte, &mut ancillary, SendFlags::empty())?;
    // Leave the descriptor to exec: if `close` is intercepted, no listener can answer yet.
    std::mem::forget(listener);
    Ok(())
}
