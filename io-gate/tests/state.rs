//! Saved states: each field is restored with its type, and a value that does not fit is refused.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use io_gate::{Bytes, Identity, SavedState, StateError, saved_state};
use serde::{Deserialize, Serialize};

const CARD: Identity = Identity { kind: "card", virtio_id: 0, state_version: 3 };

saved_state! {
    #[derive(Clone, Debug, PartialEq)]
    struct Card {
        narrow: u8,
        half: u16,
        word: u32,
        wide: u64,
        on: bool,
        address: [u8; 6],
        table: [u32; 2],
        packet: Bytes<4>,
        r#match: u8,
    }
}

fn card() -> Card {
    Card {
        narrow: 0xff,
        half: 0xffff,
        word: 0xffff_ffff,
        wide: u64::MAX,
        on: true,
        address: [1, 2, 3, 4, 5, 6],
        table: [0x0403_0201, 5],
        packet: Bytes(vec![7, 8]),
        r#match: 9,
    }
}

/// The encoding of a saved state. A change here changes the layout of every device's state.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Encoded {
    kind: String,
    version: u16,
    fields: Vec<(String, Value)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}
use Value::{Bytes as Raw, Number};

fn encoded(saved: &SavedState) -> Encoded {
    postcard::from_bytes(&postcard::to_allocvec(saved).unwrap()).unwrap()
}

/// The card's state with one field's value replaced.
fn with(field: &str, value: Value) -> Result<Card, StateError> {
    let mut state = encoded(&SavedState::of(&CARD, &card()));
    state.fields.iter_mut().find(|(name, _)| name == field).unwrap().1 = value;
    let bytes = postcard::to_allocvec(&state).unwrap();
    postcard::from_bytes::<SavedState>(&bytes).unwrap().open(&CARD)
}

#[test]
fn the_encoding_is_names_with_numbers_and_bytes() {
    let saved = SavedState::of(&CARD, &card());
    let fields = [
        ("narrow", Number(0xff)),
        ("half", Number(0xffff)),
        ("word", Number(0xffff_ffff)),
        ("wide", Number(u64::MAX)),
        ("on", Number(1)),
        ("address", Raw(vec![1, 2, 3, 4, 5, 6])),
        ("table", Raw(vec![1, 2, 3, 4, 5, 0, 0, 0])),
        ("packet", Raw(vec![7, 8])),
        ("match", Number(9)),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value)).to_vec();
    assert_eq!(encoded(&saved), Encoded { kind: "card".to_owned(), version: 3, fields });
    assert_eq!(saved.open(&CARD), Ok(card()));
}

#[test]
fn a_value_out_of_its_types_range_is_refused() {
    for (field, number, expected) in [
        ("narrow", 0x100, "a number of 8 bits"),
        ("half", 0x1_0000, "a number of 16 bits"),
        ("word", 0x1_0000_0000, "a number of 32 bits"),
        ("on", 2, "0 or 1"),
    ] {
        let refused = with(field, Number(number));
        let (kind, found) = ("card".to_owned(), number);
        assert_eq!(refused, Err(StateError::Number { kind, field, expected, found }));
    }
    for (field, len) in [("address", 5), ("address", 7), ("table", 7), ("table", 12), ("packet", 5)]
    {
        let refused = with(field, Raw(vec![0; len]));
        assert!(matches!(refused, Err(StateError::Invalid { .. })), "{field}: {refused:?}");
    }
    let most = with("packet", Raw(vec![1, 2, 3, 4])).unwrap();
    assert_eq!(most.packet, Bytes(vec![1, 2, 3, 4]));
    for field in ["narrow", "wide", "on"] {
        let refused = with(field, Raw(vec![1]));
        assert!(matches!(refused, Err(StateError::Invalid { .. })), "{field}: {refused:?}");
    }
    for field in ["address", "table", "packet"] {
        let refused = with(field, Number(1));
        assert!(matches!(refused, Err(StateError::Invalid { .. })), "{field}: {refused:?}");
    }
}

/// Fails if `open` ignores a field that the device does not know, or makes up a missing one.
#[test]
fn a_field_that_is_missing_or_left_over_is_refused() {
    saved_state! {
        struct More { on: bool, speed: u32 }
    }
    saved_state! {
        #[derive(Debug, PartialEq)]
        struct Less { on: bool }
    }
    let more = SavedState::of(&CARD, &More { on: true, speed: 10 });
    let less = SavedState::of(&CARD, &Less { on: true });
    let left = StateError::LeftOver { kind: "card".into(), field: "speed".into() };
    assert_eq!(more.open::<Less>(&CARD), Err(left));
    let missing = StateError::Missing { kind: "card".into(), field: "speed" };
    assert_eq!(less.open::<More>(&CARD).map(|_| ()), Err(missing));
    let twice = SavedState::of(&CARD, &(Less { on: true }, Less { on: false }));
    assert!(matches!(twice.open::<Less>(&CARD), Err(StateError::LeftOver { .. })));
    assert!(more.open::<()>(&CARD).is_err());
}

#[test]
fn a_state_of_another_kind_or_version_is_refused() {
    let saved = SavedState::of(&CARD, &card());
    let other = saved.open::<Card>(&Identity { kind: "disk", ..CARD });
    assert!(matches!(other, Err(StateError::Kind { .. })));
    let newer = saved.open::<Card>(&Identity { state_version: 4, ..CARD });
    assert!(matches!(newer, Err(StateError::Version { expected: 4, found: 3, .. })));
}
