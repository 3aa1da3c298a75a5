//! A tap interface in the test's own network namespace. Without the right to create one, the test
//! reports that and ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use common::tap::{HEADER, MAC, frame, own_network, packet_socket};
use common::{Driver, SLOT, guest_memory, wait_readable};
use devices::NetConfig;
use io_gate::Port;
use io_gate::host::{Term, new_gate};
use io_gate_host::backend::net::Net;
use io_gate_host::{Backend, GateHost, GateOptions, Unfenced, VirtioSlot};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn frames_cross_a_tap_interface_both_ways() {
    if !own_network() {
        return;
    }
    let net = Net::tap("gatetest0", MAC).unwrap();
    assert!(net.has_offloads());
    let outside = packet_socket("gatetest0");
    let memory = guest_memory();
    let (ledger, mut authority) = new_gate();
    let gate =
        GateHost::new(ledger, memory.clone(), Arc::new(Unfenced), GateOptions::default()).unwrap();
    gate.run_alone(authority.alone(Term(1)));
    gate.attach(SLOT, Port(0), Backend::Net(net)).unwrap();
    let device = devices::Net::new(NetConfig { mac: MAC, offloads: true, pairs: 1 });
    let mut slot = VirtioSlot::new(SLOT, Box::new(device), gate.clone());
    let mut receive = Driver::new(&memory, 0x1000);
    let mut transmit = Driver::new(&memory, 0x8000);
    receive.install(&mut slot, 0);
    transmit.install(&mut slot, 1);
    let offered = slot.device_features();
    slot.driver_ok(offered & !common::EVENT_IDX).unwrap();

    memory.write_slice(&[0; HEADER], GuestAddress(0x10_000)).unwrap();
    memory.write_slice(&frame(3), GuestAddress(0x10_000 + HEADER as u64)).unwrap();
    transmit.add(&[(0x10_000, HEADER as u32 + 100)], &[]);
    let raised = slot.kick(1);
    assert!(raised.or(common::complete_sent(&gate, &mut slot)).used);
    assert_eq!(gate.dropped_frames(), 0);
    wait_readable(outside.as_raw_fd());
    let mut seen = [0_u8; 200];
    // SAFETY: the pointer and the length describe `seen`.
    let len = unsafe { libc::recv(outside.as_raw_fd(), seen.as_mut_ptr().cast(), seen.len(), 0) };
    assert!(seen[..usize::try_from(len).unwrap()] == frame(3));

    let sent = frame(4);
    // SAFETY: the pointer and the length describe `sent`.
    let len = unsafe { libc::send(outside.as_raw_fd(), sent.as_ptr().cast(), sent.len(), 0) };
    assert_eq!(len, 100);
    // The host's own frames (neighbour discovery) may come first.
    let mut arrived = false;
    for _ in 0..20 {
        receive.add(&[], &[(0x20_000, 70_000)]);
        if receive_one(&gate, &mut slot, &mut receive) {
            let mut got = vec![0; 100];
            memory.read_slice(&mut got, GuestAddress(0x20_000 + HEADER as u64)).unwrap();
            if got == sent {
                arrived = true;
                break;
            }
        }
    }
    assert!(arrived);
}

fn receive_one(gate: &GateHost, slot: &mut VirtioSlot, driver: &mut Driver) -> bool {
    let _ = slot.kick(0);
    if driver.used().is_empty() {
        wait_readable(gate.inputs_fd());
        for (_, port) in gate.ready_inputs() {
            let _ = slot.intake(port);
        }
        return !driver.used().is_empty();
    }
    true
}
