//! What a chain lends is the driver's again when the chain is completed: bytes kept for later would
//! be other bytes by then.

use io_gate::{Chain, ChainError, Payload};

pub struct Sampler {
    frame: Option<Payload<'static>>,
}

impl Sampler {
    pub fn process(&mut self, chain: &mut Chain<'_>) -> Result<(), ChainError> {
        self.frame = Some(chain.take_payload(64)?);
        Ok(())
    }
}

fn main() {}
