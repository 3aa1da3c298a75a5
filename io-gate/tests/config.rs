//! The configuration space (virtio 1.2, 2.5): a driver reads any part of it, and changes fields by
//! writes.

use io_gate::host::{Ledger, new_gate, write_config};
use io_gate::{
    Chain, ConfigPlace, ConfigSpace, ConfigWrite, Device, DeviceError, Gate, Identity, Verdict,
    Writable, config_space,
};

config_space! {
    struct Space {
        capacity: u64,
        speed: Writable<u32>,
        address: [u8; 2],
        queues: u16,
        on: Writable<bool>,
        unused: u8,
        level: Writable<u16>,
    }
}

/// A device that keeps the values that a driver writes.
#[derive(Debug, Default, PartialEq)]
struct Panel {
    speed: u32,
    on: bool,
    level: u16,
    /// The number of calls of `write_config`.
    calls: u32,
    /// The number of changes of each field.
    changes: [u32; 3],
}

impl Panel {
    fn space(&self) -> Space {
        Space {
            capacity: 0x0807_0605_0403_0201,
            speed: Writable::new(self.speed),
            address: [0xa, 0xb],
            queues: 0x0102,
            on: Writable::new(self.on),
            unused: 0,
            level: Writable::new(self.level),
        }
    }
}

impl Device for Panel {
    fn identity(&self) -> Identity {
        Identity { kind: "panel", virtio_id: 63, state_version: 1 }
    }

    fn queues(&self) -> &[u16] {
        &[]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::of(&self.space())
    }

    fn write_config(&mut self, write: ConfigWrite<'_>, _gate: &mut Gate<'_>) {
        self.calls += 1;
        let Space { speed, on, level, .. } = write.apply(self.space());
        if let Some(speed) = speed.change() {
            self.speed = speed;
            self.changes[0] += 1;
        }
        if let Some(on) = on.change() {
            self.on = on;
            self.changes[1] += 1;
        }
        if let Some(level) = level.change() {
            self.level = level;
            self.changes[2] += 1;
        }
    }

    fn process<'e>(
        &mut self,
        _queue: u16,
        _chain: &mut Chain<'_>,
        _gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        Ok(Verdict::Done(0))
    }
}

/// All bytes of the panel's space, with speed 1 and level 2.
const BYTES: [u8; 20] = [1, 2, 3, 4, 5, 6, 7, 8, 1, 0, 0, 0, 0xa, 0xb, 2, 1, 0, 0, 2, 0];

fn panel() -> Panel {
    Panel { speed: 1, level: 2, ..Panel::default() }
}

fn read(panel: &Panel, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    panel.config().read(offset, &mut bytes);
    bytes
}

fn write(panel: &mut Panel, offset: u64, bytes: &[u8]) {
    let (mut ledger, _authority): (Ledger, _) = new_gate();
    ledger.detached_session(0, |gate| write_config(panel, offset, bytes, gate));
}

#[test]
fn any_part_can_be_read_and_what_is_beyond_reads_as_zero() {
    for offset in 0..=BYTES.len() + 2 {
        for len in 0..=BYTES.len() + 4 {
            let expected: Vec<u8> =
                (offset..offset + len).map(|at| BYTES.get(at).copied().unwrap_or(0)).collect();
            assert_eq!(read(&panel(), offset as u64, len), expected, "{len} at {offset}");
        }
    }
    assert_eq!(read(&panel(), u64::MAX, 4), [0; 4]);
    assert_eq!(read(&panel(), 1 << 32, 4), [0; 4]);
}

#[test]
fn each_field_has_its_place() {
    let space = panel().config();
    let names: Vec<&str> = space.places().iter().map(|place| place.name).collect();
    assert_eq!(names, ["capacity", "speed", "address", "queues", "on", "unused", "level"]);
    let expected = ConfigPlace { name: "level", offset: 18, width: 2, writable: true };
    assert_eq!(space.places().last(), Some(&expected));
    assert!(!space.places()[0].writable);
}

#[test]
fn a_write_changes_the_fields_that_it_covers() {
    let mut device = panel();
    write(&mut device, 8, &[4, 3, 2, 1]);
    assert_eq!((device.speed, device.changes), (0x0102_0304, [1, 0, 0]));
    // A write to a part of a field leaves the field's other bytes.
    write(&mut device, 9, &[0xff, 0xfe]);
    assert_eq!((device.speed, device.changes), (0x01fe_ff04, [2, 0, 0]));
    write(&mut device, 18, &[7]);
    assert_eq!((device.level, device.changes), (7, [2, 0, 1]));
    // One write covers several fields, the bytes between them, and bytes beyond the end.
    write(&mut device, 10, &[9; 20]);
    assert_eq!((device.speed, device.level, device.on), (0x0909_ff04, 0x0909, false));
    assert_eq!(device.changes, [3, 0, 2], "9 is not a switch");
    // Writing the present value is a change, too.
    write(&mut device, 16, &[0]);
    assert_eq!(device.changes, [3, 1, 2]);
    write(&mut device, 16, &[1]);
    assert!(device.on);
    assert_eq!(read(&device, 8, 12), [4, 0xff, 9, 9, 0xa, 0xb, 2, 1, 1, 0, 9, 9]);
}

/// Virtio 1.2, 2.5: the driver may write only to fields for which the specification says so.
#[test]
fn a_write_to_anything_else_does_not_reach_the_device() {
    let mut device = panel();
    for (offset, len) in [(0, 8), (7, 1), (12, 4), (17, 1), (20, 8), (8, 0), (1 << 40, 4)] {
        write(&mut device, offset, &vec![0xff; len]);
    }
    write(&mut device, u64::MAX, &[0xff; 4]);
    assert_eq!(device, panel());
    // A value out of range reaches the device, but is no change.
    write(&mut device, 16, &[2]);
    assert_eq!(device, Panel { calls: 1, ..panel() });
}
