//! A machine with a network interface, and its peer on a socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use devices::NetConfig;
use io_gate::Port;
use io_gate::host::{CommitAuthority, Term, new_gate};
use io_gate_host::backend::net::Net;
use io_gate_host::{Backend, Fence, GateHost, GateOptions, GuestMemory, Unfenced, VirtioSlot};
use vm_memory::{Bytes, GuestAddress};

use super::{Driver, SLOT, VERSION_1, complete_sent, guest_memory, wait_readable};

pub const HEADER: usize = 12;
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
pub const RECEIVE: u16 = 0;
pub const TRANSMIT: u16 = 1;
pub const BUFFERS: u64 = 0x100_000;
pub const BUFFER: u64 = 0x12_000;

pub struct NetMachine {
    pub memory: Arc<GuestMemory>,
    pub gate: Arc<GateHost>,
    pub authority: CommitAuthority,
    pub slot: VirtioSlot,
    pub receive: Driver,
    pub transmit: Driver,
    pub buffers: u64,
}

impl NetMachine {
    pub fn new(net: Net) -> Self {
        Self::fenced(net, Arc::new(Unfenced))
    }

    pub fn fenced(net: Net, fence: Arc<dyn Fence>) -> Self {
        Self::with(net, fence, VERSION_1)
    }

    /// A machine whose driver has accepted these features.
    pub fn with(net: Net, fence: Arc<dyn Fence>, features: u64) -> Self {
        let memory = guest_memory();
        let (ledger, authority) = new_gate();
        let gate = GateHost::new(ledger, memory.clone(), fence, GateOptions::default()).unwrap();
        let config = NetConfig { mac: net.mac(), offloads: net.has_offloads(), pairs: 1 };
        gate.attach(SLOT, Port(0), Backend::Net(net)).unwrap();
        let mut slot = VirtioSlot::new(SLOT, Box::new(devices::Net::new(config)), gate.clone());
        let receive = Driver::new(&memory, 0x1000);
        let transmit = Driver::new(&memory, 0x8000);
        receive.install(&mut slot, RECEIVE);
        transmit.install(&mut slot, TRANSMIT);
        slot.driver_ok(features).unwrap();
        Self { memory, gate, authority, slot, receive, transmit, buffers: 0 }
    }

    pub fn alone(net: Net) -> Self {
        let mut machine = Self::new(net);
        machine.gate.run_alone(machine.authority.alone(Term(1)));
        machine
    }

    pub fn buffer(&mut self) -> u64 {
        self.buffers += 1;
        BUFFERS + BUFFER * (self.buffers % 24)
    }

    /// Makes a frame available for sending, in two pieces.
    pub fn offer(&mut self, frame: &[u8]) -> u64 {
        let at = self.buffer();
        self.memory.write_slice(&[0; HEADER], GuestAddress(at)).unwrap();
        self.memory.write_slice(frame, GuestAddress(at + HEADER as u64)).unwrap();
        self.transmit.add(&[(at, HEADER as u32), (at + HEADER as u64, frame.len() as u32)], &[]);
        at
    }

    /// Makes a buffer for a received frame available.
    pub fn room(&mut self, len: u32) -> u64 {
        let at = self.buffer();
        self.receive.add(&[], &[(at, len)]);
        at
    }

    /// Notifies the device of the offered frames, waits for the lane, and gives its completions to
    /// the slot. Returns whether chains returned.
    pub fn send(&mut self) -> bool {
        let raised = self.slot.kick(TRANSMIT);
        raised.or(complete_sent(&self.gate, &mut self.slot)).used
    }

    /// Waits for input and lets the slot take it. Returns whether chains returned.
    pub fn take_input(&mut self) -> bool {
        wait_readable(self.gate.inputs_fd());
        let mut used = false;
        for (slot, port) in self.gate.ready_inputs() {
            assert_eq!((slot, port), (SLOT, Port(0)));
            used |= self.slot.intake(port).used;
        }
        used
    }
}

pub fn listen() -> (tempfile::TempDir, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("net")).unwrap();
    (dir, listener)
}

pub fn stream_net(dir: &tempfile::TempDir) -> Net {
    Net::stream(&dir.path().join("net"), MAC).unwrap()
}

pub fn read_frame(peer: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; 4];
    peer.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

pub fn write_frame(peer: &mut UnixStream, frame: &[u8]) {
    peer.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    peer.write_all(frame).unwrap();
}
