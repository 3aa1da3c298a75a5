//! The console device (virtio 1.2, section 5.3), with one port.

use crate::memory::{self, Zeroed};
use crate::virtio::queue::{Part, Queue};
use crate::virtio::transport::Transport;
use core::fmt;

/// The device ID.
pub const DEVICE_ID: u32 = 3;

const BUFFER_LEN: usize = 128;
const RECEIVE_BUFFERS: usize = 4;
const TRANSMIT_BUFFERS: usize = 64;

#[repr(C, align(64))]
struct Buffer([u8; BUFFER_LEN]);

// SAFETY: integers only.
unsafe impl Zeroed for Buffer {}

/// The driver of a virtio console: its two queues, and the buffers in them.
pub struct Console {
    receive: Queue,
    transmit: Queue,
    received: &'static mut [Buffer; RECEIVE_BUFFERS],
    sent: &'static mut [Buffer; TRANSMIT_BUFFERS],
    free: [bool; TRANSMIT_BUFFERS],
}

impl Console {
    /// Starts the device.
    pub fn start(transport: Transport) -> Self {
        transport.negotiate(0);
        let receive = Queue::new(transport, 0, RECEIVE_BUFFERS as u16);
        let transmit = Queue::new(transport, 1, TRANSMIT_BUFFERS as u16);
        let mut free = [false; TRANSMIT_BUFFERS];
        free[..usize::from(transmit.size())].fill(true);
        let mut console = Self {
            receive,
            transmit,
            received: memory::allocate(),
            sent: memory::allocate(),
            free,
        };
        transport.start();
        for number in 0..console.receive.size() {
            console.offer_receive(number);
        }
        console.receive.notify();
        console
    }

    fn offer_receive(&mut self, number: u16) {
        let part = Part {
            address: self.received[usize::from(number)].0.as_ptr() as u64,
            length: BUFFER_LEN as u32,
            writable: true,
        };
        self.receive.offer(number, &[part]);
    }

    /// Echoes typed bytes. Returns whether there were any.
    pub fn poll(&mut self) -> bool {
        let Some((number, length)) = self.receive.take_used() else {
            return false;
        };
        let length = (length as usize).min(BUFFER_LEN);
        let mut typed = [0; BUFFER_LEN];
        typed[..length].copy_from_slice(&self.received[usize::from(number)].0[..length]);
        self.offer_receive(number);
        self.receive.notify();
        self.write(&typed[..length]);
        true
    }

    /// Writes `text`. Waits for free buffers, because a mark must not be lost.
    pub fn write(&mut self, text: &[u8]) {
        for piece in text.chunks(BUFFER_LEN) {
            let number = self.free_buffer();
            let buffer = &mut self.sent[number].0;
            buffer[..piece.len()].copy_from_slice(piece);
            let part = Part {
                address: buffer.as_ptr() as u64,
                length: piece.len() as u32,
                writable: false,
            };
            self.free[number] = false;
            self.transmit.offer(number as u16, &[part]);
            self.transmit.notify();
        }
    }

    fn free_buffer(&mut self) -> usize {
        loop {
            while let Some((number, _)) = self.transmit.take_used() {
                let number = usize::from(number);
                assert!(
                    !self.free[number],
                    "the console completed a write that was not made: {number}"
                );
                self.free[number] = true;
            }
            if let Some(number) = self.free.iter().position(|&free| free) {
                return number;
            }
            core::hint::spin_loop();
        }
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}
