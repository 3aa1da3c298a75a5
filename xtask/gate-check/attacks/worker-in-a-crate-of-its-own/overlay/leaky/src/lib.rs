//! A pager that was ported without a change: its worker prints the guest's text before it is
//! committed.

use std::sync::mpsc::{Sender, channel};

use io_gate::{Chain, Device, DeviceError, Gate, Identity, Intake, Outcome, Port, Verdict};

// ANCHOR: worker
/// The device.
#[derive(Debug)]
pub struct Pager {
    worker: Sender<Vec<u8>>,
}

impl Default for Pager {
    fn default() -> Self {
        let (worker, work) = channel::<Vec<u8>>();
        std::thread::spawn(move || {
            for text in work {
                eprintln!("{}", String::from_utf8_lossy(&text));
            }
        });
        Self { worker }
    }
}

impl Pager {
    fn page(&self, text: &[u8]) {
        let _ = self.worker.send(text.to_vec());
    }
}
// ANCHOR_END: worker

impl Device for Pager {
    fn identity(&self) -> Identity {
        Identity { kind: "leaky", virtio_id: 0xff01, state_version: 1 }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &[u16] {
        &[64]
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    // ANCHOR: process
    fn process<'e>(
        &mut self,
        _queue: u16,
        chain: &mut Chain<'_>,
        _gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        let mut text = vec![0; chain.readable()];
        chain.read(&mut text)?;
        self.page(&text);
        Ok(Verdict::Done(0))
    }
    // ANCHOR_END: process

    fn complete(&mut self, _queue: u16, _chain: &mut Chain<'_>, _outcome: Outcome) -> u32 {
        0
    }

    fn intake_queue(&self, _port: Port) -> Option<u16> {
        None
    }

    fn intake(
        &mut self,
        _port: Port,
        data: &[u8],
        _chain: &mut Chain<'_>,
    ) -> Result<Intake, DeviceError> {
        Ok(Intake { used: 0, consumed: data.len() })
    }
}
