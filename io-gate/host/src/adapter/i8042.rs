//! vm-superio's keyboard controller. It has no keyboard, only the reset line of PCs.

use io_gate::{Identity, StateError};
use vm_superio::I8042Device;

use super::{Adapter, Foreign, Line, Wires};

/// A keyboard controller at ports 0x60 (offset 0) to 0x64 (offset 4). Writing 0xfe to the last one
/// resets the machine. The reset is an effect and is held until it is committed.
pub type I8042 = Adapter<Controller>;

/// The controller. Its only state is that of its wire.
pub struct Controller(I8042Device<Line>);

impl Foreign for Controller {
    const IDENTITY: Identity = Identity { kind: "i8042", virtio_id: 0, state_version: 1 };

    type State = ();

    fn power_on(wires: &Wires) -> Self {
        Self(I8042Device::new(wires.reset.clone()))
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) {
        into.fill(0);
        if let (Some(first), Ok(offset)) = (into.first_mut(), u8::try_from(offset)) {
            *first = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        let (Some(first), Ok(offset)) = (from.first(), u8::try_from(offset)) else { return };
        match self.0.write(offset, *first) {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    fn intake(&mut self, data: &[u8]) -> usize {
        data.len()
    }

    fn save(&self) {}

    fn restore((): (), wires: &Wires) -> Result<Self, StateError> {
        Ok(Self::power_on(wires))
    }
}

#[cfg(test)]
mod tests {
    use io_gate::host::{EffectOp, Request, new_gate};
    use io_gate::{PowerEvent, RegisterDevice};

    use super::*;

    /// The requests that result from a write to the device.
    fn asked(offset: u64, bytes: &[u8]) -> Vec<Request> {
        let (mut ledger, _authority) = new_gate();
        let mut device = I8042::new();
        ledger.detached_session(2, |gate| device.write(offset, bytes, gate));
        ledger.seal();
        ledger.in_flight().into_iter().map(|record| record.request).collect()
    }

    #[test]
    fn the_pulse_command_resets_and_no_other() {
        for (offset, bytes) in [(4, &[0xd1][..]), (4, &[]), (0, &[0xfe]), (260, &[0xfe])] {
            assert_eq!(asked(offset, bytes), [], "{bytes:?} at {offset}");
        }
        let reset = Request::Effect(EffectOp::Power(PowerEvent::Reset));
        assert_eq!(asked(4, &[0xfe]), [reset]);
    }
}
