//! A tap interface in the test's own network namespace, and a socket that receives its frames.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub const HEADER: usize = 12;
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 9, 9, 9];
/// An Ethernet type that is free for local experiments.
const EXPERIMENT: u16 = 0x88b5;

/// Gives this thread its own network namespace. Returns `false` if the test must be skipped.
pub fn own_network() -> bool {
    // SAFETY: a system call without pointers; it changes this thread only.
    let permitted = unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 };
    if !permitted {
        kemari_not_tested::not_tested("this machine permits no network namespace");
    }
    permitted
}

pub fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// A socket that receives every frame of an interface. Sets the interface up first.
pub fn packet_socket(name: &str) -> OwnedFd {
    // SAFETY: system calls with pointers to valid structures that live through them.
    unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
        let protocol = libc::c_int::from(EXPERIMENT.to_be());
        let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, kind, protocol));
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        assert_eq!(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request), 0);
        assert_eq!(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request), 0);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = EXPERIMENT.to_be();
        address.sll_ifindex = request.ifr_ifru.ifru_ifindex;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        assert_eq!(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len), 0);
        socket
    }
}

pub fn frame(fill: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend(EXPERIMENT.to_be_bytes());
    frame.resize(100, fill);
    frame
}
