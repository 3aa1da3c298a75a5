//! A tap interface is deleted under a running machine. The machine warns once, and no thread is
//! woken again and again. The machine attaches again when an interface of that name exists again.
//! The test runs in its own network namespace, which requires the right to create one.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use common::tap::{HEADER, MAC, frame, own_network, packet_socket, request};
use common::{Driver, SLOT, guest_memory};
use devices::NetConfig;
use io_gate::Port;
use io_gate::host::{Term, new_gate};
use io_gate_host::backend::net::Net;
use io_gate_host::{Backend, GateHost, GateOptions, Unfenced, VirtioSlot};
use vm_memory::{Bytes, GuestAddress};

const NAME: &str = "gone0";
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;

/// Creates an interface that is up and stays without an attached process, as `ip tuntap add` does.
fn make_tap() {
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = request(NAME);
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the arguments are a valid `ifreq` and a number.
    unsafe {
        assert_eq!(libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw const request), 0);
        assert_eq!(libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST, 1), 0);
    }
}

/// `ip link del`: RTM_DELLINK (rtnetlink(7)) of the interface's number.
fn delete_tap(outside: &OwnedFd) {
    // SAFETY: system calls with pointers to valid bytes that live through them.
    unsafe {
        let mut request = request(NAME);
        assert_eq!(libc::ioctl(outside.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request), 0);
        let netlink = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        let netlink = OwnedFd::from_raw_fd(netlink);
        let mut message = Vec::new();
        message.extend(32_u32.to_ne_bytes());
        message.extend(libc::RTM_DELLINK.to_ne_bytes());
        message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
        message.extend([0; 8]);
        // struct ifinfomsg: family, type, index, flags, change.
        message.extend([0; 4]);
        message.extend(request.ifr_ifru.ifru_ifindex.to_ne_bytes());
        message.extend([0; 8]);
        let sent = libc::send(netlink.as_raw_fd(), message.as_ptr().cast(), message.len(), 0);
        assert_eq!(sent, 32);
        let mut answer = [0_u8; 64];
        let got = libc::recv(netlink.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0);
        assert!(got >= 20);
        assert_eq!(answer[16..20], [0; 4], "the kernel deletes it");
    }
}

struct Machine {
    memory: Arc<io_gate_host::GuestMemory>,
    gate: Arc<GateHost>,
    slot: VirtioSlot,
    transmit: Driver,
}

impl Machine {
    fn send(&mut self, fill: u8) {
        self.memory.write_slice(&[0; HEADER], GuestAddress(0x10_000)).unwrap();
        self.memory.write_slice(&frame(fill), GuestAddress(0x10_000 + HEADER as u64)).unwrap();
        self.transmit.add(&[(0x10_000, HEADER as u32 + 100)], &[]);
        let _ = self.slot.kick(1);
        let _ = common::complete_sent(&self.gate, &mut self.slot);
    }

    /// One pass of the device thread's loop.
    fn look(&mut self) {
        for (_, port) in self.gate.ready_inputs() {
            let _ = self.slot.intake(port);
        }
    }
}

#[test]
fn a_tap_that_is_deleted_is_taken_up_again() {
    if !own_network() {
        return;
    }
    make_tap();
    let net = Net::tap(NAME, MAC).unwrap();
    let outside = packet_socket(NAME);
    let memory = guest_memory();
    let (ledger, mut authority) = new_gate();
    let gate =
        GateHost::new(ledger, memory.clone(), Arc::new(Unfenced), GateOptions::default()).unwrap();
    gate.run_alone(authority.alone(Term(1)));
    gate.attach(SLOT, Port(0), Backend::Net(net)).unwrap();
    let device = devices::Net::new(NetConfig { mac: MAC, offloads: true, pairs: 1 });
    let mut slot = VirtioSlot::new(SLOT, Box::new(device), gate.clone());
    let mut receive = Driver::new(&memory, 0x1000);
    let transmit = Driver::new(&memory, 0x8000);
    receive.install(&mut slot, 0);
    transmit.install(&mut slot, 1);
    let offered = slot.device_features();
    slot.driver_ok(offered & !common::EVENT_IDX).unwrap();
    // Make room for the host's own frames (neighbour discovery) and for more, so that the device
    // always wants input.
    for n in 0..14 {
        receive.add(&[], &[(0x20_000 + n * 0x12_000, 70_000)]);
    }
    let mut machine = Machine { memory, gate, slot, transmit };
    let _ = machine.slot.kick(0);
    machine.send(1);
    assert_eq!(machine.gate.dropped_frames(), 0);

    delete_tap(&outside);
    // The descriptor becomes readable a few times (when the loss is found, and at timers), and not
    // all the time.
    let mut woken = 0;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while std::time::Instant::now() < until {
        woken += usize::from(common::is_readable(machine.gate.inputs_fd()));
        machine.look();
        std::thread::yield_now();
    }
    assert!(woken < 40, "the device thread is woken {woken} times in 2 s");
    machine.send(2);
    assert!(machine.gate.dropped_frames() >= 1, "a frame to nowhere is counted");
    // The machine must not create the interface itself, since that would hide the loss.
    // SAFETY: the name is a C string.
    assert_eq!(unsafe { libc::if_nametoindex(c"gone0".as_ptr()) }, 0);

    make_tap();
    let outside = packet_socket(NAME);
    let mut seen = [0_u8; 200];
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        machine.look();
        machine.send(3);
        // SAFETY: the pointer and the length describe `seen`.
        let len =
            unsafe { libc::recv(outside.as_raw_fd(), seen.as_mut_ptr().cast(), seen.len(), 0) };
        if len == 100 && seen[..100] == frame(3) {
            break;
        }
        assert!(std::time::Instant::now() < until, "the interface is not taken up again");
        std::thread::yield_now();
    }
}
