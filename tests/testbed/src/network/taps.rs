//! The guest's network as a tap on each host. A bridge joins the guest's tap to a second tap, which
//! the harness has open.
#![expect(unsafe_code, reason = "no safe call goes to another network, or attaches to a tap")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;

use anyhow::{Context, Result};

use super::namespaces::{ip, run_ip};

/// The name of the guest's tap on both hosts.
pub const GUEST_TAP: &str = "vm0";
const OWN_TAP: &str = "switch0";
const BRIDGE: &str = "bridge0";

/// Creates the guest's network on a host, and returns the harness's end.
pub(super) fn make_network(namespace: &str) -> Result<File> {
    let bridge = ["type", "bridge", "forward_delay", "0", "mcast_snooping", "0"];
    ip(&[&["-n", namespace, "link", "add", BRIDGE][..], &bridge].concat())?;
    bring_up(namespace, BRIDGE, &[])?;
    make_tap(namespace, OWN_TAP)?;
    make_tap(namespace, GUEST_TAP)?;
    let path = format!("/run/netns/{namespace}");
    attach(path).with_context(|| format!("cannot attach to {OWN_TAP} in {namespace}"))
}

/// Creates the guest's tap, unless it exists.
pub(super) fn make_guest_tap(namespace: &str) -> Result<()> {
    if run_ip(&["-n", namespace, "link", "show", GUEST_TAP])?.status.success() {
        return Ok(());
    }
    make_tap(namespace, GUEST_TAP)
}

/// Deletes the guest's tap, even while a process has it open.
pub(super) fn delete_guest_tap(namespace: &str) -> Result<()> {
    ip(&["-n", namespace, "link", "delete", GUEST_TAP])
}

fn make_tap(namespace: &str, tap: &str) -> Result<()> {
    ip(&["-n", namespace, "tuntap", "add", "dev", tap, "mode", "tap"])?;
    bring_up(namespace, tap, &["master", BRIDGE])
}

/// Sets the device up without an IPv6 address, so that the host sends nothing on it. The first
/// command fails on a host without IPv6, which needs no such setting.
fn bring_up(namespace: &str, device: &str, more: &[&str]) -> Result<()> {
    run_ip(&["-n", namespace, "link", "set", device, "addrgenmode", "none"])?;
    ip(&[&["-n", namespace, "link", "set", device, "up"], more].concat())
}

/// Opens our tap in a thread, because entering the namespace affects the thread.
fn attach(namespace: String) -> io::Result<File> {
    let attached = thread::spawn(move || {
        let namespace = File::open(namespace)?;
        // SAFETY: a system call on our own descriptor, which moves this thread alone.
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
        let mut options = File::options();
        let tap = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let tap = tap.open("/dev/net/tun")?;
        // SAFETY: all zeroes are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(OWN_TAP.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the kernel reads and writes an `ifreq`, which lives longer than the call.
        check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        Ok(tap)
    });
    attached.join().unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
