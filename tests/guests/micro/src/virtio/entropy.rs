//! The entropy device (virtio 1.2, section 5.4).

use crate::memory;
use crate::virtio::queue::{Part, Queue};
use crate::virtio::transport::Transport;

/// The device ID.
pub const DEVICE_ID: u32 = 4;

/// The source of random numbers.
pub struct Entropy {
    queue: Queue,
    buffer: &'static mut [u8; 8],
}

impl Entropy {
    /// Starts the device.
    pub fn start(transport: Transport) -> Self {
        transport.negotiate(0);
        let queue = Queue::new(transport, 0, 8);
        transport.start();
        Self { queue, buffer: memory::allocate() }
    }

    /// A random number. Waits for the device.
    pub fn number(&mut self) -> u64 {
        let part = Part { address: self.buffer.as_ptr() as u64, length: 8, writable: true };
        self.queue.offer(0, &[part]);
        self.queue.notify();
        while self.queue.take_used().is_none() {
            core::hint::spin_loop();
        }
        // SAFETY: our buffer, which the device has written; volatile, because the compiler does not
        // see that write.
        u64::from_le_bytes(unsafe { (&raw const *self.buffer).read_volatile() })
    }
}
