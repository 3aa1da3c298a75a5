//! Write protection by userfaultfd (Linux, `ioctl_userfaultfd(2)`): a thread that writes to a
//! protected page blocks until another thread has made the page writable.
#![allow(missing_docs)] // the macros that name requests write no docs

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;

use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::PAGE;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

const UFFDIO: u32 = 0xaa;
ioctl_iowr_nr!(UFFDIO_API, UFFDIO, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, UFFDIO, 0x00, Register);
ioctl_iowr_nr!(UFFDIO_WRITEPROTECT, UFFDIO, 0x06, WriteProtect);

const API: u64 = 0xaa;
const FEATURE_WP: u64 = 1;
const REGISTER_WP: u64 = 2;
const PROTECT: u64 = 1;
const IOCTL_WRITEPROTECT: u64 = 1 << 6;
const EVENT_PAGEFAULT: u8 = 0x12;

/// Memory in which writes can be held.
pub(crate) struct Uffd(File);

impl Uffd {
    /// Registers `len` bytes at `start`, all mapped and touched.
    pub(crate) fn over(start: usize, len: usize) -> io::Result<Self> {
        let explain = |what: &'static str| {
            move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"))
        };
        // SAFETY: the call has no pointers.
        let fd =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if fd < 0 {
            return Err(explain("userfaultfd")(io::Error::last_os_error()));
        }
        // SAFETY: a new descriptor that nothing else owns.
        let uffd = Self(unsafe { File::from_raw_fd(fd as i32) });
        let mut api = Api { api: API, features: FEATURE_WP, ioctls: 0 };
        // SAFETY: the argument is of the request's type.
        check(unsafe { ioctl_with_mut_ref(&uffd.0, UFFDIO_API(), &mut api) })
            .map_err(explain("UFFDIO_API with write protection"))?;
        let (start, len) = (start as u64, len as u64);
        let mut register = Register { start, len, mode: REGISTER_WP, ioctls: 0 };
        // SAFETY: as above; from now on a write to the range may block, and no contents change.
        check(unsafe { ioctl_with_mut_ref(&uffd.0, UFFDIO_REGISTER(), &mut register) })
            .map_err(explain("UFFDIO_REGISTER with write protection"))?;
        if register.ioctls & IOCTL_WRITEPROTECT == 0 {
            return Err(io::Error::other("this kind of memory knows no UFFDIO_WRITEPROTECT"));
        }
        Ok(uffd)
    }

    /// Protects pages, or makes them writable again and wakes the blocked threads.
    pub(crate) fn set(&self, start: usize, len: usize, protect: bool) {
        let mode = if protect { PROTECT } else { 0 };
        let mut request = WriteProtect { start: start as u64, len: len as u64, mode };
        // SAFETY: the argument is of the request's type; the contents of memory do not change.
        check(unsafe { ioctl_with_mut_ref(&self.0, UFFDIO_WRITEPROTECT(), &mut request) }).unwrap();
    }

    /// The address of a page to which a thread waits to write, if there is one.
    pub(crate) fn waiting(&self) -> Option<usize> {
        let mut message = [0; 32];
        match (&self.0).read(&mut message) {
            Ok(len) => assert_eq!((len, message[0]), (32, EVENT_PAGEFAULT)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
            Err(e) => panic!("userfaultfd: {e}"),
        }
        let address = u64::from_ne_bytes(message[16..24].try_into().unwrap());
        Some(address as usize / PAGE * PAGE)
    }
}

fn check(ret: i32) -> io::Result<()> {
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
