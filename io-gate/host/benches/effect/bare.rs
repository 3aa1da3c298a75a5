//! The same requests without a gate, on one thread: walks the chains, writes the bytes to the same
//! sink, and gives the chains back.

use std::fs::File;
use std::hint::black_box;
use std::io::{IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::gated::Peer;
use crate::guest::{AVAILABLE, DESCRIPTORS, Guest, Kind, QUEUE_SIZE, USED};
use crate::{Spent, spent};

enum Sink {
    Disk(File),
    Net(UnixStream, Peer),
    Nothing,
}

/// A machine without a gate; see the module.
pub(crate) struct Bare {
    guest: Guest,
    queue: Queue,
    kind: Kind,
    sink: Sink,
    buffer: Vec<u8>,
}

impl Bare {
    pub(crate) fn new(kind: Kind, size: usize) -> Self {
        let guest = Guest::new(kind, size);
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        let sink = match kind {
            Kind::Block => Sink::Disk(tempfile::tempfile_in("/dev/shm").unwrap()),
            Kind::Network => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                Sink::Net(ours, Peer::new(theirs))
            }
            Kind::Console => Sink::Nothing,
        };
        Self { guest, queue, kind, sink, buffer: vec![0; size] }
    }

    pub(crate) fn batch(&mut self) -> Spent {
        let spent = spent(|| {
            self.guest.offer();
            self.run();
        });
        self.guest.assert_done();
        if let Sink::Net(_, peer) = &mut self.sink {
            peer.drain();
        }
        spent
    }

    fn run(&mut self) {
        let memory = &*self.guest.memory;
        while let Some(chain) = self.queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            let mut sector = 0_u64;
            let mut status = None;
            let mut header = self.kind.header() > 0;
            for descriptor in chain {
                if descriptor.is_write_only() {
                    status = Some(descriptor.addr());
                } else if std::mem::take(&mut header) {
                    if self.kind == Kind::Block {
                        let at = GuestAddress(descriptor.addr().0 + 8);
                        sector = u64::from_le(memory.read_obj(at).unwrap());
                    }
                } else {
                    memory.read_slice(&mut self.buffer, descriptor.addr()).unwrap();
                }
            }
            match &mut self.sink {
                Sink::Disk(file) => file.write_all_at(&self.buffer, 512 * sector).unwrap(),
                Sink::Net(socket, _) => {
                    let prefix = (self.buffer.len() as u32).to_be_bytes();
                    let frame = [IoSlice::new(&prefix), IoSlice::new(&self.buffer)];
                    assert_eq!(socket.write_vectored(&frame).unwrap(), 4 + self.buffer.len());
                }
                Sink::Nothing => {
                    black_box(&self.buffer);
                }
            }
            if let Some(status) = status {
                memory.write_obj(0_u8, status).unwrap();
            }
            self.queue.add_used(memory, head, 0).unwrap();
        }
    }
}
