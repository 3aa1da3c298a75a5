//! A frame per datagram between two Unix sockets; and the socket calls that the stream shares.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use vmm_sys_util::epoll::EventSet;

use super::outbox::Outbox;
use super::{MAX_FRAME, NetError, VNET_HEADER};
use crate::guest_memory::Gather;
use crate::inputs::{Inputs, Role, Token, Watch};

/// The longest path of a Unix socket: its address has 108 bytes with the final zero.
pub(super) const MAX_PATH: usize = 107;
/// What the socket is asked to buffer; the system grants less if it must.
const SEND_BUFFER: libc::c_int = 1024 * 1024;

/// The backend.
pub(crate) struct Dgram {
    // Before the socket, so that it is dropped first.
    watch: Option<Watch>,
    socket: OwnedFd,
    local: PathBuf,
    peer: PathBuf,
    connected: bool,
    outbox: Outbox,
    input_wanted: bool,
}

impl Dgram {
    pub(crate) fn open(local: &Path, peer: &Path) -> Result<Self, NetError> {
        for path in [local, peer] {
            if path.as_os_str().len() > MAX_PATH {
                return Err(NetError::Path { path: path.to_owned() });
            }
        }
        let failed = |what, error| NetError::Bind { local: local.to_owned(), what, error };
        // A socket that a killed machine has left behind; anything else is not ours to remove.
        if std::fs::symlink_metadata(local).is_ok_and(|found| found.file_type().is_socket()) {
            std::fs::remove_file(local).map_err(|error| failed("cannot remove it", error))?;
        }
        let socket = socket(libc::SOCK_DGRAM)?;
        bind(&socket, local).map_err(|error| failed("cannot bind it", error))?;
        set_send_buffer(&socket, SEND_BUFFER);
        Ok(Self {
            watch: None,
            socket,
            local: local.to_owned(),
            peer: peer.to_owned(),
            connected: false,
            outbox: Outbox::default(),
            input_wanted: true,
        })
    }

    pub(crate) fn attach(&mut self, inputs: &Inputs, token: Token) -> io::Result<()> {
        self.watch = Some(inputs.watch(self.socket.as_raw_fd(), token));
        self.update_watch();
        Ok(())
    }

    pub(crate) fn send(&mut self, frame: &Gather<'_>) {
        if !self.outbox.is_empty() {
            self.queue(frame);
            return;
        }
        match self.send_now(frame) {
            Ok(true) => {}
            Ok(false) => self.queue(frame),
            Err(_) => self.outbox.count_drop(),
        }
    }

    /// Whether it has left; an error when the peer is away.
    fn send_now(&mut self, frame: &Gather<'_>) -> io::Result<bool> {
        if !self.connected {
            connect(&self.socket, &self.peer)?;
            self.connected = true;
        }
        match send_message(self.socket.as_raw_fd(), frame) {
            Ok(sent) => Ok(sent.is_some()),
            Err(error) => {
                self.connected = false;
                self.outbox.clear();
                Err(error)
            }
        }
    }

    fn queue(&mut self, frame: &Gather<'_>) {
        if self.outbox.has_room(frame.len()) {
            self.outbox.push(frame.to_vec(usize::MAX), 0);
            self.update_watch();
        }
    }

    pub(crate) fn receive(&mut self, into: &mut Vec<u8>) -> bool {
        into.clear();
        into.resize(VNET_HEADER + MAX_FRAME, 0);
        match receive_message(self.socket.as_raw_fd(), &mut into[VNET_HEADER..]) {
            Ok(Some(len)) if len > 0 => {
                into.truncate(VNET_HEADER + len);
                true
            }
            // An empty datagram is no frame; an error (the peer is gone) is no input either.
            _ => {
                into.clear();
                false
            }
        }
    }

    pub(crate) fn handle(&mut self, _role: Role, events: EventSet) -> bool {
        if events.contains(EventSet::OUT) {
            while let Some(front) = self.outbox.front() {
                match send_message(self.socket.as_raw_fd(), &Gather::of_slice(front)) {
                    Ok(Some(_)) => self.outbox.pop(),
                    Ok(None) => break,
                    Err(_) => {
                        self.connected = false;
                        self.outbox.clear();
                    }
                }
            }
            self.update_watch();
        }
        events.contains(EventSet::IN)
    }

    pub(crate) fn want_input(&mut self, wanted: bool) {
        self.input_wanted = wanted;
        self.update_watch();
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.outbox.dropped()
    }

    fn update_watch(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, self.input_wanted);
        wanted.set(EventSet::OUT, !self.outbox.is_empty());
        if let Err(error) = watch.want(wanted) {
            log::error!("net dgram={}: epoll_ctl: {error}", self.local.display());
        }
    }
}

impl Drop for Dgram {
    fn drop(&mut self) {
        // The name is of no use to anyone without the socket; if it is gone already, so much the
        // better.
        let _ = std::fs::remove_file(&self.local);
    }
}

impl std::fmt::Debug for Dgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dgram").field("local", &self.local).finish_non_exhaustive()
    }
}

/// A Unix socket that never blocks.
pub(super) fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let (address, len) = address(path)?;
    // SAFETY: `address` is a valid socket address of `len` bytes for the duration of the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })
}

pub(super) fn connect(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let (address, len) = address(path)?;
    // SAFETY: `address` is a valid socket address of `len` bytes for the duration of the call.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })
}

/// A larger buffer only makes it less likely that frames have to wait, so failing is no error.
pub(super) fn set_send_buffer(socket: &OwnedFd, bytes: libc::c_int) {
    // SAFETY: the pointer and the length describe `bytes`, which lives through the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH || bytes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket path"));
    }
    // SAFETY: all-zero bytes are a valid `sockaddr_un`: it is plain numbers.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

/// Sends what the socket takes now; none if it takes nothing.
pub(super) fn send_message(fd: RawFd, bytes: &Gather<'_>) -> io::Result<Option<usize>> {
    let copy;
    let mut whole;
    let bytes = if bytes.pieces().len() <= libc::UIO_MAXIOV as usize {
        bytes
    } else {
        copy = bytes.to_vec(usize::MAX);
        whole = Gather::of_slice(&copy);
        &mut whole
    };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = bytes.pieces().as_ptr().cast_mut();
    message.msg_iovlen = bytes.pieces().len() as _;
    loop {
        // SAFETY: the message points to pieces that are valid for reads while `bytes` borrows
        // them; sendmsg does not write to them.
        let sent = unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        if let Some(result) = outcome(sent) {
            return result;
        }
    }
}

/// Receives what the socket has now; none if it has nothing.
pub(super) fn receive_message(fd: RawFd, into: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: the pointer and the length describe `into`.
        let got =
            unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
        if let Some(result) = outcome(got) {
            return result;
        }
    }
}

/// What a call has given; none if it is to be made again.
pub(super) fn outcome(result: libc::ssize_t) -> Option<io::Result<Option<usize>>> {
    if let Ok(count) = usize::try_from(result) {
        return Some(Ok(Some(count)));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINTR) => None,
        Some(libc::EAGAIN | libc::ENOBUFS) => Some(Ok(None)),
        _ => Some(Err(error)),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
