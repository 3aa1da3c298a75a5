//! Tests the saved state of each device: two hosts of one release exchange it.
//!
//! If a line here differs, the layout is a new one: raise the device's `state_version`, and then
//! change the line.

use io_gate::{Device, RegisterDevice, SavedState};
use kemari_devices::{
    Beeper, Block, BlockConfig, Console, E1000, Entropy, Net, NetConfig, PowerControl,
};

fn virtio(mut device: impl Device) -> SavedState {
    device.activate(device.features());
    device.save()
}

#[test]
fn the_names_and_values_are_those_of_the_version() {
    let serial = b"disk".to_vec();
    let block = Block::new(BlockConfig { sectors: 1000, read_only: true, serial, queues: 2 });
    let net = Net::new(NetConfig { mac: [2, 0, 0, 0, 0, 1], offloads: true, pairs: 4 });
    for (saved, expected) in [
        (
            virtio(Beeper::new()),
            r#"SavedState { kind: "beeper", version: 2, fields: [("count", Number(0))] }"#,
        ),
        (
            virtio(Console::new()),
            r#"SavedState { kind: "virtio-console", version: 2, fields: [] }"#,
        ),
        (virtio(Entropy::new()), r#"SavedState { kind: "virtio-rng", version: 2, fields: [] }"#),
        (
            virtio(block),
            r#"SavedState { kind: "virtio-blk", version: 2, fields: [("sectors", Number(1000)), ("read_only", Number(1)), ("serial", Bytes([100, 105, 115, 107])), ("queues", Number(2)), ("features", Number(4710))] }"#,
        ),
        (
            virtio(net),
            r#"SavedState { kind: "virtio-net", version: 3, fields: [("mac", Bytes([2, 0, 0, 0, 0, 1])), ("pairs", Number(4)), ("pairs_in_use", Number(1)), ("features", Number(4438947))] }"#,
        ),
        (
            PowerControl::new().save(),
            r#"SavedState { kind: "acpi-power", version: 2, fields: [("status", Number(0)), ("enable", Number(0)), ("control", Number(0))] }"#,
        ),
    ] {
        assert_eq!(format!("{saved:?}"), expected);
    }
}

/// A card's state has some hundred words: the test compares their hash.
#[test]
fn the_state_of_a_card_is_that_of_its_version() {
    let saved = format!("{:?}", E1000::new([2, 0, 0, 0, 0, 1]).save());
    // FNV-1a.
    let sum = saved.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let names: Vec<&str> = saved.split('"').skip(3).step_by(2).collect();
    assert_eq!(
        (names.join(" ").as_str(), sum),
        (
            "mac registers statistics phy mdic eecd eerd eeprom_command eeprom_received eeprom_sent tx_packet \
         tx_begun tx_spoiled tx_insert tx_segmented tx_contexts causes mask io_address",
            0x5742_c211_5159_4d78
        )
    );
}
