//! Changed saved states, made from a valid one. A device must refuse an invalid one.

use io_gate::{SavedState, StateError};
use serde_json::{Value, json};

use crate::violation::{Rule, Violation};

/// The two methods under test.
pub(crate) trait Stateful {
    fn save(&self) -> SavedState;
    fn restore(&mut self, state: &SavedState) -> Result<(), StateError>;
}

/// A changed state, and whether every device must refuse it.
struct Spoiled {
    how: String,
    state: SavedState,
    always_wrong: bool,
}

/// Restores `device` from each changed form of its state. If the device accepts one, it must save
/// the same state again, and `go_on` checks that a device can continue from it: a state comes from
/// an untrusted peer.
pub(crate) fn check(
    device: &mut dyn Stateful,
    go_on: impl Fn(&SavedState) -> Result<(), Violation>,
) -> Result<(), Violation> {
    let good = device.save();
    for Spoiled { how, state, always_wrong } in spoil(&good) {
        match device.restore(&state) {
            Err(_) if device.save() == good => {}
            Err(_) => {
                return Rule::UnchangedByRefusal.broken(format!("{how}: refused, but changed"));
            }
            Ok(()) if always_wrong => return Rule::StateRefused.broken(format!("{how}: accepted")),
            Ok(()) if device.save() == state => {
                if let Err(Violation { seen, .. }) = go_on(&state) {
                    return Rule::StateRefused.broken(format!("{how}: accepted, and then {seen}"));
                }
            }
            Ok(()) => {
                return Rule::StateRefused.broken(format!("{how}: accepted as another value"));
            }
        }
        if device.restore(&good).is_err() || device.save() != good {
            return Rule::RoundTrip.broken(format!("after {how}: the good state was not restored"));
        }
    }
    Ok(())
}

fn spoil(good: &SavedState) -> Vec<Spoiled> {
    let document = json!(good);
    let fields = document["fields"].as_array().cloned().unwrap_or_default();
    let mut all = vec![
        with(&document, "another kind", true, |d| d["kind"] = json!("something-else")),
        with(&document, "a later version", true, |d| d["version"] = json!(0xffff)),
        with(&document, "an earlier version", true, |d| {
            d["version"] = json!(good.version().wrapping_sub(1));
        }),
        with(&document, "a left-over field", true, |d| {
            if let Some(fields) = d["fields"].as_array_mut() {
                fields.push(json!(["left-over", { "Number": 0 }]));
            }
        }),
    ];
    for (index, field) in fields.iter().enumerate() {
        let name = field[0].as_str().unwrap_or_default();
        let set = |value: Value| move |d: &mut Value| d["fields"][index][1] = value;
        all.push(with(&document, &format!("`{name}` missing"), true, |d| {
            if let Some(fields) = d["fields"].as_array_mut() {
                fields.remove(index);
            }
        }));
        all.push(with(&document, &format!("`{name}` twice"), true, |d| {
            if let Some(fields) = d["fields"].as_array_mut() {
                fields.push(field.clone());
            }
        }));
        if let Some(number) = field[1]["Number"].as_u64() {
            let other = set(json!({ "Bytes": [1, 2, 3] }));
            all.push(with(&document, &format!("`{name}` as bytes"), true, other));
            for value in [0, 1, number ^ 1, number.wrapping_add(1), 0xff, 0xffff_ffff, u64::MAX] {
                let how = format!("`{name}` = {value:#x}");
                all.push(with(&document, &how, false, set(json!({ "Number": value }))));
            }
        } else {
            let bytes = field[1]["Bytes"].as_array().cloned().unwrap_or_default();
            let number = set(json!({ "Number": 7 }));
            all.push(with(&document, &format!("`{name}` as a number"), true, number));
            let longer: Vec<Value> = bytes.iter().cloned().chain([json!(0xff)]).collect();
            let shorter: Vec<Value> = bytes.iter().skip(1).cloned().collect();
            let long = vec![json!(0xa5); 70_000];
            let sizes = [
                ("longer", longer),
                ("shorter", shorter),
                ("empty", vec![]),
                ("70000 bytes", long),
            ];
            for (size, bytes) in sizes {
                let how = format!("`{name}` {size}");
                all.push(with(&document, &how, false, set(json!({ "Bytes": bytes }))));
            }
        }
    }
    all.into_iter().filter(|spoiled| spoiled.state != *good).collect()
}

fn with(good: &Value, how: &str, always_wrong: bool, change: impl FnOnce(&mut Value)) -> Spoiled {
    let mut document = good.clone();
    change(&mut document);
    let state =
        serde_json::from_value(document).expect("it has the shape of the one it was made from");
    Spoiled { how: how.to_owned(), state, always_wrong }
}
