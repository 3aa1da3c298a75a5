//! The intercepted calls of a program, and the answers to them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use libc::{c_long, seccomp_notif, seccomp_notif_resp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Maximum length of a path in a system call, in bytes (linux/limits.h).
const PATH_MAX: usize = 4096;

/// Receives a program's intercepted calls.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// An intercepted call. Its thread waits for the answer.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    id: u64,
    /// The thread's ID in this process's PID namespace.
    pub thread: u32,
    /// The call's number.
    pub number: c_long,
    /// The call's arguments.
    pub arguments: [u64; 6],
}

impl Listener {
    pub(crate) fn new(listener: OwnedFd) -> Self {
        Self(listener)
    }

    /// The next call; `None` if there is none within `patience`.
    ///
    /// # Errors
    /// The program has ended.
    pub fn next(&self, patience: Duration) -> io::Result<Option<Call>> {
        let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut wanted = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut wanted, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            other => other?,
        };
        if wanted[0].revents().contains(PollFlags::HUP) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: the kernel requires a zeroed struct.
        let mut asked: seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes a `seccomp_notif`.
        match unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked)
        } {
            0 => Ok(Some(Call {
                id: asked.id,
                thread: asked.pid,
                number: asked.data.nr.into(),
                arguments: asked.data.args,
            })),
            _ => gone(io::Error::last_os_error()).map(|()| None),
        }
    }

    /// Makes the kernel perform the call.
    ///
    /// # Errors
    /// The kernel refuses the answer.
    pub fn proceed(&self, call: &Call) -> io::Result<()> {
        self.answer(call, 0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32)
    }

    /// Makes the call fail without performing it.
    ///
    /// # Errors
    /// The kernel refuses the answer.
    pub fn fail(&self, call: &Call, errno: i32) -> io::Result<()> {
        self.answer(call, 0, -errno, 0)
    }

    /// Makes the call return `value` without performing it: another process has performed it.
    ///
    /// # Errors
    /// The kernel refuses the answer.
    pub fn done(&self, call: &Call, value: i64) -> io::Result<()> {
        self.answer(call, value, 0, 0)
    }

    fn answer(&self, call: &Call, val: i64, error: i32, flags: u32) -> io::Result<()> {
        let mut answer = seccomp_notif_resp { id: call.id, val, error, flags };
        // SAFETY: the kernel reads a `seccomp_notif_resp`.
        match unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer)
        } {
            0 => Ok(()),
            _ => gone(io::Error::last_os_error()),
        }
    }
}

/// Ignores the error of a call whose thread was killed: it needs no answer.
fn gone(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}

impl Call {
    /// The name of the calling thread.
    pub fn thread_name(&self) -> String {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.thread));
        name.map(|name| name.trim_end().to_owned()).unwrap_or_default()
    }

    /// The target of the program's descriptor `number`, as in `/proc/PID/fd`.
    pub fn descriptor(&self, number: u64) -> String {
        let link = std::fs::read_link(format!("/proc/{}/fd/{}", self.thread, number as u32));
        link.map(|link| link.display().to_string()).unwrap_or_default()
    }

    /// The path to which an argument points.
    pub fn path(&self, argument: usize) -> Option<String> {
        let mut bytes = Vec::new();
        let address = self.arguments[argument];
        // Read aligned pieces of 256 bytes, which do not cross into the next page: that page may
        // not be mapped.
        while bytes.len() < PATH_MAX {
            let at = address + bytes.len() as u64;
            let mut piece = vec![0; 256 - (at % 256) as usize];
            self.memory().ok()?.read_exact_at(&mut piece, at).ok()?;
            match piece.iter().position(|byte| *byte == 0) {
                Some(end) => {
                    bytes.extend_from_slice(&piece[..end]);
                    return String::from_utf8(bytes).ok();
                }
                None => bytes.extend_from_slice(&piece),
            }
        }
        None
    }

    /// The memory of the program.
    pub(crate) fn memory(&self) -> io::Result<File> {
        File::options().read(true).write(true).open(format!("/proc/{}/mem", self.thread))
    }
}
