//! The requests on the product's path: a slot, a device, the gate, a lane, a backend.

use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use devices::{Block, BlockConfig, NetConfig};
use io_gate::host::{CommitAuthority, Term, new_gate};
use io_gate::{Device, Port};
use io_gate_host::backend::console::Console;
use io_gate_host::backend::disk::{Disk, DiskOptions};
use io_gate_host::backend::net::Net;
use io_gate_host::{Backend, GateHost, GateOptions, Unfenced, VirtioSlot};
use tempfile::TempDir;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::guest::{AVAILABLE, BATCH, DESCRIPTORS, Guest, Kind, QUEUE_SIZE, USED};
use crate::{Spent, spent};

const SLOT: u16 = 1;
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const VERSION_1: u64 = 1 << 32;
/// Longer than any batch takes, in milliseconds.
const PATIENCE_MS: i32 = 10_000;

/// The other end of a network. It is emptied between batches.
pub(crate) struct Peer {
    socket: UnixStream,
    buffer: Vec<u8>,
}

impl Peer {
    pub(crate) fn new(socket: UnixStream) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self { socket, buffer: vec![0; 1 << 20] }
    }

    pub(crate) fn drain(&mut self) {
        loop {
            match self.socket.read(&mut self.buffer) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A machine with the gate; see the module.
pub(crate) struct Gated {
    kind: Kind,
    guest: Guest,
    gate: Arc<GateHost>,
    authority: CommitAuthority,
    slot: VirtioSlot,
    completions: Epoll,
    peer: Option<Peer>,
}

impl Gated {
    /// With fault tolerance: each batch is an epoch, which is acknowledged at once.
    pub(crate) fn holding(kind: Kind, size: usize) -> Self {
        let guest = Guest::new(kind, size);
        let (ledger, authority) = new_gate();
        let gate =
            GateHost::new(ledger, guest.memory.clone(), Arc::new(Unfenced), GateOptions::default())
                .unwrap();
        let (device, backend, listener) = behind(kind);
        gate.attach(SLOT, Port(0), backend).unwrap();
        // Attaching the backend has connected it.
        let peer = listener.map(|(listener, _directory)| Peer::new(listener.accept().unwrap().0));
        let mut slot = VirtioSlot::new(SLOT, device, gate.clone());
        let queue = kind.queue();
        slot.set_queue_size(queue, QUEUE_SIZE);
        slot.set_queue_desc(queue, Some(DESCRIPTORS as u32), Some(0));
        slot.set_queue_avail(queue, Some(AVAILABLE as u32), Some(0));
        slot.set_queue_used(queue, Some(USED as u32), Some(0));
        slot.set_queue_ready(queue, true);
        slot.driver_ok(VERSION_1).unwrap();
        let completions = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        let fd = gate.completions_event().as_raw_fd();
        completions.ctl(ControlOperation::Add, fd, event).unwrap();
        Self { kind, guest, gate, authority, slot, completions, peer }
    }

    /// Without fault tolerance: the gate is open.
    pub(crate) fn open(kind: Kind, size: usize) -> Self {
        let mut gated = Self::holding(kind, size);
        gated.gate.run_alone(gated.authority.alone(Term(1)));
        gated
    }

    pub(crate) fn batch(&mut self) -> Spent {
        let spent = spent(|| {
            self.guest.offer();
            let _ = self.slot.kick(self.kind.queue());
            if self.gate.holds() {
                let epoch = self.gate.seal().epoch;
                self.gate.release(self.authority.acknowledged(epoch));
            }
            self.complete();
        });
        self.guest.assert_done();
        if let Some(peer) = &mut self.peer {
            peer.drain();
            assert_eq!(self.gate.dropped_frames(), 0, "frames that found no room");
        }
        if self.kind == Kind::Block {
            self.guest.assert_succeeded();
        }
        spent
    }

    fn complete(&mut self) {
        let mut left = usize::from(BATCH);
        while left > 0 {
            let mut events = [EpollEvent::default()];
            let ready = self.completions.wait(PATIENCE_MS, &mut events).unwrap();
            assert_eq!(ready, 1, "nothing was completed in {PATIENCE_MS} ms");
            let done = self.gate.take_completions();
            left -= done.len();
            let _ = self.slot.complete_all(done);
        }
    }
}

/// A device, its backend, and the listener to which the backend will connect.
fn behind(kind: Kind) -> (Box<dyn Device>, Backend, Option<(UnixListener, TempDir)>) {
    match kind {
        Kind::Block => {
            // The image is in memory: the path to the sink is measured, and not the sink.
            let image = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
            image.as_file().set_len(1 << 20).unwrap();
            let disk = Disk::open(image.path(), DiskOptions::default()).unwrap();
            let config = BlockConfig {
                sectors: disk.sectors(),
                read_only: false,
                serial: b"bench".to_vec(),
                queues: 1,
            };
            (Box::new(Block::new(config)), Backend::Disk(disk), None)
        }
        Kind::Network => {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("net");
            let listener = UnixListener::bind(&path).unwrap();
            let net = Net::stream(&path, MAC).unwrap();
            let config = NetConfig { mac: MAC, offloads: false, pairs: 1 };
            (Box::new(devices::Net::new(config)), Backend::Net(net), Some((listener, directory)))
        }
        Kind::Console => {
            (Box::new(devices::Console::new()), Backend::Console(Console::none()), None)
        }
    }
}
