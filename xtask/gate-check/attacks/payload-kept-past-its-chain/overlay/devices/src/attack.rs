//! Sends a buffer after its return to the driver, with the content that it has then.

use io_gate::{Chain, ChainError, Payload};

pub(crate) struct Sampler {
    frame: Option<Payload<'static>>,
}

impl Sampler {
    pub(crate) fn process(&mut self, chain: &mut Chain<'_>) -> Result<(), ChainError> {
        self.frame = Some(chain.take_payload(64)?);
        Ok(())
    }
}
