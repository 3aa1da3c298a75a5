//! Frames spread over several of the driver's buffers (virtio 1.2, 5.1.6.4).
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use common::net::{HEADER, NetMachine, RECEIVE, listen, stream_net, write_frame};
use common::{EVENT_IDX, QUEUE_SIZE, SLOT, VERSION_1};
use devices::NetConfig;
use io_gate::host::Term;
use io_gate_host::{Unfenced, VirtioSlot};
use vm_memory::{Bytes, GuestAddress};

const MRG_RXBUF: u64 = 1 << 15;

struct Merging {
    machine: NetMachine,
    peer: UnixStream,
    _files: (tempfile::TempDir, UnixListener),
}

fn merging(features: u64) -> Merging {
    let (dir, listener) = listen();
    let features = VERSION_1 | MRG_RXBUF | features;
    let mut machine = NetMachine::with(stream_net(&dir), Arc::new(Unfenced), features);
    machine.gate.run_alone(machine.authority.alone(Term(1)));
    let (peer, _) = listener.accept().unwrap();
    Merging { machine, peer, _files: (dir, listener) }
}

/// A frame in which each byte depends on its position.
fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

impl Merging {
    fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.machine.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    fn u16_at(&self, addr: u64) -> u16 {
        self.machine.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    /// The index of the buffer for which the device wants a notification (virtio 1.2, 2.7.10).
    fn avail_event(&self) -> u16 {
        self.u16_at(self.machine.receive.used_ring() + 4 + 8 * u64::from(QUEUE_SIZE))
    }

    /// Sets the used buffer after which the driver wants an interrupt.
    fn set_used_event(&self, index: u16) {
        let at = self.machine.receive.avail_ring() + 4 + 2 * u64::from(QUEUE_SIZE);
        self.machine.memory.write_obj(index, GuestAddress(at)).unwrap();
    }
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut net = merging(0);
    let rooms: Vec<u64> = (0..5).map(|_| net.machine.room(500)).collect();
    write_frame(&mut net.peer, &frame(1200));
    write_frame(&mut net.peer, &frame(60));
    assert!(net.machine.take_input());
    assert_eq!(net.machine.receive.used(), [(0, 500), (1, 500), (2, 212), (3, 72)]);
    let parts = [net.get(rooms[0], 500), net.get(rooms[1], 500), net.get(rooms[2], 212)].concat();
    assert_eq!(parts[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    assert_eq!(parts[HEADER..], frame(1200));
    assert_eq!(net.get(rooms[3], HEADER), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(net.get(rooms[4], 1), [0], "nobody has touched it");
}

/// The frame waits as a whole: the device does not touch the available buffers, and asks for a
/// notification of the next one. The frame survives a takeover.
#[test]
fn a_frame_waits_until_there_is_room_for_all_of_it() {
    let mut net = merging(EVENT_IDX);
    net.machine.room(500);
    net.machine.room(500);
    write_frame(&mut net.peer, &frame(1200));
    assert!(!net.machine.take_input());
    assert_eq!(net.machine.receive.used(), []);
    assert_eq!(net.avail_event(), 2, "the third buffer is asked for");
    write_frame(&mut net.peer, &frame(60));
    assert!(!common::is_readable(net.machine.gate.inputs_fd()), "no more is taken meanwhile");

    let saved = net.machine.slot.save();
    assert_eq!(saved.pending_input, [(0, [vec![0; HEADER], frame(1200)].concat())]);
    let config = NetConfig { mac: [2; 6], offloads: false, pairs: 1 };
    let device = Box::new(devices::Net::new(config));
    net.machine.slot = VirtioSlot::new(SLOT, device, net.machine.gate.clone());
    net.machine.slot.restore(&saved).unwrap();
    assert!(!net.machine.slot.retry_all().any());
    net.machine.room(500);
    assert!(net.machine.slot.kick(RECEIVE).used);
    assert_eq!(net.machine.receive.used(), [(0, 500), (1, 500), (2, 212)]);
    net.machine.room(500);
    let _ = net.machine.slot.kick(RECEIVE);
    if net.machine.receive.used().is_empty() {
        assert!(net.machine.take_input());
    }
}

/// If all of a driver's buffers together are too small for a frame, only that frame is dropped.
#[test]
fn a_frame_that_no_ring_holds_is_dropped() {
    let mut net = merging(0);
    for _ in 0..QUEUE_SIZE {
        net.machine.room(20);
    }
    write_frame(&mut net.peer, &frame(1000));
    write_frame(&mut net.peer, &frame(60));
    net.machine.take_input();
    assert_eq!(net.machine.receive.used(), [(0, 20), (1, 20), (2, 20), (3, 12)]);
}

/// Without the feature, a frame gets one buffer, whatever is available.
#[test]
fn a_driver_that_does_not_merge_is_not_merged_for() {
    let (dir, listener) = listen();
    let mut machine = NetMachine::alone(stream_net(&dir));
    let (mut peer, _) = listener.accept().unwrap();
    machine.room(500);
    machine.room(2000);
    write_frame(&mut peer, &frame(1200));
    write_frame(&mut peer, &frame(1200));
    machine.take_input();
    assert_eq!(machine.receive.used(), [(0, 0), (1, 1212)]);
}

/// Buffers that are returned together count separately for the driver's event index.
#[test]
fn one_interrupt_for_a_frame_in_several_buffers() {
    for (event, wanted) in [(0, true), (1, true), (2, true), (3, false)] {
        let mut net = merging(EVENT_IDX);
        net.set_used_event(event);
        for _ in 0..3 {
            net.machine.room(500);
        }
        write_frame(&mut net.peer, &frame(1200));
        assert_eq!(net.machine.take_input(), wanted, "used_event {event}");
        assert_eq!(net.machine.receive.used().len(), 3);
    }
}

/// An invalid buffer among valid ones is returned empty, and the frame goes into the others.
#[test]
fn a_bad_buffer_among_good_ones_loses_no_frame() {
    let mut net = merging(0);
    net.machine.room(500);
    net.machine.receive.add(&[], &[(1 << 40, 500)]);
    for _ in 0..3 {
        net.machine.room(500);
    }
    write_frame(&mut net.peer, &frame(1200));
    assert!(net.machine.take_input());
    assert_eq!(net.machine.receive.used(), [(0, 0), (1, 0), (2, 500), (3, 500), (4, 212)]);
}
