//! The memory that a chain lends belongs to the driver again when the chain is completed: the
//! driver may have changed the bytes that a device kept for later.

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
