//! All descriptors that this crate opens or is given.
//!
//! This file shows what a guest can reach through its devices (P5): one function for each kind of
//! descriptor, with its purpose. No other module may open one, as `cargo xtask gate` checks. No
//! thread that runs device code opens one: the thread that sets up the machine opens backends, and
//! a lane opens its own again (after a peer has gone away).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, ioctl_blksszget, statx};
use rustix::net::addr::SocketAddrArg;
use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with,
};
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::own_files::MAX_SOCKET_PATH;
use crate::ownership::{self, Opened, Sign};

/// Inherited by the process: keys for a console on stdio.
pub(crate) const CONSOLE_INPUT: RawFd = libc::STDIN_FILENO;
/// Inherited by the process: output of a console on stdio.
pub(crate) const CONSOLE_OUTPUT: RawFd = libc::STDOUT_FILENO;

/// Requested size of a socket's send buffer. The system may grant less.
const SEND_BUFFER: usize = 1024 * 1024;

/// A disk image or block device, which its lane reads and writes. It is never created: a missing
/// disk is a mistake.
pub(crate) fn disk(
    path: &Path,
    read_only: bool,
    write_through: bool,
    direct: bool,
) -> io::Result<File> {
    // Do not wait on a FIFO. Files and block devices ignore the flag.
    let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    if write_through {
        flags |= libc::O_DSYNC;
    }
    if direct {
        flags |= libc::O_DIRECT;
    }
    OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)
}

/// A block device, opened to check that no other user on this host has it for itself (open(2),
/// `O_EXCL`). It is opened for reading only, since udev probes a device again after it was open for
/// writing.
pub(crate) fn device_for_this_process_alone(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(path)
}

/// The kernel's own node of a block device (devtmpfs). All processes of a host find it under one
/// inode, so it is locked in addition to another node of the same device. `None` if there is no
/// such node here.
pub(crate) fn kernels_node(device: &File, read_only: bool) -> Option<File> {
    let number = device.metadata().ok()?.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let said = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    let name = said.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let node = disk(&Path::new("/dev").join(name), read_only, false, false).ok()?;
    let found = node.metadata().ok()?;
    (found.file_type().is_block_device() && found.rdev() == number).then_some(node)
}

/// `LOOP_GET_STATUS64` (loop(4)), and the size of its `loop_info64` in 64-bit words. The first two
/// words are the device and the inode of the file.
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_INFO_WORDS: usize = 29;
/// The maximum nesting: a loop device may be on a file of another loop device.
const LOOPS: usize = 8;

/// The file behind a loop device, to be locked. `None` if it is not a loop device.
pub(crate) fn loop_backing(device: &File, read_only: bool) -> io::Result<Option<File>> {
    let mut found: Option<File> = None;
    for _ in 0..LOOPS {
        match one_loop(found.as_ref().unwrap_or(device), read_only)? {
            Some(file) => found = Some(file),
            None => return Ok(found),
        }
    }
    Err(io::Error::other("expected at most eight loop devices stacked on each other"))
}

fn one_loop(device: &File, read_only: bool) -> io::Result<Option<File>> {
    let metadata = device.metadata()?;
    if !metadata.file_type().is_block_device() {
        return Ok(None);
    }
    let mut info = [0_u64; LOOP_INFO_WORDS];
    // SAFETY: the kernel writes a `loop_info64`, which is as long as `info`, or nothing.
    let status = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
    if status != 0 {
        return Ok(None);
    }
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let place = std::fs::read(format!("/sys/dev/block/{major}:{minor}/loop/backing_file"))?;
    let path = Path::new(std::ffi::OsStr::from_bytes(place.trim_ascii_end()));
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let of = file.metadata()?;
    let same = (of.dev(), of.ino()) == (info[0], info[1]);
    // If they differ, the path leads to another file: the loop device's file is of another mount
    // namespace, or was replaced.
    if same {
        Ok(Some(file))
    } else {
        Err(io::Error::other(format!("{}: another file", path.display())))
    }
}

/// The block size in bytes for storage that does not report one: the largest that is known.
const UNKNOWN_BLOCK: u64 = 4096;

/// The block size in bytes of a file that is open for direct I/O. Its file system reports it
/// (STATX_DIOALIGN, Linux 6.1). If not, it is the sector size of the device, or of the file
/// system's device. If neither is known, it is [`UNKNOWN_BLOCK`].
pub(crate) fn direct_block(file: &File) -> io::Result<u64> {
    let found = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(found) = found
        && found.stx_mask & StatxFlags::DIOALIGN.bits() != 0
    {
        return match found.stx_dio_offset_align {
            0 => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            block => Ok(u64::from(block.max(found.stx_dio_mem_align))),
        };
    }
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        return Ok(u64::from(ioctl_blksszget(file)?));
    }
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    // A partition has the block size of its disk.
    let places = ["queue", "../queue"]
        .map(|at| format!("/sys/dev/block/{major}:{minor}/{at}/logical_block_size"));
    let sector = places.iter().find_map(|path| std::fs::read_to_string(path).ok());
    Ok(sector.and_then(|text| text.trim().parse().ok()).unwrap_or(UNKNOWN_BLOCK))
}

/// The fence record beside a disk. It is created here if there is none yet.
pub(crate) fn fence_record(path: &Path) -> io::Result<File> {
    for_the_owner().create(true).truncate(false).open(path)
}

/// The same record, for reading only. It is not created.
pub(crate) fn fence_record_to_read(path: &Path) -> io::Result<File> {
    // Do not wait on a FIFO.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// The sidecar of an own disk, to read and write past the page cache, so that a mark does not wait
/// for the image's cache. Each write is durable when it returns. Returns whether the file system
/// has direct I/O; if not, the page cache is used.
pub(crate) fn sidecar(path: &Path) -> io::Result<(File, bool)> {
    let open = |direct| {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW | libc::O_DSYNC | direct;
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
    };
    match open(libc::O_DIRECT) {
        // The error of a file system without O_DIRECT (open(2)).
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok((open(0)?, false)),
        opened => opened.map(|file| (file, true)),
    }
}

/// The same file, for reading only.
pub(crate) fn sidecar_to_read(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A new file: an own disk's image or its sidecar, before it has its name.
pub(crate) fn draft(path: &Path) -> io::Result<File> {
    for_the_owner().create_new(true).open(path)
}

/// Makes a new name in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The file of a console. Output is appended, since the file may contain data worth keeping.
/// Nothing blocks: a stalled terminal does not block its writer. A FIFO is opened in both
/// directions, so that opening does not wait for a reader.
pub(crate) fn console_file(path: &Path, sign: &Sign) -> io::Result<Opened> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    options.custom_flags(flags);
    match std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
        true => options.read(true).write(true),
        false => options.append(true),
    };
    ownership::open_or_make(path, &options, sign)
}

/// The same file, opened to check its content before output is appended to it.
pub(crate) fn console_file_to_look_at(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// A new file description of an open pipe, FIFO or terminal, for this process alone. Making it
/// non-blocking does not affect other processes (the shell) that share the first one. `None` for
/// other files, or if it cannot be opened.
pub(crate) fn own_description(fd: RawFd, write: bool) -> Option<File> {
    let path = format!("/proc/self/fd/{fd}");
    let kind = std::fs::metadata(&path).ok()?.file_type();
    if !kind.is_fifo() && !kind.is_char_device() {
        return None;
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(!write).write(write).custom_flags(flags).open(path).ok()
}

/// The file type of an open descriptor.
pub(crate) fn kind_of(fd: RawFd) -> Option<std::fs::FileType> {
    Some(std::fs::metadata(format!("/proc/self/fd/{fd}")).ok()?.file_type())
}

/// Whether the network namespace has an interface of that name (netdevice(7)).
pub(crate) fn interface_exists(name: &str) -> bool {
    unix_socket(SocketType::DGRAM).is_ok_and(|socket| name_to_index(socket, name).is_ok())
}

/// Guest memory that other processes may map: each store of the guest writes to this file. Only its
/// owner may read it.
pub(crate) fn memory_file(path: &Path, sign: &Sign) -> io::Result<Opened> {
    ownership::open_or_make(path, &for_the_owner(), sign)
}

/// Options for a file that only its owner may read. Opening never blocks, whatever kind of file it
/// is.
fn for_the_owner() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

/// The device through which a tap interface is attached. Before that, nothing leaves through it.
pub(crate) fn tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// A stream to a network's peer, which need not accept it at once. The lane calls this again when
/// the peer has gone.
pub(crate) fn stream(peer: &Path) -> io::Result<UnixStream> {
    let socket = unix_socket(SocketType::STREAM)?;
    connect(&socket, &Address::of(peer)?.0)?;
    Ok(UnixStream::from(socket))
}

/// A datagram socket of a network, bound to its own address. It is not connected: see [`Address`].
pub(crate) fn datagrams(local: &Path) -> io::Result<OwnedFd> {
    let socket = unix_socket(SocketType::DGRAM)?;
    bind(&socket, &Address::of(local)?.0)?;
    Ok(socket)
}

/// A counter by which threads of this process wake each other. Nothing outside the process sees it.
pub(crate) fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// A set of descriptors to wait for.
pub(crate) fn epoll() -> io::Result<Epoll> {
    Epoll::new()
}

/// A timer for retries.
pub(crate) fn timer() -> io::Result<TimerFd> {
    TimerFd::new().map_err(io::Error::from)
}

/// A Unix socket that never blocks.
fn unix_socket(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    // Ignore a failure: a larger buffer only makes waiting frames less likely.
    let _ = set_socket_send_buffer_size(&socket, SEND_BUFFER);
    Ok(socket)
}

/// The name of a Unix socket in the form for system calls. A datagram goes to the socket that has
/// this name when the datagram is sent.
pub(crate) struct Address(SocketAddrUnix);

impl Address {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() > MAX_SOCKET_PATH || bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket path"));
        }
        Ok(Self(SocketAddrUnix::new(path)?))
    }

    /// Calls `call` with the address and its length. The pointer is valid during the call.
    pub(crate) fn with_parts<T>(
        &self,
        call: impl FnOnce(*const libc::c_void, libc::socklen_t) -> T,
    ) -> T {
        // SAFETY: nothing is read here; the caller's own `unsafe` reads during the call only.
        unsafe { self.0.with_sockaddr(|name, len| call(name.cast(), len)) }
    }
}
