//! A tap interface with virtio-net headers, so that the host's kernel does checksums and
//! segmentation for the guest.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::EventSet;

use super::socket::{append, outcome};
use super::{MAX_FRAME, NetError, VNET_HEADER};
use crate::descriptors;
use crate::guest_memory::Gather;
use crate::inputs::{Inputs, Token, Watch};

/// Guest feature bits (virtio 1.2, 5.1.3) and the tap offload that each allows.
const OFFLOADS: [(u32, libc::c_uint); 4] =
    [(1, libc::TUN_F_CSUM), (7, libc::TUN_F_TSO4), (8, libc::TUN_F_TSO6), (9, libc::TUN_F_TSO_ECN)];

/// The backend.
pub(crate) struct Tap {
    // Before the file, so that it is dropped first.
    watch: Option<Watch>,
    file: File,
    name: String,
    dropped: u64,
    input_wanted: bool,
}

impl Tap {
    pub(crate) fn open(name: &str) -> Result<Self, NetError> {
        let failed = |what, error: io::Error| NetError::Tap {
            name: name.to_owned(),
            what,
            hint: hint(&error),
            error,
        };
        let file = descriptors::tun().map_err(|error| failed("cannot open /dev/net/tun", error))?;
        let mut request = interface(name)
            .ok_or_else(|| failed("bad interface name", io::ErrorKind::InvalidInput.into()))?;
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: `request` is a valid `ifreq` for the duration of the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) })
            .map_err(|error| failed("cannot attach to it", error))?;
        let header = VNET_HEADER as libc::c_int;
        // SAFETY: the argument points to an `int` that lives through the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })
            .map_err(|error| failed("cannot set the length of its headers", error))?;
        let mut tap =
            Self { watch: None, file, name: name.to_owned(), dropped: 0, input_wanted: true };
        tap.set_offloads(0);
        Ok(tap)
    }

    pub(crate) fn attach(&mut self, inputs: &Inputs, token: Token) -> io::Result<()> {
        let mut watch = inputs.watch(self.file.as_raw_fd(), token);
        watch.want(EventSet::IN)?;
        self.watch = Some(watch);
        Ok(())
    }

    /// Lets the host's kernel hand over what the guest's driver has said it can take.
    pub(crate) fn set_offloads(&mut self, features: u64) {
        let offloads = OFFLOADS
            .into_iter()
            .filter(|(bit, _)| features & (1 << bit) != 0)
            .fold(0, |all, (_, offload)| all | offload);
        // SAFETY: a system call whose argument is a number.
        let result = unsafe {
            libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
        };
        if let Err(error) = check(result) {
            log::warn!("net tap={}: offloads {offloads:#x}: {error}", self.name);
        }
    }

    pub(crate) fn send(&mut self, frame: &Gather<'_>) {
        // A frame is one system call, or it would become two frames.
        let sent = if frame.pieces().len() <= libc::UIO_MAXIOV as usize {
            self.write(frame)
        } else {
            self.write(&Gather::of_slice(&frame.to_vec(usize::MAX)))
        };
        if !matches!(sent, Ok(Some(_))) {
            self.dropped += 1;
        }
    }

    fn write(&self, frame: &Gather<'_>) -> io::Result<Option<usize>> {
        loop {
            // SAFETY: the pieces are valid for reads while `frame` borrows them.
            let sent = unsafe {
                libc::writev(
                    self.file.as_raw_fd(),
                    frame.pieces().as_ptr(),
                    frame.pieces().len() as libc::c_int,
                )
            };
            if let Some(result) = outcome(sent) {
                return result;
            }
        }
    }

    pub(crate) fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        into.clear();
        match append(self.file.as_raw_fd(), into, VNET_HEADER + MAX_FRAME, None) {
            Ok(Some(len)) if len > VNET_HEADER => true,
            // Nothing there, or the interface is down.
            _ => {
                into.clear();
                false
            }
        }
    }

    pub(crate) fn want_input(&mut self, wanted: bool) {
        if std::mem::replace(&mut self.input_wanted, wanted) == wanted {
            return;
        }
        let events = if wanted { EventSet::IN } else { EventSet::empty() };
        if let Some(watch) = &mut self.watch
            && let Err(error) = watch.want(events)
        {
            log::error!("net tap={}: epoll_ctl: {error}", self.name);
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("name", &self.name).finish_non_exhaustive()
    }
}

fn interface(name: &str) -> Option<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0']) {
        return None;
    }
    // SAFETY: all-zero bytes are a valid `ifreq`: it is plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(request)
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "make it for this user (`ip tuntap add NAME mode tap user $USER vnet_hdr`), or use stream= in --net"
        }
        Some(libc::EBUSY) => "another process uses it: stop that one, or choose another interface",
        Some(libc::ENOENT | libc::ENODEV) => {
            "load the kernel module `tun`, or use stream= in --net"
        }
        _ => "check the interface in --net",
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
