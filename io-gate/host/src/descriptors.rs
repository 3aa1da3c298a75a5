//! Every descriptor that this crate opens or is handed: nothing else in it may.
//!
//! Whoever wants to know what a guest can reach through its devices reads this file (P5): one
//! function for each kind, with what it is for. `cargo xtask gate` checks that no other module
//! opens one. None is opened by a thread that runs device code: backends are opened by the thread
//! that sets the machine up, and opened again (a peer that went away) by their lane.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::own_files::MAX_SOCKET_PATH;
use crate::ownership::{self, Opened, Sign};

/// Handed to the process by whoever started it: keys for a console on stdio.
pub(crate) const CONSOLE_INPUT: RawFd = libc::STDIN_FILENO;
/// Handed to the process by whoever started it: what a console on stdio shows.
pub(crate) const CONSOLE_OUTPUT: RawFd = libc::STDOUT_FILENO;

/// What a socket is asked to buffer; the system grants less if it must.
const SEND_BUFFER: libc::c_int = 1024 * 1024;

/// A disk image or block device, for its lane to read and write. Never made here: a disk that is
/// not there is a mistake.
pub(crate) fn disk(
    path: &Path,
    read_only: bool,
    write_through: bool,
    direct: bool,
) -> io::Result<File> {
    // A FIFO is looked at, and not waited for; files and block devices know no such flag.
    let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    if write_through {
        flags |= libc::O_DSYNC;
    }
    if direct {
        flags |= libc::O_DIRECT;
    }
    OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)
}

/// A block device, opened to see whether anybody on this host has it for himself (open(2), `O_EXCL`). For reading: one that was
/// open for writing is looked at anew by udev when it is closed.
pub(crate) fn device_for_this_process_alone(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(path)
}

/// The node that the kernel itself has made for a block device (devtmpfs), which all processes of a host find under one inode: to
/// be locked besides another node of the same device. None: it has no such node here.
pub(crate) fn kernels_node(device: &File, read_only: bool) -> Option<File> {
    let number = device.metadata().ok()?.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let said = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    let name = said.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let node = disk(&Path::new("/dev").join(name), read_only, false, false).ok()?;
    let found = node.metadata().ok()?;
    (found.file_type().is_block_device() && found.rdev() == number).then_some(node)
}

/// `LOOP_GET_STATUS64` (loop(4)) and its `loop_info64`, which begins with the device and the inode of the file.
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_INFO_WORDS: usize = 29;
/// A loop device may be of a file on another one, and so on.
const LOOPS: usize = 8;

/// The file behind a loop device, to be locked; none: it is no loop device.
pub(crate) fn loop_backing(device: &File, read_only: bool) -> io::Result<Option<File>> {
    let mut found: Option<File> = None;
    for _ in 0..LOOPS {
        match one_loop(found.as_ref().unwrap_or(device), read_only)? {
            Some(file) => found = Some(file),
            None => return Ok(found),
        }
    }
    Err(io::Error::other("expected no more than eight loop devices, one on the other"))
}

fn one_loop(device: &File, read_only: bool) -> io::Result<Option<File>> {
    let metadata = device.metadata()?;
    if !metadata.file_type().is_block_device() {
        return Ok(None);
    }
    let mut info = [0_u64; LOOP_INFO_WORDS];
    // SAFETY: the kernel writes a `loop_info64`, which is as long as `info`, or nothing.
    let told = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
    if told != 0 {
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
    // Seen in another mount namespace, or replaced meanwhile: another file of the same name.
    if same {
        Ok(Some(file))
    } else {
        Err(io::Error::other(format!("{}: another file", path.display())))
    }
}

/// Blocks of storage that says nothing of itself.
const UNKNOWN_BLOCK: u64 = 4096;

/// What a file that is open for direct access is read and written in: as its file system says (STATX_DIOALIGN, Linux 6.1), or the
/// sectors of the device, or of that under the file system, or else the largest that there are.
pub(crate) fn direct_block(file: &File) -> io::Result<u64> {
    // SAFETY: all-zero bytes are a valid `statx`: it is plain numbers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string, and `found` a valid `statx` to write to.
    let result = unsafe {
        let (fd, path) = (file.as_raw_fd(), c"".as_ptr());
        libc::statx(fd, path, libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut found)
    };
    if result == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0 {
        return match found.stx_dio_offset_align {
            0 => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            block => Ok(u64::from(block.max(found.stx_dio_mem_align))),
        };
    }
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        let mut sector: libc::c_int = 0;
        // SAFETY: the request writes an `int`, and `sector` is one.
        return match unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut sector) } {
            0 => Ok(u64::from(sector.cast_unsigned())),
            _ => Err(io::Error::last_os_error()),
        };
    }
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    // A partition has what its disk has.
    let places = ["queue", "../queue"]
        .map(|at| format!("/sys/dev/block/{major}:{minor}/{at}/logical_block_size"));
    let sector = places.iter().find_map(|path| std::fs::read_to_string(path).ok());
    Ok(sector.and_then(|text| text.trim().parse().ok()).unwrap_or(UNKNOWN_BLOCK))
}

/// The record of who may write to a disk, beside it; made here where there is none yet.
pub(crate) fn fence_record(path: &Path) -> io::Result<File> {
    for_the_owner().create(true).truncate(false).open(path)
}

/// The same, to see what it says: nothing is made, nothing written.
pub(crate) fn fence_record_to_read(path: &Path) -> io::Result<File> {
    // A FIFO is not waited for.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Makes a new name in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// What a console on a file shows is added to it: it may hold what nobody wants to lose. Nobody is waited for: a terminal
/// that takes nothing does not hold up whoever writes, and a FIFO is opened for both directions, so that it is there before its
/// reader is.
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

/// The same file, to see what it holds before something is added to it.
pub(crate) fn console_file_to_look_at(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Another description of an open pipe, FIFO or terminal, for this process alone: it can be made non-blocking without
/// surprising others (the shell) that share the first. None of what has no such thing, or may not be opened.
pub(crate) fn own_description(fd: RawFd, write: bool) -> Option<File> {
    let path = format!("/proc/self/fd/{fd}");
    let kind = std::fs::metadata(&path).ok()?.file_type();
    if !kind.is_fifo() && !kind.is_char_device() {
        return None;
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(!write).write(write).custom_flags(flags).open(path).ok()
}

/// What an open descriptor is of.
pub(crate) fn kind_of(fd: RawFd) -> Option<std::fs::FileType> {
    Some(std::fs::metadata(format!("/proc/self/fd/{fd}")).ok()?.file_type())
}

/// Whether the network namespace has an interface of that name (netdevice(7)).
pub(crate) fn interface_exists(name: &str) -> bool {
    // SAFETY: all-zero bytes are a valid `ifreq`: it is plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return false;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let Ok(socket) = unix_socket(libc::SOCK_DGRAM) else { return false };
    // SAFETY: `request` is a valid `ifreq` for the duration of the call.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) == 0 }
}

/// Guest memory that other processes may map: every store of the guest's is a write to it. Nobody
/// but the owner may look into a guest.
pub(crate) fn memory_file(path: &Path, sign: &Sign) -> io::Result<Opened> {
    ownership::open_or_make(path, &for_the_owner(), sign)
}

/// Nobody else reads it, and nobody waits if it turns out to be something else.
fn for_the_owner() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

/// The device by which a tap interface is attached to; it reaches nothing before that.
pub(crate) fn tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// A stream to the peer of a network, which need not accept it at once. Called again by the lane
/// whenever the peer went away.
pub(crate) fn stream(peer: &Path) -> io::Result<UnixStream> {
    let socket = unix_socket(libc::SOCK_STREAM)?;
    connect(&socket, peer)?;
    Ok(UnixStream::from(socket))
}

/// A datagram socket of a network at its own address. It is connected to nobody: see [`Address`].
pub(crate) fn datagrams(local: &Path) -> io::Result<OwnedFd> {
    let socket = unix_socket(libc::SOCK_DGRAM)?;
    let address = Address::of(local)?;
    // SAFETY: the address is valid and of this length for the duration of the call.
    check(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address.name).cast(), address.len)
    })?;
    Ok(socket)
}

/// A counter by which threads of this process wake each other. It reaches nobody else.
pub(crate) fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// The set of descriptors whose input is waited for.
pub(crate) fn epoll() -> io::Result<Epoll> {
    Epoll::new()
}

/// A timer: when to try a connection again.
pub(crate) fn timer() -> io::Result<TimerFd> {
    TimerFd::new().map_err(io::Error::from)
}

/// A Unix socket that never blocks.
fn unix_socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    check(fd)?;
    // SAFETY: the system has just given us this descriptor; nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_send_buffer(&socket, SEND_BUFFER);
    Ok(socket)
}

fn connect(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let address = Address::of(path)?;
    // SAFETY: the address is valid and of this length for the duration of the call.
    check(unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const address.name).cast(), address.len)
    })
}

/// A larger buffer only makes it less likely that frames have to wait, so failing is no error.
fn set_send_buffer(socket: &OwnedFd, bytes: libc::c_int) {
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

/// The name of a Unix socket, as system calls take it. A datagram that is sent to it goes to whoever has that name then.
pub(crate) struct Address {
    pub(crate) name: libc::sockaddr_un,
    pub(crate) len: libc::socklen_t,
}

impl Address {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() > MAX_SOCKET_PATH || bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket path"));
        }
        // SAFETY: all-zero bytes are a valid `sockaddr_un`: it is plain numbers.
        let mut name: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        name.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in name.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        Ok(Self { name, len: size_of::<libc::sockaddr_un>() as libc::socklen_t })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
