//! A network interface with several pairs of queues (virtio 1.2, 5.1.6.5.5).
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use common::net::{HEADER, MAC, listen, read_frame, stream_net, write_frame};
use common::{Driver, SLOT, VERSION_1, complete, guest_memory, wait_readable};
use devices::NetConfig;
use io_gate::Port;
use io_gate::host::{CommitAuthority, Term, new_gate};
use io_gate_host::{Backend, GateHost, GateOptions, GuestMemory, Unfenced, VirtioSlot};
use vm_memory::{Bytes, GuestAddress};

const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;
const PAIRS: u16 = 2;
const CONTROL: u16 = 2 * PAIRS;
const COMMAND: u64 = 0x80_000;
const ROOMS: u64 = 0x100_000;
const FRAME: u64 = 0x90_000;

struct Pairs {
    memory: Arc<GuestMemory>,
    gate: Arc<GateHost>,
    authority: CommitAuthority,
    slot: VirtioSlot,
    queues: Vec<Driver>,
    peer: UnixStream,
    rooms: u64,
    files: (tempfile::TempDir, UnixListener),
}

fn slot(gate: &Arc<GateHost>) -> VirtioSlot {
    let config = NetConfig { mac: MAC, offloads: false, pairs: PAIRS };
    VirtioSlot::new(SLOT, Box::new(devices::Net::new(config)), gate.clone())
}

impl Pairs {
    fn new() -> Self {
        let memory = guest_memory();
        let (ledger, authority) = new_gate();
        let gate =
            GateHost::new(ledger, memory.clone(), Arc::new(Unfenced), GateOptions::default())
                .unwrap();
        let files = listen();
        gate.attach(SLOT, Port(0), Backend::Net(stream_net(&files.0))).unwrap();
        let (peer, _) = files.1.accept().unwrap();
        let mut slot = slot(&gate);
        let queues: Vec<Driver> = (0..=u64::from(CONTROL))
            .map(|queue| Driver::new(&memory, 0x1_0000 + 0x4000 * queue))
            .collect();
        for (index, queue) in (0..).zip(&queues) {
            queue.install(&mut slot, index);
        }
        slot.driver_ok(VERSION_1 | CTRL_VQ | MQ).unwrap();
        Self { memory, gate, authority, slot, queues, peer, rooms: 0, files }
    }

    fn alone() -> Self {
        let mut pairs = Self::new();
        pairs.gate.run_alone(pairs.authority.alone(Term(1)));
        pairs
    }

    /// Asks the device for this many pairs. Returns its answer.
    fn ask(&mut self, pairs: u8) -> u8 {
        self.memory.write_slice(&[4, 0, pairs, 0, 0xaa], GuestAddress(COMMAND)).unwrap();
        self.queues[usize::from(CONTROL)]
            .add(&[(COMMAND, 2), (COMMAND + 2, 2)], &[(COMMAND + 4, 1)]);
        assert!(self.slot.kick(CONTROL).used);
        assert_eq!(self.queues[usize::from(CONTROL)].used().len(), 1);
        self.memory.read_obj(GuestAddress(COMMAND + 4)).unwrap()
    }

    fn room(&mut self, queue: usize, count: usize) {
        for _ in 0..count {
            self.queues[queue].add(&[], &[(ROOMS + 0x1000 * self.rooms, 2048)]);
            self.rooms += 1;
        }
    }

    fn take_input(&mut self) {
        wait_readable(self.gate.inputs_fd());
        for (_, port) in self.gate.ready_inputs() {
            let _ = self.slot.intake(port);
        }
    }
}

/// A frame of UDP over IPv4 with this source port.
fn udp(port: u8) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[35] = port;
    frame
}

#[test]
fn flows_come_in_on_the_pairs_that_were_asked_for() {
    let mut net = Pairs::alone();
    assert_eq!(net.ask(PAIRS as u8 + 1), 1, "there are not so many");
    for (pairs, both) in [(0, false), (2, true), (1, false)] {
        if pairs > 0 {
            assert_eq!(net.ask(pairs), 0);
        }
        net.room(0, 16);
        net.room(2, if both || pairs == 0 { 16 } else { 0 });
        let (mut first, mut second) = (0, 0);
        for port in 0..16 {
            write_frame(&mut net.peer, &udp(port));
        }
        while first + second < 16 {
            net.take_input();
            first += net.queues[0].used().len();
            second += net.queues[2].used().len();
        }
        assert_eq!(second > 0, both, "{first} and {second} with {pairs} pairs");
        assert!(first > 0);
        // Start the next round with a new machine.
        net = Pairs::alone();
    }
}

/// A frame whose queue has no room waits. When the driver no longer uses that queue, the frame goes
/// to another one.
#[test]
fn a_frame_for_a_queue_that_is_given_up_goes_to_another() {
    let mut net = Pairs::alone();
    assert_eq!(net.ask(2), 0);
    net.room(0, 16);
    for port in 0..16 {
        write_frame(&mut net.peer, &udp(port));
    }
    net.take_input();
    let before = net.queues[0].used().len();
    assert!(before < 16, "one is for the other queue, which has no room");
    let saved = net.slot.save();
    assert_eq!(saved.pending_input.len(), 1);
    net.slot = slot(&net.gate);
    net.slot.restore(&saved).unwrap();
    assert_eq!(net.ask(1), 0);
    let mut taken = before + net.queues[0].used().len();
    assert!(taken > before, "the frame that waited");
    while taken < 16 {
        net.take_input();
        taken += net.queues[0].used().len();
    }
    assert_eq!(net.queues[2].used(), []);
    drop(net.files);
}

/// A chain returns on its own queue.
#[test]
fn frames_leave_by_every_pair() {
    let mut net = Pairs::alone();
    assert_eq!(net.ask(2), 0);
    net.memory.write_slice(&[7; 100], GuestAddress(FRAME + HEADER as u64)).unwrap();
    for queue in [3, 1] {
        net.queues[usize::from(queue)].add(&[(FRAME, HEADER as u32 + 100)], &[]);
        let _ = net.slot.kick(queue);
        assert_eq!(read_frame(&mut net.peer), [7; 100]);
        assert!(complete(&net.gate, &mut net.slot, 1).used);
        assert_eq!(net.queues[usize::from(queue)].used().len(), 1);
    }
    assert_eq!(net.gate.counts().performed, 2);
}
