//! Asks the kernel about a network interface in this thread's network namespace (rtnetlink(7)).
//!
//! `/sys/class/net` would not do: it shows the namespace in which it was mounted.

use std::io;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// Attributes of a link, of its kind, and of a tun or tap.
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const TYPE_OF_TAP: u8 = 2;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;
/// The scope of an address that is valid on its link only.
const RT_SCOPE_LINK: u8 = 253;
const HEADER: usize = 16;
/// Sizes in bytes of the fixed parts: `ifinfomsg` and `ifaddrmsg`.
const LINK_FIXED: usize = 16;
const ADDRESS_FIXED: usize = 8;

/// The default MTU of an Ethernet interface, in bytes.
const USUAL_MTU: u32 = 1500;

/// A network interface, as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its kind, as in `ip -details link`.
    pub kind: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has a carrier; a tap has one while a process has it open.
    pub in_use: bool,
    /// The index of the interface whose port it is, for instance a bridge, and whether that
    /// interface is up.
    pub master: Option<(u32, bool)>,
    /// Whether this host has an address on it, so that it may route through it.
    pub has_address: bool,
    /// The largest packet in bytes that the host sends to it.
    pub mtu: u32,
}

/// Looks up the interface of this name; `None`: there is none.
///
/// # Errors
/// When the kernel does not answer.
pub fn look(name: &str) -> io::Result<Option<Interface>> {
    let mut padded = name.as_bytes().to_vec();
    padded.push(0);
    let mut request = vec![0; LINK_FIXED];
    request.extend(((4 + padded.len()) as u16).to_ne_bytes());
    request.extend(IFLA_IFNAME.to_ne_bytes());
    request.extend(padded);
    request.resize(request.len().next_multiple_of(4), 0);
    let mut found = None;
    let asked = ask(RTM_GETLINK, NLM_F_REQUEST, &request, |kind, body| {
        if kind == RTM_NEWLINK {
            found = link(body);
        }
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        other => other?,
    }
    let Some((index, mut interface)) = found else { return Ok(None) };
    if let Some((master, up)) = &mut interface.master {
        *up = is_up(*master)?;
    }
    ask(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, &[0; ADDRESS_FIXED], |kind, body| {
        let (scope, of) = (body.get(3).copied(), u32_at(body, 4));
        if kind == RTM_NEWADDR && of == Some(index) && scope != Some(RT_SCOPE_LINK) {
            interface.has_address = true;
        }
    })?;
    Ok(Some(interface))
}

/// Whether the interface with this index is up; `false` if it no longer exists.
fn is_up(index: u32) -> io::Result<bool> {
    let mut request = vec![0; LINK_FIXED];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut up = false;
    let asked = ask(RTM_GETLINK, NLM_F_REQUEST, &request, |kind, body| {
        up = kind == RTM_NEWLINK && u32_at(body, 8).is_some_and(|flags| flags & IFF_UP != 0);
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        other => other.map(|()| up),
    }
}

/// Checks that a tap of this name exists or is to be created. Opening a missing tap would create
/// it, connected to no network.
///
/// # Errors
/// When it does not exist, or is not a tap; the error says what to do.
pub fn check_tap(name: &str, create: bool) -> Result<(), String> {
    match look(name) {
        Ok(None) if !create => Err(no_interface(name)),
        Ok(Some(found)) if found.kind != "tap" => Err(no_tap(name, &found.kind)),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("net tap={name}: cannot query the kernel for it: {error}")),
    }
}

/// The error text for an interface that does not exist.
#[must_use]
pub fn no_interface(name: &str) -> String {
    format!(
        "net tap={name}: no such interface in this network namespace. Create it (`ip tuntap add {name} mode tap`), or let \
         kemari do it: --net tap={name},create=on"
    )
}

/// The error text for an interface that is not a tap.
#[must_use]
pub fn no_tap(name: &str, kind: &str) -> String {
    format!(
        "net tap={name}: expected a tap, found {kind}: `ip tuntap add NAME mode tap` creates one that works"
    )
}

fn link(body: &[u8]) -> Option<(u32, Interface)> {
    let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
    let attributes = body.get(LINK_FIXED..)?;
    let info = attribute(attributes, IFLA_LINKINFO).unwrap_or_default();
    let kind = attribute(info, IFLA_INFO_KIND).unwrap_or_default();
    let kind = String::from_utf8_lossy(kind).trim_end_matches('\0').to_owned();
    let data = attribute(info, IFLA_INFO_DATA).unwrap_or_default();
    let tap = attribute(data, IFLA_TUN_TYPE).and_then(|bytes| bytes.first()) == Some(&TYPE_OF_TAP);
    let kind = match kind.as_str() {
        // Both have the kind `tun`. A multi-queue tap must be opened with another flag: without it,
        // TUNSETIFF fails with "Invalid argument".
        "tun" if tap && flag(data, IFLA_TUN_MULTI_QUEUE) => "a tap with multi_queue".to_owned(),
        "tun" if tap => "tap".to_owned(),
        "" => "an interface of the host's own".to_owned(),
        _ => kind,
    };
    let master = attribute(attributes, IFLA_MASTER).and_then(|bytes| u32_at(bytes, 0));
    let master = master.map(|index| (index, false));
    let (up, in_use) = (flags & IFF_UP != 0, flags & IFF_LOWER_UP != 0);
    let mtu = attribute(attributes, IFLA_MTU).and_then(|bytes| u32_at(bytes, 0));
    let mtu = mtu.unwrap_or(USUAL_MTU);
    Some((index, Interface { kind, up, in_use, master, has_address: false, mtu }))
}

fn flag(attributes: &[u8], wanted: u16) -> bool {
    attribute(attributes, wanted).and_then(|bytes| bytes.first()).is_some_and(|value| *value != 0)
}

/// The body of the first attribute of this kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        // The two upper bits are flags for the encoding of the content.
        let found = u16_at(attributes, 2)? & 0x3fff;
        let body = attributes.get(4..length)?;
        if found == kind {
            return Some(body);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Sends one request to the kernel; calls `each` with the kind and body of every message of the
/// answer.
fn ask(kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    // The protocol number of NETLINK_ROUTE is 0.
    let route = None;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, route)?;
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // The sequence number and the sender stay 0: this socket sends one request.
    message.extend([0; 8]);
    message.extend(body);
    send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (length, _) = match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let mut rest = &buffer[..length];
        while let Some((kind, body, after)) = next(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = u32_at(body, 0).unwrap_or_default() as i32;
                    return if code == 0 {
                        Ok(())
                    } else {
                        Err(io::Error::from_raw_os_error(-code))
                    };
                }
                _ => each(kind, body),
            }
            rest = after;
        }
        if flags & NLM_F_DUMP == 0 {
            return Ok(());
        }
    }
}

/// Splits off the next message: its kind, its body, and the remaining bytes.
fn next(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let body = bytes.get(HEADER..length)?;
    Some((u16_at(bytes, 4)?, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::process::Command;

    use super::*;

    fn ip(arguments: &str) {
        let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(done.success(), "ip {arguments}");
    }

    #[test]
    fn the_loopback_interface_is_there_and_no_tap() {
        let found = look("lo").unwrap().unwrap();
        assert!(found.kind != "tap" && found.master.is_none());
        assert_eq!(look("nosuch0").unwrap(), None);
    }

    #[test]
    fn a_tap_is_seen_as_it_is() {
        // Use a network namespace of this thread; the processes that it starts are in it too.
        // SAFETY: a system call that changes the network namespace of this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let error = io::Error::last_os_error();
            kemari_not_tested::not_tested(&format!(
                "this machine permits no network namespace: {error}"
            ));
            return;
        }
        assert_eq!(look("tap0").unwrap(), None);
        ip("tuntap add tap0 mode tap");
        let mut expected = Interface {
            kind: "tap".into(),
            up: false,
            in_use: false,
            master: None,
            has_address: false,
            mtu: 1500,
        };
        assert_eq!(look("tap0").unwrap().as_ref(), Some(&expected));
        ip("link set tap0 up");
        expected.up = true;
        assert_eq!(look("tap0").unwrap().as_ref(), Some(&expected));
        ip("addr add 10.77.0.1/24 dev tap0");
        expected.has_address = true;
        assert_eq!(look("tap0").unwrap().as_ref(), Some(&expected));
        ip("link set tap0 mtu 1400");
        expected.mtu = 1400;
        assert_eq!(look("tap0").unwrap().as_ref(), Some(&expected));
        ip("link add br0 type bridge");
        ip("link set tap0 master br0");
        let (bridge, up) = look("tap0").unwrap().unwrap().master.unwrap();
        assert!(!up, "the bridge was not set up yet");
        ip("link set br0 up");
        expected.master = Some((bridge, true));
        assert_eq!(look("tap0").unwrap().as_ref(), Some(&expected));
        ip("link set br0 down");
        assert_eq!(look("tap0").unwrap().unwrap().master, Some((bridge, false)));
        assert_eq!(look("br0").unwrap().unwrap().kind, "bridge");
        ip("tuntap add tun0 mode tun");
        assert_eq!(look("tun0").unwrap().unwrap().kind, "tun");
        ip("link del tap0");
        assert_eq!(look("tap0").unwrap(), None);
    }
}
