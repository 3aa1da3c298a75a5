//! The network device (virtio 1.2, section 5.1), with one pair of queues and no offloads: each
//! frame contains its checksums.

use crate::memory::{self, Zeroed};
use crate::virtio::queue::{Part, Queue};
use crate::virtio::transport::Transport;

/// The device ID.
pub const DEVICE_ID: u32 = 1;
/// Maximum length of a frame in bytes, without the frame check sequence.
pub const MAX_FRAME: usize = 1514;

/// VIRTIO_NET_F_MAC (5.1.3).
const HAS_MAC: u64 = 1 << 5;
/// Size of `struct virtio_net_hdr` with VERSION_1 (5.1.6). It is all zeros, because no offload is
/// negotiated.
const HEADER: usize = 12;
const BUFFER_LEN: usize = 2048;
const BUFFERS: usize = 128;

#[repr(C, align(64))]
struct Buffer([u8; BUFFER_LEN]);

// SAFETY: integers only.
unsafe impl Zeroed for Buffer {}

type Buffers = &'static mut [Buffer; BUFFERS];

/// The network.
pub struct Net {
    transport: Transport,
    receive: Queue,
    transmit: Queue,
    received: Buffers,
    sent: Buffers,
    free: [bool; BUFFERS],
    in_flight: usize,
    /// The device's hardware address.
    pub mac: [u8; 6],
}

impl Net {
    /// Starts the device.
    pub fn start(transport: Transport) -> Self {
        let features = transport.negotiate(HAS_MAC);
        let mut mac = [0x02, 0, 0, 0, 0, 0x15];
        if features & HAS_MAC != 0 {
            for (offset, byte) in mac.iter_mut().enumerate() {
                *byte = transport.config_u8(offset);
            }
        }
        let receive = Queue::new(transport, 0, BUFFERS as u16);
        let transmit = Queue::new(transport, 1, BUFFERS as u16);
        let mut free = [false; BUFFERS];
        free[..usize::from(transmit.size())].fill(true);
        let mut net = Self {
            transport,
            receive,
            transmit,
            received: memory::allocate(),
            sent: memory::allocate(),
            free,
            in_flight: 0,
            mac,
        };
        transport.start();
        for number in 0..net.receive.size() {
            net.offer_receive(number);
        }
        net.receive.notify();
        net
    }

    fn offer_receive(&mut self, number: u16) {
        let part = Part {
            address: self.received[usize::from(number)].0.as_ptr() as u64,
            length: BUFFER_LEN as u32,
            writable: true,
        };
        self.receive.offer(number, &[part]);
    }

    /// Copies the next received frame to `frame`, and returns its length; `None` if there is none.
    pub fn take_frame(&mut self, frame: &mut [u8; BUFFER_LEN]) -> Option<usize> {
        let (number, length) = self.receive.take_used()?;
        let buffer = &self.received[usize::from(number)].0;
        let length = (length as usize).min(BUFFER_LEN).saturating_sub(HEADER);
        frame[..length].copy_from_slice(&buffer[HEADER..HEADER + length]);
        self.offer_receive(number);
        Some(length)
    }

    /// Sends the frame that `write` puts into a buffer; `write` returns its length. Returns `false`
    /// if no buffer is free or `write` returns 0.
    pub fn send(&mut self, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        self.collect_sent();
        let Some(number) = self.free.iter().position(|&free| free) else {
            return false;
        };
        let buffer = &mut self.sent[number].0;
        buffer[..HEADER].fill(0);
        let length = write(&mut buffer[HEADER..HEADER + MAX_FRAME]);
        if length == 0 {
            return false;
        }
        let part = Part {
            address: buffer.as_ptr() as u64,
            length: (HEADER + length) as u32,
            writable: false,
        };
        self.free[number] = false;
        self.in_flight += 1;
        self.transmit.offer(number as u16, &[part]);
        true
    }

    fn collect_sent(&mut self) {
        while let Some((number, _)) = self.transmit.take_used() {
            let number = usize::from(number);
            assert!(
                !self.free[number],
                "the network completed a frame that was not sent: {number}"
            );
            self.free[number] = true;
            self.in_flight -= 1;
        }
    }

    /// Notifies the device of new buffers and frames.
    pub fn notify(&mut self) {
        self.receive.notify();
        self.transmit.notify();
    }

    /// Whether the device has completed all sent frames.
    pub fn all_sent(&mut self) -> bool {
        self.collect_sent();
        self.in_flight == 0
    }

    /// Enables or disables an interrupt for the next received frame. Returns whether one is already
    /// available.
    pub fn want_interrupts(&mut self, wanted: bool) -> bool {
        self.receive.want_interrupts(wanted);
        self.receive.has_used()
    }

    /// Acknowledges the device's interrupt.
    pub fn acknowledge_interrupt(&self) {
        self.transport.acknowledge_interrupt();
    }
}

/// A buffer for [`Net::take_frame`].
pub const fn frame_buffer() -> [u8; BUFFER_LEN] {
    [0; BUFFER_LEN]
}
