//! A device beside the descriptors.

use io_gate::{Chain, Device, DeviceError, Gate, Identity, Intake, Outcome, Port, Verdict};

/// The device.
#[derive(Debug, Default)]
pub struct Pager {
    seen: u64,
}

impl Pager {
    fn page(&mut self, text: &[u8]) {
        self.seen += text.len() as u64;
    }
}

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
